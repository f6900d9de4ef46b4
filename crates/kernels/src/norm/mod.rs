//! Norms of rows: root mean square and layer norms, as operations and, frozen, as parts of a larger one.

mod layer;
mod rms;

pub use layer::layer_norm;
pub use rms::rms_norm;

use crate::buffers::by_chunk;
use crate::{parts, pool, vector};
use layer::Layer;
use rms::Rms;

/// A frozen norm.
#[derive(Clone, Debug)]
pub enum Norm {
    /// [`rms_norm`].
    Rms {
        /// `(D,)`.
        gain: Vec<f32>,
        /// Added to the mean square.
        eps: f32,
    },
    /// [`layer_norm`].
    Layer {
        /// `(D,)`.
        gain: Vec<f32>,
        /// `(D,)`.
        bias: Vec<f32>,
        /// Added to the variance.
        eps: f32,
    },
}

impl Norm {
    /// That gain and bias fit rows of `size` values.
    pub(crate) fn fits(&self, size: usize) -> bool {
        match self {
            Self::Rms { gain, .. } => gain.len() == size,
            Self::Layer { gain, bias, .. } => gain.len() == size && bias.len() == size,
        }
    }
}

/// A norm with its parameters: what it does to one row, and loops over many.
pub(crate) trait Normalise: Sync {
    /// Values of a row.
    fn size(&self) -> usize;

    /// Normalises `x` into `y`.
    fn row(&self, x: &[f32], y: &mut [f32]);

    /// Turns `g`, the gradient of a row's result, into that of the row `x`. `buffer` is for its own use.
    fn pull_back_row(&self, x: &[f32], g: &mut [f32], buffer: &mut Vec<f32>);

    /// Every row of `x`, normalised.
    fn normalise(&self, x: &[f32]) -> Vec<f32> {
        let size = self.size();
        let chunk = parts::rows_per_task(size) * size;
        by_chunk(x.len(), chunk, |i, y| {
            for (y, x) in y.chunks_exact_mut(size).zip(x[i * chunk..].chunks_exact(size)) {
                self.row(x, y);
            }
        })
    }

    /// Turns `g`, the gradient of the result, into that of `x`.
    fn pull_back(&self, x: &[f32], g: &mut [f32]) {
        self.pull_back_then(x, g, |_, _| ());
    }

    /// [`pull_back`](Self::pull_back), and `g += rest`: the gradient of `x` where `x` goes on beside the norm.
    fn pull_back_beside(&self, x: &[f32], g: &mut [f32], rest: &[f32]) {
        let size = self.size();
        self.pull_back_then(x, g, |row, g| vector::axpy(1.0, &rest[row * size..][..size], g));
    }

    /// [`pull_back`](Self::pull_back), each row handed to `then` with its number.
    fn pull_back_then(&self, x: &[f32], g: &mut [f32], then: impl Fn(usize, &mut [f32]) + Sync) {
        let size = self.size();
        let rows = parts::rows_per_task(size);
        pool::for_each_chunk(g, rows * size, |i, g| {
            let mut buffer = Vec::new();
            for (j, g) in g.chunks_exact_mut(size).enumerate() {
                let row = i * rows + j;
                self.pull_back_row(&x[row * size..][..size], g, &mut buffer);
                then(row, g);
            }
        });
    }
}

impl Normalise for Norm {
    fn size(&self) -> usize {
        match self {
            Self::Rms { gain, .. } | Self::Layer { gain, .. } => gain.len(),
        }
    }

    fn row(&self, x: &[f32], y: &mut [f32]) {
        match self {
            Self::Rms { gain, eps } => Rms { gain, eps: *eps }.row(x, y),
            Self::Layer { gain, bias, eps } => Layer { gain, bias, eps: *eps }.row(x, y),
        }
    }

    fn pull_back_row(&self, x: &[f32], g: &mut [f32], buffer: &mut Vec<f32>) {
        match self {
            Self::Rms { gain, eps } => Rms { gain, eps: *eps }.pull_back_row(x, g, buffer),
            Self::Layer { gain, bias, eps } => Layer { gain, bias, eps: *eps }.pull_back_row(x, g, buffer),
        }
    }
}
