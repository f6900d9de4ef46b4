//! A block, forward.

use std::borrow::Cow;

use super::{DOWN, GATE, Layer, Norms, O, QKV, Saved, UP};
use crate::Norm;
use crate::activation::Function;
use crate::attention::Plan;
use crate::attention::forward::{Inputs, run};
use crate::buffers::copied;
use crate::norm::Normalise;

impl Layer<'_> {
    /// All that backward needs of what comes before the last projection.
    pub(super) fn save(&self, x: &[f32]) -> Saved {
        let mut u = [const { Vec::new() }; 7];
        let [mut q, mut k, v] = self.project(QKV, &self.before(0, x), None, &mut u);
        if self.block.head_norms.is_none() {
            self.rotate(&mut q, 1.0);
            self.rotate(&mut k, 1.0);
        }
        let (attended, log_sums) = {
            let inputs = Inputs { q: &self.heads(0, &q), k: &self.heads(1, &k), v: &v };
            run(&inputs, Plan::within(&self.pass.segments, &self.block.shape))
        };
        let [middle] = self.project([O], &attended, Some(x), &mut u);
        let (gate, up) = {
            let middle = self.after(0, &middle);
            let read = self.before(1, &middle);
            if self.block.is_gated() {
                let [gate, up] = self.project([GATE, UP], &read, None, &mut u);
                (gate, Some(up))
            } else {
                let [gate] = self.project([GATE], &read, None, &mut u);
                (gate, None)
            }
        };
        Saved { q, k, v, attended, log_sums, middle, gate, up, sum: None, u }
    }

    /// The result `(N, D)`; keeps what else backward needs.
    pub(super) fn finish(&self, saved: &mut Saved) -> Vec<f32> {
        let inner = self.block.activation.apply(&saved.gate, saved.up.as_deref());
        let middle = self.after(0, &saved.middle);
        let [sum] = self.project([DOWN], &inner, Some(&middle), &mut saved.u);
        if matches!(self.block.norms, Norms::Before(_)) {
            return sum;
        }
        let y = self.after(1, &sum).into_owned();
        saved.sum = Some(sum);
        y
    }

    /// All that backward needs, of what was not kept. A last `u` is then made there.
    pub(super) fn save_again(&self, x: &[f32]) -> Saved {
        let mut saved = self.save(x);
        if matches!(self.block.norms, Norms::After(_)) {
            self.finish(&mut saved);
        }
        saved
    }

    /// What attention (0) or the feed-forward layer (1) reads of `x`.
    pub(super) fn before<'a>(&self, i: usize, x: &'a [f32]) -> Cow<'a, [f32]> {
        match &self.block.norms {
            Norms::Before(norms) => normed(&norms[i], x),
            Norms::After(_) => Cow::Borrowed(x),
        }
    }

    /// What goes on from the sum of what one of them read and what it gave.
    pub(super) fn after<'a>(&self, i: usize, sum: &'a [f32]) -> Cow<'a, [f32]> {
        match &self.block.norms {
            Norms::Before(_) => Cow::Borrowed(sum),
            Norms::After(norms) => normed(&norms[i], sum),
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

    /// The result of projection `number`, q's or k's, from what [`Saved`] has of it: turned back where that was rotated and
    /// there is a gain to ask for it.
    pub(super) fn projected<'a>(&self, number: usize, saved: &'a [f32]) -> Cow<'a, [f32]> {
        if self.gain(number).is_none() || self.block.head_norms.is_some() {
            return Cow::Borrowed(saved);
        }
        let mut heads = copied(saved);
        self.rotate(&mut heads, -1.0);
        Cow::Owned(heads)
    }
}

fn normed<'a>(norm: &Norm, x: &[f32]) -> Cow<'a, [f32]> {
    Cow::Owned(norm.normalise(x))
}
