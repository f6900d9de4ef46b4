//! Row-wise operations without weights of their own.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use crate::buffers::zeros;
use crate::operand::{Held, gradient, output, values};
use crate::{parts, pool, vector};

/// Values to a task.
const CHUNK: usize = 16 * 1024;

/// `silu(gate) ⊙ up`, both `(N, F)`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        candle_core::bail!("swiglu: gate {:?} and up {:?} differ in shape", gate.shape(), up.shape());
    }
    gate.apply_op2(up, SwiGlu)
}

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

/// `y = silu(gate) ⊙ up`.
pub(crate) fn swiglu_into(gate: &[f32], up: &[f32], y: &mut [f32]) {
    pool::for_each_chunk(y, CHUNK, |i, y| {
        let part = i * CHUNK..i * CHUNK + y.len();
        let (gate, up) = (&gate[part.clone()], &up[part]);
        vector::wide(
            #[inline(always)]
            || {
                for ((y, &x), up) in y.iter_mut().zip(gate).zip(up) {
                    *y = x * vector::sigmoid(x) * up;
                }
            },
        );
    });
}

/// Turns `gate` and `up` into their gradients, and the gradient `g` of [`swiglu`]'s result into that result.
pub(crate) fn swiglu_pull_back(gate: &mut [f32], up: &mut [f32], g: &mut [f32]) {
    let runs = gate.chunks_mut(CHUNK).zip(up.chunks_mut(CHUNK)).zip(g.chunks_mut(CHUNK));
    let mut parts: Vec<_> = runs.collect();
    parts::for_each(&mut parts, |((gate, up), g)| {
        vector::wide(
            #[inline(always)]
            || {
                for ((gate, up), g) in gate.iter_mut().zip(up.iter_mut()).zip(g.iter_mut()) {
                    (*gate, *up, *g) = pulled_back(*gate, *up, *g);
                }
            },
        );
    });
}

/// `dgate`, `dup` and `silu(gate)·up`: with `σ = sigmoid(gate)`, the gradients are `g·up·σ(1 + gate(1 - σ))` and `g·gate·σ`.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled inside the function that enables its instructions")]
fn pulled_back(gate: f32, up: f32, g: f32) -> (f32, f32, f32) {
    let sigma = vector::sigmoid(gate);
    let silu = gate * sigma;
    (g * up * (sigma + silu * (1.0 - sigma)), g * silu, silu * up)
}

struct SwiGlu;

impl SwiGlu {
    /// `(dgate, dup)`.
    fn gradients(gate: &[f32], up: &[f32], g: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (mut dgate, mut dup) = (zeros(gate.len()), zeros(gate.len()));
        parts::for_each_pair(&mut dgate, &mut dup, (CHUNK, CHUNK), |i, dgate, dup| {
            let part = i * CHUNK..i * CHUNK + dgate.len();
            let (gate, up, g) = (&gate[part.clone()], &up[part.clone()], &g[part]);
            vector::wide(
                #[inline(always)]
                || {
                    let inputs = gate.iter().zip(up).zip(g);
                    for ((dgate, dup), ((&x, &up), &g)) in dgate.iter_mut().zip(dup).zip(inputs) {
                        (*dgate, *dup, _) = pulled_back(x, up, g);
                    }
                },
            );
        });
        (dgate, dup)
    }
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (values("swiglu", s1, l1)?, values("swiglu", s2, l2)?);
        let mut y = zeros(gate.len());
        swiglu_into(gate, up, &mut y);
        Ok(output(y, l1.shape()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let held = [Held::new("swiglu", gate)?, Held::new("swiglu", up)?, Held::new("swiglu", &g)?];
        let (dgate, dup) = Self::gradients(held[0].values(), held[1].values(), held[2].values());
        Ok((gradient(gate, || dgate)?, gradient(up, || dup)?))
    }
}

/// `y = f(x, row)`, row by row.
fn by_row(x: &[f32], row: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let size = row.len();
    let chunk = parts::rows_per_task(size) * size;
    let mut y = zeros(x.len());
    pool::for_each_chunk(&mut y, chunk, |i, y| {
        for (y, x) in y.chunks_exact_mut(size).zip(x[i * chunk..].chunks_exact(size)) {
            for ((y, x), r) in y.iter_mut().zip(x).zip(row) {
                *y = f(*x, *r);
            }
        }
    });
    y
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

    #[test]
    fn swiglu_matches_the_reference() {
        let reference = |a: &[Vec<f64>]| {
            a[0].iter().zip(&a[1]).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect::<Vec<_>>()
        };
        let shape = [3, 7];
        for (gate, up) in
            [(var(&shape), var(&shape)), (var(&shape), constant(&shape)), (constant(&shape), var(&shape))]
        {
            // Four times the values, towards the flat ends.
            let scaled = |a: &[Vec<f64>]| reference(&[a[0].iter().map(|g| g * 4.0).collect(), a[1].clone()]);
            check(&[gate, up], |a| swiglu(&(&a[0] * 4.0)?, &a[1]), scaled);
        }
        let big = [40, 1000];
        check(&[constant(&big), constant(&big)], |a| swiglu(&a[0], &a[1]), reference);
    }

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
        assert!(swiglu(&tensor(1, &[2, 3]), &tensor(2, &[3, 2])).is_err());
        assert!(add_bias(&tensor(1, &[2, 3]), &tensor(2, &[2])).is_err());
        assert!(scale_columns(&tensor(1, &[2, 3]), &tensor(2, &[4])).is_err());
    }
}
