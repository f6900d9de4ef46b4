"""PEFT + PyTorch's side of `bench/run quality`, and its table.

sst2, e2e: rows drawn with a seed from a file, an adapter made with that seed, and the adapter after training, under --out:
  rows.jsonl, start/, peft/ and peft.json, the figures of the training. taper goes on from start/ through rows.jsonl by itself.
bert: the base that sst2 labels with: the BERT in a folder, or over its tokenizer a small one with random weights, 4 layers, 128
  wide. Either without dropout.
table: the lines of a table from what both sides left under folders, one a seed.

The recipe of both sides: AdamW at a constant rate with torch's defaults, clipping at 1, f32, no dropout, rows in the file's
order in each epoch. Texts become tokens before the clock runs; a batch is padded to its longest row. Rows/s are of the median step.
"""
import argparse, json, os, random, shutil, statistics, time

def bert(a):
    import transformers
    dry = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    if os.path.exists(os.path.join(a.model, "model.safetensors")):
        model = transformers.AutoModel.from_pretrained(a.model, dtype="float32", **dry)
    else:
        config = transformers.BertConfig(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, **dry)
        model = transformers.AutoModel.from_config(config)
    model.save_pretrained(a.out)
    shutil.copy(os.path.join(a.model, "tokenizer.json"), a.out)

def draw(a):
    """As many rows of the file as asked for, in an order of the seed's; kept under --out."""
    with open(a.data) as f:
        lines = random.Random(a.seed).sample(f.readlines(), a.rows)
    with open(os.path.join(a.out, "rows.jsonl"), "w") as f:
        f.writelines(lines)
    return [json.loads(line) for line in lines]

def padded(rows, fill):
    import torch
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

def sst2(a):
    """Low-rank factors on query and value; the head is trained whole, and --whole."""
    import torch, transformers
    from peft import LoraConfig
    tok = transformers.AutoTokenizer.from_pretrained(a.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(a.model, num_labels=2, dtype=torch.float32)
    examples = [(tok(row["text"])["input_ids"], int(row["label"])) for row in draw(a)]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=a.whole, task_type="SEQ_CLS")
    return learn(a, model, config, examples, lambda labels: torch.tensor(labels))

def e2e(a):
    """Low-rank factors on every linear layer; completions and the end of the text behind them are learned."""
    import torch, transformers
    from peft import LoraConfig
    # Not AutoTokenizer: its LlamaTokenizer is built anew from the vocabulary and drops what tokenizer.json makes <unk> of, a "£".
    tok = transformers.PreTrainedTokenizerFast.from_pretrained(a.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    model.config.use_cache = False
    examples = []
    for row in draw(a):
        prompt = tok(row["prompt"])["input_ids"]
        completion = tok(row["completion"], add_special_tokens=False)["input_ids"] + [tok.eos_token_id]
        examples.append((prompt + completion, [-100] * len(prompt) + completion))
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return learn(a, model, config, examples, lambda labels: padded(labels, -100))

def learn(a, model, config, examples, targets):
    import torch
    from peft import get_peft_model
    model = get_peft_model(model, config)
    model.save_pretrained(os.path.join(a.out, "start"))
    model.train()
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=a.rate, fused=True)  # transformers' own default
    losses, times = [], []
    for _ in range(a.epochs):
        for i in range(0, len(examples), a.batch):
            begin = time.perf_counter()
            ids, labels = zip(*examples[i:i + a.batch])
            mask = padded([[1] * len(row) for row in ids], 0)
            loss = model(input_ids=padded(ids, 0), attention_mask=mask, labels=targets(labels)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            opt.step(); opt.zero_grad(set_to_none=True)
            losses.append(loss.item())
            times.append(time.perf_counter() - begin)
    model.save_pretrained(os.path.join(a.out, "peft"))
    with open(os.path.join(a.out, "peft.json"), "w") as f:
        json.dump(dict(batch=a.batch, tokens=a.epochs * sum(len(ids) for ids, _ in examples), seconds=times, losses=losses), f)

def table(a):
    """Lines with a figure a folder for either side; an error where the sides did not go the same way."""
    sides = {"taper": [], "peft": []}
    for folder in a.folders:
        def read(name):
            with open(os.path.join(folder, name)) as f:
                return f.read()
        theirs = json.loads(read("peft.json"))
        ours = [step for step in map(json.loads, read("taper/metrics.jsonl").splitlines()) if step["event"] == "step"]
        tokens, first = sum(step["tokens"] for step in ours), ours[0]["loss"]
        if tokens != theirs["tokens"] or abs(first - theirs["losses"][0]) > 1e-4 * first:
            raise SystemExit(f"{folder}: the sides differ: {tokens} tokens of taper's and {theirs['tokens']} of PEFT's, "
                             f"first losses {first} and {theirs['losses'][0]}")
        seconds = dict(taper=[step["seconds"] for step in ours], peft=theirs["seconds"])
        for side, found in zip(sides, json.loads(read("eval.json"))["results"]):
            values = {name: score["value"] for name, score in found["metrics"].items()}
            sides[side].append(dict(values, loss=found["loss"], speed=theirs["batch"] / statistics.median(seconds[side])))
    measures = [(name, 2 if name in ("bleu", "chrf") else 4) for name in sides["taper"][0] if name not in ("loss", "speed")]
    for name, digits in [*measures, ("loss", 4), ("speed", 0)]:
        cells = [", ".join(f"{found[name]:.{digits}f}" for found in side) for side in sides.values()]
        label = dict(f1="macro F1", bleu="BLEU", chrf="chrF", rougeL="ROUGE-L", speed="rows/s").get(name, name)
        print(f"| {a.title + ': ' if name == measures[0][0] else ''}{label} | {' | '.join(cells)} |")

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["bert", "sst2", "e2e", "table"])
    p.add_argument("--model", help="the base; of bert, the folder of its tokenizer")
    p.add_argument("--data", help="JSONL")
    p.add_argument("--out")
    p.add_argument("--rows", type=int, default=6400); p.add_argument("--seed", type=int, default=0)
    p.add_argument("--epochs", type=int); p.add_argument("--batch", type=int); p.add_argument("--rate", type=float)
    p.add_argument("--whole", nargs="+", help="of sst2: modules that are trained whole besides the head")
    p.add_argument("--title", help="of table: before the first measure")
    p.add_argument("--folders", nargs="+", help="of table: what --out was")
    a = p.parse_args()
    if a.what != "table":
        import torch
        torch.manual_seed(a.seed)
    globals()[a.what](a)

if __name__ == "__main__":
    main()
