//! Attention against caches, without gradients.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::forward::Softmax;
use super::{AttentionShape, Block, DistanceBias, Head, KeyValues};
use crate::operand::Held;
use crate::parts;
use crate::{CacheRows, Compute};

const OP: &str = "attention_cached";

/// One segment that continues a cache.
#[derive(Clone, Copy, Debug)]
pub struct CachedSegment<'a> {
    /// First query row of the segment in the batch.
    pub start: usize,
    /// Query rows of the segment.
    pub len: usize,
    /// Keys `(T, K·E)`. Where the shape is causal or has a window, this segment's own are already appended: query `i` is
    /// position `T - len + i`.
    pub keys: &'a CacheRows,
    /// Values `(T, K·E)`.
    pub values: &'a CacheRows,
}

/// Attention against caches, without gradients: prefill, chunked prefill and decoding.
///
/// The segments come in the order of their rows. Rows of `q` `(N, H·E)` that belong to none become 0.
pub fn attention_cached(
    q: &Tensor,
    segments: &[CachedSegment<'_>],
    shape: AttentionShape,
    bias: Option<&DistanceBias>,
) -> Result<Tensor> {
    shape.check()?;
    bias.map_or(Ok(()), |bias| bias.check(&shape))?;
    let rows = q.dims2()?.0;
    if q.dims() != [rows, shape.query_width()] {
        candle_core::bail!("{OP}: q {:?} against {shape:?}", q.shape());
    }
    check(segments, &shape, rows)?;
    let held = Held::new(OP, q)?;
    Tensor::from_vec(attend(held.values(), segments, &shape, bias), q.shape(), &Device::Cpu)
}

/// [`attention_cached`] of values that fit.
pub(crate) fn attend(
    q: &[f32],
    segments: &[CachedSegment<'_>],
    shape: &AttentionShape,
    bias: Option<&DistanceBias>,
) -> Vec<f32> {
    let mut out = vec![0.0; q.len()];
    parts::for_each(&mut tasks(segments, &mut out, shape), |task| task.run(q, shape, bias));
    out
}

fn check(segments: &[CachedSegment<'_>], shape: &AttentionShape, rows: usize) -> Result<()> {
    let mut next = 0;
    for &CachedSegment { start, len, keys, values } in segments {
        let expected = (shape.kv_heads, shape.head_dim);
        if keys.shape() != expected
            || values.shape() != expected
            || keys.rows() != values.rows()
            || keys.rows() < if shape.has_places() { len } else { len.min(1) }
        {
            candle_core::bail!(
                "{OP}: a segment of {len} rows at row {start} against {} keys of {:?} heads and values, and {} values of {:?}",
                keys.rows(),
                keys.shape(),
                values.rows(),
                values.shape()
            );
        }
        if start < next || start + len > rows {
            candle_core::bail!(
                "{OP}: a segment of rows {start}..{} of {rows}, after one that ends at {next}",
                start + len
            );
        }
        next = start + len;
    }
    Ok(())
}

/// Some rows, and of a single row some heads: either way one run of the result.
struct Task<'a> {
    segment: CachedSegment<'a>,
    /// Rows, counted from the segment's first.
    rows: Range<usize>,
    kv_heads: Range<usize>,
    out: &'a mut [f32],
}

fn tasks<'a>(segments: &[CachedSegment<'a>], out: &'a mut [f32], shape: &AttentionShape) -> Vec<Task<'a>> {
    let width = shape.query_width();
    let mut rest = out;
    let mut next = 0;
    let mut tasks = Vec::new();
    for &segment in segments {
        rest = rest.split_at_mut((segment.start - next) * width).1;
        next = segment.start + segment.len;
        for first in (0..segment.len).step_by(shape.block_rows()) {
            let rows = first..segment.len.min(first + shape.block_rows());
            let step = if rows.len() == 1 { 1 } else { shape.kv_heads };
            for head in (0..shape.kv_heads).step_by(step) {
                let part;
                (part, rest) = rest.split_at_mut(rows.len() * step * shape.group() * shape.head_dim);
                tasks.push(Task { segment, rows: rows.clone(), kv_heads: head..head + step, out: part });
            }
        }
    }
    tasks
}

impl Task<'_> {
    fn run(&mut self, q: &[f32], shape: &AttentionShape, bias: Option<&DistanceBias>) {
        let keys = self.segment.keys.rows();
        let past = if shape.has_places() { keys - self.segment.len } else { 0 };
        let first = past + self.rows.start;
        let block = Block { first, rows: self.rows.len(), keys };
        let start = (self.segment.start + self.rows.start) * shape.query_width();
        let q = &q[start..][..self.rows.len() * shape.query_width()];
        let exact = AttentionShape { compute: Compute::F32, ..*shape };
        let mut softmax = Softmax::new(exact, self.rows.len());
        for head in self.kv_heads.clone() {
            let rows = |rows| Head::Cached(rows, head);
            let [keys, values] = [self.segment.keys, self.segment.values].map(rows);
            let bias = bias.map(|bias| (bias, head * shape.group()));
            let kv = KeyValues { keys, values, bias };
            softmax.run(block, shape.group_of(q, head), kv);
            if self.kv_heads.len() == shape.kv_heads {
                softmax.write(self.out, head);
            } else {
                softmax.write_row(0, self.out);
            }
        }
    }
}
