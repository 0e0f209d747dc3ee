#!/usr/bin/env python3
"""Shows that the tests bite: changes the meaning of the code in hundreds of small ways, one at a time, and runs the
tests of what was changed. A mutation that no test notices is a survivor; survivors that change nothing observable are
explained in survivors.txt, every other one makes this script fail.

    tests/mutation/run.py                      everything: an hour or two on two processors
    tests/mutation/run.py native/cpu/sample    files whose path holds one of the texts
    tests/mutation/run.py --list [TEXT...]     the mutations; nothing is built
    tests/mutation/run.py --report             what is known so far, by folder
    tests/mutation/run.py --again [TEXT...]    survivors without an explanation once more, after tests were added

All mutations of the native libraries are compiled into one build, those of the managed library into another, each
behind a switch that reads its number from the environment (RFN_MUTANT), so that a mutation costs no more than the tests
of its op. Verdicts are appended to build/mutation/results.tsv as they come; what has one is not run again, so the
script can be stopped at any time. `--order`: only what orders threads (barriers, __syncwarp, votes, waits of cp.async;
needs the race checker's build); `--meaning`: only the rest. `--per-file N` and `--seed S` choose other mutations,
`--jobs N` how many run at once.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import functools
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading

import mutations as finder  # beside this file

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "mutation"
RESULTS = WORK / "results.tsv"
BINARIES = WORK / "native"
TEXTS = {}  # of the sources, as they were when their mutations were found

# The tests of a native file, by the first pattern that its name matches.
BLOCK = "*ReversibleBlockTest.Forward*"
ATTENTION = "*AttentionOp*:*LshAttentionTest.Stages*:All/AttentionTest.Forward*:*AttentionEdges*:*AttentionWindow*"
MEMORY = "Devices*:Contexts*:Copies*:Buffers*:Events*:Streams*"
NATIVE_TESTS = [
    (r"core/(api|validat|guard|describe|plugin|error|bucket|check)", f"Validation*:Abi*:AutomaticB*:Plugins*:{MEMORY}"),
    (r"core/philox", "Dropout*:RandomNormal*:*Embedding*"),
    (r"core/(workspace|tensor)", "Validation*:*Linear*:*Adafactor*:*FeedForward*:*HeadLoss*"),
    (r"core/block_call|reversible_block", "*ReversibleBlock*:*Kept*:*ReversibleStack*:*BlockRange*"),
    (r"feed_forward", f"*FeedForward*:*Kept*Every*:{BLOCK}:*BlockRange*"),
    (r"decode|row_attention|row_product", "*Decode*:*Rows*:*RowGemm*:*BlockRange*"),
    (r"lsh_sort|counting_sort", "*LshSort*:*Embedding*:*LshAttentionTest.Stages*"),
    (r"lsh_chunks", "*ChunkAttention*:AttentionWindowChunks*"),
    (r"attention|lsh_|head_groups|contents", ATTENTION),
    (r"convert|half", "*Half*"),
    (r"embedding", "*Embedding*"),
    (r"final_norm", "*FinalNorm*"),
    (r"layer_norm", f"*LayerNorm*:{BLOCK}"),
    (r"norm_rows", f"*LayerNorm*:*FinalNorm*:{BLOCK}"),
    (r"head_loss", "*HeadLoss*"),
    (r"optimizers", "*GlobalNorm*:*AdamW*:*Adafactor*"),
    (r"linear", "*Linear*"),
    (r"sample", "*Sample*"),
    (r"random", "*RandomNormal*"),
    (r"vector_math|simd", f"Dropout*:Grid*:Rows*:*Activation*:{BLOCK}:*BlockRange*:*FinalNorm*"),
    (r"blas|gemm|elementwise|quads", f"*Gemm*:Blas*:*Linear*:*FeedForward*:*HeadLoss*:{BLOCK}:*BlockRange*:Threads*"),
    (r"cpu/(host|backend|parallel)", f"Threads*:Abi*:*Linear*:Rows*:{MEMORY}"),
    (r"cuda/(backend|error|state)", f"CudaBackend*:{MEMORY}"),
    (r"dropout", "*FeedForward*:*Embedding*:*FinalNorm*:*AttentionEdges.Dropout*:All/AttentionTest.Forward*Dropout*"),
    (r"", "*Linear*:*FeedForward*:*LayerNorm*:*HeadLoss*:*GlobalNorm*:*Adafactor*:*Sample*:*LshSort*:*FinalNorm*"),
]
# Kernels whose races are checked are ten times slower: one of each is enough.
RACE_TESTS = [
    (r"lsh_chunks", "*ChunkAttentionTest.Forward*/SlotsCausal:*ChunkAttentionTest.Forward*/BucketBothWays"),
    (
        r"attention|lsh_",
        "All/AttentionTest.Forward*/LshMaskBucket:All/AttentionTest.Forward*/LshDuplicates:LshSortOp.SmallProblem*",
    ),
    (r"layer_norm|norm_rows|final_norm", "*LayerNorm*:*FinalNorm*"),
    (r"embedding|counting_sort", "*Embedding*:LshSortOp.SmallProblem*"),
    (r"head_loss", "*HeadLoss*"),
    (r"optimizers", "*GlobalNorm*:*AdamW*:*Adafactor*"),
    (r"sample", "*Sample*"),
    (r"", "*Linear*:*FeedForward*:*LayerNorm*:*HeadLoss*:*GlobalNorm*:*Adafactor*"),
]


def named(*texts):
    return "|".join(f"FullyQualifiedName~{text}" for text in texts)


MANAGED_TESTS = [
    (r"/Checkpoints/", named(".Checkpoints.", "TrainerTests", "TrainerFailure", ".Model.")),
    (r"/Data/", named(".Data.", "StepAllocation")),
    (r"/Interop/", named(".Interop.", ".Tensors.")),
    (r"/Tensors/", named(".Tensors.", ".Interop.", ".Ops.", "CudaTensorTests")),
    (r"/Ops/", named(".Ops.", "TensorTests", ".OracleComparison.", "AutoAttention", "AnyCall")),
    (r"/Model/AttentionCost", named(".Model.", "Bench", "MemoryPlan")),
    (r"/Model/", named(".Model.", "TrainerTests", "HandleTests")),
    (r"/Training/Memory", named("Memory")),
    (r"/Training/", named("TrainerTests", "TrainerFailure", "Memory", "LearningTests", "Optimizer")),
    (r"", named("ReformerNative.Tests")),
]

SWITCH = """// Which mutation is active: RFN_MUTANT, read from environ itself, since the library wraps getenv.
#pragma once
#ifdef __cplusplus
#include <cstdint>
#include <cstdlib>
#include <cstring>
extern "C" char** environ;
inline int rfn_mutant_of_environment() {
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    if (std::strncmp(*entry, "RFN_MUTANT=", 11) == 0) return std::atoi(*entry + 11);
  }
  return 0;
}
inline const int rfn_mutant = rfn_mutant_of_environment();
inline int64_t div_down_in_mutation(int64_t n, int64_t d) { return n / d; }
inline int64_t round_down_in_mutation(int64_t n, int64_t d) { return n / d * d; }
#endif
"""

CSHARP_SWITCH = """#pragma warning disable
internal static class Mutant
{
    internal static readonly int Active =
        int.TryParse(System.Environment.GetEnvironmentVariable("RFN_MUTANT"), out int n) ? n : 0;
}
"""


def first_match(table, name):
    return next(tests for pattern, tests in table if re.search(pattern, name))


def native_tests(name):
    """Those of the table, and the op's own: the tests of rms_norm.cpp are called *RmsNorm*."""
    own = "".join(word.capitalize() for word in pathlib.PurePath(name).stem.split("_"))
    return f"{first_match(NATIVE_TESTS, name)}:*{own}*"


