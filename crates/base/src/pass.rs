//! What one forward pass shares between its blocks, and how it stands to the caches of its sequences.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use taper_kernels::{AttentionShape, CacheRows, CachedSegment, DistanceBias};

use crate::{Adapter, Batch, KvCache};

/// A pass over a batch.
pub(crate) struct Pass<'a, 'c> {
    pub(crate) segments: Arc<[Range<usize>]>,
    /// None, or one a segment.
    pub(crate) caches: &'a mut [&'c mut KvCache],
    pub(crate) adapter: &'a dyn Adapter,
}

/// Hidden states `(N, D)` of `batch` by `run`, which gets the tokens that the caches' keys lack, and appends theirs.
/// `turning` says what a sequence of so many tokens is turned by: see [`Rope::turning`](crate::rope::Rope::turning).
pub(crate) fn with_caches(
    batch: &Batch,
    caches: &mut [&mut KvCache],
    turning: impl Fn(usize) -> usize,
    run: impl Fn(&Batch, &mut [&mut KvCache]) -> Result<Tensor>,
) -> Result<Tensor> {
    if !caches.is_empty() && caches.len() != batch.segments().len() {
        candle_core::bail!("{} caches for {} sequences", caches.len(), batch.segments().len());
    }
    for (cache, rows) in caches.iter_mut().zip(batch.segments()) {
        cache.turn(turning(cache.len() + rows.len()));
    }
    let hidden = if caches.iter().any(|cache| !cache.unread().is_empty()) {
        let (longer, asked) = with_unread(batch, caches);
        run(&longer, caches)?.index_select(&Tensor::new(asked, &Device::Cpu)?, 0)?
    } else {
        run(batch, caches)?
    };
    for (cache, rows) in caches.iter_mut().zip(batch.segments()) {
        cache.advance(&batch.tokens()[rows.clone()]);
    }
    Ok(hidden)
}

/// `batch` with each cache's unread tokens before its segment, and the rows of `batch` in that.
fn with_unread(batch: &Batch, caches: &[&mut KvCache]) -> (Batch, Vec<u32>) {
    let (mut longer, mut asked) = (Batch::default(), Vec::with_capacity(batch.len()));
    for (cache, rows) in caches.iter().zip(batch.segments()) {
        longer.push(&[cache.unread(), &batch.tokens()[rows.clone()]].concat());
        let end = longer.len() as u32;
        asked.extend(end - rows.len() as u32..end);
    }
    (longer, asked)
}

impl Pass<'_, '_> {
    /// The positions of each segment's rows in its sequence.
    pub(crate) fn positions(&self) -> Vec<Range<usize>> {
        let start = |i: usize| self.caches.get(i).map_or(0, |cache| cache.start());
        self.segments.iter().enumerate().map(|(i, rows)| start(i)..start(i) + rows.len()).collect()
    }

    /// Attention of `q` `(N, H·E)` over `k` and `v` `(N, K·E)` and, in block `layer`, over what the caches hold.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        shape: AttentionShape,
    ) -> Result<Tensor> {
        self.attend_biased(layer, (q, k, v), (shape, None))
    }

    /// [`attend`](Self::attend) with a bias on the scores.
    pub(crate) fn attend_biased(
        &mut self,
        layer: usize,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        (shape, bias): (AttentionShape, Option<&Arc<DistanceBias>>),
    ) -> Result<Tensor> {
        if self.caches.is_empty() {
            return match bias {
                None => taper_kernels::attention(q, k, v, &self.segments, shape),
                Some(bias) => taper_kernels::attention_biased(q, k, v, &self.segments, (shape, bias)),
            };
        }
        for (cache, rows) in self.caches.iter_mut().zip(self.segments.iter()) {
            cache.append(layer, k, v, rows)?;
        }
        let segments = self.cached(|cache| cache.layer(layer));
        taper_kernels::attention_cached(q, &segments, shape, bias.map(Arc::as_ref))
    }

    /// Attention of `q` `(N, H·E)`, in block `layer`, over all that the caches hold of the sources.
    pub(crate) fn attend_source(&self, layer: usize, q: &Tensor, shape: AttentionShape) -> Result<Tensor> {
        taper_kernels::attention_cached(q, &self.cached(|cache| cache.source(layer)), shape, None)
    }

    /// The rows of each segment, with those keys and values `of` its cache that they meet.
    fn cached(&self, of: impl Fn(&KvCache) -> (&CacheRows, &CacheRows)) -> Vec<CachedSegment<'_>> {
        (self.caches.iter().zip(self.segments.iter()))
            .map(|(cache, rows)| {
                let (keys, values) = of(cache);
                CachedSegment { start: rows.start, len: rows.len(), keys, values }
            })
            .collect()
    }
}
