//! A whole transformer block as one operation: what it keeps for backward is little, and nothing is copied that need not be.
//!
//! With `norm` as in [`rms_norm`](crate::rms_norm) or [`layer_norm`](crate::layer_norm), `f` an [`Activation`] and every `W` a
//! frozen weight with its bias and, perhaps, a low-rank term and a gain ([`Adapted`]), a block whose norms come before is
//!
//! `q, k, v = rope(heads(norm(x) W)),  middle = x + attention(q, k, v) Wₒ,`
//! `y = middle + (f(norm(middle) W_gate) ⊙ norm(middle) W_up) W_down`
//!
//! where `heads` normalises the heads of q and k in the models that do so, and leaves v alone, as does `rope`; and one whose
//! norms come after is `middle = norm(x + …)`, `y = norm(middle + …)`, with no other norms. `⊙ … W_up` is left out where
//! there is no such projection.
//!
//! A row keeps `D + 2 H·E + 2 K·E + 2 F + H` values and the low-rank terms' `u = x Aᵀ`: q, k, v, what was attended and its
//! log-sums, `middle`, gate and up; F fewer without up, and D more where norms come after, as they cannot be undone. Backward
//! makes the norms and `f(gate) ⊙ up` again, and frees what it has used. The fine-grained operations are the reference that
//! this one is tested against.

mod backward;
mod cached;
mod forward;
mod gains;
mod terms;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

use crate::attention::check_segments;
use crate::operand::{Held, output, values};
use crate::{Activation, AttentionShape, Gradients, LowRank, Norm, RopeTable, Weight};
pub use cached::block_cached;
use terms::{Factors, Slot};

const OP: &str = "block";

/// Where each projection is among the seven; q, k and v share an input, as do gate and up.
const QKV: [usize; 3] = [0, 1, 2];
const O: usize = 3;
const GATE: usize = 4;
const DOWN: usize = 5;
const UP: usize = 6;

/// A frozen linear layer of a block.
#[derive(Clone, Debug)]
pub struct Projection {
    /// `W` `(out, in)`.
    pub weight: Weight,
    /// `b` `(out,)`.
    pub bias: Option<Vec<f32>>,
}

/// What an adapter makes of a projection: `c ⊙ (x Wᵀ + s·(dropout(x) Aᵀ) Bᵀ) + b`.
#[derive(Clone, Debug)]
pub struct Adapted<'a> {
    /// `A`, `B` and `s`.
    pub low_rank: LowRank<'a>,
    /// `c` `(out,)`, of which no value is 0; ones where there is none. Not together with dropout, which in DoRA is the
    /// frozen product's too.
    pub gain: Option<Tensor>,
}

/// The frozen parts of a transformer block.
#[derive(Clone, Debug)]
pub struct Block {
    /// q, k, v, o, gate, down and, where the gate is one and has something to open, up; computed alike
    /// ([`Weight::compute`]).
    pub projections: Vec<Projection>,
    /// Of rows.
    pub norms: Norms,
    /// Of q and k heads.
    pub head_norms: Option<[Norm; 2]>,
    /// Of the gate.
    pub activation: Activation,
    /// The facts of attention.
    pub shape: AttentionShape,
    /// Whether q and k are rotated.
    pub rotates: bool,
}

/// Where the norms of attention and of the feed-forward layer are.
#[derive(Clone, Debug)]
pub enum Norms {
    /// `x + f(norm(x))`.
    Before([Norm; 2]),
    /// `norm(x + f(x))`.
    After([Norm; 2]),
}

/// What the blocks of one forward pass share.
#[derive(Clone, Debug)]
pub struct BlockPass {
    /// Consecutive row ranges that cover the batch.
    pub segments: Arc<[Range<usize>]>,
    /// The rows' angles.
    pub rope: Arc<RopeTable>,
    /// Keep nothing but `x`: backward runs forward again.
    pub recompute: bool,
    /// Where the gradients of tracked factors go.
    pub gradients: Option<Gradients>,
}

