//! The gradients of attention, from recomputed probabilities (arXiv:2205.14135, algorithm 4).
//!
//! One task owns a key and value head of a segment, and so both gradients of its keys and values: sums have one order.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::forward::{grown, slice_rows};
use super::{AttentionShape, Block, Rows};
use crate::product::dense::{Dims, Write, nn, nt, tn};
use crate::{parts, vector};

pub(super) struct Inputs<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    /// The result, and its gradient.
    pub(super) y: &'a [f32],
    pub(super) g: &'a [f32],
    pub(super) log_sums: &'a [f32],
}

/// Gradients in the shapes of `q`, `k` and `v`.
pub(super) struct Gradients {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
}

/// A segment's rows of the gradients. Its heads write their columns in turn.
struct Written<'a> {
    q: &'a mut [f32],
    k: &'a mut [f32],
    v: &'a mut [f32],
}

pub(super) fn run(inputs: &Inputs<'_>, segments: &[Range<usize>], shape: &AttentionShape) -> Gradients {
    let zeros = |like: &[f32]| vec![0.0; like.len()];
    let mut found = Gradients { q: zeros(inputs.q), k: zeros(inputs.k), v: zeros(inputs.v) };
    let (mut q_rest, mut k_rest, mut v_rest) = (&mut found.q[..], &mut found.k[..], &mut found.v[..]);
    let mut rows = Vec::new();
    for segment in segments {
        let (q, k, v);
        (q, q_rest) = q_rest.split_at_mut(segment.len() * shape.query_width());
        (k, k_rest) = k_rest.split_at_mut(segment.len() * shape.key_width());
        (v, v_rest) = v_rest.split_at_mut(segment.len() * shape.key_width());
        rows.push(Mutex::new(Written { q, k, v }));
    }
    let all = 0..segments.len();
    let mut tasks: Vec<_> =
        all.flat_map(|segment| (0..shape.kv_heads).map(move |head| (segment, head))).collect();
    // The longest first, so that no thread is left alone with one.
    tasks.sort_by_key(|(segment, _)| std::cmp::Reverse(segments[*segment].len()));
    parts::for_each(&mut tasks, |(segment, head)| {
        let mut task = Head::new(inputs, &segments[*segment], *shape, *head);
        task.run();
        // A panic elsewhere is the caller's to see.
        task.write(&mut rows[*segment].lock().unwrap_or_else(PoisonError::into_inner));
    });
    drop(rows);
    found
}

/// A key and value head of a segment of `T` rows.
struct Head<'a> {
    shape: AttentionShape,
    kv_head: usize,
    /// `(T, E)`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// `(T, G·E)`: the queries, the result and its gradient.
    queries: Rows<'a>,
    result: Rows<'a>,
    upstream: Rows<'a>,
    /// `(T, H)`.
    log_sums: &'a [f32],
    /// `(T, G·E)`, `(T, E)`, `(T, E)`.
    found: Gradients,
    work: Work,
}

/// Buffers of one block of `M` stacked queries.
#[derive(Default)]
struct Work {
    /// `(M, E)`: the queries times the scale, and the gradient of their results.
    queries: Vec<f32>,
    upstream: Vec<f32>,
    /// `(M,)`: `log Σ exp(score)`, and `Σ g·y`.
    log_sums: Vec<f32>,
    along: Vec<f32>,
    /// `(KEYS, M)` at most. Keys go down, so that the products that sum over the queries need no transposing.
    weights: Vec<f32>,
    scores: Vec<f32>,
    /// `(E, M)`: the gradient of the queries.
    found: Vec<f32>,
}

impl<'a> Head<'a> {
    fn new(inputs: &Inputs<'a>, segment: &Range<usize>, shape: AttentionShape, kv_head: usize) -> Self {
        let wide = |data| shape.group_of(slice_rows(data, segment, shape.query_width()), kv_head);
        let narrow = |data| {
            let mut rows = Vec::new();
            shape
                .head(slice_rows(data, segment, shape.key_width()), kv_head)
                .gather(0..segment.len(), &mut rows);
            rows
        };
        let zeros = |width: usize| vec![0.0; segment.len() * width];
        let size = shape.head_dim;
        Self {
            shape,
            kv_head,
            keys: narrow(inputs.k),
            values: narrow(inputs.v),
            queries: wide(inputs.q),
            result: wide(inputs.y),
            upstream: wide(inputs.g),
            log_sums: slice_rows(inputs.log_sums, segment, shape.heads),
            found: Gradients { q: zeros(shape.group() * size), k: zeros(size), v: zeros(size) },
            work: Work::default(),
        }
    }

    fn run(&mut self) {
        let rows = self.log_sums.len() / self.shape.heads;
        for first in (0..rows).step_by(self.shape.block_rows()) {
            let block = Block { first, rows: self.shape.block_rows().min(rows - first) };
            self.gather(block);
            for run in block.key_runs(self.shape) {
                self.step(block, &run);
            }
            self.keep(block);
        }
    }

