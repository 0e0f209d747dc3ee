#!/usr/bin/env python3
"""PyTorch on the same device at the shapes of reformer_native_benchmarks: ceilings, scaled_dot_product_attention.

Prints a line of JSON for each measurement, as reformer_native_benchmarks --lines does. Exit 3: there is no PyTorch that
sees a GPU.
"""
import json
import sys

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    print(error)
    sys.exit(3)
if not torch.cuda.is_available():
    print("PyTorch sees no GPU")
    sys.exit(3)

HEADS, HEAD_SIZE = 8, 64
PRECISIONS = {"f32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
LONGEST = {"f32": 16384, "tf32": 16384, "bf16": 262144, "f16": 65536}  # without tensor cores the rest takes minutes
SQUARE = 8192
COPY_BYTES = 2 << 30


def seconds(run, most=20, budget=0.05):
    """The mean of a few runs between two events, after one that is not counted."""
    run()
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    taken, runs = 0.0, 0
    while runs < most and taken < budget:
        start.record()
        run()
        stop.record()
        stop.synchronize()
        taken += start.elapsed_time(stop) / 1000
        runs += 1
    return taken / runs


def report(name, precision, taken, **numbers):
    print(json.dumps({"name": "torch/" + name, "precision": precision, "seconds": taken, **numbers}), flush=True)


def main():
    torch.manual_seed(1)
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    taken = seconds(lambda: target.copy_(source))
    report("ceiling/copy", "f32", taken, bytes_per_second=2 * COPY_BYTES / taken)
    del source, target
    for precision, dtype in PRECISIONS.items():
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        a, b = (torch.randn(SQUARE, SQUARE, device="cuda", dtype=dtype) for _ in range(2))
        taken = seconds(lambda: a @ b)
        ceiling = 2 * SQUARE**3 / taken
        report("ceiling/product", precision, taken, **{"FLOP/s": ceiling})
        del a, b
        length = 1024
        while length <= LONGEST[precision]:
            q, k, v = (
                torch.randn(1, HEADS, length, HEAD_SIZE, device="cuda", dtype=dtype, requires_grad=True)
                for _ in range(3)
            )
            grad = torch.randn_like(q)

            def forward():
                return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

            def both():
                torch.autograd.grad(forward(), (q, k, v), grad)

            pairs = HEADS * length * (length + 1) / 2
            with torch.no_grad():
                taken = seconds(forward)
            for name, flops in (("forward", 4), ("forward_backward", 14)):
                if name != "forward":
                    taken = seconds(both)
                work = flops * HEAD_SIZE * pairs
                report(f"dense_attention/{name}/causal/length:{length}", precision, taken,
                       **{"FLOP/s": work / taken, "of_ceiling": work / taken / ceiling})
            length *= 2


if __name__ == "__main__":
    main()
