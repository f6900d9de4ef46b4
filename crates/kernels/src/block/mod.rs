//! A whole transformer block as one operation: what it keeps for backward is little, and nothing is copied that need not be.
//!
//! With `norm` as in [`rms_norm`](crate::rms_norm) and every `W` a frozen weight with its bias and, perhaps, a low-rank term and
//! a gain ([`Adapted`]):
//!
//! `q, k, v = rope(heads(norm(x) W)),  middle = x + attention(q, k, v) Wₒ,`
//! `y = middle + (silu(norm(middle) W_gate) ⊙ norm(middle) W_up) W_down`
//!
//! where `heads` normalises the heads of q and k in the models that do so, and leaves v alone, as does `rope`.
//!
//! A row keeps `D + 2 H·E + 2 K·E + 2 F + H` values and the low-rank terms' `u = x Aᵀ`: q, k, v, what was attended and its
//! log-sums, `middle`, gate and up. Backward makes the norms and `silu(gate) ⊙ up` again, and frees what it has used. The
//! fine-grained operations are the reference that this one is tested against.

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
use crate::{AttentionShape, Gradients, LowRank, RopeTable, Weight};
pub use cached::block_cached;
use terms::{Factors, Slot};

const OP: &str = "block";

/// Where each projection is among the seven, and those that share an input.
const QKV: usize = 0;
const O: usize = 3;
const GATE_UP: usize = 4;
const DOWN: usize = 6;

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
    /// q, k, v, o, gate, up and down, computed alike ([`Weight::compute`]).
    pub projections: [Projection; 7],
    /// Gains `(D,)` of the norm before attention and of that before the feed-forward layer.
    pub gains: [Vec<f32>; 2],
    /// Gains `(E,)` of the norms of q and k heads.
    pub head_gains: Option<[Vec<f32>; 2]>,
    /// Added to the mean square in every norm.
    pub eps: f32,
    /// The facts of attention.
    pub shape: AttentionShape,
    /// Whether q and k are rotated.
    pub rotates: bool,
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
    fn check(&self, (rows, hidden): (usize, usize), pass: &BlockPass) -> Result<()> {
        self.shape.check()?;
        let (q, k) = (self.shape.query_width(), self.shape.key_width());
        let inner = self.projections[GATE_UP].weight.rows();
        let sizes = [(q, hidden), (k, hidden), (k, hidden), (hidden, q)];
        let sizes = sizes.into_iter().chain([(inner, hidden), (inner, hidden), (hidden, inner)]);
        for (i, (projection, (outputs, inputs))) in self.projections.iter().zip(sizes).enumerate() {
            let Projection { weight, bias } = projection;
            let fits = (weight.rows(), weight.cols()) == (outputs, inputs)
                && bias.as_ref().is_none_or(|bias| bias.len() == outputs)
                && weight.compute() == self.projections[0].weight.compute();
            if !fits {
                candle_core::bail!(
                    "{OP}: projection {i} is {} x {}, computed in {:?}: expected {outputs} x {inputs} in {:?}",
                    weight.rows(),
                    weight.cols(),
                    weight.compute(),
                    self.projections[0].weight.compute()
                );
            }
        }
        let heads = self.head_gains.iter().flatten().all(|gain| gain.len() == self.shape.head_dim);
        if !heads || self.gains.iter().any(|gain| gain.len() != hidden) || hidden == 0 || inner == 0 {
            candle_core::bail!("{OP}: gains that do not fit rows of {hidden} values, or no values to a row");
        }
        let RopeTable { cos, sin, half } = &*pass.rope;
        let angles = rows * half;
        if self.rotates && ((cos.len(), sin.len()) != (angles, angles) || 2 * half > self.shape.head_dim) {
            candle_core::bail!("{OP}: angles of {} values for {rows} rows of {half}", cos.len());
        }
        check_segments(&pass.segments, rows)
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
    middle: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
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
        let saved = saved.unwrap_or_else(|| layer.save(xs));
        let (dx, dgains) = layer.pull_back((xs, ys), gs, saved, x.track_op());
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), &Device::Cpu)).transpose()?;
        let asked = gains.track_op() && gains.elem_count() > 0;
        let dgains = asked.then(|| Tensor::from_vec(dgains.concat(), gains.shape(), &Device::Cpu));
        Ok((dx, dgains.transpose()?))
    }
}
