"""What a training step costs against the work in it: tokens, length of a row, rank, size of the model. Draws bench/cost.svg.

Beside what was measured lies the arithmetic's line: the step's floating-point operations at the rate of the products alone
(--gflops, as `cargo run --release -p taper-kernels --example products` prints it for the machine). `bench/run cost` calls it.
"""
import argparse, json, os, statistics, subprocess, tempfile

RANK, LENGTH, ROWS = 16, 256, 4


def flops(config, tokens, length, rank):
    """Of one step: forward, the input's gradient, the low-rank terms three times, attention, and the head of every row."""
    d, f, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    q, k = d, d // heads * kv
    sizes = [(d, q), (d, k), (d, k), (q, d), (d, f), (d, f), (f, d)]
    frozen = sum(i * o for i, o in sizes)
    low_rank = sum(rank * (i + o) for i, o in sizes)
    attention = 7 * length * q  # half of the scores; backward makes them again
    return tokens * (layers * (4 * frozen + 6 * low_rank + attention) + 4 * d * config["vocab_size"])


def config(a, model):
    with open(os.path.join(a.models, model, "config.json")) as f:
        return json.load(f)


def step(taper, dtype, model, rows, length, rank):
    """Seconds of the median step, and its tokens."""
    with tempfile.TemporaryDirectory() as work:
        data = os.path.join(work, "rows.jsonl")
        with open(data, "w") as out:
            for i in range(4 * rows):
                text = "".join(chr(97 + (i * 7 + j * j * 13 + j) % 26) for j in range(length))
                out.write(json.dumps({"text": text}) + "\n")
        adapter = os.path.join(work, "adapter")
        subprocess.run([taper, "train", "--model", model, "--data", data, "--out", adapter, "--rank", str(rank), "--batch-size",
                        str(rows), "--max-length", str(length), "--max-steps", "4", "--max-grad-norm", "0", "--dtype", dtype,
                        "--quiet"], check=True)
        with open(os.path.join(adapter, "metrics.jsonl")) as lines:
            steps = [row for row in map(json.loads, lines) if row["event"] == "step"]
    return statistics.median(row["seconds"] for row in steps[1:]), steps[0]["tokens"]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--taper", required=True)
    p.add_argument("--models", required=True, help="folder with smollm2-135m, qwen2.5-0.5b and tinyllama-1.1b")
    p.add_argument("--dtype", default="bf16", help="of the products: f32 or bf16")
    p.add_argument("--gflops", type=float, required=True)
    p.add_argument("--out", required=True)
    a = p.parse_args()
    small = "smollm2-135m"
    # What is varied, its unit, the value of a point, and the points: model, rows, length, rank.
    panels = [
        ("tokens of a step", "tokens", lambda p: p[1] * p[2], [(small, n, LENGTH, RANK) for n in (1, 2, 4, 8, 16)]),
        ("length of a row, 2048 tokens a step", "tokens", lambda p: p[2],
         [(small, 2048 // n, n, RANK) for n in (64, 128, 256, 512, 1024, 2048)]),
        ("rank, 1024 tokens a step", "rank", lambda p: p[3], [(small, ROWS, LENGTH, r) for r in (4, 16, 64, 128, 256)]),
        ("model, 1024 tokens a step", "million operands of a token", lambda p: flops(config(a, p[0]), 1, 0, 0) / 4e6,
         [(m, ROWS, LENGTH, RANK) for m in (small, "qwen2.5-0.5b", "tinyllama-1.1b")]),
    ]
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "taper"
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    for axis, (title, label, value, points) in zip(axes, panels):
        xs, measured, bound = [], [], []
        for model, rows, length, rank in points:
            seconds, tokens = step(a.taper, a.dtype, os.path.join(a.models, model), rows, length, rank)
            xs.append(value((model, rows, length, rank)))
            measured.append(seconds)
            bound.append(flops(config(a, model), tokens, length, rank) / a.gflops / 1e9)
            print(f"| {title} | {xs[-1]:.0f} | {seconds:.3f} | {bound[-1]:.3f} | {bound[-1] / seconds:.2f} |", flush=True)
        axis.plot(xs, measured, "o-", color="#1f6f8b", label=f"measured, {a.dtype}")
        axis.plot(xs, bound, "--", color="#c0562f", label=f"operations at {a.gflops:.0f} GF/s")
        axis.set(title=title, xlabel=label, ylim=(0, None))
        if label == "rank" or "length" in title:
            axis.set_xscale("log", base=2)
    axes[0].set_ylabel("seconds of a step")
    axes[0].legend()
    figure.savefig(a.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
