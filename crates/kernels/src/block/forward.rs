//! A block, forward.

use std::borrow::Cow;

use super::{DOWN, GATE_UP, Layer, O, QKV, Saved};
use crate::attention::Plan;
use crate::attention::forward::{Inputs, run};
use crate::buffers::{copied, zeros};
use crate::activation::{Activation, Function};
use crate::norm::normalise;

impl Layer<'_> {
    /// All that backward needs, but for the last projection's `u`: everything before that projection.
    pub(super) fn save(&self, x: &[f32]) -> Saved {
        let mut u = [const { Vec::new() }; 7];
        let mut normed = zeros(x.len());
        self.norm(0, x, &mut normed);
        let [mut q, mut k, v] = self.project(QKV, &normed, None, &mut u);
        if self.block.head_gains.is_none() {
            self.rotate(&mut q, 1.0);
            self.rotate(&mut k, 1.0);
        }
        let (attended, log_sums) = {
            let inputs = Inputs { q: &self.heads(0, &q), k: &self.heads(1, &k), v: &v };
            run(&inputs, Plan::within(&self.pass.segments, &self.block.shape))
        };
        let [middle] = self.project(O, &attended, Some(x), &mut u);
        self.norm(1, &middle, &mut normed);
        let [gate, up] = self.project(GATE_UP, &normed, None, &mut u);
        Saved { q, k, v, attended, log_sums, middle, gate, up, u }
    }

    /// The result `(N, D)`; keeps the last `u`.
    pub(super) fn finish(&self, saved: &mut Saved) -> Vec<f32> {
        let mut inner = zeros(saved.gate.len());
        Activation::Silu.apply(&saved.gate, Some(&saved.up), &mut inner);
        let [y] = self.project(DOWN, &inner, Some(&saved.middle), &mut saved.u);
        y
    }

    /// Norm 0, before attention, or 1, before the feed-forward layer.
    pub(super) fn norm(&self, i: usize, x: &[f32], y: &mut [f32]) {
        normalise(x, &self.block.gains[i], self.block.eps, y);
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
        let Some(gains) = &self.block.head_gains else { return Cow::Borrowed(saved) };
        let mut heads = zeros(saved.len());
        normalise(saved, &gains[i], self.block.eps, &mut heads);
        self.rotate(&mut heads, 1.0);
        Cow::Owned(heads)
    }

    /// The result of projection `number`, q's or k's, from what [`Saved`] has of it: turned back where that was rotated and
    /// there is a gain to ask for it.
    pub(super) fn projected<'a>(&self, number: usize, saved: &'a [f32]) -> Cow<'a, [f32]> {
        if self.gain(number).is_none() || self.block.head_gains.is_some() {
            return Cow::Borrowed(saved);
        }
        let mut heads = copied(saved);
        self.rotate(&mut heads, -1.0);
        Cow::Owned(heads)
    }
}
