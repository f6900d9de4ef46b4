//! Keys and values of one sequence, owned by whoever runs it.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Storage, Tensor};
use taper_kernels::{CacheDtype, CacheRows};

/// What a sequence has already been through: its tokens, and their keys and values in every layer.
///
/// Some rope types turn all rows by angles that depend on the sequence's length. Where a sequence outgrows the angles that
/// its keys were made with, not only the keys are stale but whatever the later layers made of them, so the tokens are run
/// again with the pass that asked for more.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<(CacheRows, CacheRows)>,
    /// Keys and values of the source in each layer; none until it is read, and none for a decoder alone.
    source: Arc<[(CacheRows, CacheRows)]>,
    /// K and E.
    heads: (usize, usize),
    tokens: Vec<u32>,
    /// Tokens, from the first on, whose keys and values the layers hold.
    read: usize,
    /// See [`Rope::turning`](crate::rope::Rope::turning): what they were made with.
    turning: usize,
}

impl KvCache {
    /// An empty cache for `layers` layers of keys and values of K `heads` and their E values a token, in f32.
    pub fn new(layers: usize, heads: (usize, usize)) -> Self {
        let rows = CacheRows::new(heads, CacheDtype::F32);
        let layers = vec![(rows.clone(), rows); layers];
        Self { layers, source: Arc::default(), heads, tokens: Vec::new(), read: 0, turning: 0 }
    }

    /// An empty cache like this one that keeps its keys and values in `dtype`.
    #[must_use]
    pub fn with_dtype(&self, dtype: CacheDtype) -> Self {
        let rows = CacheRows::new(self.heads, dtype);
        Self { layers: vec![(rows.clone(), rows); self.layers.len()], ..Self::new(0, self.heads) }
    }

    /// Makes room for `tokens` in all, so that nothing is moved while they come.
    pub fn reserve(&mut self, tokens: usize) {
        for (keys, values) in &mut self.layers {
            keys.reserve(tokens);
            values.reserve(tokens);
        }
    }

    /// Tokens that have been run: the position of the next one.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing has been run yet.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Forgets everything from token `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.read = self.read.min(len);
        for (keys, values) in &mut self.layers {
            keys.truncate(self.read);
            values.truncate(self.read);
        }
    }

    /// Keys and values that were made with other angles than `turning` are to be made again.
    pub(crate) fn turn(&mut self, turning: usize) {
        if self.turning != turning {
            (self.read, self.turning) = (0, turning);
        }
    }

    /// The tokens whose keys and values are to be made again, before those of new ones.
    pub(crate) fn unread(&self) -> &[u32] {
        &self.tokens[self.read..]
    }

    /// The position of the first token of the next pass: [`unread`](Self::unread) ones come first.
    pub(crate) fn start(&self) -> usize {
        self.read
    }

    /// Whether the source has been read.
    pub(crate) fn has_source(&self) -> bool {
        !self.source.is_empty()
    }

    /// Takes up `rows` of the source's `keys` and `values` `(M, K·E)` in each layer, in the place of any other's.
    pub(crate) fn set_source(&mut self, of_layers: &[(Tensor, Tensor)], rows: &Range<usize>) -> Result<()> {
        let dtype = self.layers.first().map_or(CacheDtype::F32, |(keys, _)| keys.dtype());
        let taken = |tensor: &Tensor| {
            let mut cache = CacheRows::new(self.heads, dtype);
            append(&mut cache, tensor, self.width(), rows).map(|()| cache)
        };
        let layer = |(keys, values): &(Tensor, Tensor)| Ok((taken(keys)?, taken(values)?));
        self.source = of_layers.iter().map(layer).collect::<Result<_>>()?;
        Ok(())
    }

    /// Keys and values `(M, K·E)` of the source in a layer.
    pub(crate) fn source(&self, layer: usize) -> (&CacheRows, &CacheRows) {
        let (k, v) = &self.source[layer];
        (k, v)
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
        let width = self.width();
        let (k, v) = self.layer_mut(layer);
        append(k, keys, width, rows)?;
        append(v, values, width, rows)
    }

    fn width(&self) -> usize {
        self.heads.0 * self.heads.1
    }

    /// Keys and values `(T, K·E)` of a layer.
    pub(crate) fn layer(&self, layer: usize) -> (&CacheRows, &CacheRows) {
        let (k, v) = &self.layers[layer];
        (k, v)
    }

    /// Keys and values of a layer, to append to: those of the tokens that count.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> (&mut CacheRows, &mut CacheRows) {
        let (k, v) = &mut self.layers[layer];
        // A pass that failed half-way left rows that were never counted.
        k.truncate(self.read);
        v.truncate(self.read);
        (k, v)
    }

    /// Counts the unread tokens and the new `tokens`, which every layer has had appended.
    pub(crate) fn advance(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.read = self.tokens.len();
    }
}

/// Appends `rows` of `tensor` `(N, width)`, which lies row after row.
fn append(cache: &mut CacheRows, tensor: &Tensor, width: usize, rows: &Range<usize>) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { candle_core::bail!("a cache takes tensors on the CPU") };
    let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
    cache.append(&values[rows.start * width..rows.end * width]);
    Ok(())
}
