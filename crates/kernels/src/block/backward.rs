//! A block, backward.

use std::borrow::Cow;

use super::gains::Output;
use super::terms::Pulled;
use super::{Layer, Norms, Saved};
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
        let dfed = self.pull_back_fed((x, y), g, &mut saved, &mut dgains);
        let parallel = matches!(self.block.norms, Norms::Parallel(_));
        let dmade = self.pull_back_after(0, &saved.middle, if parallel { g } else { &dfed });
        let found = self.pull_back_attended(x, &dmade, &saved, &mut dgains);
        let pulled = self.pull_qkv(found, &saved, &mut dgains);
        let Saved { us, .. } = saved;
        pulled.factor_gradients(self, &self.before(0, x), &us);
        let dx = wanted.then(|| self.pull_back_before(0, x, (&pulled, self.beside(&dfed, &dmade))));
        (dx, dgains)
    }

    /// The gradient of [`Layer::fed`], that of what went past it included. Uses up gate and up.
    fn pull_back_fed(
        &self,
        (x, y): (&[f32], &[f32]),
        g: &[f32],
        saved: &mut Saved,
        dgains: &mut [Vec<f32>; 7],
    ) -> Vec<f32> {
        let (mut gate, mut up) = (std::mem::take(&mut saved.gate), saved.up.take());
        let made = self.of_fed([&gate, up.as_deref().unwrap_or_default()]);
        let middle = self.after(0, x, &saved.middle);
        let sum = saved.sum.as_deref().unwrap_or(y);
        let dmade = self.pull_back_after(1, sum, g);
        {
            let output = Output { sum, beneath: self.beneath(&middle) };
            let pulled = self.pull([(self.block.down(), Cow::Borrowed(&*dmade), output)], dgains);
            let mut inner = pulled.input_gradient(self, None);
            // Now they are gradients, and `inner` is what it was in forward.
            self.block.activation.pull_back(&mut gate, up.as_deref_mut(), &mut inner);
            pulled.factor_gradients(self, &inner, &saved.us);
        }
        let pulled = self.pull_fed(gate, up, &made, dgains);
        let read = self.fed(x, &middle);
        pulled.factor_gradients(self, &self.before(1, read), &saved.us);
        self.pull_back_before(1, read, (&pulled, self.beside(g, &dmade)))
    }

    /// The gradients of what was projected to q, k and v, from that of what attention's projection makes on top of `x`.
    fn pull_back_attended(
        &self,
        x: &[f32],
        g: &[f32],
        saved: &Saved,
        dgains: &mut [Vec<f32>; 7],
    ) -> QkvGradients {
        let output = Output { sum: &saved.middle, beneath: self.beneath(x) };
        let pulled = self.pull([(self.block.o(), Cow::Borrowed(g), output)], dgains);
        pulled.factor_gradients(self, &saved.attended, &saved.us);
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

    /// The gradient of what a last projection `made`, from the gradient `g` of what [`Layer::after`] makes of that.
    fn pull_back_after<'g>(&self, i: usize, made: &[f32], g: &'g [f32]) -> Cow<'g, [f32]> {
        match &self.block.norms {
            Norms::Before(_) | Norms::Parallel(_) => Cow::Borrowed(g),
            Norms::After(norms) | Norms::Around(_, norms) => {
                let mut g = copied(g);
                norms[i].pull_back(made, &mut g);
                Cow::Owned(g)
            }
        }
    }

    /// Of those two gradients, that of what went past the projections.
    fn beside<'g>(&self, g: &'g [f32], dmade: &'g [f32]) -> &'g [f32] {
        match &self.block.norms {
            Norms::Before(_) | Norms::After(_) => dmade,
            Norms::Around(..) | Norms::Parallel(_) => g,
        }
    }

    /// The gradient of `x`, from those of what projections make of [`Layer::before`] and, `beside`, of `x` as it goes on.
    fn pull_back_before(&self, i: usize, x: &[f32], (pulled, beside): (&Pulled<'_>, &[f32])) -> Vec<f32> {
        match &self.block.norms {
            Norms::Before(norms) | Norms::Around(norms, _) | Norms::Parallel(norms) => {
                let mut dx = pulled.input_gradient(self, None);
                norms[i].pull_back_beside(x, &mut dx, beside);
                dx
            }
            Norms::After(_) => pulled.input_gradient(self, Some(beside)),
        }
    }
}