def is_managed(file):
    return file.endswith(".cs")


def on_cuda(file):
    return file.startswith("native/cuda/")


def sources():
    patterns = [f"native/{room}/*.{ending}" for room in ("core", "cpu", "cuda") for ending in ("h", "cpp", "cu", "cuh")]
    patterns.append("managed/ReformerNative/*/*.cs")
    files = sorted({str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)})
    others = (".g.cs", "device.cuh", "not_embedded.cpp")  # the last is not in the build that is mutated
    return [f for f in files if not f.endswith(others) and "/obj/" not in f]


def chosen(arguments):
    """[(number, mutation)]: numbers count from 1 over all files, so that they mean the same whatever is wanted."""
    result, number = [], 0
    listed = finder.records(HERE / "chosen.txt")
    for file in sources():
        text = TEXTS[file] = (ROOT / file).read_text()
        found = finder.find(file, text)
        size = arguments.per_file if arguments.per_file else max(1, min(10, len(found) // 25))
        for mutation in finder.choose(found, size, arguments.seed, finder.by_hand(file, text, listed)):
            number += 1
            result.append((number, mutation))
    return result


class Log:
    """Verdicts by key, in a file that is only appended to; the last one counts."""

    def __init__(self):
        self.lock = threading.Lock()
        self.verdicts = {}
        if RESULTS.exists():
            for line in RESULTS.read_text().splitlines():
                key, _, verdict = line.rpartition("\t")
                self.verdicts[key] = verdict

    def write(self, mutation, verdict):
        with self.lock:
            self.verdicts[mutation.key] = verdict
            with RESULTS.open("a") as file:
                file.write(f"{mutation.key}\t{verdict}\n")


def place(path, content):
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def command(arguments, **more):
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    return subprocess.run(arguments, **output, **more)


def parts(kind):
    """What the tree of a build needs of the repository."""
    both = "native cmake CMakeLists.txt CMakePresets.json tests/vectors".split()
    if kind == "native":
        return both + ["tests/native", "tests/cuda_gate"]
    roots = [path.name for path in ROOT.iterdir() if path.is_file()]
    return both + roots + ["managed", "tests/managed", "docs"]


def build(kind, numbered, log, jobs):
    """Builds the tree with all of the mutations behind switches; returns those that compile."""
    tree = WORK / f"{kind}-tree"
    mutated = {m.file for _, m in numbered}
    for part in parts(kind):
        for path in [ROOT / part] if (ROOT / part).is_file() else (ROOT / part).rglob("*"):
            name = path.relative_to(ROOT)
            if path.is_file() and str(name) not in mutated and not {"bin", "obj", "__pycache__"} & set(name.parts):
                place(tree / name, path.read_bytes())
    standing = list(numbered)

    def write():
        for file in mutated:
            switch = "global::Mutant.Active" if is_managed(file) else "rfn_mutant"
            mine = [(n, m) for n, m in standing if m.file == file]
            place(tree / file, finder.switched(TEXTS[file], mine, lambda n: f"{switch} == {n}").encode())

    write()
    if kind == "native":
        place(tree / "mutant.h", SWITCH.encode())
        races = "ON" if any(m.kind in SCHEDULED for _, m in numbered) else "OFF"
        flags = f"-O1 -DNDEBUG -w -include {tree}/mutant.h"
        configure = ["cmake", "-S", str(tree), "-B", str(BINARIES), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DRFN_RACES={races}", f"-DCMAKE_CXX_FLAGS_RELEASE={flags}"]
        configure += ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
        made = command(configure)
        if made.returncode != 0:
            sys.exit(made.stdout)
        make = ["cmake", "--build", str(BINARIES), "--parallel", str(jobs), "--target", "reformer_native_tests"]
        make += ["cuda_gemm_tests", "--", "-k", "0"]
    else:
        place(tree / "managed/ReformerNative/Mutant.cs", CSHARP_SWITCH.encode())
        make = ["dotnet", "build", str(tree / "tests/managed/ReformerNative.Tests"), "-c", "Release", "--nologo"]
        make += ["-v", "quiet", "-p:RfnBuildNative=false", f"-p:RfnNativeDirectory={ROOT}/build/cpu/"]
        make += ["-p:TreatWarningsAsErrors=false", "-p:EnforceCodeStyleInBuild=false", "-p:RunAnalyzers=false"]
        make += ["-p:NoWarn=1591"]
    place_of_message = r"([\w./+-]+\.(?:cu|cuh|h|cpp|cs))[:(](\d+)[:,][^\n]*?(?:error|required from)"
    for _ in range(12):
        write()
        made = command(make)
        (WORK / f"{kind}-build.log").write_text(made.stdout)
        if made.returncode == 0:
            return standing
        # Where the compiler complains. Its templates complain elsewhere; then "required from" leads back.
        blamed = set()
        for name, line in re.findall(place_of_message, made.stdout):
            path = os.path.normpath(os.path.join(BINARIES, name))
            if path.startswith(f"{tree}/"):
                blamed.add((os.path.relpath(path, tree), int(line)))
        bad = []
        for pair in standing:
            lines = range(pair[1].line, pair[1].line + pair[1].before.count("\n") + 1)
            if any(file == pair[1].file and line in lines for file, line in blamed):
                bad.append(pair)
                log.write(pair[1], "does not compile")
        if not bad:
            break
        standing = [pair for pair in standing if pair not in bad]
    sys.exit(made.stdout[-6000:] + f"\nthe mutated {kind} tree does not build")


def not_for_devices():
    """The tests that need host memory or the CPU backend's own functions, as the build excludes them on devices."""
    lists = (ROOT / "tests/native/CMakeLists.txt").read_text()
    return "".join(re.findall(r'"([^"]*)"', re.search(r"string\(CONCAT not_for_devices(.*?)\)\n", lists, re.S)[1]))


def run_native(number, tests, cuda=None, seed=0, aligned=False):
    """None, or what noticed: a test, and how it ended if it did not say."""
    environment = {**os.environ, "RFN_MUTANT": str(number)}
    if cuda:
        environment["RFN_TEST_DEVICE"] = "cuda_on_host"
        environment["RFN_CUDA_ON_HOST_PLUGIN"] = str(BINARIES / cuda)
        environment["RFN_CUDA_ON_HOST_SEED"] = str(seed)
    # The symbols of a library with switches in it are not those of the header.
    without = not_for_devices() if cuda else "-CudaBackend.*:Abi.Exports*"
    if aligned:
        environment["RFN_TEST_ALIGNED"] = "1"
        without += ":CudaBackend.*"  # whose tensors are as they are
    if cuda and not seed:  # tests that hold one schedule against others, and nothing else
        without += ":*.SameBitsForEverySchedule*:*.EverySchedule_SameBits*:*.Activations_SameBitsForEverySchedule*"
    program = str(BINARIES / "tests/native/reformer_native_tests")
    run = [program, "--gtest_fail_fast", f"--gtest_filter={tests}:{without}"]
    return finish(run, environment)


def run_products(number, tests):
    """The tests of products over the layer's cuBLASLt, which call gemm.cpp itself."""
    program = str(BINARIES / "tests/native/cuda_on_host/cuda_gemm_tests")
    run = [program, "--gtest_fail_fast", f"--gtest_filter={tests}"]
    return finish(run, {**os.environ, "RFN_MUTANT": str(number)})


def run_managed(number, tests):
    built = WORK / "managed-tree/artifacts/bin/ReformerNative.Tests/release/ReformerNative.Tests.dll"
    environment = {**os.environ, "RFN_MUTANT": str(number)}
    run = ["env", "--default-signal=HUP,INT,QUIT", "dotnet", "test", str(built), "--filter", tests]
    return finish(run, environment, silence=900)


def finish(run, environment, silence=300):
    """What noticed: the first test that fails, which ends the run, or the one in which the program ended or said no
    more for so many seconds; None when all is well."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(run, env=environment, start_new_session=True, **output) as process:
        late, test = False, ""

        def end():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started too

        def end_late():
            nonlocal late
            late = True
            end()

        timer = threading.Timer(silence, end_late)
        timer.start()
        try:
            for line in process.stdout:
                timer.cancel()
                timer = threading.Timer(silence, end_late)
                timer.start()
                if match := re.match(r"\[  FAILED  \] ([\w/.]+)|\s*Failed (\S+)", line):
                    end()
                    return match[1] or match[2]
                if match := re.match(r"\[ RUN      \] (\S+)", line):
                    test = match[1]
        finally:
            timer.cancel()
    if late:
        return f"{test}: does not end"
    return None if process.returncode == 0 else f"{test}: status {process.returncode}"


PLAIN, RACES = "libreformer_native_cuda_on_host.so", "libreformer_native_cuda_on_host_races.so"
SCHEDULED = {"barrier", "warp", "wait", "vote"}


def checks(mutation):
    """What is tried in turn: (name, tests, function of a number and tests)."""
    file = mutation.file
    if is_managed(file):
        return [("managed", first_match(MANAGED_TESTS, file), run_managed)]
    tests = native_tests(file)
    plain = functools.partial(run_native, cuda=PLAIN)
    if not on_cuda(file):
        both = file.startswith("native/core/") and file.endswith(".h")
        return [("cpu", tests, run_native)] + ([("cuda", tests, plain)] if both else [])
    steps = []
    if mutation.kind in SCHEDULED:
        steps.append(("races", first_match(RACE_TESTS, file), functools.partial(run_native, cuda=RACES)))
    steps += [("cuda", tests, plain), ("cuda, aligned tensors", tests, functools.partial(plain, aligned=True))]
    if "cuda/gemm" in file:
        steps.append(("products", "*", run_products))
    for seed in (1, 3, 4, 5, 7) if mutation.kind in SCHEDULED else ():
        steps.append((f"cuda, schedule {seed}", tests, functools.partial(plain, seed=seed)))
    return steps


def explained():
    return {
        f"{r['file']}\t{r['=']}\t{finder.squeeze(r['-'])} -> {finder.squeeze(r['+'])}": r[":"]
        for r in finder.records(HERE / "survivors.txt")
    }


def words(m):
    return f"{m.file}:{m.line} {m.kind}: {finder.squeeze(m.before)} -> {finder.squeeze(m.after)}"


def report(numbered, log):
    """A line per folder, then the survivors; true when each of them is explained. The share is of those that can be
    noticed: an explained survivor changes nothing that a test could see."""
    reasons, table, unknown = explained(), collections.defaultdict(collections.Counter), []
    for _, m in numbered:
        verdict = log.verdicts.get(m.key, "not run")
        kind = verdict if verdict in ("survives", "not run", "does not compile") else "noticed"
        if kind == "survives":
            kind = "explained" if m.key in reasons else "survives"
            if kind == "survives":
                unknown.append(m)
        folder = os.path.dirname(m.file)
        table[folder][kind] += 1
        table["all"][kind] += 1
    for folder in sorted(table, key=lambda f: (f == "all", f)):
        row = table[folder]
        could = row["noticed"] + row["survives"]
        share = 100 * row["noticed"] / could if could else 0
        print(
            f"{folder:36} {row['noticed']:5} of {could:5} noticed ({share:5.1f} %); {row['explained']} explained, "
            f"{row['not run']} not run, {row['does not compile']} do not compile"
        )
    for m in unknown:
        print(f"SURVIVES {words(m)}")
    return not unknown


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--order", action="store_true")
    parser.add_argument("--meaning", action="store_true")
    parser.add_argument("--per-file", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    log, everything = Log(), chosen(arguments)
    wanted = [(n, m) for n, m in everything if not arguments.texts or any(t in m.file for t in arguments.texts)]
    wanted = [(n, m) for n, m in wanted if not (arguments.meaning if m.kind in SCHEDULED else arguments.order)]
    if arguments.list:
        for _, m in wanted:
            print(words(m))
        return 0
    if arguments.report:
        return 0 if report(wanted, log) else 1

    reasons = explained()

    def is_wanted(m):
        verdict = log.verdicts.get(m.key)
        return verdict == "survives" and m.key not in reasons if arguments.again else verdict is None

    for kind in ("native", "managed"):
        mine = [(n, m) for n, m in wanted if is_managed(m.file) == (kind == "managed")]
        mine = [(n, m) for n, m in mine if log.verdicts.get(m.key) != "does not compile"]
        todo = [(n, m) for n, m in mine if is_wanted(m)]
        if not todo:
            continue
        # What is stopped early has tried something of everything.
        random.Random(arguments.seed).shuffle(todo)
        # One build for all that are wanted, run before or not, so that going on builds nothing new.
        can = build(kind, mine, log, arguments.jobs)
        todo = [pair for pair in todo if pair in can]
        def judge(pair):
            number, mutation = pair
            verdict = "survives"
            for name, tests, step in checks(mutation):
                noticed = step(number, tests)
                if not noticed:
                    continue
                # Means something if the test that failed passes without a mutation.
                test = re.split(r"[:(]", noticed)[0]
                alone = named(test) if test and is_managed(mutation.file) else test or tests
                if broken := step(0, alone):
                    print(f"without a mutation, {name} {alone}: {broken}", flush=True)
                    return
                verdict = f"{name.split(',')[0]} {noticed}"
                break
            log.write(mutation, verdict)
            print(f"{words(mutation)}: {verdict}", flush=True)

        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            for future in [pool.submit(judge, pair) for pair in todo]:
                future.result()
    return 0 if report(wanted, log) else 1


if __name__ == "__main__":
    sys.exit(main())
