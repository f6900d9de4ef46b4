"""Products of a frozen weight, ours beside PyTorch's (oneDNN), GFLOP/s, the median of each: `x Wᵀ` and `dY W`.

Ours start from f32 rows and a bf16 weight, and have all rounding and packing in their time; PyTorch's have both operands in
the type that they multiply. `bench/run products` calls it.
"""
import argparse, itertools, statistics, subprocess, time

import torch


def ours(example):
    rows = {}
    for line in subprocess.run([example], check=True, capture_output=True, text=True).stdout.splitlines():
        words = line.replace(", ", ",").replace(",", " ").split()
        if len(words) == 8 and words[3] in ("product", "transposed"):
            k, n, m = map(int, words[:3])
            rows[k, n, m, words[3]] = float(words[5]), float(words[7])
    return rows


def theirs(k, n, m, kind, dtype):
    # In turn, more than the caches hold, as ours are.
    weights = [torch.rand(n, k).to(dtype) for _ in range(100_000_000 // (2 * n * k) + 1)]
    turn = itertools.cycle(weights)
    left = torch.rand(m, k if kind == "product" else n).to(dtype)
    call = (lambda: torch.nn.functional.linear(left, next(turn))) if kind == "product" else (lambda: left @ next(turn))
    for _ in range(3):
        call()
    times, start = [], time.perf_counter()
    while len(times) < 7 or time.perf_counter() - start < 0.4:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return 2e-9 * m * n * k / statistics.median(times)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--example", required=True, help="target/release/examples/products")
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    print("| K, N | rows | | f32 | PyTorch | ratio | bf16 | PyTorch | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (k, n, m, kind), (f32, bf16) in ours(a.example).items():
        of = [theirs(k, n, m, kind, dtype) for dtype in (torch.float32, torch.bfloat16)]
        what = "x Wᵀ" if kind == "product" else "dY W"
        print(f"| {k}, {n} | {m} | {what} | {f32:.0f} | {of[0]:.0f} | {f32 / of[0]:.2f} | {bf16:.0f} | {of[1]:.0f} | {bf16 / of[1]:.2f} |")


if __name__ == "__main__":
    main()
