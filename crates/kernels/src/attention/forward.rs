//! One block of queries against a head's keys, with the running softmax of flash attention (arXiv:2205.14135).

use std::ops::Range;

use super::{AttentionShape, Block, Head, KeyValues, Plan, Rows};
use crate::buffers::{by_chunk, zeros};
use crate::product::dense::{Dims, Write, nn, nt};
use crate::{parts, pool, vector};

/// What it is computed from.
pub(crate) struct Inputs<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
}

/// A task: query rows of a sequence, all heads.
struct Task<'a> {
    /// Rows of the sequence among all queries, and among all keys.
    queries: Range<usize>,
    keys: Range<usize>,
    block: Block,
    out: &'a mut [f32],
    log_sums: &'a mut [f32],
}

/// The result `(N, H·E)` and `log Σ exp(score)` `(N, H)`.
pub(crate) fn run(inputs: &Inputs<'_>, plan: Plan<'_>) -> (Vec<f32>, Vec<f32>) {
    let shape = plan.shape;
    let rows = inputs.q.len() / shape.query_width();
    let (mut out, mut log_sums) = (zeros(inputs.q.len()), zeros(rows * shape.heads));
    let (mut out_rest, mut sums_rest) = (out.as_mut_slice(), log_sums.as_mut_slice());
    let mut tasks = Vec::new();
    for (queries, keys) in plan.sequences() {
        for first in (0..queries.len()).step_by(shape.block_rows()) {
            let rows = shape.block_rows().min(queries.len() - first);
            let block = Block { first, rows, keys: keys.len() };
            let (out, log_sums);
            (out, out_rest) = out_rest.split_at_mut(block.rows * shape.query_width());
            (log_sums, sums_rest) = sums_rest.split_at_mut(block.rows * shape.heads);
            tasks.push(Task { queries: queries.clone(), keys: keys.clone(), block, out, log_sums });
        }
    }
    // In order of their rows, as threads have them in cache; of fewer sequences than threads the longest first, so that no
    // thread is left alone with one.
    if plan.sequences().count() < pool::threads() {
        tasks.sort_by_key(|task| std::cmp::Reverse(task.block.first));
    }
    let (k, v) = (heads_apart(inputs.k, shape), heads_apart(inputs.v, shape));
    parts::for_each(&mut tasks, |task| task.run(inputs.q, (&k, &v), plan));
    (out, log_sums)
}

/// Rows `(N, K·E)` as `(K, N, E)`.
fn heads_apart(rows: &[f32], shape: &AttentionShape) -> Vec<f32> {
    let (count, size) = (rows.len() / shape.key_width(), shape.head_dim);
    let per_task = parts::rows_per_task(size);
    by_chunk(rows.len(), per_task * size, |i, apart| {
        for (j, to) in apart.chunks_exact_mut(size).enumerate() {
            let (head, row) = ((i * per_task + j) / count, (i * per_task + j) % count);
            to.copy_from_slice(&rows[row * shape.key_width() + head * size..][..size]);
        }
    })
}

impl Task<'_> {
    /// `k` and `v` are `(K, N, E)`.
    fn run(&mut self, q: &[f32], (k, v): (&[f32], &[f32]), plan: Plan<'_>) {
        let shape = plan.shape;
        let q = slice_rows(q, &self.queries, shape.query_width());
        let q = &q[self.block.first * shape.query_width()..][..self.block.rows * shape.query_width()];
        let mut softmax = Softmax::new(*shape, self.block.rows);
        for kv_head in 0..shape.kv_heads {
            let first = kv_head * k.len() / shape.kv_heads;
            let rows =
                |data| Rows::side_by_side(slice_rows(data, &self.keys, shape.head_dim), shape.head_dim);
            let [keys, values] = [k, v].map(|data| Head::Rows(rows(&data[first..])));
            let kv = KeyValues { keys, values, bias: plan.bias(kv_head) };
            softmax.run(self.block, shape.group_of(q, kv_head), kv);
            softmax.write(self.out, kv_head);
            softmax.write_log_sums(self.log_sums, kv_head);
        }
    }
}

/// The rows in `range` of a matrix of `width` columns.
pub(super) fn slice_rows<'a>(data: &'a [f32], range: &Range<usize>, width: usize) -> &'a [f32] {
    &data[range.start * width..range.end * width]
}

/// The state of a block's softmax: `M = rows · G` stacked queries.
pub(super) struct Softmax {
    shape: AttentionShape,
    /// `(M, E)`, times the scale.
    queries: Vec<f32>,
    /// Keys or values `(KEYS, E)` at most.
    buffer: Vec<f32>,
    /// `(M, KEYS)` at most.
    scores: Vec<f32>,
    /// `(M, E)`: `Σ exp(score - maximum) · value`.
    sums: Vec<f32>,
    /// `(M,)`.
    maxima: Vec<f32>,
    /// `(M,)`: `Σ exp(score - maximum)`.
    totals: Vec<f32>,
}

