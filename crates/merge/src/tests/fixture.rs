//! Small models and adapters in temporary folders.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use taper_base::{Base, Checkpoint, ModelDir};
use taper_kernels::Compute;
use taper_lora::{Init, LoraAdapter, LoraConfig, Names};
use tempfile::TempDir;

use crate::{Error, Merged, Out, Progress, Weighted, merge, values};

pub(super) const VOCAB: usize = 20;
pub(super) const HIDDEN: usize = 16;
pub(super) const TOKENS: [u32; 7] = [3, 1, 4, 1, 5, 9, 2];
const KV: usize = 8;
const INNER: usize = 24;
const LAYERS: usize = 2;

/// How a model is built.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) dtype: Dtype,
    pub(super) tied: bool,
    pub(super) bias: bool,
    pub(super) shards: usize,
}

impl Shape {
    pub(super) fn of(dtype: Dtype) -> Self {
        Self { dtype, tied: false, bias: false, shards: 1 }
    }
}

/// Values in ±0.5 from a fixed sequence.
pub(super) struct Noise(pub(super) u64);

impl Noise {
    pub(super) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }

    pub(super) fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

pub(super) fn store(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * values::size(dtype).unwrap()];
    values::round(values, dtype, &mut bytes);
    bytes
}

/// A temporary folder with a model in `base`.
pub(super) struct Room {
    pub(super) dir: TempDir,
}

impl Room {
    pub(super) fn new(shape: Shape) -> Self {
        let room = Self { dir: tempfile::tempdir().unwrap() };
        let base = room.path("base");
        fs::create_dir(&base).unwrap();
        write_model(&base, &tensors(shape), shape);
        room
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn base(&self) -> Base {
        open(&self.path("base"))
    }

    /// Names in the room, hidden ones too, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    pub(super) fn merge(&self, base: &Base, adapters: &[(&LoraAdapter, f64)]) -> Result<Merged, Error> {
        self.merge_to("out", false, base, adapters)
    }

    pub(super) fn merge_to(
        &self,
        out: &str,
        force: bool,
        base: &Base,
        adapters: &[(&LoraAdapter, f64)],
    ) -> Result<Merged, Error> {
        let adapters: Vec<_> =
            adapters.iter().map(|&(adapter, weight)| Weighted { adapter, weight }).collect();
        let mut last = Progress::default();
        let path = self.path(out);
        let out = Out { force, ..Out::new(&path) };
        let merged = merge(base, &adapters, out, &mut |progress| {
            last = progress;
            ControlFlow::Continue(())
        })?;
        assert_eq!((last.done, last.total), (merged.bytes, merged.bytes));
        Ok(merged)
    }
}

pub(super) fn open(dir: &Path) -> Base {
    Base::open_dir(ModelDir { path: dir.to_owned(), name: dir.display().to_string() }, Compute::F32).unwrap()
}

pub(super) type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Every tensor of a Llama with two blocks.
pub(super) fn tensors(shape: Shape) -> Tensors {
    let mut all = Tensors::new();
    let mut noise = Noise(7);
    let mut add = |name: String, shape_of: &[usize]| {
        let values = noise.take(shape_of.iter().product());
        all.insert(name, (shape.dtype, shape_of.to_vec(), store(&values, shape.dtype)));
    };
    add("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN]);
    for layer in (0..LAYERS).map(|i| format!("model.layers.{i}")) {
        for (name, out, input) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", KV, HIDDEN),
            ("self_attn.v_proj", KV, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ] {
            add(format!("{layer}.{name}.weight"), &[out, input]);
            if shape.bias && name.starts_with("self_attn") {
                add(format!("{layer}.{name}.bias"), &[out]);
            }
        }
        add(format!("{layer}.input_layernorm.weight"), &[HIDDEN]);
        add(format!("{layer}.post_attention_layernorm.weight"), &[HIDDEN]);
    }
    add("model.norm.weight".into(), &[HIDDEN]);
    if !shape.tied {
        add("lm_head.weight".into(), &[VOCAB, HIDDEN]);
    }
    all
}

/// Writes a model's files, the tensors dealt out to shards.
pub(super) fn write_model(dir: &Path, tensors: &Tensors, shape: Shape) {
    let json = |name: &str, value: &Value| fs::write(dir.join(name), format!("{value:#}\n")).unwrap();
    json(
        "config.json",
        &json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": VOCAB,
            "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
            "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "attention_bias": shape.bias, "zebra": 1,
            "tie_word_embeddings": shape.tied, "max_position_embeddings": 64}),
    );
    json("generation_config.json", &json!({"eos_token_id": 2}));
    let vocab: BTreeMap<String, usize> = (0..VOCAB).map(|i| (format!("t{i}"), i)).collect();
    json(
        "tokenizer.json",
        &json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}}),
    );
    fs::write(dir.join("pytorch_model.bin"), "pickle").unwrap();
    fs::write(dir.join("chat_template.jinja"), "{{ messages }}").unwrap();
    let mut map = serde_json::Map::new();
    for shard in 0..shape.shards {
        let name = match shape.shards {
            1 => "model.safetensors".to_owned(),
            shards => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
        };
        let views = tensors.iter().enumerate().filter(|(i, _)| i % shape.shards == shard).map(
            |(_, (key, tensor))| {
                map.insert(key.clone(), name.as_str().into());
                (key, TensorView::new(tensor.0, tensor.1.clone(), &tensor.2).unwrap())
            },
        );
        let metadata = [("format", "pt"), ("made_by", "a test")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        safetensors::serialize_to_file(views, Some(metadata.into_iter().collect()), &dir.join(&name))
            .unwrap();
    }
    if shape.shards > 1 {
        let size: usize = tensors.values().map(|tensor| tensor.2.len()).sum();
        json("model.safetensors.index.json", &json!({"metadata": {"total_size": size}, "weight_map": map}));
    }
}

pub(super) fn targets(names: &[&str]) -> LoraConfig {
    LoraConfig {
        r: 3,
        lora_alpha: 4.5,
        target_modules: Some(Names::List(names.iter().map(|&name| name.to_owned()).collect())),
        init_lora_weights: Init::Random,
        base_model_name_or_path: Some("org/base".into()),
        ..LoraConfig::default()
    }
}

/// An adapter whose every parameter is off its start by a little noise.
pub(super) fn adapter(base: &Base, config: LoraConfig, seed: u64) -> LoraAdapter {
    let adapter = LoraAdapter::fresh(config, base, seed).unwrap();
    let mut noise = Noise(seed);
    for var in adapter.params().values() {
        let shift =
            candle_core::Tensor::from_vec(noise.take(var.elem_count()), var.shape(), var.device()).unwrap();
        var.set(&(var.as_tensor() + shift * 0.4).unwrap()).unwrap();
    }
    adapter.frozen()
}

/// Bytes of a tensor in a model's folder.
pub(super) fn bytes(dir: &Path, name: &str) -> Vec<u8> {
    Checkpoint::open(dir).unwrap().bytes(name).unwrap().to_vec()
}

/// Values of a tensor in a checkpoint.
pub(super) fn floats(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let info = checkpoint.info(name).unwrap();
    let mut out = vec![0.0; info.shape.iter().product()];
    values::widen(checkpoint.bytes(name).unwrap(), info.dtype.plain().unwrap(), &mut out);
    out
}
