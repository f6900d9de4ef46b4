"""What PyTorch + PEFT make of weighted labels and of numbers: loss and every gradient, on the oracle's bert-classify.

    python label_losses.py ../fixtures

Writes label_losses/{weighted,numbers}.safetensors, and the adapter of the numbers: that of the case, its head cut to one
row. Made with torch 2.15 and PEFT 0.21.2.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

fixtures = Path(sys.argv[1])
case, out = fixtures / "oracle/bert-classify", fixtures / "label_losses"
batch = load_file(case / "expected.safetensors")
LABELS, WEIGHTS, NUMBERS = [2, 0], [0.5, 2.0, 3.0], [1.5, -0.75]


def losses(adapter, outputs, loss, name):
    base = AutoModelForSequenceClassification.from_pretrained(
        case / "model", num_labels=outputs, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True).eval()
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    value = loss(logits)
    value.backward()
    found = {"loss": value.detach().reshape(1)}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = key.replace(".default", "").replace(".modules_to_save", "")
            found[f"grad.{key}"] = parameter.grad.contiguous()
    save_file(found, out / f"{name}.safetensors")


shutil.copytree(case / "adapter", out / "adapter", dirs_exist_ok=True)
tensors = load_file(case / "adapter/adapter_model.safetensors")
cut = {key: value[:1].contiguous() if "classifier" in key else value for key, value in tensors.items()}
save_file(cut, out / "adapter/adapter_model.safetensors", metadata={"format": "pt"})
(out / "adapter/config.json").write_text(json.dumps({"problem_type": "regression"}) + "\n")
weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS))
losses(case / "adapter", 3, lambda logits: weighted(logits, torch.tensor(LABELS)), "weighted")
squared = torch.nn.MSELoss()
losses(out / "adapter", 1, lambda logits: squared(logits.squeeze(1), torch.tensor(NUMBERS)), "numbers")
