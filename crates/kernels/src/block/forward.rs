//! A block, forward.

use std::borrow::Cow;

use super::read::Read;
use super::{Layer, Norms, Saved};
use crate::activation::Function;
use crate::attention::Plan;
use crate::attention::forward::{Inputs, run};
use crate::buffers::copied;
use crate::norm::Normalise;
use crate::product::{Made, Prepared};
use crate::{Compute, Norm, parts, pool, vector};

impl Layer<'_> {
    /// All that backward needs of what comes before the last projection.
    pub(super) fn save(&self, x: &[f32]) -> Saved {
        let mut us = [const { Vec::new() }; 7];
        let [mut q, mut k, v] = self.qkv(&self.before(0, x), Some(&mut us));
        if self.block.head_norms.is_none() {
            self.rotate(&mut q, 1.0);
            self.rotate(&mut k, 1.0);
        }
        let (attended, log_sums) = {
            let inputs = Inputs { q: &self.heads(0, &q), k: &self.heads(1, &k), v: &v };
            run(&inputs, Plan::within(&self.pass.segments, &self.block.shape))
        };
        let attended = Prepared::new(self.block.shape.compute, attended, self.block.shape.query_width());
        let read = Read::Ready(&attended);
        let [middle] = self.project([self.block.o()], &read, self.beneath(x), Some(&mut us));
        let (gate, up) = {
            let middle = self.after(0, x, &middle);
            self.gate_up(&self.before(1, self.fed(x, &middle)), Some(&mut us))
        };
        let exact = |values| Prepared::new(Compute::F32, values, self.block.inner());
        let (gate, up) = (exact(gate), up.map(exact));
        Saved { q, k, v, attended: attended.kept(), log_sums, middle, gate, up, sum: None, us }
    }

    /// The result `(N, D)`; makes of `saved` what backward needs, where it is `kept`.
    pub(super) fn finish(&self, x: &[f32], saved: &mut Saved, kept: bool) -> Vec<f32> {
        let inner = self.inner(saved, kept);
        let middle = self.after(0, x, &saved.middle);
        let [sum] = self.project(
            [self.block.down()],
            &Read::Ready(&inner),
            self.beneath(&middle),
            Some(&mut saved.us),
        );
        if matches!(self.block.norms, Norms::Before(_) | Norms::Parallel(_)) {
            return sum;
        }
        let y = self.after(1, &middle, &sum).into_owned();
        saved.sum = Some(sum);
        y
    }

    /// All that backward needs, of what was not kept. A last `u` is then made there.
    pub(super) fn save_again(&self, x: &[f32]) -> Saved {
        let mut saved = self.save(x);
        if !matches!(self.block.norms, Norms::Before(_) | Norms::Parallel(_)) {
            self.finish(x, &mut saved, true);
        } else if Prepared::keeps_bf16(self.block.shape.compute) {
            // Of what backward makes again from rounded values, the last `u` would be another.
            let inner = self.inner(&mut saved, true);
            saved.us[self.block.down()] = self.narrowed(self.block.down(), &inner);
        }
        saved
    }

    /// What the last projection reads, `f(gate) ⊙ up`. Gate and up, where they are `kept`, become what is kept of them.
    fn inner(&self, saved: &mut Saved, kept: bool) -> Prepared<'static> {
        let (f, compute, width) = (self.block.activation, self.block.shape.compute, self.block.inner());
        let fed: Vec<&[f32]> = std::iter::once(&saved.gate).chain(&saved.up).map(Prepared::exact).collect();
        let besides = if kept && Prepared::keeps_bf16(compute) { &*fed } else { &[] };
        let what = Made { count: 1, m: fed[0].len() / width, k: width, besides };
        let mut made = Prepared::made(compute, what, self.drops(), |i, y| {
            let row = i * width..(i + 1) * width;
            f.apply(&fed[0][row.clone()], fed.get(1).map(|up| &up[row]), y[0]);
        });
        let mut kept = made.drain(1..).map(Prepared::kept);
        if let Some(gate) = kept.next() {
            (saved.gate, saved.up) = (gate, kept.next());
        }
        drop(kept);
        made.remove(0)
    }

    /// What attention (0) or the feed-forward layer (1) reads of `x`.
    pub(super) fn before<'a>(&'a self, i: usize, x: &'a [f32]) -> Read<'a> {
        match &self.block.norms {
            Norms::Before(norms) | Norms::Around(norms, _) | Norms::Parallel(norms) => {
                Read::Normed(&norms[i], x)
            }
            Norms::After(_) => Read::Values(x),
        }
    }

    /// What the feed-forward layer reads, before a norm.
    pub(super) fn fed<'a>(&self, x: &'a [f32], middle: &'a [f32]) -> &'a [f32] {
        if matches!(self.block.norms, Norms::Parallel(_)) { x } else { middle }
    }

    /// What their last projection is added to, of what went past them, `x`.
    pub(super) fn beneath<'a>(&self, x: &'a [f32]) -> Option<&'a [f32]> {
        match &self.block.norms {
            Norms::Before(_) | Norms::After(_) | Norms::Parallel(_) => Some(x),
            Norms::Around(..) => None,
        }
    }

    /// What goes on, from `x` and what that projection made.
    pub(super) fn after<'a>(&self, i: usize, x: &[f32], made: &'a [f32]) -> Cow<'a, [f32]> {
        match &self.block.norms {
            Norms::Before(_) | Norms::Parallel(_) => Cow::Borrowed(made),
            Norms::After(norms) => normed(&norms[i], made),
            Norms::Around(_, norms) => {
                let mut sum = norms[i].normalise(made);
                add(x, &mut sum);
                Cow::Owned(sum)
            }
        }
    }

    /// Rotates the heads of q or k in place where the block does so.
    pub(super) fn rotate(&self, heads: &mut [f32], direction: f32) {
        if self.block.rotates && !heads.is_empty() {
            let rows = self.pass.segments.last().map_or(1, |segment| segment.end);
            let sizes = (heads.len() / rows, self.block.shape.head_dim);
            self.pass.rope.rotate(heads, sizes, direction);
        }
    }

    /// The queries (0) or keys (1) that attention sees, from what [`Saved`] has of them.
    pub(super) fn heads<'a>(&self, i: usize, saved: &'a [f32]) -> Cow<'a, [f32]> {
        let Some(norms) = &self.block.head_norms else { return Cow::Borrowed(saved) };
        let mut heads = normed(&norms[i], saved);
        self.rotate(heads.to_mut(), 1.0);
        heads
    }

    /// What was projected to q or k, from what [`Saved`] has of it: turned back where that was rotated.
    pub(super) fn projected<'a>(&self, saved: &'a [f32]) -> Cow<'a, [f32]> {
        if self.block.head_norms.is_some() || !self.block.rotates {
            return Cow::Borrowed(saved);
        }
        let mut heads = copied(saved);
        self.rotate(&mut heads, -1.0);
        Cow::Owned(heads)
    }
}

/// `y += x`.
fn add(x: &[f32], y: &mut [f32]) {
    let chunk = parts::rows_per_task(1);
    pool::for_each_chunk(y, chunk, |i, y| vector::axpy(1.0, &x[i * chunk..][..y.len()], y));
}

fn normed<'a>(norm: &Norm, x: &[f32]) -> Cow<'a, [f32]> {
    Cow::Owned(norm.normalise(x))
}
