//! The results that share an input, wherever they lie, on the way and on the way back: each of a projection of its own, or side
//! by side in that of one.

use std::borrow::Cow;

use super::gains::Output;
use super::read::Read;
use super::terms::{Pulled, Upstream};
use super::{Block, Layer, Order, QKV, Saved, Us};
use crate::Columns;
use crate::attention::backward::QkvGradients;
use crate::buffers::zeros;
use crate::product::Prepared;

impl Block {
    /// Where o is among the projections.
    pub(super) fn o(&self) -> usize {
        if self.joined.qkv.is_some() { 1 } else { QKV.len() }
    }

    pub(super) fn gate(&self) -> usize {
        self.o() + 1
    }

    pub(super) fn down(&self) -> usize {
        self.o() + 2
    }

    /// Where up is, if it is there.
    pub(super) fn up(&self) -> usize {
        self.o() + 3
    }

    /// How many values of q, of k and of v come one after the other in what makes them all.
    pub(super) fn runs(&self, order: Order) -> [usize; 3] {
        match order {
            Order::Whole => [self.shape.query_width(), self.shape.key_width(), self.shape.key_width()],
            Order::ByHead => [self.shape.head_dim; 3],
        }
    }

    /// How wide gate and up are, F.
    pub(super) fn inner(&self) -> usize {
        self.projections[self.down()].weight.cols()
    }
}

impl Layer<'_> {
    /// What attention reads to q, k and v; with `us`, as [`Layer::project`] has them.
    pub(super) fn qkv(&self, read: &Read<'_>, us: Option<&mut Us>) -> [Vec<f32>; 3] {
        let Some(order) = self.block.joined.qkv else { return self.project(QKV, read, None, us) };
        let [all] = self.project([QKV[0]], read, None, us);
        split(&all, self.block.runs(order))
    }

    /// What the feed-forward layer reads to gate and, where it is one, up.
    pub(super) fn gate_up(&self, read: &Read<'_>, us: Option<&mut Us>) -> (Vec<f32>, Option<Vec<f32>>) {
        let (block, gate) = (self.block, self.block.gate());
        if block.is_gated() && !block.joined.gate_up {
            let [gate, up] = self.project([gate, block.up()], read, None, us);
            return (gate, Some(up));
        }
        let [all] = self.project([gate], read, None, us);
        if !block.joined.gate_up {
            return (all, None);
        }
        let [gate, up] = split(&all, [block.inner(); 2]);
        (gate, Some(up))
    }

    /// Takes the gradients of gate and, where it is one, of up to their projections.
    pub(super) fn pull_fed(
        &self,
        gradients: Vec<Prepared<'static>>,
        saved: &Saved,
        dgains: &mut [Vec<f32>; 7],
    ) -> Pulled<'static> {
        let (block, width) = (self.block, self.block.inner());
        let places = [block.gate(), if block.joined.gate_up { block.gate() } else { block.up() }];
        let kept = std::iter::once(&saved.gate).chain(&saved.up);
        // A gain's gradient reads what its projection made.
        let made = |(place, kept): (usize, &Prepared<'static>)| match self.gain(place) {
            Some(_) => kept.values().into_owned(),
            None => Vec::new(),
        };
        let made: Vec<Vec<f32>> = places.into_iter().zip(kept).map(made).collect();
        if let ([of_gate, of_up], [gate, up], true) = (&*made, &*gradients, block.joined.gate_up) {
            let sum = if of_gate.is_empty() { Vec::new() } else { join([of_gate, of_up], [width; 2]) };
            let g = join([gate.exact(), up.exact()], [width; 2]);
            let output = Output { sum: &sum, beneath: None };
            return self.pull([(block.gate(), Upstream::Values(g.into()), output)], dgains);
        }
        let upstream = |g: Prepared<'static>| {
            if self.has_gains() { Upstream::Values(g.into_exact()) } else { Upstream::Ready(g) }
        };
        let results = places.into_iter().zip(gradients).zip(&made);
        self.pull(
            results.map(|((place, g), sum)| (place, upstream(g), Output { sum, beneath: None })),
            dgains,
        )
    }

    /// Takes the gradients of q, k and v to their projections.
    pub(super) fn pull_qkv(
        &self,
        QkvGradients { q, k, v }: QkvGradients,
        saved: &Saved,
        dgains: &mut [Vec<f32>; 7],
    ) -> Pulled<'static> {
        let joined = self.block.joined.qkv.map(|order| self.block.runs(order));
        let gained = QKV.map(|i| self.gain(if joined.is_some() { QKV[0] } else { i }).is_some());
        let of = |i: usize, saved| if gained[i] { self.projected(saved) } else { Cow::Borrowed(saved) };
        let made = [of(0, &saved.q), of(1, &saved.k), Cow::Borrowed(&*saved.v)];
        if let Some(widths) = joined {
            let sum = if gained[0] { join(made.each_ref().map(|made| &**made), widths) } else { Vec::new() };
            let output = Output { sum: &sum, beneath: None };
            let g = Upstream::Values(join([&q, &k, &v], widths).into());
            return self.pull([(QKV[0], g, output)], dgains);
        }
        let outputs = made.iter().map(|sum| Output { sum, beneath: None });
        let results = QKV.into_iter().zip([q, k, v]).zip(outputs);
        self.pull(results.map(|((number, g), y)| (number, Upstream::Values(g.into()), y)), dgains)
    }
}

/// Runs of `widths` values in turn, each kind by itself.
fn split<const P: usize>(all: &[f32], widths: [usize; P]) -> [Vec<f32>; P] {
    let stride: usize = widths.iter().sum();
    let mut start = 0;
    widths.map(|width| {
        let mut part = zeros(all.len() / stride * width);
        Columns { start, width, stride }.gather(all, &mut part);
        start += width;
        part
    })
}

/// The other way.
fn join<const P: usize>(parts: [&[f32]; P], widths: [usize; P]) -> Vec<f32> {
    let stride = widths.iter().sum();
    let mut all = zeros(parts.iter().map(|part| part.len()).sum());
    let mut start = 0;
    for (part, width) in parts.into_iter().zip(widths) {
        Columns { start, width, stride }.scatter(part, &mut all);
        start += width;
    }
    all
}
