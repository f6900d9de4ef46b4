//! The projections that share an input, with their low-rank terms.

use std::borrow::Cow;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::gains::Output;
use super::read::Read;
use super::{Adapted, Layer, Projection, Us};
use crate::low_rank::Term;
use crate::operand::Held;
use crate::product::{Prepared, Rest};

/// An [`Adapted`] as the operation keeps it.
pub(super) struct Slot {
    term: Term,
    a: Tensor,
    b: Tensor,
    gain: Option<Tensor>,
}

/// What an [`Adapted`] holds, locked to be read.
pub(super) struct Factors<'a> {
    slot: &'a Slot,
    a: Held<'a>,
    b: Held<'a>,
    gain: Option<Held<'a>>,
}

impl Slot {
    /// How many values its gain has.
    pub(super) fn gains(&self) -> usize {
        self.gain.as_ref().map_or(0, Tensor::elem_count)
    }

    /// Whether the factors are trained.
    pub(super) fn learns(&self) -> bool {
        self.a.track_op() || self.b.track_op()
    }

    /// Whether anything is.
    pub(super) fn is_tracked(&self) -> bool {
        self.learns() || self.gain.as_ref().is_some_and(Tensor::track_op)
    }
}

impl Factors<'_> {
    pub(super) fn term(&self) -> &Term {
        &self.slot.term
    }

    /// `A` `(R, in)`.
    pub(super) fn a(&self) -> &[f32] {
        self.a.values()
    }

    /// `B` `(out, R)`.
    pub(super) fn b(&self) -> &[f32] {
        self.b.values()
    }

    /// `c` `(out,)`.
    pub(super) fn gain(&self) -> Option<&[f32]> {
        self.gain.as_ref().map(Held::values)
    }
}

/// The adapted projections, checked.
pub(super) fn slots(
    op: &str,
    projections: &[Projection],
    adapted: &[Option<Adapted<'_>>; 7],
) -> Result<[Option<Slot>; 7]> {
    let mut slots = [const { None }; 7];
    for ((slot, adapted), projection) in slots.iter_mut().zip(adapted).zip(projections) {
        let Some(Adapted { low_rank, gain }) = adapted else { continue };
        let term = Term::new(op, low_rank, &projection.weight)?;
        if let Some(gain) = gain {
            check_gain(op, gain, &term)?;
        }
        *slot = Some(Slot { term, a: low_rank.a.clone(), b: low_rank.b.clone(), gain: gain.clone() });
    }
    Ok(slots)
}

pub(super) fn hold<'a>(op: &str, slots: &'a [Option<Slot>; 7]) -> Result<[Option<Factors<'a>>; 7]> {
    let mut all = [const { None }; 7];
    for (factors, slot) in all.iter_mut().zip(slots) {
        let Some(slot) = slot else { continue };
        let gain = slot.gain.as_ref().map(|gain| Held::new(op, gain)).transpose()?;
        *factors = Some(Factors { slot, a: Held::new(op, &slot.a)?, b: Held::new(op, &slot.b)?, gain });
    }
    Ok(all)
}

/// All gains in one tensor, of which candle hands each its part of the gradient. Where there are none and the factors
/// learn, a variable of no values: without one, no backward pass would come by.
pub(super) fn gains<'a>(slots: impl Iterator<Item = &'a Slot>, learns: bool) -> Result<Tensor> {
    let gains: Vec<&Tensor> = slots.filter_map(|slot| slot.gain.as_ref()).collect();
    match gains.is_empty() {
        false => Tensor::cat(&gains, 0),
        true if learns => Ok(Var::zeros(0, DType::F32, &Device::Cpu)?.into_inner()),
        true => Tensor::zeros(0, DType::F32, &Device::Cpu),
    }
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

/// The gradient `g` `(N, out)` of the result of a projection, without gain and bias, and `v = s · g B` `(N, R)` of its term.
struct Part<'a> {
    number: usize,
    g: Prepared<'a>,
    v: Vec<f32>,
}

/// The gradient of a projection's result.
pub(super) enum Upstream<'a> {
    /// As it lies.
    Values(Cow<'a, [f32]>),
    /// Ready to go back; not where there is a gain.
    Ready(Prepared<'a>),
}

/// Those of projections that share an input.
pub(super) struct Pulled<'a>(Vec<Part<'a>>);

