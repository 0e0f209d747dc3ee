#!/usr/bin/env python3
"""Attention composed in PyTorch, measured like `reformer bench attention`, to run side by side (README.md).

LSH attention is written from section 2 of the Reformer paper in the form that `--attention trax` names: shared queries
and keys, keys divided by their root mean square, angular hashes, positions sorted by bucket, chunks that see themselves
and their predecessor in one ring over all rounds,
rounds merged by their log-sum-exp. Dense attention is PyTorch's scaled_dot_product_attention where it has one.
"""
import argparse
import json
import math
import os
import resource
import statistics
import sys
import time

import torch
from torch.nn import functional

SGEMM_SIZE = 2048
SGEMM_RUNS = 5
SELF = -1e5  # score of a token with itself: it counts only where nothing else does


def bucket_factors(length, chunk):
    """Even numbers whose product is the number of buckets, about two for each chunk; two factors beyond 128 buckets."""
    n = 2 * max(1, length // chunk)
    if n <= 128:
        return [n]
    first = 1
    while first * first < n:
        first *= 2
    return [first, 2 * (n // (2 * first))]


def hash_vectors(x, rotations, factors):
    """Buckets [N,R,T] of x [N,T,D] by rotations [N,D,R,sum(factors)/2]."""
    rotated = torch.einsum("ntd,ndrc->nrtc", x, rotations)
    buckets, digit, column = 0, 1, 0
    for factor in factors:
        part = rotated[..., column : column + factor // 2]
        buckets = buckets + digit * torch.cat([part, -part], -1).argmax(-1)
        digit *= factor
        column += factor // 2
    return buckets


def lsh_attention(q, v, rotations, factors, chunk, causal):
    """Output [N,T,D] for queries and values [N,T,D]; T is a multiple of the chunk."""
    n, length, size = q.shape
    rounds = rotations.shape[2]
    with torch.no_grad():
        buckets = hash_vectors(q, rotations, factors)
        position = torch.arange(length)
        order = (buckets * length + position).argsort(-1)  # by bucket, then by position
        back = order.argsort(-1)
        order = order.reshape(n, rounds * length)
        row = torch.arange(n)[:, None]

    def sort(x):
        return x[row, order].reshape(n, -1, chunk, size)

    def with_predecessor(x):
        return torch.cat([x, x.roll(1, 1)], 2)

    queries = sort(q)
    keys = with_predecessor(queries * (torch.rsqrt(queries.square().mean(-1, keepdim=True) + 1e-6) / math.sqrt(size)))
    values = with_predecessor(sort(v))
    at = order.reshape(n, -1, chunk)
    key_at = with_predecessor(at)[:, :, None]
    at = at[..., None]
    scores = queries @ keys.transpose(-1, -2)
    if causal:
        scores.masked_fill_(key_at > at, -math.inf)
    scores.masked_fill_(key_at == at, SELF)
    lse = scores.logsumexp(-1, keepdim=True)
    out = (scores - lse).exp() @ values

    def unsort(x):
        x = x.reshape(n, rounds, length, -1)
        return x.gather(2, back[..., None].expand(-1, -1, -1, x.shape[-1]))

    return (unsort(out) * unsort(lse).softmax(1)).sum(1)


def explicit_attention(q, k, v, causal):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        length = q.shape[-2]
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1) @ v


HAS_FUSED = hasattr(functional, "scaled_dot_product_attention")


def dense_attention(q, k, v, causal):
    """Output [N,T,D]."""
    if HAS_FUSED:
        return functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=causal)[0]
    return explicit_attention(q, k, v, causal)


def available_bytes():
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return math.inf


def sgemm_gflops(runs=SGEMM_RUNS):
    a, b = torch.randn(SGEMM_SIZE, SGEMM_SIZE), torch.randn(SGEMM_SIZE, SGEMM_SIZE)
    out = a @ b
    best = math.inf
    for _ in range(runs):
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - started)
    return 2 * SGEMM_SIZE**3 / best / 1e9


def reference_attention(q, v, buckets, chunk, causal):
    """The same as lsh_attention, one query and one key at a time, in float64; [T,D] of one head, buckets [R,T]."""
    length, size = q.shape
    rounds, chunks = buckets.shape[0], length // chunk
    order = [sorted(range(length), key=lambda t, r=r: (int(buckets[r, t]), t)) for r in range(rounds)]
    ring = [order[r][c * chunk : (c + 1) * chunk] for r in range(rounds) for c in range(chunks)]
    keys = q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    out = torch.zeros_like(q)
    for t in range(length):
        places = [r * chunks + order[r].index(t) // chunk for r in range(rounds)]
        seen = [j for place in places for j in ring[place] + ring[place - 1]]
        seen = [j for j in seen if j != t and not (causal and j > t)] or [t]
        weights = torch.stack([q[t] @ keys[j] / math.sqrt(size) for j in seen]).softmax(0)
        out[t] = sum(weight * v[j] for weight, j in zip(weights, seen))
    return out


def gradients(out, inputs, weights):
    return torch.autograd.grad((out * weights).sum(), inputs)


def check():
    """Raises where an implementation above is wrong."""

    def expect_close(name, found, expected):
        difference = (found - expected).abs().max() / expected.abs().max()
        if not difference < 1e-9:
            raise AssertionError(f"{name}: expected a relative difference below 1e-9, found {difference:.1e}")
        print(f"{name}: {difference:.1e}")

    torch.manual_seed(5)
    heads, length, size = 2, 32, 8
    q, k, v, weights = (torch.randn(heads, length, size, dtype=torch.float64, requires_grad=i < 3) for i in range(4))
    for causal in (False, True):
        word = "causal" if causal else "all"
        expect_close(f"dense, {word}", dense_attention(q, k, v, causal), explicit_attention(q, k, v, causal))

        # All tokens in one chunk: the hashes do not matter, and each key is met twice by all.
        rotations = torch.randn(heads, size, 3, 1, dtype=torch.float64)
        lsh = lsh_attention(q, v, rotations, [2], length, causal)
        keys = q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        scores = (q @ keys.transpose(-1, -2) / math.sqrt(size)).masked_fill(torch.eye(length, dtype=torch.bool), SELF)
        if causal:
            scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
        dense = scores.softmax(-1) @ v
        expect_close(f"LSH in one chunk, {word}", lsh, dense)
        for name, found, expected in zip("qv", gradients(lsh, (q, v), weights), gradients(dense, (q, v), weights)):
            expect_close(f"LSH in one chunk, {word}, gradient of {name}", found, expected)

        rotations = torch.randn(heads, size, 2, 5, dtype=torch.float64)
        factors = [4, 6]
        lsh = lsh_attention(q, v, rotations, factors, 4, causal)
        buckets = hash_vectors(q, rotations, factors)
        slow = torch.stack([reference_attention(q[h], v[h], buckets[h], 4, causal) for h in range(heads)])
        expect_close(f"LSH, {word}", lsh, slow)
        for name, found, expected in zip("qv", gradients(lsh, (q, v), weights), gradients(slow, (q, v), weights)):
            expect_close(f"LSH, {word}, gradient of {name}", found, expected)


def parse():
    parser = argparse.ArgumentParser(description="Time and memory of one attention in PyTorch, forward and backward.")
    positive = {"type": int, "metavar": "N"}
    parser.add_argument("--length", default=4096, **positive, help="tokens [4096]")
    parser.add_argument("--batch", default=1, **positive, help="examples [1]")
    parser.add_argument("--heads", default=8, **positive, help="heads [8]")
    parser.add_argument("--head-size", default=64, **positive, help="width of a head [64]")
    parser.add_argument("--chunk", default=64, **positive, help="tokens of a chunk [64]")
    parser.add_argument("--rounds", default=4, **positive, help="hash rounds [4]")
    parser.add_argument("--dense", action="store_true", help="attention over all tokens instead of LSH")
    parser.add_argument("--causal", action="store_true", help="no query sees a later position")
    parser.add_argument("--repeat", default=5, **positive, help="runs, of which the median is reported [5]")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="0: all processors [0]")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--json", action="store_true", help="print JSON for other programs")
    parser.add_argument("--check", action="store_true", help="only compare the implementations with slower ones")
    options = parser.parse_args()
    for name in ("length", "batch", "heads", "head_size", "chunk", "rounds", "repeat"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected an integer from 1 up, found {getattr(options, name)}")
    if options.threads < 0:
        parser.error(f"--threads: expected an integer from 0 up, found {options.threads}")
    if not options.dense and options.length % options.chunk != 0:
        parser.error(f"--length: expected a multiple of the chunk length {options.chunk}, found {options.length}")
    return options


def measure(options):
    torch.manual_seed(options.seed)
    n = options.batch * options.heads
    shape = (n, options.length, options.head_size)
    if options.dense:
        pairs = options.length * (options.length + 1) / 2 if options.causal else options.length**2
        inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)]
        needed = 0 if HAS_FUSED else 4 * 4 * n * options.length**2  # scores, masked scores, probabilities, a gradient
        if needed > available_bytes():
            sys.exit(f"attention.py: dense attention without a fused kernel needs about {needed / 2**30:.0f} GiB, "
                     f"found {available_bytes() / 2**30:.0f} GiB")

        def run():
            return dense_attention(*inputs, options.causal)
    else:
        pairs = options.rounds * options.length * 2 * options.chunk
        inputs = [torch.randn(shape, requires_grad=True) for _ in range(2)]
        factors = bucket_factors(options.length, options.chunk)
        rotations = torch.randn(n, options.head_size, options.rounds, sum(factors) // 2)

        def run():
            return lsh_attention(*inputs, rotations, factors, options.chunk, options.causal)

    grad = torch.randn(shape)
    forward, both, sgemm = [], [], 0.0
    for i in range(options.repeat + 1):  # the first is not counted
        sgemm = max(sgemm, sgemm_gflops())
        with torch.no_grad():
            started = time.perf_counter()
            run()
            forward.append(time.perf_counter() - started)
        for x in inputs:
            x.grad = None
        started = time.perf_counter()
        run().backward(grad)
        both.append(time.perf_counter() - started)
    flops = pairs * options.head_size * n
    return {
        "forward_seconds": statistics.median(forward[1:]),
        "forward_backward_seconds": statistics.median(both[1:]),
        "flops_forward": 4 * flops,
        "flops_backward": 10 * flops,
        "sgemm_gflops": sgemm,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main():
    options = parse()
    if options.threads == 0:
        options.threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(options.threads)
    if options.check:
        check()
        return
    result = measure(options)
    if options.json:
        print(json.dumps(result))
        return
    kind = "LSH" if not options.dense else "dense, scaled_dot_product_attention" if HAS_FUSED else "dense, explicit"
    print(f"PyTorch {torch.__version__}, {options.threads} threads, {kind}")

    def line(name, flops, seconds):
        rate = flops / seconds / 1e9
        share = 100 * rate / result["sgemm_gflops"]
        print(f"{name:<20}{seconds:.4f} s   {rate:.1f} GFLOP/s, {share:.1f} % of the product's")

    line("forward", result["flops_forward"], result["forward_seconds"])
    line("forward + backward", result["flops_forward"] + result["flops_backward"], result["forward_backward_seconds"])
    print(f"{'2048^3 product':<20}{result['sgemm_gflops']:.1f} GFLOP/s")
    print(f"{'peak memory':<20}{result['peak_bytes'] / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
