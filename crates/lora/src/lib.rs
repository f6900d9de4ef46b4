//! LoRA on a frozen base: PEFT's configuration and folder format, its matching rules, and the variants.
//!
//! A [`LoraAdapter`] is a value built from a [`LoraConfig`] and the modules of a base. It implements
//! [`taper_base::Adapter`], the seam at which base and adapter meet; [`LoraAdapter::training`] is the same adapter with
//! its dropout. Behaviour matches PEFT 0.21.2 but for its known defects. Data, optimisers and HTTP are left to others;
//! merged files to `taper-merge`, which asks [`LoraAdapter::merge_rows`] for the arithmetic.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use taper_base::{Adapter, Linear, Module};
//! use taper_kernels::Weight;
//! use taper_lora::{BaseModules, LoraAdapter, LoraConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let weight = Weight::dense(vec![0.5; 4 * 3], 4, 3)?;
//! let layer = Linear { path: "model.layers.0.self_attn.q_proj".to_owned(), weight, bias: None };
//! let modules = vec![Module::Linear(&layer)];
//! let (model_type, head) = ("llama", "lm_head");
//! let base = BaseModules { model_type, modules, head, tie_word_embeddings: false, fresh: &[] };
//!
//! let config = LoraConfig { r: 2, target_modules: Some("q_proj".parse()?), ..LoraConfig::default() };
//! let adapter = LoraAdapter::fresh(config, base.clone(), 0)?;
//! let x = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu)?;
//! let y = adapter.linear(&layer, &x)?; // a fresh adapter changes nothing
//! assert_eq!(y.to_vec2::<f32>()?, layer.frozen(&x)?.to_vec2::<f32>()?);
//!
//! let dir = tempfile::tempdir()?;
//! adapter.save(dir.path())?;
//! assert_eq!(LoraAdapter::load(dir.path(), base)?.ranks(), [(layer.path.as_str(), 2)]);
//! # Ok(())
//! # }
//! ```

mod adapter;
mod build;
mod config;
mod config_json;
mod dora;
mod embedding;
mod error;
mod folder;
mod head;
mod lora;
pub mod matching;
mod merging;
mod norms;
mod ops;
mod patterns;
mod plan;
mod problems;
mod source;
mod targets;
mod task;
mod tensor_file;
#[cfg(test)]
mod tests;
mod variant;

pub use adapter::{LoraAdapter, Training};
pub use config::{Bias, Init, LoraConfig, Names};
pub use error::Error;
pub use ops::dropped;
pub use plan::BaseModules;
pub use task::{labels, task};
