//! The results that share an input, wherever they lie: each of a projection of its own, or side by side in that of one.

use super::{Block, Layer, Order, QKV, Us};
use crate::Columns;
use crate::buffers::zeros;

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
    pub(super) fn qkv(&self, read: &[f32], us: Option<&mut Us>) -> [Vec<f32>; 3] {
        let Some(order) = self.block.joined.qkv else { return self.project(QKV, read, None, us) };
        let [all] = self.project([QKV[0]], read, None, us);
        split(&all, self.block.runs(order))
    }

    /// What the feed-forward layer reads to gate and, where it is one, up.
    pub(super) fn gate_up(&self, read: &[f32], us: Option<&mut Us>) -> (Vec<f32>, Option<Vec<f32>>) {
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
pub(super) fn join<const P: usize>(parts: [&[f32]; P], widths: [usize; P]) -> Vec<f32> {
    let stride = widths.iter().sum();
    let mut all = zeros(parts.iter().map(|part| part.len()).sum());
    let mut start = 0;
    for (part, width) in parts.into_iter().zip(widths) {
        Columns { start, width, stride }.scatter(part, &mut all);
        start += width;
    }
    all
}
