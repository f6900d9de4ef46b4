//! The frozen base model: its files, tokenizer and chat template, its forward pass over ragged batches, and generation.
//!
//! A [`Base`] is an immutable value. What changes it is another value, an [`Adapter`], and the two meet only as arguments of
//! a forward pass: no module is replaced and nothing is switched on or off, so one base serves any number of adapters from
//! any number of threads. The bare base is the adapter `&()`.
//!
//! Shape letters, used in all of taper: B sequences, N tokens (rows of a ragged batch), D hidden size, H heads, K key and
//! value heads, E head size, V vocabulary, R rank.

mod arch;
mod base;
mod batch;
mod beam;
mod cache;
mod chat_template;
mod checkpoint;
mod classifier;
mod decoder;
mod encoder;
mod error;
mod fields;
pub mod files;
mod generate;
pub mod gguf;
mod gpt;
mod head;
pub mod hub;
mod linear;
mod model_dir;
mod modernbert;
mod network;
mod norm;
mod parts;
mod pass;
mod rope;
mod sampler;
mod t5;
mod task;
mod text_stream;
mod tiny;
mod tokenizer;
mod whole;

pub use base::Base;
pub use batch::Batch;
pub use beam::{Beams, beam_search};
pub use cache::KvCache;
pub use chat_template::{ChatTemplate, Rendered};
pub use checkpoint::{Checkpoint, TensorInfo, ValueType};
pub use error::Error;
pub use generate::{Generation, GenerationOptions, Session, Stop, generate};
pub use head::Head;
pub use linear::{Adapter, Effect, Embedding, Linear, Module};
pub use model_dir::{ModelDir, ModelSource};
pub use network::{Fresh, Kept, Network, Sizes};
pub use norm::{LayerNorm, RmsNorm};
pub use sampler::Sampling;
pub use task::{Labels, Task};
pub use text_stream::TextStream;
pub use tokenizer::{Input, Tokenizer};
