"""llama.cpp's side of the decoding comparison: a qwen2 folder as a GGUF with bf16 matrices, and greedy tokens/s on it.

    python bench/llama.py convert MODEL_FOLDER OUT.gguf      needs gguf, safetensors, torch
    python bench/llama.py decode FILE.gguf [TOKENS]          needs llama-cpp-python (built for this machine)

The tokenizer in the file is a stand-in: prompts are token ids. The rate is that of the steps after the prompt, as in
`reference.py generate`.
"""

import json
import sys
import time


def convert(folder, out):
    import gguf
    import torch
    from safetensors import safe_open

    config = json.load(open(f"{folder}/config.json"))
    vocab = json.load(open(f"{folder}/tokenizer.json"))["model"]["vocab"]
    names = {number: token for token, number in vocab.items()}
    writer = gguf.GGUFWriter(out, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([names.get(i, f"<unused{i}>") for i in range(config["vocab_size"])])
    writer.add_token_types([1] * config["vocab_size"])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(257)
    tensor_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    tensors = safe_open(f"{folder}/model.safetensors", "pt")
    for key in tensors.keys():
        name, x = tensor_names.get_name(key, try_suffixes=(".weight", ".bias")), tensors.get_tensor(key)
        if x.ndim == 1:
            writer.add_tensor(name, x.float().numpy())
        else:
            writer.add_tensor(name, x.view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decode(file, count=64):
    import llama_cpp

    model = llama_cpp.Llama(file, n_ctx=512, n_threads=2, n_threads_batch=2, verbose=False)
    times = []
    for _ in model.generate([(i * 37 + 11) % 250 for i in range(32)], temp=0.0):
        times.append(time.perf_counter())
        if len(times) > int(count):
            break
    print(json.dumps({"decode_tokens_per_s": (len(times) - 1) / (times[-1] - times[0])}))


if __name__ == "__main__":
    {"convert": convert, "decode": decode}[sys.argv[1]](*sys.argv[2:])
