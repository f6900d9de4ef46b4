//! The gains on the results of projections, DoRA's `m/n`: `y = c ⊙ z + b` by column, on the way back.

use super::Layer;
use crate::{parts, vector};

/// Fewest rows to a task of sums by column, so that the tasks' sums are a small part of what they sum.
const ROWS: usize = 32;

/// The result `y` of a projection, found again as a difference where it was added to something: `sum - beneath`.
#[derive(Clone, Copy)]
pub(super) struct Output<'a> {
    pub(super) sum: &'a [f32],
    pub(super) beneath: Option<&'a [f32]>,
}

/// `(N, width)` as rows, of zeros where there are none.
struct Rows<'a> {
    values: Option<&'a [f32]>,
    zeros: Vec<f32>,
}

impl<'a> Rows<'a> {
    fn new(values: Option<&'a [f32]>, width: usize) -> Self {
        let zeros = if values.is_none() { vec![0.0; width] } else { Vec::new() };
        Self { values, zeros }
    }

    fn row(&self, i: usize, width: usize) -> &[f32] {
        self.values.map_or(&self.zeros, |values| &values[i * width..][..width])
    }
}

impl Layer<'_> {
    /// The gradient `g` of `y` becomes that of `z`, `c ⊙ g`; the gradient of `c` is `Σₙ g ⊙ (y - b) / c`.
    pub(super) fn unscale(&self, number: usize, gain: &[f32], g: &mut [f32], y: Output<'_>) -> Vec<f32> {
        let width = gain.len();
        let (beneath, bias) = (Rows::new(y.beneath, width), self.bias(number));
        let bias = bias.row(0, width);
        let rows = parts::rows_per_task(width).max(ROWS);
        let mut partial = vec![0.0; g.len().div_ceil(rows * width) * width];
        parts::for_each_pair(g, &mut partial, (rows * width, width), |task, g, sums| {
            for (i, g) in g.chunks_exact_mut(width).enumerate() {
                let row = task * rows + i;
                let (y, beneath) = (&y.sum[row * width..][..width], beneath.row(row, width));
                vector::wide(
                    #[inline(always)]
                    || {
                        let columns = sums.iter_mut().zip(gain).zip(bias).zip(y).zip(beneath);
                        for (g, ((((sum, c), b), y), beneath)) in g.iter_mut().zip(columns) {
                            *sum += *g * (y - beneath - b);
                            *g *= c;
                        }
                    },
                );
            }
        });
        let mut sums = vec![0.0; width];
        partial.chunks_exact(width).for_each(|part| vector::axpy(1.0, part, &mut sums));
        sums.iter_mut().zip(gain).for_each(|(sum, c)| *sum /= c);
        sums
    }

    fn bias(&self, number: usize) -> Rows<'_> {
        let bias = self.block.projections[number].bias.as_deref();
        Rows::new(bias, self.block.projections[number].weight.rows())
    }
}
