//! A T5 with caches against itself without.

use std::path::Path;

use taper_kernels::Compute;

use crate::{Batch, Checkpoint, KvCache, Network, Task};

/// The same numbers by other sums.
const TOLERANCE: f32 = 2e-5;

fn open(name: &str) -> Box<dyn Network> {
    let dir =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle").join(name).join("model");
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let config = serde_json::from_str(&config).unwrap();
    crate::arch::build(&config, &Checkpoint::open(&dir).unwrap(), Compute::F32, &Task::CausalLm).unwrap()
}

fn logits(model: &dyn Network, batch: &Batch, caches: &mut [&mut KvCache]) -> Vec<Vec<f32>> {
    let hidden = model.hidden(batch, caches, &()).unwrap();
    model.head().forward(&hidden, &()).unwrap().to_vec2().unwrap()
}

fn assert_close(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().flatten().fold(0f32, |largest, x| largest.max(x.abs()));
    for (f, e) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((f - e).abs() <= TOLERANCE * largest, "{f}, expected {e}");
    }
}

#[test]
fn sequences_with_caches_have_the_logits_of_one_pass() {
    let sources: [Vec<u32>; 2] = [(0..150).map(|i| i * 7 % 250).collect(), vec![9, 4, 200]];
    let targets: [Vec<u32>; 2] =
        [(0..9).map(|i| 257 - i * 11 % 250).collect(), (0..9).map(|i| i * i % 250).collect()];
    for name in ["t5", "t5-v1.1"] {
        let model = open(name);
        let mut whole = Batch::default();
        sources.iter().zip(&targets).for_each(|(source, target)| whole.push_from(source, target));
        let expected = logits(&*model, &whole, &mut []);
        let mut caches = [model.new_cache(), model.new_cache()];
        let mut found = [Vec::new(), Vec::new()];
        for cut in [0..2, 2..3, 3..7, 7..9] {
            let mut batch = Batch::default();
            for (source, target) in sources.iter().zip(&targets) {
                let piece = &target[cut.clone()];
                if cut.start == 0 { batch.push_from(source, piece) } else { batch.push(piece) }
            }
            let [a, b] = &mut caches;
            let rows = logits(&*model, &batch, &mut [a, b]);
            let (of_first, of_second) = rows.split_at(cut.len());
            found[0].extend_from_slice(of_first);
            found[1].extend_from_slice(of_second);
        }
        assert_close(&found.concat(), &expected);
    }
}

#[test]
fn a_batch_without_its_sources_is_refused() {
    let model = open("t5");
    let mut cache = model.new_cache();
    let error = |batch: &Batch, caches: &mut [&mut KvCache]| {
        model.hidden(batch, caches, &()).unwrap_err().to_string()
    };
    let bare = Batch::new([[257u32]]);
    assert!(error(&bare, &mut []).contains("writes from a source"));
    assert!(error(&bare, &mut [&mut cache]).contains("writes from a source"));
    let mut half = bare;
    half.push_from(&[3], &[257]);
    assert!(error(&half, &mut []).contains("1 sources of 2 sequences"));
}
