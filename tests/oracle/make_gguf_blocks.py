"""Writes tests/fixtures/gguf/blocks.safetensors: what ggml makes of quantised blocks, both ways.

For each type: `TYPE.blocks`, random bytes under sane scales, and `TYPE.values`, what the `gguf` package dequantises them to;
`TYPE.encoded`, what ggml's reference quantiser makes of `plain`. Needs `pip install gguf llama-cpp-python safetensors`.
"""

import ctypes
import glob
import os
import sys

import gguf
import llama_cpp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.numpy import save_file

TYPES = ["Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K"]
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
VALUES = 512

rng = np.random.default_rng(7)
lib = ctypes.CDLL(glob.glob(os.path.join(os.path.dirname(llama_cpp.__file__), "lib", "libggml-base.so*"))[0])
lib.ggml_quantize_chunk.restype = ctypes.c_size_t

plain = (rng.standard_normal(VALUES) * np.repeat([0.02, 0.5], VALUES // 2)).astype(np.float32)
plain[64:96] = 0.0
plain[96:128] = np.abs(plain[96:128])
tensors = {"plain": plain}
for name in TYPES:
    kind = GGMLQuantizationType[name]
    block, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (VALUES // block, size), dtype=np.uint8)
    for at in SCALES[name]:
        scales = rng.uniform(0.001, 0.02, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    tensors[f"{name}.blocks"] = blocks.reshape(-1)
    tensors[f"{name}.values"] = gguf.quants.dequantize(blocks.reshape(-1), kind).reshape(-1).astype(np.float32)
    out = np.zeros(VALUES // block * size, dtype=np.uint8)
    lib.ggml_quantize_chunk(
        ctypes.c_int(int(kind)),
        plain.ctypes.data_as(ctypes.c_void_p),
        out.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0),
        ctypes.c_int64(1),
        ctypes.c_int64(VALUES),
        None,
    )
    tensors[f"{name}.encoded"] = out
target = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures/gguf/blocks.safetensors"
os.makedirs(os.path.dirname(target), exist_ok=True)
save_file(tensors, target)
