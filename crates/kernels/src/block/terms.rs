//! The projections that share an input, with their low-rank terms.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::{Layer, Projection};
use crate::LowRank;
use crate::linear::add_to_rows;
use crate::low_rank::Term;
use crate::product::Prepared;

/// A low-rank term, and where its factors are in `theta`.
pub(super) struct Slot {
    term: Term,
    a: Range<usize>,
    b: Range<usize>,
}

/// All factors in one tensor, `A` and `B` of each term in turn: candle hands each its part of the gradient.
pub(super) fn gather(
    op: &str,
    projections: &[Projection; 7],
    factors: &[Option<LowRank<'_>>; 7],
) -> Result<(Tensor, [Option<Slot>; 7])> {
    let mut parts = Vec::new();
    let mut slots = [const { None }; 7];
    let mut end = 0;
    for ((slot, factors), projection) in slots.iter_mut().zip(factors).zip(projections) {
        let Some(factors) = factors else { continue };
        let term = Term::new(op, factors, projection.weight.rows(), projection.weight.cols())?;
        let middle = end + factors.a.elem_count();
        let last = middle + factors.b.elem_count();
        *slot = Some(Slot { term, a: end..middle, b: middle..last });
        parts.extend([factors.a.flatten_all()?, factors.b.flatten_all()?]);
        end = last;
    }
    let theta =
        if parts.is_empty() { Tensor::zeros(0, DType::F32, &Device::Cpu)? } else { Tensor::cat(&parts, 0)? };
    Ok((theta, slots))
}

/// The gradients `g` `(N, out)` of the results of some projections that share an input, the first being number `first`, and
/// `v = s · g B` `(N, R)` of their terms.
pub(super) struct Pulled<'a, const G: usize> {
    first: usize,
    g: [&'a [f32]; G],
    v: [Vec<f32>; G],
}

impl<'a> Layer<'a> {
    fn slot(&self, i: usize) -> Option<(&'a Term, &'a [f32], &'a [f32])> {
        let slot = self.slots[i].as_ref()?;
        Some((&slot.term, &self.theta[slot.a.clone()], &self.theta[slot.b.clone()]))
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
            let rows = x.len() / weight.cols();
            let mut y = onto.map_or_else(|| vec![0.0; rows * weight.rows()], <[f32]>::to_vec);
            weight.product_of(&prepared, &mut y, onto.is_some());
            if let Some(bias) = bias {
                add_to_rows(&mut y, bias);
            }
            if let Some((term, a, b)) = self.slot(first + i) {
                let u = &mut u[first + i];
                *u = term.down(&term.dropped(x, 0), a);
                term.add_up(u, b, &mut y);
            }
            y
        })
    }

    /// Takes the gradients of the results of the projections from number `first` on.
    pub(super) fn pull<'g, const G: usize>(&self, first: usize, g: [&'g [f32]; G]) -> Pulled<'g, G> {
        let v = std::array::from_fn(|i| {
            self.slot(first + i).map_or_else(Vec::new, |(term, _, b)| term.pull(g[i], b))
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
