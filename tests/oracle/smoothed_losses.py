"""What PyTorch + PEFT make of smoothed labels: loss and every gradient, on cases of the oracle.

    python smoothed_losses.py ../fixtures

Writes smoothed_losses/CASE.safetensors. Made with torch 2.15, transformers 5.23 and PEFT 0.21.2; transformers' own
LabelSmoother has to give the same loss.
"""

import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.trainer_pt_utils import LabelSmoother

EPSILON = 0.1
CASES = {
    "bert-classify": (AutoModelForSequenceClassification, torch.tensor([0.5, 2.0, 3.0])),
    "bert-tokens": (AutoModelForTokenClassification, None),
    "llama-lm-head": (AutoModelForCausalLM, None),
    "llama-modules-to-save": (AutoModelForCausalLM, None),
    "t5": (AutoModelForSeq2SeqLM, None),
}
fixtures = Path(sys.argv[1])
out = fixtures / "smoothed_losses"
out.mkdir(exist_ok=True)
for case, (kind, weights) in CASES.items():
    folder = fixtures / "oracle" / case
    base = kind.from_pretrained(folder / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).eval()
    batch = load_file(folder / "expected.safetensors")
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    logits, labels = model(**inputs).logits, inputs["labels"]
    shift = kind is AutoModelForCausalLM
    if weights is None:
        theirs = LabelSmoother(epsilon=EPSILON)({"logits": logits}, labels.clone(), shift_labels=shift)
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), weight=weights, label_smoothing=EPSILON
    )
    assert weights is not None or torch.allclose(loss, theirs, rtol=1e-6), (loss, theirs)
    loss.backward()
    found = {"loss": loss.detach().reshape(1)}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = key.replace(".default", "").replace(".modules_to_save", "")
            found[f"grad.{key}"] = parameter.grad.contiguous()
    save_file(found, out / f"{case}.safetensors")
    print(case, loss.item(), float(batch["loss"]))
