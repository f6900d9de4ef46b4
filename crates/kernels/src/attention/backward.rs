//! The gradients of attention, from recomputed probabilities (arXiv:2205.14135, algorithm 4).
//!
//! A task has a key and value head of a sequence, and every block of the sequence's queries or, where they are many,
//! every n-th. The gradients of keys and values are then sums over tasks, in one order whatever the threads.

use std::cmp::Reverse;
use std::ops::Range;

use super::bias::GroupBias;
use super::forward::{grown, slice_rows};
use super::{AttentionShape, Block, Plan, Rows};
use crate::product::dense::{Dims, Write, nn, nt, tn};
use crate::{buffers, parts, vector};

/// Queries of a sequence that are worth a task, and the most tasks to a head.
const TASK_ROWS: usize = 256;
const TASKS: usize = 8;

/// What it is computed from.
pub(crate) struct Inputs<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    /// The result, and its gradient.
    pub(crate) y: &'a [f32],
    pub(crate) g: &'a [f32],
    pub(crate) log_sums: &'a [f32],
}

/// Gradients of `q`, `k` and `v`.
#[derive(Default)]
pub(crate) struct QkvGradients {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

pub(crate) fn run(inputs: &Inputs<'_>, plan: Plan<'_>) -> QkvGradients {
    let of_sequence = |(queries, keys): (&Range<usize>, &Range<usize>)| {
        let count = (queries.len() / TASK_ROWS).clamp(1, TASKS);
        let task = |head, share| Task::new([queries.clone(), keys.clone()], head, (share, count));
        (0..plan.shape.kv_heads).flat_map(|head| (0..count).map(move |share| task(head, share))).collect()
    };
    let mut tasks: Vec<Vec<Task>> = plan.sequences().map(of_sequence).collect();
    let mut order: Vec<&mut Task> = tasks.iter_mut().flatten().collect();
    // The longest first, so that no thread is left alone with one.
    order.sort_by_key(|task| Reverse(task.queries.len() / task.shares.1));
    parts::for_each(&mut order, |task| task.run(inputs, plan));
    gather(inputs, &tasks, plan.shape)
}

/// Puts together what the tasks of each sequence found.
fn gather(inputs: &Inputs<'_>, tasks: &[Vec<Task>], shape: &AttentionShape) -> QkvGradients {
    let zeros = |like: &[f32]| buffers::zeros(like.len());
    let mut all = QkvGradients { q: zeros(inputs.q), k: zeros(inputs.k), v: zeros(inputs.v) };
    gather_queries(&mut all.q, tasks, shape);
    gather_keys(&mut all.k, tasks, shape, |found| &found.k);
    gather_keys(&mut all.v, tasks, shape, |found| &found.v);
    all
}

/// The gradient of the queries: each block's rows from the tasks that had it.
fn gather_queries(all: &mut [f32], tasks: &[Vec<Task>], shape: &AttentionShape) {
    let (mut rest, mut places) = (all, Vec::new());
    for tasks in tasks {
        let length = tasks.first().map_or(0, |task| task.queries.len());
        for first in (0..length).step_by(shape.block_rows()) {
            let rows = shape.block_rows().min(length - first);
            let place;
            (place, rest) = rest.split_at_mut(rows * shape.query_width());
            places.push((tasks, first, place));
        }
    }
    let width = shape.group() * shape.head_dim;
    parts::for_each(&mut places, |(tasks, first, place)| {
        for task in *tasks {
            if let Some(start) = task.start_of(*first, shape) {
                add_columns(
                    &task.found.q[start..],
                    width,
                    place,
                    (shape.query_width(), task.kv_head * width),
                );
            }
        }
    });
}

/// The gradient of keys or values, which is `of` what was found: the sum over a sequence's tasks.
fn gather_keys(
    all: &mut [f32],
    tasks: &[Vec<Task>],
    shape: &AttentionShape,
    of: impl Fn(&QkvGradients) -> &Vec<f32> + Sync,
) {
    let (mut rest, mut places) = (all, Vec::new());
    for tasks in tasks {
        let length = tasks.first().map_or(0, |task| task.keys.len());
        for first in (0..length).step_by(shape.block_rows()) {
            let rows = shape.block_rows().min(length - first);
            let place;
            (place, rest) = rest.split_at_mut(rows * shape.key_width());
            places.push((tasks, first * shape.head_dim, place));
        }
    }
    let size = shape.head_dim;
    parts::for_each(&mut places, |(tasks, start, place)| {
        for task in *tasks {
            add_columns(&of(&task.found)[*start..], size, place, (shape.key_width(), task.kv_head * size));
        }
    });
}

/// Adds rows of `width` values to the columns from `to.1` on of `rows` of `to.0` values.
fn add_columns(from: &[f32], width: usize, rows: &mut [f32], to: (usize, usize)) {
    for (from, row) in from.chunks_exact(width).zip(rows.chunks_exact_mut(to.0)) {
        for (r, f) in row[to.1..][..width].iter_mut().zip(from) {
            *r += f;
        }
    }
}

/// A key and value head of a sequence of `T` keys, and a share of the queries.
struct Task {
    queries: Range<usize>,
    keys: Range<usize>,
    kv_head: usize,
    /// Which share, of how many.
    shares: (usize, usize),
    /// `(blocks · M, E)` of the share's blocks, `(T, E)`, `(T, E)`.
    found: QkvGradients,
}

impl Task {
    fn new([queries, keys]: [Range<usize>; 2], kv_head: usize, shares: (usize, usize)) -> Self {
        Self { queries, keys, kv_head, shares, found: QkvGradients::default() }
    }

