//! Tensors merged by PEFT, for every case of the oracle that this base can open.

use std::collections::BTreeMap;
use std::path::Path;

use taper_base::{Checkpoint, TensorInfo};
use taper_lora::LoraAdapter;

use super::fixture::{floats, open};
use crate::{Out, Weighted, merge};

/// The order of sums differs from PyTorch's: relative to the tensor's largest value.
const WEIGHTS: f32 = 2e-6;

const CASES: [&str; 19] = [
    "llama",
    "llama-all-linear",
    "llama-bias-lora-only",
    "llama-dora",
    "llama-embedding",
    "llama-head-dim",
    "llama-layers",
    "llama-lm-head",
    "llama-lora-bias",
    "llama-modules-to-save",
    "llama-patterns",
    "llama-regex",
    "llama-rope-scaled",
    "llama-rslora",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "tied",
];

#[test]
fn merged_tensors_equal_those_of_peft() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = [root.join("../../tests/fixtures/oracle"), root.join("../../../shared/oracle")];
    let Some(oracle) = places.iter().find(|place| place.join("llama").is_dir()) else {
        println!("skipped: no oracle at {} or {}", places[0].display(), places[1].display());
        return;
    };
    let cases: Vec<_> = CASES.iter().filter(|case| oracle.join(case).is_dir()).collect();
    assert!(cases.len() >= 18, "{cases:?}");
    for case in cases {
        check(case, &oracle.join(case));
    }
}

fn check(case: &str, dir: &Path) {
    let room = tempfile::tempdir().unwrap();
    let base = open(&dir.join("model"));
    let adapter = LoraAdapter::load(&dir.join("adapter"), &base).unwrap();
    let adapters = [Weighted { adapter: &adapter, weight: 1.0 }];
    let out = room.path().join("out");
    let merged = merge(&base, &adapters, Out::new(&out), &mut |_| std::ops::ControlFlow::Continue(()));
    let out = Checkpoint::open(&merged.unwrap().path).unwrap();
    let expected = Checkpoint::open_files(&[dir.join("expected.safetensors")]).unwrap();
    let mut compared = 0;
    for name in base.checkpoint.names() {
        let key = format!("merged.{name}");
        if expected.info(&key).is_none() {
            let [a, b] = [&out, &base.checkpoint].map(|c| floats(c, name));
            assert_eq!(a, b, "{case}: `{name}` is not merged by PEFT");
            continue;
        }
        let [found, wanted] = [floats(&out, name), floats(&expected, &key)];
        let largest = wanted.iter().fold(0f32, |most, value| most.max(value.abs()));
        let off = found.iter().zip(&wanted).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off <= WEIGHTS * largest, "{case}: `{name}` is off by {off} of {largest}");
        compared += 1;
    }
    let places = |c: &Checkpoint| {
        c.names().map(|n| (n.to_owned(), c.info(n).cloned())).collect::<BTreeMap<_, Option<TensorInfo>>>()
    };
    assert_eq!(places(&out), places(&base.checkpoint), "{case}");
    assert!(compared > 0, "{case}");
}
