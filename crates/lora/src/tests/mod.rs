//! The tests of the crate, and the toy network that they share: embedding, norm, two linear layers, head.

mod blocks;
mod config;
mod folder;
mod gradients;
mod laws;
mod matching;
mod merging;
mod oracle;

use candle_core::{Device, Tensor, Var};
use taper_base::{Adapter, Embedding, Head, Linear, Module, RmsNorm};
use taper_kernels::{Labelled, Scoring, Weight};

use crate::{BaseModules, Bias, LoraAdapter, LoraConfig, Names};

/// f32 rounding of a few additions, relative to the largest value.
pub(crate) const TOLERANCE: f32 = 5e-6;

const VOCABULARY: usize = 11;
const DIM: usize = 4;
const WIDE: usize = 6;
const IDS: [u32; 5] = [3, 0, 10, 3, 7];

/// A network with every kind of module: `in ≠ out`, one layer with a bias.
#[derive(Debug)]
pub(crate) struct Toy {
    pub(crate) embed: Embedding,
    pub(crate) norm: RmsNorm,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) head: Head,
    pub(crate) tied: bool,
}

impl Toy {
    pub(crate) fn new(tied: bool) -> Self {
        let weight = |seed, rows, cols| Weight::dense(values(seed, rows * cols), rows, cols).unwrap();
        let linear = |path: &str, seed, rows, cols, bias| Linear {
            path: path.to_owned(),
            weight: weight(seed, rows, cols),
            bias: if bias { Some(tensor(seed + 50, &[rows])) } else { None },
        };
        let embed = Embedding { path: "model.embed_tokens".to_owned(), weight: weight(1, VOCABULARY, DIM) };
        let mut head = linear("lm_head", 5, VOCABULARY, DIM, false);
        if tied {
            head.weight = embed.weight.clone();
        }
        let norm = RmsNorm::new("model.norm", tensor(2, &[DIM]), 1e-5);
        let up = linear("model.layers.0.up_proj", 3, WIDE, DIM, true);
        let down = linear("model.layers.0.down_proj", 4, DIM, WIDE, false);
        Self { embed, norm, up, down, head: head.into(), tied }
    }

    pub(crate) fn modules(&self) -> BaseModules<'_> {
        BaseModules {
            model_type: "llama",
            modules: vec![
                Module::Embedding(&self.embed),
                Module::Linear(&self.up),
                Module::Linear(&self.down),
                Module::Norm(&self.norm),
                Module::Linear(&self.head.linear),
            ],
            head: &self.head.linear.path,
            tie_word_embeddings: self.tied,
            fresh: &[],
        }
    }

    pub(crate) fn hidden(&self, adapter: &dyn Adapter) -> Tensor {
        let x = self.embed.forward(&IDS, adapter).unwrap();
        let h = self.norm.forward(&x, adapter).unwrap();
        self.down.forward(&self.up.forward(&h, adapter).unwrap(), adapter).unwrap()
    }

    pub(crate) fn logits(&self, adapter: &dyn Adapter) -> Vec<f32> {
        flat(&self.head.forward(&self.hidden(adapter), adapter).unwrap())
    }

    pub(crate) fn loss(&self, adapter: &dyn Adapter) -> Tensor {
        adapter.cross_entropy(&self.head, &self.hidden(adapter), &labelled(), Scoring::default()).unwrap()
    }

    /// An adapter whose every parameter has been moved off its start.
    pub(crate) fn trained(&self, config: &LoraConfig) -> LoraAdapter {
        let adapter = LoraAdapter::fresh(config.clone(), self.modules(), 7).unwrap();
        for (i, var) in (0u64..).zip(adapter.params().values()) {
            shift(var, 100 + i, 0.3);
        }
        adapter
    }
}

pub(crate) fn labelled() -> Labelled {
    Labelled { rows: vec![0, 1, 3, 4], labels: vec![0, 10, 7, 2] }
}

/// Every variant and every kind of parameter, with `α ≠ r`, over an untied base.
pub(crate) fn configs() -> Vec<(&'static str, LoraConfig)> {
    let with = |name, change: fn(&mut LoraConfig)| {
        let mut config = LoraConfig { r: 2, lora_alpha: 3.0, ..LoraConfig::default() };
        config.target_modules = Some(list(&["up_proj", "down_proj"]));
        change(&mut config);
        (name, config)
    };
    vec![
        with("lora", |_| {}),
        with("rslora", |c| c.use_rslora = true),
        with("dora", |c| c.use_dora = true),
        with("lora_bias", |c| {
            c.lora_bias = true;
            c.target_modules = Some(list(&["up_proj"]));
        }),
        with("embedding", |c| c.target_modules = Some(list(&["embed_tokens", "up_proj"]))),
        with("embedding dora", |c| {
            c.use_dora = true;
            c.target_modules = Some(list(&["embed_tokens", "up_proj"]));
        }),
        with("head", |c| c.target_modules = Some(list(&["lm_head", "down_proj"]))),
        with("head dora", |c| {
            c.use_dora = true;
            c.target_modules = Some(list(&["lm_head"]));
        }),
        with("saved", |c| c.modules_to_save = strings(&["norm", "lm_head"])),
        with("saved linear", |c| {
            c.modules_to_save = strings(&["up_proj", "embed_tokens"]);
            c.target_modules = Some(list(&["down_proj"]));
        }),
        with("everything whole", |c| {
            c.modules_to_save = strings(&["embed_tokens", "norm", "up_proj", "down_proj", "lm_head"]);
            c.target_modules = Some(list(&[]));
        }),
        with("bias", |c| c.bias = Bias::LoraOnly),
        with("bias dora", |c| {
            c.bias = Bias::All;
            c.use_dora = true;
        }),
        with("patterns", |c| {
            c.rank_pattern = vec![("up_proj".to_owned(), 3)];
            c.alpha_pattern = vec![("down_proj".to_owned(), 5.0)];
        }),
    ]
}

pub(crate) fn list(names: &[&str]) -> Names {
    Names::List(strings(names))
}

pub(crate) fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// `count` values in ±[0.1, 1], another run for each `seed`.
pub(crate) fn values(seed: u64, count: usize) -> Vec<f32> {
    let value = |i: u64| {
        let bits = crate::ops::mix(seed, i);
        let size = 0.1 + 0.9 * (bits >> 40) as f32 / (1u64 << 24) as f32;
        if bits & 1 == 0 { size } else { -size }
    };
    (0..count as u64).map(value).collect()
}

pub(crate) fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

/// Adds values in ±`size` to a parameter.
pub(crate) fn shift(var: &Var, seed: u64, size: f64) {
    let moved = (var.as_detached_tensor() + (tensor(seed, var.dims()) * size).unwrap()).unwrap();
    var.set(&moved).unwrap();
}

pub(crate) fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.detach().flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares relative to the largest value expected.
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(1e-3f32, |largest, value| largest.max(value.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * largest, "{what}[{i}]: {f}, expected {e} (largest {largest})");
    }
}