    /// Where in `found.q` the rows of the block begin that starts at query `first`, if they are in the share.
    fn start_of(&self, first: usize, shape: &AttentionShape) -> Option<usize> {
        let number = first / shape.block_rows();
        let width = shape.group() * shape.head_dim;
        (number % self.shares.1 == self.shares.0)
            .then_some(number / self.shares.1 * shape.block_rows() * width)
    }

    fn run(&mut self, inputs: &Inputs<'_>, plan: Plan<'_>) {
        let shape = plan.shape;
        let (length, rows) = (self.queries.len(), shape.block_rows());
        let mut head = Head::new(inputs, [&self.queries, &self.keys], plan, self.kv_head);
        for first in (self.shares.0 * rows..length).step_by(self.shares.1 * rows) {
            let block = Block { first, rows: rows.min(length - first), keys: self.keys.len() };
            head.gather(block);
            for run in block.key_runs(*shape) {
                head.step(block, &run);
            }
            head.keep();
        }
        self.found = head.found;
    }
}

/// The rows of one head, and the work on a block of `M` stacked queries.
struct Head<'a> {
    shape: AttentionShape,
    bias: GroupBias<'a>,
    heads: Range<usize>,
    /// `(T, E)`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// `(rows, G·E)`: the queries, the result and its gradient.
    queries: Rows<'a>,
    result: Rows<'a>,
    upstream: Rows<'a>,
    /// `(rows, H)`.
    log_sums: &'a [f32],
    found: QkvGradients,
    block: Stacked,
}

/// Buffers of one block.
#[derive(Default)]
struct Stacked {
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
    fn new(inputs: &Inputs<'a>, [queries, keys]: [&Range<usize>; 2], plan: Plan<'a>, kv_head: usize) -> Self {
        let shape = *plan.shape;
        let wide = |data| shape.group_of(slice_rows(data, queries, shape.query_width()), kv_head);
        let narrow = |data| {
            let mut rows = Vec::new();
            shape.head(slice_rows(data, keys, shape.key_width()), kv_head).gather(0..keys.len(), &mut rows);
            rows
        };
        let zeros = || vec![0.0; keys.len() * shape.head_dim];
        Self {
            shape,
            bias: plan.bias(kv_head),
            heads: kv_head * shape.group()..(kv_head + 1) * shape.group(),
            keys: narrow(inputs.k),
            values: narrow(inputs.v),
            queries: wide(inputs.q),
            result: wide(inputs.y),
            upstream: wide(inputs.g),
            log_sums: slice_rows(inputs.log_sums, queries, shape.heads),
            found: QkvGradients { q: Vec::new(), k: zeros(), v: zeros() },
            block: Stacked::default(),
        }
    }

