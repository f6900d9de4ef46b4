//! A vector on the columns of every row, added or multiplied.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use crate::buffers::by_chunk;
use crate::operand::{Held, gradient, output, values};
use crate::parts;

/// `x + bias`: `x` `(N, D)`, `bias` `(D,)`; the bias gets a gradient where it is tracked.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    check_columns("add_bias", x, bias)?;
    x.apply_op2(bias, AddBias)
}

/// `x ⊙ gain`, column by column: `x` `(N, D)`, `gain` `(D,)`; the gain gets a gradient where it is tracked.
pub fn scale_columns(x: &Tensor, gain: &Tensor) -> Result<Tensor> {
    check_columns("scale_columns", x, gain)?;
    x.apply_op2(gain, ScaleColumns)
}

fn check_columns(op: &str, x: &Tensor, row: &Tensor) -> Result<()> {
    let (_, width) = x.dims2()?;
    let size = row.dims1()?;
    if width != size || size == 0 {
        candle_core::bail!("{op}: rows of {width} values against a vector of {size}");
    }
    Ok(())
}

/// `y = f(x, row)`, row by row.
fn by_row(x: &[f32], row: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let size = row.len();
    let chunk = parts::rows_per_task(size) * size;
    by_chunk(x.len(), chunk, |i, y| {
        for (y, x) in y.chunks_exact_mut(size).zip(x[i * chunk..].chunks_exact(size)) {
            for ((y, x), r) in y.iter_mut().zip(x).zip(row) {
                *y = f(*x, *r);
            }
        }
    })
}

/// `Σₙ f(x, g)` of each column.
fn by_column(x: &[f32], g: &[f32], size: usize, f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let chunk = parts::rows_per_task(size) * size;
    parts::column_sums(x.len().div_ceil(chunk), size, |i, sums| {
        let part = i * chunk..x.len().min((i + 1) * chunk);
        for (x, g) in x[part.clone()].chunks_exact(size).zip(g[part].chunks_exact(size)) {
            for ((s, x), g) in sums.iter_mut().zip(x).zip(g) {
                *s += f(*x, *g);
            }
        }
    })
}

struct AddBias;

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, bias) = (values("add_bias", s1, l1)?, values("add_bias", s2, l2)?);
        Ok(output(by_row(x, bias, |x, b| x + b), l1.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let held = Held::new("add_bias", &g)?;
        let dbias = gradient(bias, || by_column(held.values(), held.values(), bias.elem_count(), |_, g| g))?;
        Ok((x.track_op().then(|| g.detach()), dbias))
    }
}

struct ScaleColumns;

impl CustomOp2 for ScaleColumns {
    fn name(&self) -> &'static str {
        "scale_columns"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, gain) = (values("scale_columns", s1, l1)?, values("scale_columns", s2, l2)?);
        Ok(output(by_row(x, gain, |x, w| x * w), l1.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let name = self.name();
        let (xs, gains, gs) = (Held::new(name, x)?, Held::new(name, gain)?, Held::new(name, &g)?);
        Ok((
            gradient(x, || by_row(gs.values(), gains.values(), |g, w| g * w))?,
            gradient(gain, || by_column(xs.values(), gs.values(), gain.elem_count(), |x, g| x * g))?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, constant, tensor, var};

    fn rows(a: &[Vec<f64>], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        a[0].iter().zip(a[1].iter().cycle()).map(|(x, r)| f(*x, *r)).collect()
    }

    #[test]
    fn add_bias_matches_the_reference() {
        let (x, b) = ([5, 3], [3]);
        for (x, b) in [(var(&x), var(&b)), (var(&x), constant(&b)), (constant(&x), var(&b))] {
            check(&[x, b], |a| add_bias(&a[0], &a[1]), |a| rows(a, |x, b| x + b));
        }
        check(&[constant(&[9000, 2]), var(&[2])], |a| add_bias(&a[0], &a[1]), |a| rows(a, |x, b| x + b));
    }

    #[test]
    fn scale_columns_matches_the_reference() {
        let (x, w) = ([5, 3], [3]);
        for (x, w) in [(var(&x), var(&w)), (var(&x), constant(&w)), (constant(&x), var(&w))] {
            check(&[x, w], |a| scale_columns(&a[0], &a[1]), |a| rows(a, |x, w| x * w));
        }
    }

    #[test]
    fn mismatched_shapes_are_refused() {
        assert!(add_bias(&tensor(1, &[2, 3]), &tensor(2, &[2])).is_err());
        assert!(scale_columns(&tensor(1, &[2, 3]), &tensor(2, &[4])).is_err());
    }
}
