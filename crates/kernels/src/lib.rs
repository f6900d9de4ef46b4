//! Differentiable CPU kernels over frozen weights.
//!
//! This crate owns the arithmetic: matrix products straight from mapped checkpoint bytes ([`Weight`]), and the few
//! large operations a transformer is made of, each a candle `CustomOp` with a hand-written backward pass. Nothing here
//! knows what a model, an adapter or a file format is. It is the only crate in the workspace with `unsafe` code.
//!
//! Shape letters, used in all of taper: B sequences, N tokens (rows of a ragged batch), D hidden size, H heads, K key and
//! value heads, E head size, V vocabulary, R rank.
//!
//! Every operation takes and returns contiguous `f32` tensors on the CPU.

mod activation;
mod attention;
mod block;
mod buffers;
mod cache;
mod columns;
mod dropout;
mod elementwise;
mod error;
mod gradients;
mod heap;
mod linear;
mod loss;
mod low_rank;
mod norm;
mod operand;
mod parts;
pub mod pool;
mod product;
mod quantised;
mod rope;
mod shares;
mod stored;
#[cfg(test)]
mod testing;
mod vector;
mod weight;

pub use activation::{Activation, activate, gated, soft_cap};
pub use attention::{
    AttentionShape, CachedSegment, DistanceBias, attention, attention_across, attention_biased,
    attention_cached,
};
pub use block::{Adapted, Block, BlockPass, Joined, Link, Norms, Order, Projection, block_cached, blocks};
pub use cache::{CacheDtype, CacheRows};
pub use columns::{Columns, columns};
pub use dropout::Dropout;
pub use elementwise::{add_bias, scale_columns};
pub use error::Error;
pub use gradients::Gradients;
pub use heap::keep_freed;
pub use linear::{LowRank, linear};
pub use loss::{HeadWeight, Labelled, Scoring, cross_entropy, linear_cross_entropy, linear_nll};
pub use low_rank::add_low_rank;
pub use norm::{Norm, layer_norm, rms_norm};
pub use product::Kernels;
pub use quantised::{decode, encode};
pub use rope::{RopeTable, rope};
pub use stored::{RowOrder, Stored};
pub use weight::{Compute, Weight, map};
