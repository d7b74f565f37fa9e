"""Peak memory and time of attention, forward and backward, over the length: tiles beside the explicit and the fused path.

python -m benchmarks.flash --out docs/proofs

Each case runs in a process of its own; what the process holds before the attention is measured too and taken off.
"""

from functools import partial

import torch

from benchmarks.pairs import parse_arguments, peak_memory_bytes, seconds, write_proof
from lamoid.nn.attention import PATHS
from lamoid.nn.relative_positions import ALiBi, T5Bias

LENGTHS = (1024, 2048, 4096, 8192, 16_384)
EXPLICIT_LENGTHS = LENGTHS[:4]  # 16,384 would take more than 10 GB
N_HEADS, HEAD_DIM = 2, 64
CASES = {
    "tiled, causal": ("tiled", None),
    "tiled, causal, ALiBi": ("tiled", "alibi"),
    "tiled, causal, T5": ("tiled", "t5"),
    "explicit, causal": ("explicit", None),
    "fused, causal": ("fused", None),
}


def run(path: str, bias_kind: str | None, length: int, threads: int, *, attend: bool = True) -> float:
    """Seconds of one forward and backward pass; without `attend`, only the inputs and their gradients are there."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    inputs = [torch.randn(1, N_HEADS, length, HEAD_DIM, requires_grad=True) for _ in range(3)]
    bias = {None: None, "alibi": ALiBi(N_HEADS), "t5": T5Bias(N_HEADS)}[bias_kind]

    def go() -> None:
        out = PATHS[path](*inputs, None, bias=bias) if attend else sum(inputs)
        out.sum().backward()

    return seconds(go)


def main() -> None:
    arguments = parse_arguments("memory of attention over the length")
    cases: dict[str, dict[str, dict[str, float]]] = {}
    for name, (path, bias) in CASES.items():
        cases[name] = {}
        for length in EXPLICIT_LENGTHS if path == "explicit" else LENGTHS:
            settings = (path, bias, length, arguments.threads)
            before = peak_memory_bytes(partial(run, *settings, attend=False))
            peak = peak_memory_bytes(partial(run, *settings))
            time = run(*settings)
            cases[name][str(length)] = {"megabytes": round((peak - before) / 1e6, 1), "seconds": round(time, 2)}
            print(f"{name:<22}{length:>7}{(peak - before) / 1e6:10.1f} MB{time:9.2f} s", flush=True)
    what = (
        f"forward and backward of one sequence, {N_HEADS} heads of {HEAD_DIM}, fp32: memory beyond inputs and gradients"
    )
    write_proof("flash", {"what": what, "cases": cases}, arguments.out)


if __name__ == "__main__":
    main()
