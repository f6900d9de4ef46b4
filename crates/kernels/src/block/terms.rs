//! The projections that share an input, with their low-rank terms.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::gains::Output;
use super::{Adapted, Layer, Projection};
use crate::linear::add_to_rows;
use crate::low_rank::Term;
use crate::operand::Held;
use crate::product::Prepared;

/// A low-rank term, and where its factors and the gain are in `theta`.
pub(super) struct Slot {
    term: Term,
    a: Range<usize>,
    b: Range<usize>,
    gain: Option<Range<usize>>,
}

/// All factors and gains in one tensor, `A`, `B` and `c` of each projection in turn: candle hands each its part of the
/// gradient.
pub(super) fn gather(
    op: &str,
    projections: &[Projection; 7],
    adapted: &[Option<Adapted<'_>>; 7],
) -> Result<(Tensor, [Option<Slot>; 7])> {
    let mut parts: Vec<Tensor> = Vec::new();
    let mut slots = [const { None }; 7];
    let mut end = 0;
    let mut place = |tensor: &Tensor| -> Result<Range<usize>> {
        parts.push(tensor.flatten_all()?);
        let start = end;
        end += tensor.elem_count();
        Ok(start..end)
    };
    for ((slot, adapted), projection) in slots.iter_mut().zip(adapted).zip(projections) {
        let Some(Adapted { low_rank, gain }) = adapted else { continue };
        let term = Term::new(op, low_rank, projection.weight.rows(), projection.weight.cols())?;
        if let Some(gain) = gain {
            check_gain(op, gain, &term)?;
        }
        let (a, b) = (place(low_rank.a)?, place(low_rank.b)?);
        *slot = Some(Slot { term, a, b, gain: gain.as_ref().map(&mut place).transpose()? });
    }
    let theta =
        if parts.is_empty() { Tensor::zeros(0, DType::F32, &Device::Cpu)? } else { Tensor::cat(&parts, 0)? };
    Ok((theta, slots))
}

/// That a gain fits, that nothing is dropped beneath it, and that it can be divided by.
fn check_gain(op: &str, gain: &Tensor, term: &Term) -> Result<()> {
    if gain.dims() != [term.outputs] || term.has_dropout() {
        candle_core::bail!(
            "{op}: a gain {:?} on {} outputs{}",
            gain.shape(),
            term.outputs,
            if term.has_dropout() { ", with dropout" } else { "" }
        );
    }
    if let Some(c) = Held::new(op, gain)?.values().iter().find(|c| !c.is_normal()) {
        candle_core::bail!("{op}: a gain of {c}, which no result can be divided by");
    }
    Ok(())
}

/// The gradients `g` `(N, out)` of the results of some projections that share an input, without gain and bias, the first
/// being number `first`, and `v = s · g B` `(N, R)` of their terms.
pub(super) struct Pulled<'a, const G: usize> {
    first: usize,
    g: [Cow<'a, [f32]>; G],
    v: [Vec<f32>; G],
}

impl<'a> Layer<'a> {
    fn slot(&self, i: usize) -> Option<(&'a Term, &'a [f32], &'a [f32])> {
        let slot = self.slots[i].as_ref()?;
        Some((&slot.term, &self.theta[slot.a.clone()], &self.theta[slot.b.clone()]))
    }

    /// The gain of projection `number`.
    pub(super) fn gain(&self, number: usize) -> Option<&'a [f32]> {
        Some(&self.theta[self.slots[number].as_ref()?.gain.clone()?])
    }

    /// `x` through the `G` projections from number `first` on, added to `onto` where that is given; keeps their `u`.
    pub(super) fn project<const G: usize>(
        &self,
        first: usize,
        x: &[f32],
        onto: Option<&[f32]>,
        u: &mut [Vec<f32>; 7],
    ) -> [Vec<f32>; G] {
        let weight = &self.block.projections[first].weight;
        let prepared = Prepared::new(weight.compute(), x, weight.cols());
        std::array::from_fn(|i| {
            let Projection { weight, bias } = &self.block.projections[first + i];
            let (rows, gain) = (x.len() / weight.cols(), self.gain(first + i));
            let beneath = onto.filter(|_| gain.is_none());
            let mut y = beneath.map_or_else(|| vec![0.0; rows * weight.rows()], <[f32]>::to_vec);
            weight.product_of(&prepared, &mut y, beneath.is_some());
            if let Some((term, a, b)) = self.slot(first + i) {
                let u = &mut u[first + i];
                *u = term.down(&term.dropped(x, 0), a);
                term.add_up(u, b, &mut y);
            }
            match (gain, bias) {
                (Some(gain), _) => self.scale(first + i, gain, &mut y, onto),
                (None, Some(bias)) => add_to_rows(&mut y, bias),
                (None, None) => {}
            }
            y
        })
    }

    /// Takes the gradients of the results `y` of the projections from number `first` on; those of their gains go into
    /// `dtheta`. A `y` is looked at only where there is a gain.
    pub(super) fn pull<'g, const G: usize>(
        &self,
        first: usize,
        mut g: [Cow<'g, [f32]>; G],
        y: [Output<'_>; G],
        dtheta: &mut [f32],
    ) -> Pulled<'g, G> {
        let v = std::array::from_fn(|i| {
            let number = first + i;
            let Some(slot) = &self.slots[number] else { return Vec::new() };
            if let Some(range) = &slot.gain {
                let gain = &self.theta[range.clone()];
                dtheta[range.clone()].copy_from_slice(&self.unscale(number, gain, g[i].to_mut(), y[i]));
            }
            slot.term.pull(&g[i], &self.theta[slot.b.clone()])
        });
        Pulled { first, g, v }
    }
}

impl<const G: usize> Pulled<'_, G> {
    /// `Σ g W + mask ∘ (v A)` `(N, in)`: the gradient of the input.
    pub(super) fn input_gradient(&self, layer: &Layer<'_>) -> Vec<f32> {
        let mut dx = Vec::new();
        for (i, (g, v)) in self.g.iter().zip(&self.v).enumerate() {
            let weight = &layer.block.projections[self.first + i].weight;
            if i == 0 {
                dx = vec![0.0; g.len() / weight.rows() * weight.cols()];
            }
            let prepared = Prepared::new(weight.compute(), g, weight.rows());
            weight.product_transposed_of(&prepared, &mut dx, i > 0);
            if let Some((term, a, _)) = layer.slot(self.first + i) {
                term.add_input_gradient(v, a, &mut dx, 0);
            }
        }
        dx
    }

    /// `dA = vᵀ dropout(x)` and `dB = s · gᵀ u` into `dtheta`. A `u` that was not kept is made again.
    pub(super) fn factor_gradients(
        &self,
        layer: &Layer<'_>,
        x: &[f32],
        u: &[Vec<f32>; 7],
        dtheta: &mut [f32],
    ) {
        for (i, (g, v)) in self.g.iter().zip(&self.v).enumerate() {
            let number = self.first + i;
            let (Some((term, a, _)), Some(slot)) = (layer.slot(number), &layer.slots[number]) else {
                continue;
            };
            let dropped = term.dropped(x, 0);
            term.add_a_gradient(v, &dropped, &mut dtheta[slot.a.clone()]);
            let db = &mut dtheta[slot.b.clone()];
            if u[number].is_empty() {
                term.add_b_gradient(g, &term.down(&dropped, a), db);
            } else {
                term.add_b_gradient(g, &u[number], db);
            }
        }
    }
}
