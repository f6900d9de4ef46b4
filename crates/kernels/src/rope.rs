//! Rotary position embedding (arXiv:2104.09864), in the half-split layout of Hugging Face checkpoints.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::buffers::copied;
use crate::operand::{Held, gradient, output, values};
use crate::{parts, pool, vector};

const OP: &str = "rope";

/// Cosines and sines of a batch's rows, made once per batch: row `n`, frequency `i` at `n · half + i`.
#[derive(Debug, Default)]
pub struct RopeTable {
    /// `(N, half)`, scaled by the attention factor of the rope type.
    pub cos: Vec<f32>,
    /// `(N, half)`, scaled likewise.
    pub sin: Vec<f32>,
    /// Half of the rotated part of a head.
    pub half: usize,
}

/// Rotates each head of `x` `(N, H·E)` by its row's angles: `x[i]`, `x[i + half]` become
/// `x[i]·cos - x[i+half]·sin`, `x[i+half]·cos + x[i]·sin`. Values of a head beyond `2·half` pass through.
pub fn rope(x: &Tensor, table: &Arc<RopeTable>, head_dim: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if head_dim == 0 || !width.is_multiple_of(head_dim) || 2 * table.half > head_dim {
        candle_core::bail!(
            "{OP}: rows of {width} values, heads of {head_dim}, {} of them rotated",
            2 * table.half
        );
    }
    let angles = rows * table.half;
    if table.cos.len() != angles || table.sin.len() != angles {
        candle_core::bail!(
            "{OP}: {rows} rows need tables of {angles} values, found {} and {}",
            table.cos.len(),
            table.sin.len()
        );
    }
    x.apply_op1(Rope { table: table.clone(), width, head_dim })
}

struct Rope {
    table: Arc<RopeTable>,
    width: usize,
    head_dim: usize,
}

impl Rope {
    fn rotated(&self, x: &[f32], direction: f32) -> Vec<f32> {
        let mut y = copied(x);
        self.table.rotate(&mut y, (self.width, self.head_dim), direction);
        y
    }
}

impl RopeTable {
    /// Rotates the heads of every row of `x` by the row's angles times `direction`, 1 or -1; `sizes` are those of a row and
    /// of a head.
    pub(crate) fn rotate(&self, x: &mut [f32], (width, head_dim): (usize, usize), direction: f32) {
        let rows = parts::rows_per_task(width);
        pool::for_each_chunk(x, rows * width, |i, x| {
            for (n, x) in x.chunks_exact_mut(width).enumerate() {
                self.rotate_row(i * rows + n, x, head_dim, direction);
            }
        });
    }

    fn rotate_row(&self, row: usize, x: &mut [f32], head_dim: usize, direction: f32) {
        let half = self.half;
        let cos = &self.cos[row * half..][..half];
        let sin = &self.sin[row * half..][..half];
        vector::wide(
            #[inline(always)]
            || {
                for x in x.chunks_exact_mut(head_dim) {
                    let (x1, x2) = x.split_at_mut(half);
                    let angles = cos.iter().zip(sin);
                    for ((x1, x2), (cos, sin)) in x1.iter_mut().zip(x2).zip(angles) {
                        let sin = sin * direction;
                        (*x1, *x2) = (*x1 * cos - *x2 * sin, *x2 * cos + *x1 * sin);
                    }
                }
            },
        );
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(output(self.rotated(values(OP, storage, layout)?, 1.0), layout.shape()))
    }

    /// The rotation the other way.
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let g = Held::new(OP, &g)?;
        gradient(x, || self.rotated(g.values(), -1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, tensor, var};

    fn table(rows: usize, half: usize) -> Arc<RopeTable> {
        let angle = |i: usize| ((i / half) as f32 + 3.0) / 10f32.powf((i % half) as f32 / half as f32);
        let all = 0..rows * half;
        let cos = all.clone().map(|i| 1.1 * angle(i).cos()).collect();
        Arc::new(RopeTable { cos, sin: all.map(|i| 1.1 * angle(i).sin()).collect(), half })
    }

    fn reference(x: &[f64], table: &RopeTable, width: usize, head_dim: usize) -> Vec<f64> {
        let mut y = x.to_vec();
        for start in (0..x.len()).step_by(head_dim) {
            for i in 0..table.half {
                let at = start / width * table.half + i;
                let (c, s) = (f64::from(table.cos[at]), f64::from(table.sin[at]));
                let (a, b) = (x[start + i], x[start + table.half + i]);
                (y[start + i], y[start + table.half + i]) = (a * c - b * s, b * c + a * s);
            }
        }
        y
    }

    #[test]
    fn rotates_whole_and_part_of_a_head() {
        for (rows, heads, head_dim, half) in [(5, 3, 8, 4), (4, 2, 10, 3), (1, 1, 2, 1), (3, 1, 6, 0)] {
            let table = table(rows, half.max(1));
            let table =
                if half == 0 { Arc::new(RopeTable { cos: vec![], sin: vec![], half }) } else { table };
            let width = heads * head_dim;
            check(
                &[var(&[rows, width])],
                |a| rope(&a[0], &table, head_dim),
                |a| reference(&a[0], &table, width, head_dim),
            );
        }
    }

    #[test]
    fn many_rows_take_their_own_angles() {
        let (rows, width) = (700, 64);
        let table = table(rows, 16);
        let x = tensor(1, &[rows, width]);
        let y = rope(&x, &table, 32).unwrap();
        let x: Vec<f64> = crate::testing::flat(&x).into_iter().map(f64::from).collect();
        crate::testing::assert_close("y", &crate::testing::flat(&y), &reference(&x, &table, width, 32), 1e-6);
    }

    #[test]
    fn a_table_of_other_rows_is_refused() {
        let error = rope(&tensor(1, &[3, 8]), &table(2, 4), 8).unwrap_err().to_string();
        assert!(error.contains("3 rows need tables of 12"), "{error}");
        assert!(rope(&tensor(1, &[3, 8]), &table(3, 4), 6).is_err());
    }
}
