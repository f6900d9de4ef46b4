//! Columns of a matrix by themselves: what one projection fused from several.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::operand::{Held, gradient, output, values};
use crate::{parts, pool};

const OP: &str = "columns";

/// Which columns: `width` of every `stride`, from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The first, in every run.
    pub start: usize,
    /// How many, of every run.
    pub width: usize,
    /// Length of a run, which divides that of a row.
    pub stride: usize,
}

/// Those `columns` of `x` `(N, W)`, side by side: `(N, W/stride·width)`.
pub fn columns(x: &Tensor, columns: Columns) -> Result<Tensor> {
    let width = x.dims2()?.1;
    let Columns { start, width: taken, stride } = columns;
    if taken == 0 || start + taken > stride || !width.is_multiple_of(stride) {
        candle_core::bail!("{OP}: {columns:?} of rows of {width} values");
    }
    x.apply_op1(columns)
}

impl Columns {
    /// The columns of `wide` into `narrow`.
    pub(crate) fn gather(self, wide: &[f32], narrow: &mut [f32]) {
        let runs = parts::rows_per_task(self.width);
        pool::for_each_chunk(narrow, runs * self.width, |i, narrow| {
            let wide = wide[i * runs * self.stride..].chunks_exact(self.stride);
            for (narrow, wide) in narrow.chunks_exact_mut(self.width).zip(wide) {
                narrow.copy_from_slice(&wide[self.start..][..self.width]);
            }
        });
    }

    /// The other way: `narrow` into its columns of `wide`, whose others are left alone.
    pub(crate) fn scatter(self, narrow: &[f32], wide: &mut [f32]) {
        let runs = parts::rows_per_task(self.stride);
        pool::for_each_chunk(wide, runs * self.stride, |i, wide| {
            let narrow = narrow[i * runs * self.width..].chunks_exact(self.width);
            for (wide, narrow) in wide.chunks_exact_mut(self.stride).zip(narrow) {
                wide[self.start..][..self.width].copy_from_slice(narrow);
            }
        });
    }
}

impl CustomOp1 for Columns {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(OP, storage, layout)?;
        let (rows, width) = layout.shape().dims2()?;
        let width = width / self.stride * self.width;
        let mut y = vec![0.0; rows * width];
        self.gather(x, &mut y);
        Ok(output(y, (rows, width)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let g = Held::new(OP, &g)?;
        gradient(x, || {
            let mut dx = vec![0.0; x.elem_count()];
            self.scatter(g.values(), &mut dx);
            dx
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, tensor, var};

    #[test]
    fn every_run_gives_its_columns() {
        for (rows, runs, taken) in [
            (3, 1, Columns { start: 2, width: 3, stride: 7 }),
            (5, 4, Columns { start: 0, width: 2, stride: 6 }),
            (900, 2, Columns { start: 5, width: 1, stride: 6 }),
        ] {
            let reference = |a: &[Vec<f64>]| {
                a[0].chunks(taken.stride)
                    .flat_map(|run| run[taken.start..taken.start + taken.width].to_vec())
                    .collect()
            };
            let x = var(&[rows, runs * taken.stride]);
            if rows < 100 {
                check(&[x], |a| columns(&a[0], taken), reference);
            } else {
                check(&[crate::testing::constant(&x.shape)], |a| columns(&a[0], taken), reference);
            }
        }
    }

    #[test]
    fn columns_outside_a_run_are_refused() {
        let x = tensor(1, &[2, 6]);
        for (start, width, stride) in [(2, 2, 3), (0, 1, 4), (0, 0, 3)] {
            assert!(columns(&x, Columns { start, width, stride }).is_err());
        }
    }
}