    /// Stacks the block's rows.
    fn gather(&mut self, block: Block) {
        let rows = block.first..block.first + block.rows;
        let (group, size, work) = (self.shape.group(), self.shape.head_dim, &mut self.work);
        self.queries.gather(rows.clone(), &mut work.queries);
        self.upstream.gather(rows.clone(), &mut work.upstream);
        work.queries.iter_mut().for_each(|q| *q *= self.shape.scale);
        work.found.clear();
        work.found.resize(work.queries.len(), 0.0);
        work.log_sums.clear();
        work.along.clear();
        for row in rows {
            work.log_sums
                .extend_from_slice(&self.log_sums[row * self.shape.heads + self.kv_head * group..][..group]);
            let heads =
                self.result.row(row).chunks_exact(size).zip(self.upstream.row(row).chunks_exact(size));
            work.along.extend(heads.map(|(y, g)| vector::dot(y, g)));
        }
    }

    /// Adds what the block's queries and the keys of `run` have to do with each other. With `P = exp(S - L)`:
    /// `dV += Pᵀ g`, `dS = P ∘ (g Vᵀ - Σ g·y)`, `dQ += s · dS K`, `dK += s · dSᵀ Q`.
    fn step(&mut self, block: Block, run: &Range<usize>) {
        let (size, work) = (self.shape.head_dim, &mut self.work);
        let (stacked, keys) = (work.log_sums.len(), run.len());
        let of_keys = run.start * size..run.end * size;
        let (k, v) = (&self.keys[of_keys.clone()], &self.values[of_keys.clone()]);
        let weights = grown(&mut work.weights, keys * stacked);
        let scores = grown(&mut work.scores, keys * stacked);

        let dims = Dims { m: keys, n: stacked, k: size };
        nt(weights, k, &work.queries, dims, Write::Set(1.0));
        nt(scores, v, &work.upstream, dims, Write::Set(1.0));
        let rows = weights.chunks_exact_mut(stacked).zip(scores.chunks_exact_mut(stacked));
        for (key, (weights, scores)) in run.clone().zip(rows) {
            let seeing = block.seeing(&self.shape, key);
            let seeing = seeing.start * self.shape.group()..seeing.end * self.shape.group();
            for row in [&mut *weights, &mut *scores] {
                row[..seeing.start].fill(0.0);
                row[seeing.end..].fill(0.0);
            }
            let (log_sums, along) = (&work.log_sums[seeing.clone()], &work.along[seeing.clone()]);
            softmax_gradient(&mut weights[seeing.clone()], &mut scores[seeing], (log_sums, along));
        }
        let dims = Dims { m: keys, n: size, k: stacked };
        nn(&mut self.found.v[of_keys.clone()], weights, &work.upstream, dims, Write::Add(1.0));
        nn(&mut self.found.k[of_keys], scores, &work.queries, dims, Write::Add(1.0));
        tn(&mut work.found, k, scores, Dims { m: size, n: stacked, k: keys }, Write::Add(1.0));
    }

    /// Transposes the gradient of the block's queries to its place.
    fn keep(&mut self, block: Block) {
        let (size, stacked) = (self.shape.head_dim, self.work.log_sums.len());
        let first = block.first * self.shape.group() * size;
        for (i, row) in self.found.q[first..][..stacked * size].chunks_exact_mut(size).enumerate() {
            for (j, to) in row.iter_mut().enumerate() {
                *to = self.shape.scale * self.work.found[j * stacked + i];
            }
        }
    }

    fn write(&self, rows: &mut Written<'_>) {
        let size = self.shape.head_dim;
        let width = self.shape.group() * size;
        scatter(&self.found.q, width, rows.q, (self.shape.query_width(), self.kv_head * width));
        scatter(&self.found.k, size, rows.k, (self.shape.key_width(), self.kv_head * size));
        scatter(&self.found.v, size, rows.v, (self.shape.key_width(), self.kv_head * size));
    }
}

/// For each query, `weight = exp(weight - log_sum)` and then `g = weight · (g - along)`.
fn softmax_gradient(weights: &mut [f32], g: &mut [f32], (log_sums, along): (&[f32], &[f32])) {
    vector::wide(
        #[inline(always)]
        || {
            for ((w, g), (log_sum, along)) in weights.iter_mut().zip(g).zip(log_sums.iter().zip(along)) {
                *w = vector::exp(*w - log_sum);
                *g = *w * (*g - along);
            }
        },
    );
}

/// Writes `from` `(T, width)` into the columns that begin at `to.1` of rows of `to.0` values.
fn scatter(from: &[f32], width: usize, rows: &mut [f32], to: (usize, usize)) {
    for (from, row) in from.chunks_exact(width).zip(rows.chunks_exact_mut(to.0)) {
        row[to.1..][..width].copy_from_slice(from);
    }
}
