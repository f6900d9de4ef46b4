//! Consecutive blocks as one operation: a gradient goes from block to block as it is. Between operations of candle's, its store
//! would add each to zeros first, on threads of its own.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

use super::terms::{self, Factors, Slot};
use super::{Block, BlockPass, Layer, Link, Saved};
use crate::operand::{Held, output, values};

const OP: &str = "blocks";

/// `x` `(N, D)` through the blocks of `links`, one after another, to `(N, D)`.
///
/// Gradients reach `x` and the gains where they are tracked. Those of tracked factors are added to the sums of their pass,
/// without which they are refused.
pub fn blocks(x: &Tensor, links: &[Link<'_>]) -> Result<Tensor> {
    if links.is_empty() {
        return Ok(x.clone());
    }
    let sizes = x.dims2()?;
    let links = links.iter().map(|link| Kept::new(link, sizes)).collect::<Result<Vec<_>>>()?;
    let slots = || links.iter().flat_map(Kept::slots);
    let gains = terms::gains(slots(), slots().any(Slot::learns))?;
    let first = if x.track_op() { Some(0) } else { links.iter().position(Kept::is_tracked) };
    let op = Op { first: first.unwrap_or(links.len()), links, saved: Mutex::default() };
    x.apply_op2(&gains, op)
}

/// A [`Link`] as the operation keeps it.
struct Kept {
    block: Arc<Block>,
    pass: BlockPass,
    slots: [Option<Slot>; 7],
}

impl Kept {
    fn new(Link { block, pass, adapted }: &Link<'_>, sizes: (usize, usize)) -> Result<Self> {
        block.check(OP, sizes, pass)?;
        let slots = terms::slots(OP, &block.projections, adapted)?;
        if pass.gradients.is_none() && slots.iter().flatten().any(Slot::learns) {
            candle_core::bail!("{OP}: factors are tracked, and their gradients have nowhere to go");
        }
        Ok(Self { block: block.clone(), pass: pass.clone(), slots })
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().flatten()
    }

    fn is_tracked(&self) -> bool {
        self.slots().any(Slot::is_tracked)
    }

    fn layer<'a>(&'a self, factors: &'a [Option<Factors<'a>>; 7]) -> Layer<'a> {
        Layer { block: &self.block, pass: &self.pass, factors }
    }
}

/// What backward needs of one block.
struct Step {
    /// What went in; of the first block nothing, as that is the operation's own `x`.
    x: Option<Vec<f32>>,
    /// The rest, unless it is made again.
    saved: Option<Saved>,
}

struct Op {
    links: Vec<Kept>,
    /// The first block that a gradient must reach; none do where that is past the last.
    first: usize,
    /// Of the blocks from there on. Taken by backward; one that finds nothing runs forward again.
    saved: Mutex<Vec<Step>>,
}

impl Op {
    /// The result, and what backward needs.
    fn run(&self, x: &[f32]) -> Result<(Vec<f32>, Vec<Step>)> {
        let mut x = Cow::Borrowed(x);
        let mut steps = Vec::with_capacity(self.links.len() - self.first);
        for (i, link) in self.links.iter().enumerate() {
            let factors = terms::hold(OP, &link.slots)?;
            let layer = link.layer(&factors);
            let mut saved = layer.save(&x);
            let kept = i >= self.first && !link.pass.recompute;
            let y = layer.finish(&x, &mut saved, kept);
            let read = std::mem::replace(&mut x, Cow::Owned(y));
            if i >= self.first {
                let x = match read {
                    Cow::Borrowed(_) => None,
                    Cow::Owned(x) => Some(x),
                };
                steps.push(Step { x, saved: kept.then_some(saved) });
            }
        }
        Ok((x.into_owned(), steps))
    }

    /// The gradients of `x`, where it is `wanted`, and of all gains, from that of the result `y`.
    fn pull_back(
        &self,
        (x, y): (&[f32], &[f32]),
        g: &[f32],
        mut steps: Vec<Step>,
        wanted: bool,
    ) -> Result<(Option<Vec<f32>>, Vec<f32>)> {
        let none = |link: &Kept| vec![0.0; link.slots().map(Slot::gains).sum()];
        let mut dgains: Vec<Vec<f32>> = self.links.iter().map(none).collect();
        let (mut y, mut g) = (Cow::Borrowed(y), Cow::Borrowed(g));
        let mut dx = None;
        for (i, link) in self.links.iter().enumerate().skip(self.first).rev() {
            let Some(step) = steps.pop() else { break };
            let read = step.x.map_or(Cow::Borrowed(x), Cow::Owned);
            let factors = terms::hold(OP, &link.slots)?;
            let layer = link.layer(&factors);
            let saved = step.saved.unwrap_or_else(|| layer.save_again(&read));
            let (found, of_gains) = layer.pull_back((&read, &y), &g, saved, i > self.first || wanted);
            dgains[i] = of_gains.concat();
            match found {
                Some(found) if i > self.first => g = Cow::Owned(found),
                found => dx = found,
            }
            y = read;
        }
        Ok((dx, dgains.concat()))
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
        let (y, steps) = self.run(values(OP, s1, l1)?)?;
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = steps;
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
        let mut steps = std::mem::take(&mut *self.saved.lock().unwrap_or_else(PoisonError::into_inner));
        if steps.is_empty() {
            (_, steps) = self.run(xs)?;
        }
        let (dx, dgains) = self.pull_back((xs, ys), gs, steps, x.track_op())?;
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), &Device::Cpu)).transpose()?;
        let asked = gains.track_op() && gains.elem_count() > 0;
        let dgains = asked.then(|| Tensor::from_vec(dgains, gains.shape(), &Device::Cpu));
        Ok((dx, dgains.transpose()?))
    }
}
