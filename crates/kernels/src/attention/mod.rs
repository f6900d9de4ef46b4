//! Grouped-query attention over the segments of a ragged batch, causal or in both directions, within them or from one batch
//! to another, with memory linear in length.
//!
//! Work is cut into blocks of query rows. The G = H/K query heads that share a key and value head lie side by side in a
//! row, so that a block of rows is a matrix of `rows · G` stacked queries against one head's keys.

pub(crate) mod backward;
mod bias;
mod cached;
pub(crate) mod forward;
mod rows;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use bias::GroupBias;
use rows::{Head, Rows};

pub use bias::DistanceBias;
pub(crate) use cached::attend;
pub use cached::{CachedSegment, attention_cached};

use crate::Compute;
use crate::operand::{Held, gradient, output, values};

const OP: &str = "attention";

/// Stacked query rows of a block, about.
const STACKED: usize = 192;

/// Keys that a block of queries meets at once.
const KEYS: usize = 256;

/// The facts of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads K; H is a multiple of K.
    pub kv_heads: usize,
    /// Size E of a head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1/√E`.
    pub scale: f32,
    /// Whether a query sees only itself and what is before it, as in a decoder; else its whole segment, as in an encoder.
    pub causal: bool,
    /// Each query sees itself, the `window - 1` keys before it and, where it is not causal, as many after it; all of them
    /// when none.
    pub window: Option<usize>,
    /// `c`: scores become `c·tanh(score/c)` (arXiv:2408.00118 §2); left as they are when none.
    pub cap: Option<f32>,
    /// Of the products, but against caches, where they are exact.
    pub compute: Compute,
}

impl AttentionShape {
    pub(crate) fn check(&self) -> Result<()> {
        if self.head_dim == 0
            || self.kv_heads == 0
            || !self.heads.is_multiple_of(self.kv_heads)
            || self.heads == 0
        {
            candle_core::bail!(
                "{OP}: {} heads of {} values over {} key and value heads",
                self.heads,
                self.head_dim,
                self.kv_heads
            );
        }
        if self.window == Some(0) {
            candle_core::bail!("{OP}: a window of 0 keys");
        }
        if self.cap.is_some_and(|cap| !(cap.is_finite() && cap > 0.0)) {
            candle_core::bail!("{OP}: scores capped at {:?}", self.cap);
        }
        Ok(())
    }

    /// Whether what a query sees depends on its place.
    fn has_places(&self) -> bool {
        self.causal || self.window.is_some()
    }

    /// Query heads to a key and value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// `H·E`.
    pub(crate) fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// `K·E`.
    pub(crate) fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query rows of a block: enough to multiply well, not so many that much of the scores lies above the diagonal.
    fn block_rows(&self) -> usize {
        (STACKED / self.group()).clamp(16, 64).next_multiple_of(16)
    }

    /// Those of `keys` keys that the query at `position` sees.
    fn visible(&self, position: usize, keys: usize) -> Range<usize> {
        let after = if self.causal { Some(1) } else { self.window };
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        start..after.map_or(keys, |after| position.saturating_add(after).min(keys))
    }

    /// The head's part of rows of keys or values `(T, K·E)`.
    fn head<'a>(&self, rows: &'a [f32], kv_head: usize) -> Rows<'a> {
        let data = rows.get(kv_head * self.head_dim..).unwrap_or_default();
        Rows { data, stride: self.key_width(), width: self.head_dim }
    }

    /// The group's part of query rows `(T, H·E)`.
    fn group_of<'a>(&self, rows: &'a [f32], kv_head: usize) -> Rows<'a> {
        let width = self.group() * self.head_dim;
        let data = rows.get(kv_head * width..).unwrap_or_default();
        Rows { data, stride: self.query_width(), width }
    }
}

/// Keys and values of one head, and what the query heads that share it add to their scores.
#[derive(Clone, Copy)]
struct KeyValues<'a> {
    keys: Head<'a>,
    values: Head<'a>,
    bias: GroupBias<'a>,
}

/// Consecutive query rows of a segment.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// The position of the first among the segment's keys.
    first: usize,
    rows: usize,
    /// Keys of the segment.
    keys: usize,
}

impl Block {
    /// The keys that any of the rows sees, in runs.
    fn key_runs(self, shape: AttentionShape) -> impl Iterator<Item = Range<usize>> {
        let start = shape.visible(self.first, self.keys).start;
        let end = shape.visible(self.first + self.rows - 1, self.keys).end;
        (start..end).step_by(KEYS).map(move |start| start..end.min(start + KEYS))
    }

    /// The keys of `run` that row `row` sees, counted from the run's start.
    fn visible(self, shape: &AttentionShape, row: usize, run: &Range<usize>) -> Range<usize> {
        let visible = shape.visible(self.first + row, self.keys);
        let start = visible.start.clamp(run.start, run.end);
        start - run.start..visible.end.clamp(start, run.end) - run.start
    }

    /// The rows that see the key at `position`, counted from the block's first.
    fn seeing(self, shape: &AttentionShape, position: usize) -> Range<usize> {
        let before = if shape.causal { Some(1) } else { shape.window };
        let start = before.map_or(0, |before| (position + 1).saturating_sub(before));
        let end = shape.window.map_or(usize::MAX, |window| position.saturating_add(window));
        let within = |position: usize| position.saturating_sub(self.first).min(self.rows);
        within(start)..within(end)
    }
}

/// Which rows meet, and how.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// Rows of the queries, and of the keys and values, of each sequence.
    queries: &'a [Range<usize>],
    keys: &'a [Range<usize>],
    bias: Option<&'a DistanceBias>,
    pub(crate) shape: &'a AttentionShape,
}