/// The block on `x` `(N, D)`, to `(N, D)`, some of its projections adapted.
///
/// Gradients reach `x` and the gains where they are tracked. Those of tracked factors are added to the sums of `pass`, without
/// which they are refused.
pub fn block(
    x: &Tensor,
    block: &Arc<Block>,
    pass: &BlockPass,
    adapted: &[Option<Adapted<'_>>; 7],
) -> Result<Tensor> {
    block.check(x.dims2()?, pass)?;
    let slots = terms::slots(OP, &block.projections, adapted)?;
    let learns = adapted.iter().flatten().any(|adapted| adapted.low_rank.is_tracked());
    if learns && pass.gradients.is_none() {
        candle_core::bail!("{OP}: factors are tracked, and their gradients have nowhere to go");
    }
    let gains = terms::gains(&slots, learns)?;
    let tracked = x.track_op() || gains.track_op();
    let op = Op { block: block.clone(), pass: pass.clone(), slots, tracked, saved: Mutex::new(None) };
    x.apply_op2(&gains, op)
}

impl Block {
    /// The projections that read what the feed-forward layer reads.
    fn is_gated(&self) -> bool {
        self.projections.len() > UP
    }

    fn check(&self, (rows, hidden): (usize, usize), pass: &BlockPass) -> Result<()> {
        self.shape.check()?;
        self.check_projections(hidden)?;
        let (Norms::Before(norms) | Norms::After(norms)) = &self.norms;
        let heads = self.head_norms.iter().flatten().all(|norm| norm.fits(self.shape.head_dim));
        if !heads || !norms.iter().all(|norm| norm.fits(hidden)) || hidden == 0 {
            candle_core::bail!("{OP}: norms that do not fit rows of {hidden} values, or no values to a row");
        }
        let RopeTable { cos, sin, half } = &*pass.rope;
        let angles = rows * half;
        if self.rotates && ((cos.len(), sin.len()) != (angles, angles) || 2 * half > self.shape.head_dim) {
            candle_core::bail!("{OP}: angles of {} values for {rows} rows of {half}", cos.len());
        }
        check_segments(&pass.segments, rows)
    }

    fn check_projections(&self, hidden: usize) -> Result<()> {
        if !(UP..=UP + 1).contains(&self.projections.len()) {
            candle_core::bail!(
                "{OP}: {} projections, expected six, or seven with up",
                self.projections.len()
            );
        }
        let (q, k) = (self.shape.query_width(), self.shape.key_width());
        let inner = self.projections[GATE].weight.rows();
        let sizes = [(q, hidden), (k, hidden), (k, hidden), (hidden, q)];
        let sizes = sizes.into_iter().chain([(inner, hidden), (hidden, inner), (inner, hidden)]);
        let compute = self.projections[0].weight.compute();
        for (i, (projection, (outputs, inputs))) in self.projections.iter().zip(sizes).enumerate() {
            let Projection { weight, bias } = projection;
            let fits = (weight.rows(), weight.cols()) == (outputs, inputs)
                && bias.as_ref().is_none_or(|bias| bias.len() == outputs)
                && weight.compute() == compute
                && outputs > 0;
            if !fits {
                candle_core::bail!(
                    "{OP}: projection {i} is {} x {}, computed in {:?}: expected {outputs} x {inputs} in {compute:?}",
                    weight.rows(),
                    weight.cols(),
                    weight.compute(),
                );
            }
        }
        Ok(())
    }
}

/// Everything that a pass through a block reads.
#[derive(Clone, Copy)]
struct Layer<'a> {
    block: &'a Block,
    pass: &'a BlockPass,
    factors: &'a [Option<Factors<'a>>; 7],
}

/// What backward needs beside `x`. Where heads are normalised, `q` and `k` are what was projected; elsewhere they are
/// rotated already.
struct Saved {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    log_sums: Vec<f32>,
    /// `x` and what attention gave, before a norm that comes after.
    middle: Vec<f32>,
    gate: Vec<f32>,
    up: Option<Vec<f32>>,
    /// The same of the feed-forward layer, where a norm comes after it; the result elsewhere.
    sum: Option<Vec<f32>>,
    /// `u` `(N, R)` of every low-rank term.
    u: [Vec<f32>; 7],
}

struct Op {
    block: Arc<Block>,
    pass: BlockPass,
    slots: [Option<Slot>; 7],
    tracked: bool,
    /// Taken by backward; one that finds nothing runs forward again.
    saved: Mutex<Option<Saved>>,
}

impl Op {
    fn layer<'a>(&'a self, factors: &'a [Option<Factors<'a>>; 7]) -> Layer<'a> {
        Layer { block: &self.block, pass: &self.pass, factors }
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        OP
    }

    /// On `x` and the gains, which are here only for their gradient to have a way back.
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let factors = terms::hold(OP, &self.slots)?;
        let layer = self.layer(&factors);
        let mut saved = layer.save(values(OP, s1, l1)?);
        let y = layer.finish(&mut saved);
        if self.tracked && !self.pass.recompute {
            *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        }
        Ok(output(y, l1.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gains: &Tensor,
        y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let held = [Held::new(OP, x)?, Held::new(OP, y)?, Held::new(OP, &g)?];
        let [xs, ys, gs] = held.each_ref().map(Held::values);
        let factors = terms::hold(OP, &self.slots)?;
        let layer = self.layer(&factors);
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let saved = saved.unwrap_or_else(|| layer.save_again(xs));
        let (dx, dgains) = layer.pull_back((xs, ys), gs, saved, x.track_op());
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), &Device::Cpu)).transpose()?;
        let asked = gains.track_op() && gains.elem_count() > 0;
        let dgains = asked.then(|| Tensor::from_vec(dgains.concat(), gains.shape(), &Device::Cpu));
        Ok((dx, dgains.transpose()?))
    }
}
