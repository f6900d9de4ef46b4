//! A block on rows that continue caches, without gradients: prefill, chunked prefill and decoding.
//!
//! The projections that share an input run as one job, each part of a result finished, with its low-rank term and bias,
//! where it was made; so a decoding step hands over few jobs and reads every weight once.

use candle_core::{Device, Result, Tensor};

use super::{Block, BlockPass, DOWN, GATE_UP, Layer, O, Projection, QKV, terms};
use crate::attention::attend;
use crate::buffers::zeros;
use crate::activation::{Activation, Function};
use crate::operand::Held;
use crate::product::targets::{Rest, Target};
use crate::product::{Matrix, Prepared};
use crate::{Adapted, CacheRows, CachedSegment, Compute};

const OP: &str = "block_cached";

/// [`block`](crate::block) on segments that each continue the keys and values of one of `caches`, which take up the rows'
/// own. No gradient is kept, and dropout is refused.
pub fn block_cached(
    x: &Tensor,
    block: &Block,
    pass: &BlockPass,
    adapted: &[Option<Adapted<'_>>; 7],
    caches: &mut [(&mut CacheRows, &mut CacheRows)],
) -> Result<Tensor> {
    block.check(x.dims2()?, pass)?;
    let width = block.shape.key_width();
    let fit = caches.iter().all(|(k, v)| k.width() == width && v.width() == width && k.rows() == v.rows());
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
        let mut normed = zeros(x.len());
        self.norm(0, x, &mut normed);
        let [q, k, v] = self.project_cached(QKV, &normed, None);
        let (q, k) = (self.turned(0, q), self.turned(1, k));
        let attended = self.attend(&q, (&k, &v), caches);
        let [middle] = self.project_cached(O, &attended, Some(x));
        self.norm(1, &middle, &mut normed);
        let [gate, up] = self.project_cached(GATE_UP, &normed, None);
        let mut inner = zeros(gate.len());
        Activation::Silu.apply(&gate, Some(&up), &mut inner);
        let [y] = self.project_cached(DOWN, &inner, Some(&middle));
        y
    }

    /// The queries (0) or keys (1) that attention sees, of what was projected.
    fn turned(&self, i: usize, mut projected: Vec<f32>) -> Vec<f32> {
        if self.block.head_gains.is_some() {
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

    /// `x` through the `G` projections from number `first` on, added to `onto` where that is given.
    fn project_cached<const G: usize>(&self, first: usize, x: &[f32], onto: Option<&[f32]>) -> [Vec<f32>; G] {
        let projections = &self.block.projections[first..first + G];
        let factors = &self.factors[first..first + G];
        let us: [Vec<f32>; G] = self.down(first, x);
        let weight = &projections[0].weight;
        let rows = x.len() / weight.cols();
        let mut ys = std::array::from_fn(|i| zeros(rows * projections[i].weight.rows()));
        let mut targets = Vec::with_capacity(G);
        for (i, y) in ys.iter_mut().enumerate() {
            let Projection { weight, bias } = &projections[i];
            let term = factors[i].as_ref().map(|factors| (us[i].as_slice(), factors.b()));
            let gain = self.gain(first + i);
            let rest = Rest { term, gain, bias: bias.as_deref(), onto };
            targets.push(Target { w: weight.matrix(), rest, y });
        }
        Prepared::new(weight.compute(), x, weight.cols()).targets(&mut targets);
        ys
    }

    /// `s · x Aᵀ` `(N, R)` of the low-rank terms beside those projections.
    fn down<const G: usize>(&self, first: usize, x: &[f32]) -> [Vec<f32>; G] {
        let inputs = self.block.projections[first].weight.cols();
        let mut us = [const { Vec::new() }; G];
        let mut targets = Vec::with_capacity(G);
        for (u, factors) in us.iter_mut().zip(&self.factors[first..]) {
            let Some(factors) = factors else { continue };
            let a = factors.a();
            let rank = a.len() / inputs;
            *u = vec![0.0; x.len() / inputs * rank];
            targets.push(Target { w: Matrix::dense(a, rank, inputs), rest: Rest::default(), y: u });
        }
        Prepared::new(Compute::F32, x, inputs).targets(&mut targets);
        for (u, factors) in us.iter_mut().zip(&self.factors[first..]) {
            let scaling = factors.as_ref().map_or(1.0, |factors| factors.term().scaling);
            for u in &mut *u {
                *u *= scaling;
            }
        }
        us
    }
}