impl<'a> Plan<'a> {
    /// The rows of each segment meet each other.
    pub(crate) fn within(segments: &'a [Range<usize>], shape: &'a AttentionShape) -> Self {
        Self { queries: segments, keys: segments, bias: None, shape }
    }

    /// The rows of the queries and of the keys of each sequence.
    fn sequences(self) -> impl Iterator<Item = (&'a Range<usize>, &'a Range<usize>)> {
        self.queries.iter().zip(self.keys)
    }

    /// What the query heads add to their scores that share `kv_head`.
    fn bias(self, kv_head: usize) -> GroupBias<'a> {
        self.bias.map(|bias| (bias, kv_head * self.shape.group()))
    }
}

/// Attention inside each segment, for training and scoring: `q` `(N, H·E)`, `k` and `v` `(N, K·E)`, to `(N, H·E)`.
///
/// `segments` are consecutive row ranges that cover the batch. A row sees the rows of its own segment: up to itself, or all
/// of them where the shape is not causal. Keeps `q`, `k`, `v`, the result and one log-sum per row and head for backward;
/// recomputes the rest.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Arc<[Range<usize>]>,
    shape: AttentionShape,
) -> Result<Tensor> {
    Attention::new([segments, segments], None, shape).apply(q, k, v)
}

/// [`attention`] whose scores have a `bias` added, for training and scoring.
pub fn attention_biased(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Arc<[Range<usize>]>,
    (shape, bias): (AttentionShape, &Arc<DistanceBias>),
) -> Result<Tensor> {
    bias.check(&shape)?;
    Attention::new([segments, segments], Some(bias.clone()), shape).apply(q, k, v)
}

/// Attention from one batch to another, for training and scoring: `q` `(N, H·E)`, `k` and `v` `(M, K·E)`, to `(N, H·E)`.
///
/// `queries` and `keys` are the rows of the same sequences in the two batches, each as in [`attention`]. A row sees all keys
/// of its sequence, so that the shape may not be causal; or a window of them, where the queries are those of the first
/// keys.
pub fn attention_across(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    [queries, keys]: [&Arc<[Range<usize>]>; 2],
    shape: AttentionShape,
) -> Result<Tensor> {
    if shape.causal {
        candle_core::bail!("{OP}: causal from one batch to another");
    }
    // In a window, a query behind the last key might see none.
    let few = |(q, k): (&Range<usize>, &Range<usize>)| {
        k.len() < if shape.has_places() { q.len() } else { q.len().min(1) }
    };
    if queries.len() != keys.len() || queries.iter().zip(keys.iter()).any(few) {
        candle_core::bail!(
            "{OP}: {} sequences of queries to {} of keys, or one without keys",
            queries.len(),
            keys.len()
        );
    }
    Attention::new([queries, keys], None, shape).apply(q, k, v)
}

/// That the segments are consecutive and cover the rows of the batch.
pub(crate) fn check_segments(segments: &[Range<usize>], rows: usize) -> Result<()> {
    let mut next = 0;
    for segment in segments {
        if segment.start != next || segment.end < next {
            candle_core::bail!(
                "{OP}: segment {segment:?} does not begin at row {next}, where the one before it ends"
            );
        }
        next = segment.end;
    }
    if next != rows {
        candle_core::bail!("{OP}: the segments cover {next} of {rows} rows");
    }
    Ok(())
}

struct Attention {
    queries: Arc<[Range<usize>]>,
    keys: Arc<[Range<usize>]>,
    bias: Option<Arc<DistanceBias>>,
    shape: AttentionShape,
    /// `log Σ exp(score)` `(N, H)`.
    log_sums: OnceLock<Vec<f32>>,
}

impl Attention {
    fn new(
        [queries, keys]: [&Arc<[Range<usize>]>; 2],
        bias: Option<Arc<DistanceBias>>,
        shape: AttentionShape,
    ) -> Self {
        Self { queries: queries.clone(), keys: keys.clone(), bias, shape, log_sums: OnceLock::new() }
    }

    fn apply(self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let shape = &self.shape;
        shape.check()?;
        let (rows, keys) = (q.dims2()?.0, k.dims2()?.0);
        if q.dims() != [rows, shape.query_width()]
            || k.dims() != [keys, shape.key_width()]
            || v.dims() != k.dims()
        {
            candle_core::bail!(
                "{OP}: q {:?}, k {:?} and v {:?} against {shape:?}",
                q.shape(),
                k.shape(),
                v.shape()
            );
        }
        check_segments(&self.queries, rows)?;
        check_segments(&self.keys, keys)?;
        q.apply_op3(k, v, self)
    }

    fn plan(&self) -> Plan<'_> {
        Plan { queries: &self.queries, keys: &self.keys, bias: self.bias.as_deref(), shape: &self.shape }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs =
            forward::Inputs { q: values(OP, s1, l1)?, k: values(OP, s2, l2)?, v: values(OP, s3, l3)? };
        let (y, log_sums) = forward::run(&inputs, self.plan());
        // Each call of `attention` makes its own operation, so that nothing is there yet.
        let _ = self.log_sums.set(log_sums);
        Ok(output(y, l1.shape()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let held =
            [Held::new(OP, q)?, Held::new(OP, k)?, Held::new(OP, v)?, Held::new(OP, y)?, Held::new(OP, &g)?];
        let [qs, ks, vs, ys, gs] = held.each_ref().map(Held::values);
        let log_sums = self
            .log_sums
            .get()
            .ok_or_else(|| candle_core::Error::msg("attention: backward before forward"))?;
        let inputs = backward::Inputs { q: qs, k: ks, v: vs, y: ys, g: gs, log_sums };
        let found = backward::run(&inputs, self.plan());
        Ok((gradient(q, || found.q)?, gradient(k, || found.k)?, gradient(v, || found.v)?))
    }
}
