//! The decoder against transformers' logits, and against itself: however a sequence is cut, the same numbers.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Tensor};
use serde_json::json;
use taper_kernels::{CacheDtype, Compute};

use crate::{Batch, Checkpoint, KvCache, Network, Task, arch};

/// Logits of sequences that are run in another order of summation.
const TOLERANCE: f32 = 2e-5;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle").join(name)
}

fn decoder(name: &str) -> Box<dyn Network> {
    decoder_with(name, &json!({}))
}

/// With some fields of config.json replaced.
fn decoder_with(name: &str, fields: &serde_json::Value) -> Box<dyn Network> {
    opened(&case(name).join("model"), fields)
}

fn opened(dir: &Path, fields: &serde_json::Value) -> Box<dyn Network> {
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    arch::build(&config, &Checkpoint::open(dir).unwrap(), Compute::F32, &Task::CausalLm).unwrap()
}

/// A model that was made for 8 tokens and turns longer sequences by other angles.
fn dynamic() -> Box<dyn Network> {
    let rope = json!({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0});
    decoder_with("llama-rope-scaled", &json!({"max_position_embeddings": 8, "rope_parameters": rope}))
}

fn some_tokens() -> Vec<u32> {
    (0..23).map(|i| (i * 37 + 11) % 250).collect()
}

fn logits(model: &dyn Network, batch: &Batch, caches: &mut [&mut KvCache]) -> Vec<f32> {
    let hidden = model.hidden(batch, caches, &()).unwrap();
    model.head().forward(&hidden, &()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= TOLERANCE * (1.0 + e.abs()), "value {i}: {f}, expected {e}");
    }
}

const CASES: [&str; 13] = [
    "llama-all-linear",
    "llama-rope-scaled",
    "llama-head-dim",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt-neox",
    "gpt-neox-serial",
    "phi3",
];

#[test]
fn logits_of_every_model_type_are_those_of_transformers() {
    for name in CASES {
        let model = decoder(name);
        let expected =
            candle_core::safetensors::load(case(name).join("expected.safetensors"), &Device::Cpu).unwrap();
        let ids = expected["input_ids"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
        let lengths = expected["attention_mask"]
            .to_dtype(DType::F32)
            .unwrap()
            .sum(1)
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        let rows: Vec<&[u32]> = ids.iter().zip(&lengths).map(|(ids, &n)| &ids[..n as usize]).collect();
        let wanted: Vec<Tensor> =
            (0..rows.len()).map(|i| expected["base_logits"].i((i, ..rows[i].len())).unwrap()).collect();
        let wanted: Vec<f32> = Tensor::cat(&wanted, 0).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_close(&logits(&*model, &Batch::new(&rows), &mut []), &wanted);
    }
}

#[test]
fn prefill_chunks_and_decoding_give_the_logits_of_one_pass() {
    let tokens = some_tokens();
    for name in CASES {
        let model = decoder(name);
        let whole = logits(&*model, &Batch::new([&tokens]), &mut []);
        for cuts in [vec![23], vec![9, 14], vec![20, 1, 1, 1], vec![1; 23]] {
            let mut cache = model.new_cache();
            let mut found = Vec::new();
            let mut rest = tokens.as_slice();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut);
                found.extend(logits(&*model, &Batch::new([piece]), &mut [&mut cache]));
                rest = after;
            }
            assert_close(&found, &whole);
        }
    }
}

#[test]
fn a_cache_of_half_the_size_stays_near() {
    let tokens = some_tokens();
    for name in CASES {
        let model = decoder(name);
        let whole = logits(&*model, &Batch::new([&tokens]), &mut []);
        let largest = whole.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
        // Half a unit in the last of 11 and of 8 bits, through two blocks.
        for (dtype, tolerance) in [(CacheDtype::F16, 2e-3), (CacheDtype::Bf16, 1.6e-2)] {
            let mut cache = model.new_cache().with_dtype(dtype);
            let mut found = logits(&*model, &Batch::new([&tokens[..20]]), &mut [&mut cache]);
            for token in &tokens[20..] {
                found.extend(logits(&*model, &Batch::new([[*token]]), &mut [&mut cache]));
            }
            let error = found.iter().zip(&whole).fold(0f32, |error, (f, w)| error.max((f - w).abs()));
            assert!(error > 0.0 && error <= tolerance * largest, "{name} {dtype:?}: {error} of {largest}");
        }
    }
}

#[test]
fn trap_t10_sequences_of_one_batch_do_not_see_each_other() {
    let (long, short) = ([5u32, 9, 40, 2, 77, 31, 8], [6u32, 200, 3]);
    for name in CASES {
        let model = decoder(name);
        let apart = [
            logits(&*model, &Batch::new([&long[..]]), &mut []),
            logits(&*model, &Batch::new([&short[..]]), &mut []),
        ];
        assert_close(&logits(&*model, &Batch::new([&long[..], &short[..]]), &mut []), &apart.concat());
        // The same with caches: the long one half read, the short one still to come.
        let (mut a, mut b) = (model.new_cache(), model.new_cache());
        let mut found = logits(&*model, &Batch::new([&long[..4]]), &mut [&mut a]);
        let both = logits(&*model, &Batch::new([&long[4..], &short[..]]), &mut [&mut a, &mut b]);
        found.extend(both);
        assert_close(&found, &apart.concat());
    }
}

#[test]
fn a_cache_that_is_cut_back_goes_on_from_there() {
    let model = decoder("llama");
    let (tokens, other) = ([1u32, 2, 3, 4, 5, 6], [1u32, 2, 3, 9]);
    let mut cache = model.new_cache();
    logits(&*model, &Batch::new([&tokens[..]]), &mut [&mut cache]);
    cache.truncate(3);
    let found = logits(&*model, &Batch::new([&other[3..]]), &mut [&mut cache]);
    let whole = logits(&*model, &Batch::new([&other[..]]), &mut []);
    assert_close(&found, &whole[whole.len() - found.len()..]);
}

