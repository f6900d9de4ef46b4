//! What a base's network is to everything above it, whatever its architecture.

use std::fmt;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use taper_kernels::{Compute, Weight};

use crate::{Adapter, Batch, Checkpoint, Embedding, Error, Head, KvCache, Linear, Module};

/// What one token keeps for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Values.
    pub values: usize,
    /// Those of them that are kept in bf16 where products are in it ([`Compute::keeps_bf16`]).
    pub read: usize,
}

/// A frozen network over ragged batches.
pub trait Network: fmt::Debug + Send + Sync {
    /// Its sizes.
    fn sizes(&self) -> &Sizes;

    /// The rows that the head reads: final hidden states `(N, D)`, or one row a sequence `(B, D)` where the head labels whole
    /// sequences. `caches` is empty, or holds one cache a segment: then segment `i` continues `caches[i]`, which takes up its
    /// keys and values, and no gradient is kept. The rows are those of one pass over everything that is then in the cache; a
    /// dynamic rope beyond its trained context runs that pass again each time.
    fn hidden(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Result<Tensor>;

    /// The token that every sequence begins with, of a network that writes it from a source ([`Batch::source`]): `hidden`
    /// then asks for the sources, in the first pass at least where there are caches. None of a decoder alone.
    fn decoder_start(&self) -> Option<u32> {
        None
    }

    /// Tokens that a sequence can have, of a network that has a vector for each place; none where places have no end.
    fn places(&self) -> Option<usize> {
        None
    }

    /// The output head.
    fn head(&self) -> &Head;

    /// The table of token vectors.
    fn embedding(&self) -> &Embedding;

    /// An empty cache for one sequence.
    fn new_cache(&self) -> KvCache;

    /// Every module that an adapter may name, in the order of the checkpoint.
    fn modules(&self) -> Vec<Module<'_>>;

    /// About what one token keeps for the backward pass in all blocks; less where `whole_blocks` run as one operation each,
    /// which is under plain low-rank terms.
    fn kept_per_token(&self, whole_blocks: bool) -> Kept;

    /// Names in `modules_to_save` of the modules that a task's head consists of, which are trained whole; none where the
    /// head is the language model's.
    fn head_modules(&self) -> &[&'static str] {
        &[]
    }

    /// Modules that the files lack. They are zeros here, and norms change no scale; an adapter brings their values.
    fn fresh(&self) -> &[Fresh] {
        &[]
    }
}

/// A linear layer or a norm of a task's head that the base's files do not hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Fresh {
    /// Its path.
    pub path: String,
    /// Standard deviation of the normal values that a layer's weight starts from; its bias starts at zero, a norm as it is.
    pub deviation: f64,
}

impl Fresh {
    /// A layer of zeros in the place of one that the files lack, noted in `fresh` with its deviation.
    fn linear(
        path: &str,
        (input, output): (usize, usize),
        bias: bool,
        (deviation, fresh): (f64, &mut Vec<Self>),
    ) -> std::result::Result<Linear, Error> {
        fresh.push(Self { path: path.to_owned(), deviation });
        let weight = Weight::dense(vec![0.0; input * output], output, input)?;
        let bias = bias.then(|| Tensor::zeros(output, DType::F32, &Device::Cpu)).transpose()?;
        Ok(Linear { path: path.to_owned(), weight, bias })
    }
}

/// A layer of a task's head: as `checkpoint` has it, or, where that is none or has no such layer, a [`Fresh`] one.
pub(crate) fn head_linear(
    (checkpoint, compute): (Option<&Checkpoint>, Compute),
    path: &str,
    (input, output): (usize, usize),
    bias: bool,
    fresh: (f64, &mut Vec<Fresh>),
) -> std::result::Result<Linear, Error> {
    let stored = |parameter: &str| checkpoint?.stored_name(&format!("{path}.{parameter}"), false);
    let (Some(checkpoint), Some(weight)) = (checkpoint, stored("weight")) else {
        return Fresh::linear(path, (input, output), bias, fresh);
    };
    let weight = checkpoint.weight(weight, output, input)?.with_compute(compute);
    let bias_name = || stored("bias").map_or_else(|| format!("{path}.bias"), str::to_owned);
    let bias = bias.then(|| checkpoint.tensor(&bias_name(), &[output])).transpose()?;
    Ok(Linear { path: path.to_owned(), weight, bias })
}

/// What an encoder says that is asked to write.
pub(crate) fn needs_labels() -> Error {
    Error::Unsupported {
        what: "this model is an encoder, which labels texts and does not write them: train it to (`taper train --task classify`, or \
               `tag`), or name an adapter that was (`--adapter`)"
            .into(),
    }
}

/// The rows of `x` `(N, D)` at `places`, in their order.
pub(crate) fn rows_at(x: &Tensor, places: impl Iterator<Item = usize>) -> Result<Tensor> {
    let places: Vec<u32> = places.map(|row| row as u32).collect();
    x.index_select(&Tensor::new(places, x.device())?, 0)
}

/// The mean of the rows of `x` `(N, D)` in each of `segments`: `(B, D)`.
pub(crate) fn means(x: &Tensor, segments: &[Range<usize>]) -> Result<Tensor> {
    let rows = x.dims2()?.0;
    let mut shares = vec![0f32; segments.len() * rows];
    for (shares, segment) in shares.chunks_exact_mut(rows).zip(segments) {
        shares[segment.clone()].fill(1.0 / segment.len() as f32);
    }
    Tensor::from_vec(shares, (segments.len(), rows), x.device())?.matmul(x)
}

/// The sizes that every network has, in the terms of config.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// D.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// K.
    pub num_key_value_heads: usize,
    /// E.
    pub head_dim: usize,
    /// V.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding's matrix.
    pub tie_word_embeddings: bool,
}

impl Sizes {
    /// Values of the queries of one token, H·E.
    pub(crate) fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Values of the keys of one token, K·E.
    pub(crate) fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}
