//! What projections read: made where it is made ready for them, so that what is only rounded is not written down before.

use std::borrow::Cow;

use super::Layer;
use crate::Norm;
use crate::norm::Normalise;
use crate::product::{Made, Prepared};

/// Rows that projections read.
pub(super) enum Read<'a> {
    /// As they lie.
    Values(&'a [f32]),
    /// Of each row, its norm.
    Normed(&'a Norm, &'a [f32]),
    /// Ready.
    Ready(&'a Prepared<'a>),
}

impl Read<'_> {
    /// All values.
    pub(super) fn values(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Values(values) => Cow::Borrowed(values),
            Self::Normed(norm, x) => Cow::Owned(norm.normalise(x)),
            Self::Ready(prepared) => prepared.values(),
        }
    }
}

impl Layer<'_> {
    /// Rows ready for projection `number` and those that share its input.
    pub(super) fn ready<'r>(&self, number: usize, read: &'r Read<'_>) -> Prepared<'r> {
        let width = self.block.projections[number].weight.cols();
        let compute = self.block.shape.compute;
        match read {
            Read::Values(values) => Prepared::new(compute, *values, width),
            Read::Normed(norm, x) => {
                let row = |i: usize, y: &mut [&mut [f32]]| norm.row(&x[i * width..][..width], y[0]);
                let what = Made { count: 1, m: x.len() / width, k: width, besides: &[] };
                Prepared::made(compute, what, self.drops(), row).remove(0)
            }
            Read::Ready(prepared) => prepared.borrowed(),
        }
    }

    /// Whether some projection has a gain.
    pub(super) fn has_gains(&self) -> bool {
        self.factors.iter().flatten().any(|factors| factors.gain().is_some())
    }

    /// Whether some low-rank term reads its input dropped in part.
    pub(super) fn drops(&self) -> bool {
        self.factors.iter().flatten().any(|factors| factors.term().has_dropout())
    }
}
