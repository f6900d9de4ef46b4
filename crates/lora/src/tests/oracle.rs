//! Folders that PEFT 0.21.2 saved, where `shared/oracle` is present: read whole, and written again with the same tensors.

use std::path::{Path, PathBuf};

use taper_base::{Base, Batch, Checkpoint, ModelDir};
use taper_kernels::Compute;

use super::*;

/// A Llama-type model's modules, straight from its file.
struct Modules {
    linears: Vec<Linear>,
    embed: Embedding,
    norms: Vec<RmsNorm>,
    tied: bool,
}

impl Modules {
    fn open(dir: &Path) -> Self {
        let file = Checkpoint::open(dir).unwrap();
        let (mut linears, mut norms, mut embed) = (Vec::new(), Vec::new(), None);
        for name in file.names() {
            let Some(path) = name.strip_suffix(".weight") else { continue };
            let shape = &file.info(name).unwrap().shape;
            let path = path.to_owned();
            match shape[..] {
                [rows, cols] => {
                    let weight = file.weight(name, rows, cols).unwrap();
                    let bias = format!("{path}.bias");
                    let bias = file.info(&bias).map(|info| file.tensor(&bias, &info.shape).unwrap());
                    if path.ends_with("embed_tokens") {
                        embed = Some(Embedding { path, weight });
                    } else {
                        linears.push(Linear { path, weight, bias });
                    }
                }
                _ => norms.push(RmsNorm::new(path, file.tensor(name, shape).unwrap(), 1e-6)),
            }
        }
        let embed = embed.unwrap();
        let tied = !linears.iter().any(|layer| layer.path == "lm_head");
        if tied {
            linears.push(Linear { path: "lm_head".to_owned(), weight: embed.weight.clone(), bias: None });
        }
        Self { linears, embed, norms, tied }
    }

    fn modules(&self) -> BaseModules<'_> {
        let linears = self.linears.iter().map(Module::Linear);
        let modules =
            linears.chain([Module::Embedding(&self.embed)]).chain(self.norms.iter().map(Module::Norm));
        BaseModules {
            model_type: "llama",
            modules: modules.collect(),
            head: "lm_head",
            tie_word_embeddings: self.tied,
            fresh: &[],
        }
    }
}

/// The Llama-type cases, or none where the oracle is not there.
fn cases() -> Vec<PathBuf> {
    let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracle");
    let Ok(entries) = std::fs::read_dir(&oracle) else {
        println!("skipped: no {}", oracle.display());
        return Vec::new();
    };
    let llama_type = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ["llama", "mistral", "qwen", "smollm"].iter().any(|kind| name.starts_with(kind))
            && name != "llama-classify"
    };
    entries.map(|entry| entry.unwrap().path()).filter(llama_type).collect()
}

#[test]
fn folders_of_pefts_are_read_whole_and_written_with_the_same_bytes() {
    for case in cases() {
        let modules = Modules::open(&case.join("model"));
        let adapter = LoraAdapter::load_trainable(&case.join("adapter"), modules.modules()).unwrap();
        assert!(adapter.warnings().is_empty(), "{}: {:?}", case.display(), adapter.warnings());
        let out = tempfile::tempdir().unwrap();
        adapter.save(out.path()).unwrap();
        let read = |dir: &Path| std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
        // PEFT copies a targeted embedding or head beside its factors; that is not repeated.
        let copies = case.ends_with("llama-embedding") || case.ends_with("llama-lm-head");
        assert_eq!(read(out.path()) == read(&case.join("adapter")), !copies, "{}", case.display());
        let again = LoraAdapter::load(out.path(), modules.modules()).unwrap();
        assert!(
            again.tensors().iter().zip(adapter.tensors()).all(|(a, b)| a.0 == b.0 && flat(a.1) == flat(b.1))
        );
    }
}

#[test]
fn merged_tensors_are_pefts() {
    for case in cases() {
        let modules = Modules::open(&case.join("model"));
        let adapter = LoraAdapter::load(&case.join("adapter"), modules.modules()).unwrap();
        let base = Checkpoint::open(&case.join("model")).unwrap();
        let expected = Checkpoint::open_files(&[case.join("expected.safetensors")]).unwrap();
        // A tensor that training did not move is among those that merging may change, and stays as it was.
        let is_expected = |name: &str| expected.info(&format!("merged.{name}")).is_some();
        let mut merged = expected.names().filter_map(|name| name.strip_prefix("merged."));
        let changed = adapter.changed_tensors();
        assert!(
            merged.all(|name| changed.iter().any(|other| other == name)),
            "{}: {changed:?}",
            case.display()
        );
        for name in &changed {
            let shape = &base.info(name).unwrap().shape;
            let mut values = flat(&base.tensor(name, shape).unwrap());
            let before = values.clone();
            adapter.merge_rows(name, 0..shape[0], &mut values).unwrap();
            let expected = if is_expected(name) {
                flat(&expected.tensor(&format!("merged.{name}"), shape).unwrap())
            } else {
                before
            };
            assert_close(&format!("{}: {name}", case.display()), &values, &expected, 2e-6);
        }
    }
}

#[test]
fn loss_and_gradients_are_pefts() {
    for case in cases() {
        let name = case.display();
        let dir = ModelDir { path: case.join("model"), name: String::new() };
        let base = Base::open_dir(dir, Compute::F32).unwrap();
        let adapter = LoraAdapter::load_trainable(&case.join("adapter"), &base).unwrap();
        let expected = Checkpoint::open_files(&[case.join("expected.safetensors")]).unwrap();
        let (batch, labelled) = batch(&expected);
        let hidden = base.model.hidden(&batch, &mut [], &adapter).unwrap();
        let loss = adapter.cross_entropy(base.model.head(), &hidden, &labelled, Scoring::default()).unwrap();
        let mean = loss.to_scalar::<f32>().unwrap() / labelled.rows.len() as f32;
        assert_close(&format!("{name}: loss"), &[mean], &flat(&expected.tensor("loss", &[1]).unwrap()), 1e-5);
        let gradients = (loss / labelled.rows.len() as f64).unwrap().backward().unwrap();
        for (key, var) in adapter.params() {
            let expected = flat(&expected.tensor(&format!("grad.{key}"), var.dims()).unwrap());
            assert_close(&format!("{name}: {key}"), &flat(gradients.get(var).unwrap()), &expected, 1e-4);
        }
    }
}

/// The batch of `make_oracle.py`, without its padding.
fn batch(expected: &Checkpoint) -> (Batch, Labelled) {
    let (width, integers) = (expected.info("input_ids").unwrap().shape[1], |name: &str| -> Vec<i64> {
        expected.bytes(name).unwrap().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
    });
    let (ids, mask, labels) = (integers("input_ids"), integers("attention_mask"), integers("labels"));
    let (mut batch, mut labelled) = (Batch::default(), Labelled::default());
    for row in 0..ids.len() / width {
        let of_row = |values: &[i64]| values[row * width..(row + 1) * width].to_vec();
        let len = of_row(&mask).iter().sum::<i64>() as usize;
        let tokens: Vec<u32> = of_row(&ids)[..len].iter().map(|id| *id as u32).collect();
        for (i, label) in of_row(&labels)[..len].iter().enumerate().skip(1).filter(|(_, label)| **label >= 0)
        {
            labelled.rows.push((batch.len() + i - 1) as u32);
            labelled.labels.push(*label as u32);
        }
        batch.push(&tokens);
    }
    (batch, labelled)
}
