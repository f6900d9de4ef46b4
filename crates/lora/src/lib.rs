//! LoRA on a frozen base: PEFT's configuration and folder format, its matching rules, and the variants.
//!
//! A [`LoraAdapter`] is a value built from a [`LoraConfig`] and the modules of a base. It implements
//! [`taper_base::Adapter`], the seam at which base and adapter meet; [`LoraAdapter::training`] is the same adapter with
//! its dropout. Behaviour matches PEFT 0.21.2 but for its known defects. Data, optimisers and HTTP are left to others;
//! merged files to `taper-merge`, which asks [`LoraAdapter::merge_rows`] for the arithmetic.

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
mod mask;
mod matching;
mod merging;
mod norms;
mod patterns;
mod plan;
mod source;
mod targets;
mod tensor_file;
#[cfg(test)]
mod tests;
mod variant;

pub use adapter::{LoraAdapter, Training};
pub use config::{Bias, Init, LoraConfig, Names};
pub use error::Error;
pub use plan::BaseModules;
