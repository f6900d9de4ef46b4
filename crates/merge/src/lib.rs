//! Folding adapters into the weights of their base, checking the result, and telling what a folder holds.
//!
//! [`quantize`] writes a model folder as one GGUF file.
//! [`merge`] streams: row blocks of the base's mapped files are changed in f32, rounded once and written at their final
//! offsets; the rest is copied by the kernel. The arithmetic of each LoRA variant is `taper-lora`'s; files, folders and
//! rounding are here. [`build`] leaves the model under a hidden name, so that [`verify`] can run base + adapter and it side by
//! side before it is put in place. [`inspect`] reads an adapter's or a model's folder and lists its problems.

mod error;
mod folder;
mod inspect;
mod merge;
mod plan;
mod quantize;
#[cfg(test)]
mod tests;
mod values;
mod verify;
mod write;

pub use error::Error;
pub use inspect::{FileFacts, Inspection, Kind, ModelFacts, ModuleFacts, TensorFacts, inspect};
pub use merge::{Built, Merged, Out, Progress, Source, Weighted, build, merge};
pub use quantize::{Quantized, quantize};
pub use verify::{Verification, sample, verify};
