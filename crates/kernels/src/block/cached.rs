//! A block on rows that continue caches, without gradients: prefill, chunked prefill and decoding.
//!
//! The projections that share an input run as one job, each part of a result finished, with its low-rank term and bias,
//! where it was made; so a decoding step hands over few jobs and reads every weight once.

use candle_core::{Device, Result, Tensor};

use super::read::Read;
use super::{Layer, Link, Projection, terms};
use crate::activation;
use crate::attention::attend;
use crate::buffers::zeros;
use crate::operand::Held;
use crate::product::targets::Target;
use crate::product::{Direction, Matrix, Prepared, Rest, Right};
use crate::{CacheRows, CachedSegment, Compute};

const OP: &str = "block_cached";

/// A block of [`blocks`](crate::blocks) on segments that each continue the keys and values of one of `caches`, which take up the rows'
/// own. No gradient is kept, and dropout is refused.
pub fn block_cached(
    x: &Tensor,
    Link { block, pass, adapted }: &Link<'_>,
    caches: &mut [(&mut CacheRows, &mut CacheRows)],
) -> Result<Tensor> {
    block.check(OP, x.dims2()?, pass)?;
    let heads = (block.shape.kv_heads, block.shape.head_dim);
    let fit = caches.iter().all(|(k, v)| k.shape() == heads && v.shape() == heads && k.rows() == v.rows());
    if caches.len() != pass.segments.len() || !fit {
        candle_core::bail!(
            "{OP}: {} caches for {} segments, or caches that do not fit",
            caches.len(),
            pass.segments.len()
        );
    }
    let slots = terms::slots(OP, &block.projections, adapted)?;
    let factors = terms::hold(OP, &slots)?;
    if factors.iter().flatten().any(|factors| factors.term().has_dropout()) {
        candle_core::bail!("{OP}: dropout where nothing is trained");
    }
    let held = Held::new(OP, x)?;
    let y = Layer { block, pass, factors: &factors }.run_cached(held.values(), caches);
    Tensor::from_vec(y, x.shape(), &Device::Cpu)
}

impl Layer<'_> {
    fn run_cached(&self, x: &[f32], caches: &mut [(&mut CacheRows, &mut CacheRows)]) -> Vec<f32> {
        let [q, k, v] = self.qkv(&self.before(0, x), None);
        let (q, k) = (self.turned(0, q), self.turned(1, k));
        let attended = self.attend(&q, (&k, &v), caches);
        let [made] = self.project([self.block.o()], &Read::Values(&attended), self.beneath(x), None);
        let middle = self.after(0, x, &made);
        let (gate, up) = self.gate_up(&self.before(1, self.fed(x, &middle)), None);
        let inner = activation::apply(self.block.activation, &gate, up.as_deref());
        let [made] = self.project([self.block.down()], &Read::Values(&inner), self.beneath(&middle), None);
        self.after(1, &middle, &made).into_owned()
    }

    /// The queries (0) or keys (1) that attention sees, of what was projected.
    fn turned(&self, i: usize, mut projected: Vec<f32>) -> Vec<f32> {
        if self.block.head_norms.is_some() {
            return self.heads(i, &projected).into_owned();
        }
        self.rotate(&mut projected, 1.0);
        projected
    }

    fn attend(
        &self,
        q: &[f32],
        (k, v): (&[f32], &[f32]),
        caches: &mut [(&mut CacheRows, &mut CacheRows)],
    ) -> Vec<f32> {
        let width = self.block.shape.key_width();
        let segments = caches.iter_mut().zip(self.pass.segments.iter()).map(|((keys, values), rows)| {
            keys.append(&k[rows.start * width..rows.end * width]);
            values.append(&v[rows.start * width..rows.end * width]);
            CachedSegment { start: rows.start, len: rows.len(), keys, values }
        });
        attend(q, &segments.collect::<Vec<_>>(), &self.block.shape, None)
    }

    /// `x` through the projections of some `numbers`, added to `onto` where that is given, in few jobs.
    pub(super) fn project_cached<const G: usize>(
        &self,
        numbers: [usize; G],
        x: &[f32],
        onto: Option<&[f32]>,
    ) -> [Vec<f32>; G] {
        let us = self.down(numbers, x);
        let weight = &self.block.projections[numbers[0]].weight;
        let rows = x.len() / weight.cols();
        let mut ys = numbers.map(|number| zeros(rows * self.block.projections[number].weight.rows()));
        let mut targets = Vec::with_capacity(G);
        for ((number, u), y) in numbers.into_iter().zip(&us).zip(&mut ys) {
            let Projection { weight, bias } = &self.block.projections[number];
            let term = self.factors[number].as_ref().map(|factors| factors.term().up(u, factors.b()));
            let rest = Rest { term, gain: self.gain(number), bias: bias.as_deref(), onto };
            targets.push(Target { w: weight.right(Direction::Forward), rest, y });
        }
        Prepared::new(weight.compute(), x, weight.cols()).targets(&mut targets);
        ys
    }

    /// `s · x Aᵀ` `(N, R)` of the low-rank terms beside those projections.
    fn down<const G: usize>(&self, numbers: [usize; G], x: &[f32]) -> [Vec<f32>; G] {
        let inputs = self.block.projections[numbers[0]].weight.cols();
        let mut us = [const { Vec::new() }; G];
        let mut targets = Vec::with_capacity(G);
        for (number, u) in numbers.into_iter().zip(&mut us) {
            let Some(factors) = &self.factors[number] else { continue };
            let a = factors.a();
            let rank = a.len() / inputs;
            *u = vec![0.0; x.len() / inputs * rank];
            let w = Right::new(Matrix::dense(a, rank, inputs), Direction::Forward);
            targets.push(Target { w, rest: Rest::default(), y: u });
        }
        Prepared::new(Compute::F32, x, inputs).targets(&mut targets);
        for (number, u) in numbers.into_iter().zip(&mut us) {
            if let Some(factors) = &self.factors[number] {
                factors.term().scale(u);
            }
        }
        us
    }
}
