//! A block on rows that continue caches, without gradients: prefill, chunked prefill and decoding.
//!
//! The projections that share an input run as one job, each part of a result finished, with its low-rank term and bias,
//! where it was made; so a decoding step hands over few jobs and reads every weight once.

use candle_core::{Device, Result, Tensor};

use super::{Block, BlockPass, DOWN, GATE_UP, Layer, O, Projection, QKV};
use crate::attention::attend;
use crate::elementwise::swiglu_into;
use crate::low_rank::Term;
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
    let layer = Layer { block, pass, slots: &[const { None }; 7], theta: &[] };
    let cached = Cached { layer, factors: hold(block, adapted)? };
    let held = Held::new(OP, x)?;
    Tensor::from_vec(cached.run(held.values(), caches), x.shape(), &Device::Cpu)
}

/// The values of an [`Adapted`].
struct Factors<'a> {
    a: Held<'a>,
    b: Held<'a>,
    gain: Option<Held<'a>>,
    scaling: f32,
}

fn hold<'a>(block: &Block, adapted: &'a [Option<Adapted<'_>>; 7]) -> Result<[Option<Factors<'a>>; 7]> {
    let mut all = [const { None }; 7];
    for ((held, adapted), projection) in all.iter_mut().zip(adapted).zip(&block.projections) {
        let Some(Adapted { low_rank, gain }) = adapted else { continue };
        let outputs = projection.weight.rows();
        Term::new(OP, low_rank, outputs, projection.weight.cols())?;
        if low_rank.dropout.is_some_and(|dropout| !dropout.is_identity()) {
            candle_core::bail!("{OP}: dropout where nothing is trained");
        }
        if let Some(gain) = gain.as_ref().filter(|gain| gain.dims() != [outputs]) {
            candle_core::bail!("{OP}: a gain of {:?} for {outputs} outputs", gain.shape());
        }
        let gain = gain.as_ref().map(|gain| Held::new(OP, gain)).transpose()?;
        let (a, b) = (Held::new(OP, low_rank.a)?, Held::new(OP, low_rank.b)?);
        *held = Some(Factors { a, b, gain, scaling: low_rank.scaling as f32 });
    }
    Ok(all)
}

struct Cached<'a> {
    layer: Layer<'a>,
    factors: [Option<Factors<'a>>; 7],
}

impl Cached<'_> {
    fn run(&self, x: &[f32], caches: &mut [(&mut CacheRows, &mut CacheRows)]) -> Vec<f32> {
        let mut normed = vec![0.0; x.len()];
        self.layer.norm(0, x, &mut normed);
        let [q, k, v] = self.project(QKV, &normed, None);
        let (q, k) = (self.turned(0, q), self.turned(1, k));
        let attended = self.attend(&q, (&k, &v), caches);
        let [middle] = self.project(O, &attended, Some(x));
        self.layer.norm(1, &middle, &mut normed);
        let [gate, up] = self.project(GATE_UP, &normed, None);
        let mut inner = vec![0.0; gate.len()];
        swiglu_into(&gate, &up, &mut inner);
        let [y] = self.project(DOWN, &inner, Some(&middle));
        y
    }

    /// The queries (0) or keys (1) that attention sees, of what was projected.
    fn turned(&self, i: usize, mut projected: Vec<f32>) -> Vec<f32> {
        if self.layer.block.head_gains.is_some() {
            return self.layer.heads(i, &projected).into_owned();
        }
        self.layer.rotate(&mut projected, 1.0);
        projected
    }

    fn attend(
        &self,
        q: &[f32],
        (k, v): (&[f32], &[f32]),
        caches: &mut [(&mut CacheRows, &mut CacheRows)],
    ) -> Vec<f32> {
        let width = self.layer.block.shape.key_width();
        let segments =
            caches.iter_mut().zip(self.layer.pass.segments.iter()).map(|((keys, values), rows)| {
                keys.append(&k[rows.start * width..rows.end * width]);
                values.append(&v[rows.start * width..rows.end * width]);
                CachedSegment { start: rows.start, len: rows.len(), keys, values }
            });
        attend(q, &segments.collect::<Vec<_>>(), &self.layer.block.shape, None)
    }

    /// `x` through the `G` projections from number `first` on, added to `onto` where that is given.
    fn project<const G: usize>(&self, first: usize, x: &[f32], onto: Option<&[f32]>) -> [Vec<f32>; G] {
        let projections = &self.layer.block.projections[first..first + G];
        let factors = &self.factors[first..first + G];
        let us: [Vec<f32>; G] = self.down(first, x);
        let weight = &projections[0].weight;
        let rows = x.len() / weight.cols();
        let mut ys = std::array::from_fn(|i| vec![0.0; rows * projections[i].weight.rows()]);
        let mut targets = Vec::with_capacity(G);
        for (i, y) in ys.iter_mut().enumerate() {
            let Projection { weight, bias } = &projections[i];
            let term = factors[i].as_ref().map(|factors| (us[i].as_slice(), factors.b.values()));
            let gain = factors[i].as_ref().and_then(|factors| factors.gain.as_ref()).map(Held::values);
            let rest = Rest { term, gain, bias: bias.as_deref(), onto };
            targets.push(Target { w: weight.matrix(), rest, y });
        }
        Prepared::new(weight.compute(), x, weight.cols()).targets(&mut targets);
        ys
    }

    /// `s · x Aᵀ` `(N, R)` of the low-rank terms beside those projections.
    fn down<const G: usize>(&self, first: usize, x: &[f32]) -> [Vec<f32>; G] {
        let inputs = self.layer.block.projections[first].weight.cols();
        let mut us = [const { Vec::new() }; G];
        let mut targets = Vec::with_capacity(G);
        for (u, factors) in us.iter_mut().zip(&self.factors[first..]) {
            let Some(factors) = factors else { continue };
            let a = factors.a.values();
            let rank = a.len() / inputs;
            *u = vec![0.0; x.len() / inputs * rank];
            targets.push(Target { w: Matrix::dense(a, rank, inputs), rest: Rest::default(), y: u });
        }
        Prepared::new(Compute::F32, x, inputs).targets(&mut targets);
        for (u, factors) in us.iter_mut().zip(&self.factors[first..]) {
            let scaling = factors.as_ref().map_or(1.0, |factors| factors.scaling);
            for u in &mut *u {
                *u *= scaling;
            }
        }
        us
    }
}
