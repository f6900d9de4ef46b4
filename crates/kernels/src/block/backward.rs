//! A block, backward.

use std::borrow::Cow;

use super::gains::Output;
use super::{DOWN, GATE_UP, Layer, O, QKV, Saved};
use crate::attention::Plan;
use crate::attention::backward::{Gradients, Inputs, run};
use crate::buffers::{copied, zeros};
use crate::activation::{Activation, Function};
use crate::norm::{pull_back, pull_back_beside};

impl Layer<'_> {
    /// From the gradient `g` of the result `y`: that of `x`, where it is `wanted`, and those of the gains.
    pub(super) fn pull_back(
        &self,
        (x, y): (&[f32], &[f32]),
        g: &[f32],
        mut saved: Saved,
        wanted: bool,
    ) -> (Option<Vec<f32>>, [Vec<f32>; 7]) {
        let mut dgains = [const { Vec::new() }; 7];
        let dmiddle = self.pull_back_fed(y, g, &mut saved, &mut dgains);
        let found = self.pull_back_attended(x, &dmiddle, &saved, &mut dgains);
        let pulled = {
            let (q, k) = (self.projected(QKV, &saved.q), self.projected(QKV + 1, &saved.k));
            let outputs = [&*q, &*k, &saved.v].map(|sum| Output { sum, beneath: None });
            self.pull(QKV, [found.q, found.k, found.v].map(Cow::Owned), outputs, &mut dgains)
        };
        let Saved { u, .. } = saved;

        let mut normed = zeros(x.len());
        self.norm(0, x, &mut normed);
        pulled.factor_gradients(self, &normed, &u);
        drop(normed);
        let dx = wanted.then(|| {
            let mut dx = pulled.input_gradient(self);
            pull_back_beside(x, &self.block.gains[0], self.block.eps, (&mut dx, &dmiddle));
            dx
        });
        (dx, dgains)
    }

    /// The gradient of `middle`. Uses up gate and up.
    fn pull_back_fed(&self, y: &[f32], g: &[f32], saved: &mut Saved, dgains: &mut [Vec<f32>; 7]) -> Vec<f32> {
        let (mut gate, mut up) = (std::mem::take(&mut saved.gate), std::mem::take(&mut saved.up));
        let gained = |i, values: &[f32]| self.gain(GATE_UP + i).map_or_else(Vec::new, |_| copied(values));
        let outputs = [gained(0, &gate), gained(1, &up)];
        {
            let output = Output { sum: y, beneath: Some(&saved.middle) };
            let pulled = self.pull(DOWN, [Cow::Borrowed(g)], [output], dgains);
            let mut inner = pulled.input_gradient(self);
            // Now they are gradients, and `inner` is what it was in forward.
            Activation::Silu.pull_back(&mut gate, Some(&mut up), &mut inner);
            pulled.factor_gradients(self, &inner, &saved.u);
        }
        let mut normed = zeros(saved.middle.len());
        self.norm(1, &saved.middle, &mut normed);
        let outputs = outputs.each_ref().map(|sum| Output { sum, beneath: None });
        let pulled = self.pull(GATE_UP, [gate, up].map(Cow::Owned), outputs, dgains);
        pulled.factor_gradients(self, &normed, &saved.u);
        drop(normed);
        let mut dmiddle = pulled.input_gradient(self);
        pull_back_beside(&saved.middle, &self.block.gains[1], self.block.eps, (&mut dmiddle, g));
        dmiddle
    }

    /// The gradients of what was projected to q, k and v.
    fn pull_back_attended(
        &self,
        x: &[f32],
        dmiddle: &[f32],
        saved: &Saved,
        dgains: &mut [Vec<f32>; 7],
    ) -> Gradients {
        let output = Output { sum: &saved.middle, beneath: Some(x) };
        let pulled = self.pull(O, [Cow::Borrowed(dmiddle)], [output], dgains);
        pulled.factor_gradients(self, &saved.attended, &saved.u);
        let g = pulled.input_gradient(self);
        let (q, k) = (self.heads(0, &saved.q), self.heads(1, &saved.k));
        let Saved { v, attended: y, log_sums, .. } = saved;
        let inputs = Inputs { q: &q, k: &k, v, y, g: &g, log_sums };
        let mut found = run(&inputs, Plan::within(&self.pass.segments, &self.block.shape));
        self.rotate(&mut found.q, -1.0);
        self.rotate(&mut found.k, -1.0);
        if let Some([q_gain, k_gain]) = &self.block.head_gains {
            pull_back(&saved.q, q_gain, self.block.eps, &mut found.q);
            pull_back(&saved.k, k_gain, self.block.eps, &mut found.k);
        }
        found
    }
}
