"""What PEFT computes with adapters that taper saved: adds logits.safetensors to every folder of fixtures/peft_reads, and says
whether PEFT's own copy of each adapter has the same bytes. `base.txt` in a folder names the oracle case whose model it is for.

    python peft_reads.py
"""
import os, pathlib, tempfile
import torch, transformers
from peft import PeftModel
from safetensors.torch import save_file

transformers.utils.logging.disable_progress_bar()
fixtures = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
for folder in sorted((fixtures / "peft_reads").iterdir()):
    case = (folder / "base.txt").read_text().strip()
    base = transformers.AutoModelForCausalLM.from_pretrained(fixtures / "oracle" / case / "model").float().eval()
    ids = torch.arange(10, 23)[None]
    with torch.no_grad():
        model = PeftModel.from_pretrained(base, folder)
        logits = model(ids).logits[0]
    save_file({"input_ids": ids[0], "logits": logits.contiguous()}, folder / "logits.safetensors")
    with tempfile.TemporaryDirectory() as copy:
        model.save_pretrained(copy, save_embedding_layers=False)
        name = "adapter_model.safetensors"
        same = (pathlib.Path(copy) / name).read_bytes() == (folder / name).read_bytes()
    print(f"{folder.name:20} saved again by PEFT: {'same bytes' if same else 'OTHER BYTES'}")
