//! Whole transformer blocks as one operation: what it keeps for backward is little, and nothing is copied that need not be.
//!
//! With `norm` as in [`rms_norm`](crate::rms_norm) or [`layer_norm`](crate::layer_norm), `f` an [`Activation`] and every `W` a
//! frozen weight with its bias and, perhaps, a low-rank term and a gain ([`Adapted`]), a block whose norms come before is
//!
//! `q, k, v = rope(heads(norm(x) W)),  middle = x + attention(q, k, v) Wₒ,`
//! `y = middle + (f(norm(middle) W_gate) ⊙ norm(middle) W_up) W_down`
//!
//! where `heads` normalises the heads of q and k in the models that do so, and leaves v alone, as does `rope`; one whose
//! norms come after is `middle = norm(x + …)`, `y = norm(middle + …)`, with no other norms; one with norms on both sides
//! `middle = x + norm(attention(…) Wₒ)`, `y = middle + norm(…)`; and in one whose halves stand side by side `y = middle + …`
//! reads `norm(x)` where the others read `norm(middle)`. `⊙ … W_up` is left out where there is no such projection.
//!
//! A row keeps `D + 2 H·E + 2 K·E + 2 F + H` values and the low-rank terms' `u = s · x Aᵀ`: q, k, v, what was attended and its
//! log-sums, `middle`, gate and up; F fewer without up, and D more where norms come after, as they cannot be undone. Where
//! products hold their operands in bf16, what was attended, gate and up are kept so. Backward makes the norms and
//! `f(gate) ⊙ up` again, and frees what it has used. The fine-grained operations are the reference that
//! this one is tested against.

mod backward;
mod cached;
mod chain;
mod forward;
mod gains;
mod joined;
mod read;
mod terms;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::attention::check_segments;
use crate::product::Prepared;
use crate::{Activation, AttentionShape, Gradients, LowRank, Norm, RopeTable, Weight};
pub use cached::block_cached;
pub use chain::blocks;
use terms::Factors;

/// Where q, k and v are among the projections, or what makes all of them.
const QKV: [usize; 3] = [0, 1, 2];

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
    /// q, k, v, o, gate, down and, where the gate is one and has something to open, up; without those that another makes
    /// ([`Joined`]). Computed as attention is ([`AttentionShape::compute`]).
    pub projections: Vec<Projection>,
    /// Which of them make several results.
    pub joined: Joined,
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

/// What one projection makes side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// The first q, k and v, `(H·E + 2·K·E, D)`: there is none of k, nor of v.
    pub qkv: Option<Order>,
    /// That of the gate all of gate and of up, `(2·F, D)`: there is none of up.
    pub gate_up: bool,
}

/// How q, k and v of one projection lie in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// All of q, all of k, all of v.
    Whole,
    /// q, k and v of one head after the other, of which there are as many of each.
    ByHead,
}

/// Where the norms of attention and of the feed-forward layer are.
#[derive(Clone, Debug)]
pub enum Norms {
    /// `x + f(norm(x))`.
    Before([Norm; 2]),
    /// `norm(x + f(x))`.
    After([Norm; 2]),
    /// `x + norm(f(norm(x)))`: those inside, those outside.
    Around([Norm; 2], [Norm; 2]),
    /// `x + f(norm(x)) + g(norm(x))`.
    Parallel([Norm; 2]),
}

/// What a pass through a block reads beside `x`.
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

/// A block with what an adapter makes of it, in a pass.
#[derive(Clone, Debug)]
pub struct Link<'a> {
    /// The frozen parts.
    pub block: Arc<Block>,
    /// The pass.
    pub pass: BlockPass,
    /// By projection.
    pub adapted: [Option<Adapted<'a>>; 7],
}

impl Block {
    /// Whether two projections read what the feed-forward layer reads, and their product is fed on.
    fn is_gated(&self) -> bool {
        self.joined.gate_up || self.projections.len() > self.up()
    }