// transformers 5.23, the same weights with these rope_parameters and max_position_embeddings, use_cache=False: the first
// logits of row 5 and of the last row. That row 5's change with the length shows that they hold for one length alone.
#[test]
fn dynamic_rope_gives_the_logits_of_transformers_at_every_length() {
    let (model, tokens) = (dynamic(), some_tokens());
    for (len, fifth, last) in [
        (8, [-0.065053, -2.591664, 0.73902], [0.690307, -2.182889, 0.24318]),
        (9, [-0.072048, -2.54693, 0.766334], [-0.225071, -2.083302, 0.552728]),
        (23, [-0.110089, -2.299928, 0.9153], [-0.177687, -0.647258, 1.928339]),
    ] {
        let found = logits(&*model, &Batch::new([&tokens[..len]]), &mut []);
        let row = found.len() / len;
        assert_close(&found[5 * row..5 * row + 3], &fifth);
        assert_close(&found[(len - 1) * row..(len - 1) * row + 3], &last);
    }
}

#[test]
fn a_sequence_that_outgrows_its_angles_is_read_again() {
    let (model, tokens) = (dynamic(), some_tokens());
    for cuts in [vec![8, 1, 14], vec![3, 7, 13], vec![1; 23]] {
        let mut cache = model.new_cache();
        for cut in cuts {
            let from = cache.len();
            let found = logits(&*model, &Batch::new([&tokens[from..from + cut]]), &mut [&mut cache]);
            // Every pass gives what one pass over all that there is so far gives.
            let whole = logits(&*model, &Batch::new([&tokens[..from + cut]]), &mut []);
            assert_close(&found, &whole[whole.len() - found.len()..]);
        }
        assert_eq!(cache.len(), tokens.len());
    }
}

#[test]
fn a_sequence_that_outgrows_its_longrope_is_read_again() {
    let (model, tokens) = (decoder("phi3-longrope"), some_tokens());
    let mut cache = model.new_cache();
    for cut in [5, 2, 1, 1, 9] {
        let from = cache.len();
        let found = logits(&*model, &Batch::new([&tokens[from..from + cut]]), &mut [&mut cache]);
        let whole = logits(&*model, &Batch::new([&tokens[..from + cut]]), &mut []);
        assert_close(&found, &whole[whole.len() - found.len()..]);
    }
}

#[test]
fn a_learned_position_beyond_the_last_is_refused() {
    let model = decoder("gpt2");
    let error = model.hidden(&Batch::new([&[7u32; 129][..]]), &mut [], &()).unwrap_err().to_string();
    assert!(error.contains("129 tokens: this model knows 128 places"), "{error}");
}

/// A folder with the weights of a case under names that `rename` gives them.
fn renamed(name: &str, config: &serde_json::Value, rename: impl Fn(&str) -> String) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tensors = candle_core::safetensors::load(case(name).join("model/model.safetensors"), &Device::Cpu);
    let tensors: Vec<_> =
        tensors.unwrap().into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
    safetensors::serialize_to_file(tensors, None, &dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn weights_are_found_under_the_names_of_other_versions() {
    let config = |name: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(case(name).join("model/config.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let bare = |name: &str| name.trim_start_matches("transformer.").to_owned();
    let inner = |name: &str| format!("language_model.{name}");
    let outer = |name: &str| name.replacen("model.", "model.language_model.", 1);
    let multimodal = json!({ "model_type": "gemma3", "text_config": config("gemma3") });
    for (name, folder) in [
        ("gpt2", renamed("gpt2", &config("gpt2"), bare)),
        ("gemma3", renamed("gemma3", &multimodal, inner)),
        ("gemma3", renamed("gemma3", &multimodal, outer)),
    ] {
        let batch = Batch::new([&some_tokens()]);
        let expected = logits(&*decoder(name), &batch, &mut []);
        assert_close(&logits(&*opened(folder.path(), &json!({})), &batch, &mut []), &expected);
    }
}

#[test]
fn one_of_several_sequences_may_outgrow_its_angles() {
    let (model, tokens) = (dynamic(), some_tokens());
    let (mut long, mut short) = (model.new_cache(), model.new_cache());
    logits(&*model, &Batch::new([&tokens[..7], &tokens[..2]]), &mut [&mut long, &mut short]);
    let found = logits(&*model, &Batch::new([&tokens[7..10], &tokens[2..4]]), &mut [&mut long, &mut short]);
    let ends = [
        logits(&*model, &Batch::new([&tokens[..10]]), &mut []),
        logits(&*model, &Batch::new([&tokens[..4]]), &mut []),
    ];
    let row = ends[1].len() / 4;
    assert_close(&found, &[&ends[0][7 * row..], &ends[1][2 * row..]].concat());
}

#[test]
fn a_cache_that_is_cut_back_below_the_trained_length_turns_as_before() {
    let (model, tokens) = (dynamic(), some_tokens());
    for keep in [3, 8, 12] {
        let mut cache = model.new_cache();
        logits(&*model, &Batch::new([&tokens[..16]]), &mut [&mut cache]);
        cache.truncate(keep);
        let found = logits(&*model, &Batch::new([&tokens[keep..keep + 2]]), &mut [&mut cache]);
        let whole = logits(&*model, &Batch::new([&tokens[..keep + 2]]), &mut []);
        assert_close(&found, &whole[whole.len() - found.len()..]);
    }
}
