//! A block, backward.

use std::borrow::Cow;

use super::gains::Output;
use super::terms::Pulled;
use super::{DOWN, GATE, Layer, Norms, O, QKV, Saved, UP};
use crate::activation::Function;
use crate::attention::Plan;
use crate::attention::backward::{Inputs, QkvGradients, run};
use crate::buffers::copied;
use crate::norm::Normalise;

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
        let dmiddle = self.pull_back_after(0, &saved.middle, Cow::Owned(dmiddle));
        let found = self.pull_back_attended(x, &dmiddle, &saved, &mut dgains);
        let pulled = {
            let (q, k) = (self.projected(QKV[0], &saved.q), self.projected(QKV[1], &saved.k));
            let outputs = [&*q, &*k, &saved.v].map(|sum| Output { sum, beneath: None });
            let results = [found.q, found.k, found.v].map(Cow::Owned).into_iter().zip(outputs);
            self.pull(QKV.into_iter().zip(results).map(|(number, (g, y))| (number, g, y)), &mut dgains)
        };
        let Saved { u, .. } = saved;
        pulled.factor_gradients(self, &self.before(0, x), &u);
        let dx = wanted.then(|| self.pull_back_before(0, x, (&pulled, &dmiddle)));
        (dx, dgains)
    }

    /// The gradient of what the feed-forward layer reads. Uses up gate and up.
    fn pull_back_fed(&self, y: &[f32], g: &[f32], saved: &mut Saved, dgains: &mut [Vec<f32>; 7]) -> Vec<f32> {
        let (mut gate, mut up) = (std::mem::take(&mut saved.gate), saved.up.take());
        let gained = |number, values: &[f32]| self.gain(number).map_or_else(Vec::new, |_| copied(values));
        let (of_gate, of_up) = (gained(GATE, &gate), up.as_ref().map(|up| gained(UP, up)));
        let middle = self.after(0, &saved.middle);
        let sum = saved.sum.as_deref().unwrap_or(y);
        let g = self.pull_back_after(1, sum, Cow::Borrowed(g));
        {
            let output = Output { sum, beneath: Some(&middle) };
            let pulled = self.pull([(DOWN, Cow::Borrowed(&*g), output)], dgains);
            let mut inner = pulled.input_gradient(self, None);
            // Now they are gradients, and `inner` is what it was in forward.
            self.block.activation.pull_back(&mut gate, up.as_deref_mut(), &mut inner);
            pulled.factor_gradients(self, &inner, &saved.u);
        }
        let result = |number, g, sum| (number, Cow::Owned(g), Output { sum, beneath: None });
        let of_up = of_up.as_deref().unwrap_or_default();
        let results = std::iter::once(result(GATE, gate, &of_gate)).chain(up.map(|up| result(UP, up, of_up)));
        let pulled = self.pull(results, dgains);
        pulled.factor_gradients(self, &self.before(1, &middle), &saved.u);
        self.pull_back_before(1, &middle, (&pulled, &g))
    }

    /// The gradients of what was projected to q, k and v, from that of what attention and `x` sum to.
    fn pull_back_attended(
        &self,
        x: &[f32],
        g: &[f32],
        saved: &Saved,
        dgains: &mut [Vec<f32>; 7],
    ) -> QkvGradients {
        let output = Output { sum: &saved.middle, beneath: Some(x) };
        let pulled = self.pull([(O, Cow::Borrowed(g), output)], dgains);
        pulled.factor_gradients(self, &saved.attended, &saved.u);
        let g = pulled.input_gradient(self, None);
        let (q, k) = (self.heads(0, &saved.q), self.heads(1, &saved.k));
        let Saved { v, attended: y, log_sums, .. } = saved;
        let inputs = Inputs { q: &q, k: &k, v, y, g: &g, log_sums };
        let mut found = run(&inputs, Plan::within(&self.pass.segments, &self.block.shape));
        self.rotate(&mut found.q, -1.0);
        self.rotate(&mut found.k, -1.0);
        if let Some([q_norm, k_norm]) = &self.block.head_norms {
            q_norm.pull_back(&saved.q, &mut found.q);
            k_norm.pull_back(&saved.k, &mut found.k);
        }
        found
    }

    /// The gradient of a sum, from the gradient `g` of what [`Layer::after`] makes of it.
    fn pull_back_after<'g>(&self, i: usize, sum: &[f32], mut g: Cow<'g, [f32]>) -> Cow<'g, [f32]> {
        if let Norms::After(norms) = &self.block.norms {
            norms[i].pull_back(sum, g.to_mut());
        }
        g
    }

    /// The gradient of `x`, from those of what projections make of [`Layer::before`] and, `beside`, of `x` as it goes on.
    fn pull_back_before(&self, i: usize, x: &[f32], (pulled, beside): (&Pulled<'_>, &[f32])) -> Vec<f32> {
        match &self.block.norms {
            Norms::Before(norms) => {
                let mut dx = pulled.input_gradient(self, None);
                norms[i].pull_back_beside(x, &mut dx, beside);
                dx
            }
            Norms::After(_) => pulled.input_gradient(self, Some(beside)),
        }
    }
}