    fn check(&self, op: &str, (rows, hidden): (usize, usize), pass: &BlockPass) -> Result<()> {
        self.shape.check()?;
        self.check_projections(op, hidden)?;
        let (norms, outer) = match &self.norms {
            Norms::Before(norms) | Norms::After(norms) | Norms::Parallel(norms) => (norms, None),
            Norms::Around(inner, outer) => (inner, Some(outer)),
        };
        let mut norms = norms.iter().chain(outer.into_iter().flatten());
        let heads = self.head_norms.iter().flatten().all(|norm| norm.fits(self.shape.head_dim));
        if !heads || !norms.all(|norm| norm.fits(hidden)) || hidden == 0 {
            candle_core::bail!("{op}: norms that do not fit rows of {hidden} values, or no values to a row");
        }
        let RopeTable { cos, sin, half } = &*pass.rope;
        let angles = rows * half;
        if self.rotates && ((cos.len(), sin.len()) != (angles, angles) || 2 * half > self.shape.head_dim) {
            candle_core::bail!("{op}: angles of {} values for {rows} rows of {half}", cos.len());
        }
        check_segments(&pass.segments, rows)
    }

    fn check_projections(&self, op: &str, hidden: usize) -> Result<()> {
        let (least, joined) = (self.up(), self.joined);
        if self.projections.len() != least && (joined.gate_up || self.projections.len() != least + 1) {
            candle_core::bail!(
                "{op}: {} projections, expected {least}{}",
                self.projections.len(),
                if joined.gate_up { "" } else { ", or one more with up" }
            );
        }
        let (q, k, inner) = (self.shape.query_width(), self.shape.key_width(), self.inner());
        if joined.qkv == Some(Order::ByHead) && q != k {
            candle_core::bail!(
                "{op}: {} queries by head beside {} keys",
                self.shape.heads,
                self.shape.kv_heads
            );
        }
        let made = if joined.qkv.is_some() { vec![q + 2 * k] } else { vec![q, k, k] };
        let read = made.into_iter().map(|width| (width, hidden)).chain([(hidden, q)]);
        let gate = if joined.gate_up { 2 * inner } else { inner };
        let sizes = read.chain([(gate, hidden), (hidden, inner), (inner, hidden)]);
        let compute = self.shape.compute;
        for (i, (projection, (outputs, inputs))) in self.projections.iter().zip(sizes).enumerate() {
            let Projection { weight, bias } = projection;
            let fits = (weight.rows(), weight.cols()) == (outputs, inputs)
                && bias.as_ref().is_none_or(|bias| bias.len() == outputs)
                && weight.compute() == compute
                && outputs > 0;
            if !fits {
                candle_core::bail!(
                    "{op}: projection {i} is {} x {}, computed in {:?}: expected {outputs} x {inputs} in {compute:?}",
                    weight.rows(),
                    weight.cols(),
                    weight.compute(),
                );
            }
        }
        Ok(())
    }
}

/// `u` `(N, R)` of every low-rank term, by projection.
type Us = [Vec<f32>; 7];

/// Everything that a pass through a block reads.
#[derive(Clone, Copy)]
struct Layer<'a> {
    block: &'a Block,
    pass: &'a BlockPass,
    factors: &'a [Option<Factors<'a>>; 7],
}

/// What backward needs beside `x`. Where heads are normalised, `q` and `k` are what was projected; elsewhere they are
/// rotated already. What goes past projections is exact in any case: gradients of gains read differences of it.
struct Saved {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Prepared<'static>,
    log_sums: Vec<f32>,
    /// What attention's projection makes, on top of `x` where there is no norm between: see [`Layer::after`].
    middle: Vec<f32>,
    gate: Prepared<'static>,
    up: Option<Prepared<'static>>,
    /// The same of the feed-forward layer, where a norm comes after it; the result elsewhere.
    sum: Option<Vec<f32>>,
    us: Us,
}