impl Softmax {
    /// For blocks of up to `rows` query rows.
    pub(super) fn new(shape: AttentionShape, rows: usize) -> Self {
        let stacked = rows * shape.group();
        Self {
            shape,
            queries: Vec::with_capacity(stacked * shape.head_dim),
            buffer: Vec::new(),
            scores: Vec::new(),
            sums: vec![0.0; stacked * shape.head_dim],
            maxima: vec![0.0; stacked],
            totals: vec![0.0; stacked],
        }
    }

    /// Takes the queries `(rows, G·E)` of `block` over all the keys that they see.
    pub(super) fn run(&mut self, block: Block, queries: Rows<'_>, kv: KeyValues<'_>) {
        queries.gather(0..block.rows, &mut self.queries);
        self.queries.iter_mut().for_each(|q| *q *= self.shape.scale);
        let stacked = block.rows * self.shape.group();
        self.sums.clear();
        self.sums.resize(stacked * self.shape.head_dim, 0.0);
        self.maxima.clear();
        self.maxima.resize(stacked, f32::NEG_INFINITY);
        self.totals.clear();
        self.totals.resize(stacked, 0.0);
        for run in block.key_runs(self.shape) {
            self.step(block, kv, &run);
        }
    }

    fn step(&mut self, block: Block, kv: KeyValues<'_>, run: &Range<usize>) {
        let (stacked, size) = (self.maxima.len(), self.shape.head_dim);
        let scores = grown(&mut self.scores, stacked * run.len());
        let keys = kv.keys.slice(run.clone(), &mut self.buffer);
        let dims = Dims { m: stacked, n: run.len(), k: size };
        nt(self.shape.compute, (scores, &self.queries, keys), dims, Write::Set(1.0));
        if let Some(cap) = self.shape.cap {
            vector::soft_cap(scores, cap);
        }
        for (i, row) in scores.chunks_exact_mut(run.len()).enumerate() {
            let (query, head) = (i / self.shape.group(), i % self.shape.group());
            let visible = block.visible(&self.shape, query, run);
            if let Some((bias, first)) = kv.bias {
                bias.add(first + head, block.first + query, run.start, row);
            }
            let maximum = self.maxima[i].max(vector::max(&row[visible.clone()]));
            if self.maxima[i] > f32::NEG_INFINITY && maximum > self.maxima[i] {
                let shrink = vector::exp(self.maxima[i] - maximum);
                self.totals[i] *= shrink;
                self.sums[i * size..][..size].iter_mut().for_each(|s| *s *= shrink);
            }
            self.maxima[i] = maximum;
            self.totals[i] += vector::exp_sub_sum(&mut row[visible.clone()], maximum);
            row[..visible.start].fill(0.0);
            row[visible.end..].fill(0.0);
        }
        let values = kv.values.slice(run.clone(), &mut self.buffer);
        let dims = Dims { m: stacked, n: size, k: run.len() };
        nn(self.shape.compute, (&mut self.sums, scores, values), dims, Write::Add(1.0));
    }

    /// Writes the group's part of the block's rows: `out` `(rows, H·E)`.
    pub(super) fn write(&self, out: &mut [f32], kv_head: usize) {
        let width = self.shape.group() * self.shape.head_dim;
        for (i, row) in out.chunks_exact_mut(self.shape.query_width()).enumerate() {
            self.write_row(i, &mut row[kv_head * width..][..width]);
        }
    }

    /// The group's part `(G·E,)` of row `row`.
    pub(super) fn write_row(&self, row: usize, out: &mut [f32]) {
        let (group, size) = (self.shape.group(), self.shape.head_dim);
        for (g, out) in out.chunks_exact_mut(size).enumerate() {
            let i = row * group + g;
            let inverse = 1.0 / self.totals[i];
            for (o, s) in out.iter_mut().zip(&self.sums[i * size..][..size]) {
                *o = s * inverse;
            }
        }
    }

    fn write_log_sums(&self, log_sums: &mut [f32], kv_head: usize) {
        let group = self.shape.group();
        for (i, row) in log_sums.chunks_exact_mut(self.shape.heads).enumerate() {
            for (g, log_sum) in row[kv_head * group..][..group].iter_mut().enumerate() {
                *log_sum = self.maxima[i * group + g] + self.totals[i * group + g].ln();
            }
        }
    }
}

/// The first `len` values of `buffer`, made that long if need be.
pub(super) fn grown(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