    /// Stacks the rows of `block`.
    fn gather(&mut self, block: Block) {
        let rows = block.first..block.first + block.rows;
        let stacked = &mut self.block;
        self.queries.gather(rows.clone(), &mut stacked.queries);
        self.upstream.gather(rows.clone(), &mut stacked.upstream);
        stacked.queries.iter_mut().for_each(|q| *q *= self.shape.scale);
        stacked.found.clear();
        stacked.found.resize(stacked.queries.len(), 0.0);
        stacked.log_sums.clear();
        stacked.along.clear();
        for row in rows {
            stacked.log_sums.extend_from_slice(&self.log_sums[row * self.shape.heads..][self.heads.clone()]);
            let (y, g) = (self.result.row(row), self.upstream.row(row));
            let size = self.shape.head_dim;
            stacked
                .along
                .extend(y.chunks_exact(size).zip(g.chunks_exact(size)).map(|(y, g)| vector::dot(y, g)));
        }
    }

    /// Adds what the block's queries and the keys of `run` have to do with each other. With `P = exp(S - L)`:
    /// `dV += Pᵀ g`, `dS = P ∘ (g Vᵀ - Σ g·y)`, `dQ += s · dS K`, `dK += s · dSᵀ Q`.
    fn step(&mut self, block: Block, run: &Range<usize>) {
        let (size, group, compute) = (self.shape.head_dim, self.shape.group(), self.shape.compute);
        let Stacked { queries, upstream, log_sums, along, weights, scores, found } = &mut self.block;
        let (stacked, keys) = (log_sums.len(), run.len());
        let of_keys = run.start * size..run.end * size;
        let (k, v) = (&self.keys[of_keys.clone()], &self.values[of_keys.clone()]);
        let (weights, scores) = (grown(weights, keys * stacked), grown(scores, keys * stacked));

        let dims = Dims { m: keys, n: stacked, k: size };
        nt(compute, (weights, k, queries), dims, Write::Set(1.0));
        nt(compute, (scores, v, upstream), dims, Write::Set(1.0));
        let rows = weights.chunks_exact_mut(stacked).zip(scores.chunks_exact_mut(stacked));
        for (key, (weights, scores)) in run.clone().zip(rows) {
            let rows_of = block.seeing(&self.shape, key);
            let seeing = rows_of.start * group..rows_of.end * group;
            for row in [&mut *weights, &mut *scores] {
                row[..seeing.start].fill(0.0);
                row[seeing.end..].fill(0.0);
            }
            let of_query = (&log_sums[seeing.clone()], &along[seeing.clone()]);
            let (weights, scores) = (&mut weights[seeing.clone()], &mut scores[seeing]);
            if let Some((bias, head)) = self.bias {
                for (i, weight) in (rows_of.start * group..).zip(weights.iter_mut()) {
                    *weight += bias.of(head + i % group, block.first + i / group, key);
                }
            }
            match self.shape.cap {
                None => softmax_gradient(weights, scores, of_query),
                Some(cap) => capped_softmax_gradient(weights, scores, of_query, cap),
            }
        }
        let dims = Dims { m: keys, n: size, k: stacked };
        nn(compute, (&mut self.found.v[of_keys.clone()], weights, upstream), dims, Write::Add(1.0));
        nn(compute, (&mut self.found.k[of_keys], scores, queries), dims, Write::Add(1.0));
        tn(compute, (found, k, scores), Dims { m: size, n: stacked, k: keys }, Write::Add(1.0));
    }

    /// Appends the gradient of the block's queries, transposed.
    fn keep(&mut self) {
        let (scale, stacked, found) = (self.shape.scale, self.block.log_sums.len(), &self.block.found);
        for i in 0..stacked {
            self.found.q.extend((0..self.shape.head_dim).map(|j| scale * found[j * stacked + i]));
        }
    }
}

/// [`softmax_gradient`] where the scores are capped: with `t = tanh(weight/cap)` the weight is `exp(cap·t - log_sum)`, and
/// the gradient goes on times `1 - t²`.
fn capped_softmax_gradient(
    weights: &mut [f32],
    g: &mut [f32],
    (log_sums, along): (&[f32], &[f32]),
    cap: f32,
) {
    vector::wide(
        #[inline(always)]
        || {
            for ((w, g), (log_sum, along)) in weights.iter_mut().zip(g).zip(log_sums.iter().zip(along)) {
                let t = vector::tanh(*w / cap);
                *w = vector::exp(cap * t - log_sum);
                *g = *w * (*g - along) * (1.0 - t * t);
            }
        },
    );
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