impl<'a> Layer<'a> {
    /// The gain of projection `number`.
    pub(super) fn gain(&self, number: usize) -> Option<&'a [f32]> {
        self.factors[number].as_ref()?.gain()
    }

    /// What is `read` through the projections of some `numbers`, added to `onto` where that is given; keeps their `us` where there is a
    /// place for them.
    pub(super) fn project<const G: usize>(
        &self,
        numbers: [usize; G],
        read: &Read<'_>,
        onto: Option<&[f32]>,
        us: Option<&mut Us>,
    ) -> [Vec<f32>; G] {
        let Some(us) = us else { return self.project_cached(numbers, &read.values(), onto) };
        let prepared = self.ready(numbers[0], read);
        numbers.map(|number| {
            let Projection { weight, bias } = &self.block.projections[number];
            us[number] = self.narrowed(number, &prepared);
            let factors = self.factors[number].as_ref();
            let rest = Rest {
                term: factors.map(|factors| factors.term().up(&us[number], factors.b())),
                gain: self.gain(number),
                bias: bias.as_deref(),
                onto,
            };
            weight.finished(&prepared, &rest)
        })
    }

    /// `u` of projection `number`, where it has a term.
    pub(super) fn narrowed(&self, number: usize, x: &Prepared<'_>) -> Vec<f32> {
        let Some(factors) = &self.factors[number] else { return Vec::new() };
        let dropped = factors.term().dropped(x, 0);
        factors.term().down(dropped.as_ref().unwrap_or(x), factors.a())
    }

    /// Takes the gradients of the results `y` of projections that share an input, by their numbers; those of their gains go
    /// into `dgains`. A `y` is looked at only where there is a gain.
    pub(super) fn pull<'g, 'y>(
        &self,
        results: impl IntoIterator<Item = (usize, Upstream<'g>, Output<'y>)>,
        dgains: &mut [Vec<f32>; 7],
    ) -> Pulled<'g> {
        let part = |(number, g, y): (usize, Upstream<'g>, Output<'y>)| {
            let weight = &self.block.projections[number].weight;
            let ready = |g| Prepared::new(weight.compute(), g, weight.rows());
            let g = match g {
                Upstream::Ready(g) => g,
                Upstream::Values(mut g) => {
                    if let Some(gain) = self.gain(number) {
                        dgains[number] = self.unscale(number, gain, g.to_mut(), y);
                    }
                    ready(g)
                }
            };
            let v = self.factors[number].as_ref().map(|factors| factors.term().pull(&g, factors.b()));
            Part { number, g, v: v.unwrap_or_default() }
        };
        Pulled(results.into_iter().map(part).collect())
    }
}

impl Pulled<'_> {
    /// `Σ g W + mask ∘ (v A)` `(N, in)`, the gradient of the input, added to `onto` where that is given.
    pub(super) fn input_gradient(&self, layer: &Layer<'_>, onto: Option<&[f32]>) -> Vec<f32> {
        let mut dx = Vec::new();
        for (i, Part { number, g, v }) in self.0.iter().enumerate() {
            let weight = &layer.block.projections[*number].weight;
            let factors = layer.factors[*number].as_ref();
            match factors.map(|factors| (factors.term(), (v.as_slice(), factors.a()))) {
                Some((term, factors)) if i == 0 => {
                    dx = term.input_gradient((weight, g), factors, onto, 0);
                }
                Some((term, factors)) => term.add_input_gradient((weight, g), factors, &mut dx, 0),
                None if i == 0 => dx = weight.transposed_finished(g, &Rest { onto, ..Rest::default() }),
                None => weight.add_product_transposed(g, &mut dx, None),
            }
        }
        dx
    }

    /// `dA = vᵀ dropout(x)` and `dB = gᵀ u`, where they are asked for, to the pass's sums. A `u` that was not kept is made
    /// again.
    pub(super) fn factor_gradients(&self, layer: &Layer<'_>, read: &Read<'_>, us: &Us) {
        let Some(gradients) = &layer.pass.gradients else { return };
        let Some(Part { number, .. }) = self.0.first() else { return };
        let x = layer.ready(*number, read);
        for Part { number, g, v } in &self.0 {
            let Some(Factors { slot: Slot { term, a, b, .. }, a: of_a, .. }) = &layer.factors[*number] else {
                continue;
            };
            let dropped = term.dropped(&x, 0);
            let dropped = dropped.as_ref().unwrap_or(&x);
            if a.track_op() {
                gradients.sum(a, |da| Term::add_a_gradient(v, dropped, da));
            }
            if b.track_op() {
                let u = &us[*number];
                let made = u.is_empty().then(|| term.down(dropped, of_a.values()));
                gradients.sum(b, |db| Term::add_b_gradient(g, made.as_ref().unwrap_or(u), db));
            }
        }
    }
}
