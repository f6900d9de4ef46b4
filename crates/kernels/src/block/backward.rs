//! A block, backward.

use std::borrow::Cow;

use super::gains::Output;
use super::read::Read;
use super::terms::{Pulled, Upstream};
use super::{Layer, Norms, Saved};
use crate::Compute;
use crate::activation::Function;
use crate::attention::Plan;
use crate::attention::backward::{Inputs, QkvGradients, run};
use crate::buffers::copied;
use crate::norm::Normalise;
use crate::product::{Made, Prepared, Row};

impl Layer<'_> {
    /// From the gradient `g` of the result `y`: that of `x`, where it is `wanted`, and those of the gains.
    pub(super) fn pull_back(
        &self,
        (x, y): (&[f32], &[f32]),
        g: &[f32],
        saved: Saved,
        wanted: bool,
    ) -> (Option<Vec<f32>>, [Vec<f32>; 7]) {
        let mut dgains = [const { Vec::new() }; 7];
        let dfed = self.pull_back_fed((x, y), g, &saved, &mut dgains);
        let parallel = matches!(self.block.norms, Norms::Parallel(_));
        let dmade = self.pull_back_after(0, &saved.middle, if parallel { g } else { &dfed });
        let found = self.pull_back_attended(x, &dmade, &saved, &mut dgains);
        let pulled = self.pull_qkv(found, &saved, &mut dgains);
        let Saved { us, .. } = saved;
        pulled.factor_gradients(self, &self.before(0, x), &us);
        let dx = wanted.then(|| self.pull_back_before(0, x, (&pulled, self.beside(&dfed, &dmade))));
        (dx, dgains)
    }

    /// The gradient of [`Layer::fed`], that of what went past it included.
    fn pull_back_fed(
        &self,
        (x, y): (&[f32], &[f32]),
        g: &[f32],
        saved: &Saved,
        dgains: &mut [Vec<f32>; 7],
    ) -> Vec<f32> {
        let middle = self.after(0, x, &saved.middle);
        let sum = saved.sum.as_deref().unwrap_or(y);
        let dmade = self.pull_back_after(1, sum, g);
        let output = Output { sum, beneath: self.beneath(&middle) };
        let pulled = self.pull([(self.block.down(), Upstream::Values(dmade[..].into()), output)], dgains);
        let (inner, gradients) = self.pull_back_inner(saved, &pulled.input_gradient(self, None));
        pulled.factor_gradients(self, &Read::Ready(&inner), &saved.us);
        drop((pulled, inner));
        let pulled = self.pull_fed(gradients, saved, dgains);
        let read = self.fed(x, &middle);
        pulled.factor_gradients(self, &self.before(1, read), &saved.us);
        self.pull_back_before(1, read, (&pulled, self.beside(g, &dmade)))
    }

    /// From its gradient `g`, what the last projection read, and the gradients of gate and, where it is one, of up.
    fn pull_back_inner(&self, saved: &Saved, g: &[f32]) -> (Prepared<'static>, Vec<Prepared<'static>>) {
        let (f, width) = (self.block.activation, self.block.inner());
        let Saved { gate, up, .. } = saved;
        let compute = self.block.shape.compute;
        // Gradients that gains read, or that are put side by side, are made ready after that.
        let unready = self.has_gains() || self.block.joined.gate_up;
        let how = if unready { Compute::F32 } else { compute };
        let count = if up.is_some() { 3 } else { 2 };
        let what = Made { count, m: g.len() / width, k: width, besides: &[] };
        let mut found = Prepared::made(how, what, self.drops(), |i, back| {
            let g = &g[i * width..][..width];
            match (gate.row(i), up.as_ref().map(|up| up.row(i))) {
                (Row::F32(gate), Some(Row::F32(up))) => f.pull_back(gate, Some(up), g, back),
                (Row::Bf16(gate), Some(Row::Bf16(up))) => f.pull_back(gate, Some(up), g, back),
                (Row::F32(gate), _) => f.pull_back(gate, None, g, back),
                (Row::Bf16(gate), _) => f.pull_back(gate, None, g, back),
            }
        });
        let gradients = found.split_off(1);
        let inner = found.remove(0);
        let ready = |inner: Prepared<'static>| Prepared::new(compute, inner.into_exact(), width);
        (if unready { ready(inner) } else { inner }, gradients)
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
        let pulled = self.pull([(self.block.o(), Upstream::Values(g.into()), output)], dgains);
        pulled.factor_gradients(self, &Read::Ready(&saved.attended), &saved.us);
        let g = pulled.input_gradient(self, None);
        let (q, k) = (self.heads(0, &saved.q), self.heads(1, &saved.k));
        let Saved { v, attended, log_sums, .. } = saved;
        let y = &attended.values();
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
