//! The decoder against transformers' logits, and against itself: however a sequence is cut, the same numbers.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Tensor};
use taper_kernels::Compute;

use crate::{Batch, Checkpoint, KvCache, Network, arch};

/// Logits of sequences that are run in another order of summation.
const TOLERANCE: f32 = 2e-5;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle").join(name)
}

fn decoder(name: &str) -> Box<dyn Network> {
    let dir = case(name).join("model");
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    arch::build(&serde_json::from_str(&config).unwrap(), &checkpoint, Compute::F32).unwrap()
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

const CASES: [&str; 7] =
    ["llama-all-linear", "llama-rope-scaled", "llama-head-dim", "mistral", "qwen2", "qwen3", "smollm3"];

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
    let tokens: Vec<u32> = (0..23).map(|i| (i * 37 + 11) % 250).collect();
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
