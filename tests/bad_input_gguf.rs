//! Broken GGUF files: each ends with an error that names what is wrong, without allocating what the file merely claims.

use crate::support::{Room, taper};

/// A file that is good until a test breaks it.
struct Good {
    room: Room,
    bytes: Vec<u8>,
}

impl Good {
    fn new() -> Self {
        let room = Room::new();
        let model = room.model("llama");
        let out = room.arg("good.gguf");
        taper(&["quantize", "--model", &model, "--out", &out, "--type", "q8_0"]).good();
        let bytes = room.bytes("good.gguf");
        Self { room, bytes }
    }

    /// Where `text` ends in the file.
    fn after(&self, text: &str) -> usize {
        let found = self.bytes.windows(text.len()).position(|bytes| bytes == text.as_bytes());
        found.expect("the text") + text.len()
    }

    /// The file with `bytes` at `at` makes an error of these words.
    fn with(&self, at: usize, bytes: &[u8], words: &[&str]) {
        let mut all = self.bytes.clone();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        self.refused(&all, words);
    }

    fn refused(&self, bytes: &[u8], words: &[&str]) {
        let file = self.room.write("bad.gguf", bytes);
        let words = [&["bad.gguf"], words].concat();
        taper(&["generate", "--model", &file, "--prompt", "a", "--max-tokens", "1"]).bad(&words);
    }
}

const TENSOR: &str = "blk.0.attn_q.weight";

#[test]
fn truncated_and_foreign_files() {
    let good = Good::new();
    for length in [0, 3, 20, 100, 2000] {
        good.refused(&good.bytes[..length], &["truncated"]);
    }
    good.refused(&good.bytes[..good.bytes.len() - 100], &["tensor", "claims", "truncated"]);
    good.with(0, b"GGML", &["not a GGUF file"]);
    good.with(4, &1u32.to_le_bytes(), &["version 1"]);
    good.with(4, &3u32.to_be_bytes(), &["big-endian"]);
    taper(&["eval", "--model", "/no/such.gguf", "--data", "x"]).bad(&["/no/such.gguf", "no such file"]);
}

#[test]
fn sizes_that_lie() {
    let good = Good::new();
    let huge = (1u64 << 60).to_le_bytes();
    // Numbers of tensors and of metadata; the length of a text; the length of a list.
    good.with(8, &huge, &["truncated"]);
    good.with(16, &huge, &["truncated"]);
    good.with(24, &huge, &["claims", &(1u64 << 60).to_string()]);
    good.with(good.after("tokenizer.ggml.tokens") + 8, &huge, &["tokenizer.ggml.tokens", "truncated"]);
    good.with(
        good.after("tokenizer.ggml.token_type") + 8,
        &huge,
        &["tokenizer.ggml.token_type", "truncated"],
    );
    // After a tensor's name: the number of its sides, the sides, the type, the offset.
    let at = good.after(TENSOR);
    good.with(at, &9u32.to_le_bytes(), &[TENSOR, "9 sides"]);
    good.with(at + 4, &huge, &[TENSOR, "claims"]);
    good.with(at + 12, &u64::MAX.to_le_bytes(), &[TENSOR, "claims"]);
    good.with(at + 4, &33u64.to_le_bytes(), &[TENSOR, "33", "cannot be"]);
    good.with(at + 24, &huge, &[TENSOR, "claims"]);
    good.with(at + 24, &u64::MAX.to_le_bytes(), &[TENSOR, "claims"]);
}

#[test]
fn what_taper_does_not_read_is_named() {
    let good = Good::new();
    let at = good.after(TENSOR) + 20;
    good.with(at, &10u32.to_le_bytes(), &[TENSOR, "Q2_K", "Q4_K_S"]);
    good.with(at, &77u32.to_le_bytes(), &[TENSOR, "type 77"]);
    good.with(good.after("general.architecture") + 12, b"gemma", &["general.architecture", "gemma", "qwen3"]);
    good.with(good.after("tokenizer.ggml.pre") + 12, b"gpt-x", &["tokenizer.ggml.pre", "gpt-x", "llama-bpe"]);
    good.with(good.after("tokenizer.ggml.model") + 12, b"gptx", &["tokenizer.ggml.model", "gptx"]);
    good.with(good.after("llama.embedding_length") + 4, &64u32.to_le_bytes(), &["model.embed_tokens.weight"]);
    good.with(good.after("llama.block_count"), &6u32.to_le_bytes(), &["llama.block_count", "a whole number"]);
    good.with(good.after("tokenizer.ggml.eos_token_id") + 4, &999u32.to_le_bytes(), &["eos_token_id", "999"]);
}

/// What would change each pass, and is not honoured.
#[test]
fn a_factor_of_attention_is_named() {
    let good = Good::new();
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let float = |key: &str, value: f32| [&text(key)[..], &6u32.to_le_bytes(), &value.to_le_bytes()].concat();
    let mut entries = [
        &text("llama.rope.scaling.type")[..],
        &8u32.to_le_bytes(),
        &text("yarn"),
        &float("llama.rope.scaling.factor", 4.0),
        &float("llama.rope.scaling.attn_factor", 1.5),
    ]
    .concat();
    // What follows stays where it is aligned.
    entries.extend(float(&"x".repeat(32 - (entries.len() + 16) % 32), 0.0));
    let mut bytes = [&good.bytes[..24], &entries, &good.bytes[24..]].concat();
    bytes[16] += 4;
    good.refused(&bytes, &["llama.rope.scaling.attn_factor", "1.5"]);
}
