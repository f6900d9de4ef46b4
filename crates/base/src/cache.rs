//! Keys and values of one sequence, owned by whoever runs it.

use std::ops::Range;

use candle_core::{Result, Storage, Tensor};

/// What a sequence has already been through: its keys and values in every layer, and its length.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<(Vec<f32>, Vec<f32>)>,
    width: usize,
    len: usize,
}

impl KvCache {
    /// An empty cache for `layers` layers of keys and values of `width` = K·E values a token.
    pub fn new(layers: usize, width: usize) -> Self {
        Self { layers: vec![(Vec::new(), Vec::new()); layers], width, len: 0 }
    }

    /// Tokens that all layers hold: the position of the next token.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been run yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything from token `len` on.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            for (keys, values) in &mut self.layers {
                keys.truncate(len * self.width);
                values.truncate(len * self.width);
            }
        }
    }

    /// Appends `rows` of a batch's `keys` and `values` `(N, K·E)` to a layer; [`advance`](Self::advance) counts them once all
    /// layers have theirs.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
        rows: &Range<usize>,
    ) -> Result<()> {
        let rows = rows.start * self.width..rows.end * self.width;
        let (k, v) = &mut self.layers[layer];
        for (cache, tensor) in [(k, keys), (v, values)] {
            // A pass that failed half-way left rows that were never counted.
            cache.truncate(self.len * self.width);
            let (storage, layout) = tensor.storage_and_layout();
            let Storage::Cpu(storage) = &*storage else {
                candle_core::bail!("a cache takes tensors on the CPU")
            };
            let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
            cache.extend_from_slice(&values[rows.clone()]);
        }
        Ok(())
    }

    /// Keys and values `(T, K·E)` of a layer.
    pub(crate) fn layer(&self, layer: usize) -> (&[f32], &[f32]) {
        let (k, v) = &self.layers[layer];
        (k, v)
    }

    /// Counts `tokens` that every layer has had appended.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
