//! Lengths of the rows of `W + s·B·A` without forming it, for DoRA:
//! `n² = ‖W‖² + 2s·Σ((W Aᵀ) ⊙ B) + s²·Σ((B (A Aᵀ)) ⊙ B)` by row, with `‖W‖²` known beforehand.
//!
//! An embedding's lengths are those of the columns of its table, which are rows of the same form.

use std::sync::OnceLock;

use candle_core::{Result, Tensor};
use taper_kernels::{Compute, Weight, pool};

use crate::lora::Lora;

/// Where `n²` is less than this share of its terms' sum, cancellation could show: the row is computed in full.
///
/// The f32 product `W Aᵀ` is off by some 1e-7 of its terms, so `n²` by at most some 4e-7 of itself.
const CANCELLED: f64 = 0.25;

/// Rows to a task of the pool.
const CHUNK: usize = 64;

/// A value that is computed once where it is kept, and every time where it is not.
pub(crate) fn kept(kept: Option<&OnceLock<Tensor>>, compute: impl Fn() -> Result<Tensor>) -> Result<Tensor> {
    match kept.map(|kept| (kept, kept.get())) {
        None => compute(),
        Some((_, Some(value))) => Ok(value.clone()),
        Some((kept, None)) => compute().map(|value| kept.get_or_init(|| value).clone()),
    }
}

/// `1/n`, and 0 for a row of zeros, which has no direction.
pub(crate) fn inverse(length: f64) -> f32 {
    if length > 0.0 { (1.0 / length) as f32 } else { 0.0 }
}

/// `‖row‖`.
pub(crate) fn length(row: &[f32]) -> f64 {
    square(row).sqrt()
}

fn square(row: &[f32]) -> f64 {
    row.iter().map(|w| f64::from(*w) * f64::from(*w)).sum()
}

/// `‖W‖²` by row.
pub(crate) fn row_squares(weight: &Weight) -> Vec<f64> {
    let mut squares = vec![0.0; weight.rows()];
    pool::for_each_chunk(&mut squares, CHUNK, |chunk, squares| {
        let mut row = vec![0f32; weight.cols()];
        for (i, sum) in squares.iter_mut().enumerate() {
            weight.read_row(chunk * CHUNK + i, &mut row);
            *sum = square(&row);
        }
    });
    squares
}

/// `‖W‖²` by column.
pub(crate) fn column_squares(weight: &Weight) -> Vec<f64> {
    let (mut squares, mut row) = (vec![0.0; weight.cols()], vec![0f32; weight.cols()]);
    for i in 0..weight.rows() {
        weight.read_row(i, &mut row);
        for (sum, w) in squares.iter_mut().zip(&row) {
            *sum += f64::from(*w) * f64::from(*w);
        }
    }
    squares
}

/// `‖W + s·B·A‖` by row: `W` `(out, in)`.
pub(crate) fn row_lengths(weight: &Weight, squares: &[f64], lora: &Lora) -> Result<Vec<f64>> {
    let (a, b) = (Matrix::new(&lora.a)?, Matrix::new(&lora.b)?);
    let mut products = vec![0f32; a.rows * weight.rows()];
    weight.clone().with_compute(Compute::F32).product(&a.values, &mut products);
    let expansion = Expansion { a, b, products, scaling: lora.scaling };
    Ok(expansion.lengths(squares, |rows| rows.iter().map(|row| expansion.full_row(weight, *row)).collect()))
}

/// `‖Wᵀ + s·B·A‖` by row: `W` `(V, D)`, `A` `(R, V)`, `B` `(D, R)`.
pub(crate) fn column_lengths(
    weight: &Weight,
    squares: &[f64],
    lora: (&Tensor, &Tensor, f64),
) -> Result<Vec<f64>> {
    let (a, b) = (Matrix::new(lora.0)?, Matrix::new(lora.1)?);
    let mut products = vec![0f32; a.rows * weight.cols()];
    weight.clone().with_compute(Compute::F32).product_transposed(&a.values, &mut products);
    let expansion = Expansion { a, b, products, scaling: lora.2 };
    Ok(expansion.lengths(squares, |columns| expansion.full_columns(weight, columns)))
}

/// `y += alpha · x`.
fn add(alpha: f64, x: &[f64], y: &mut [f64]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += alpha * x;
    }
}

/// A small tensor's values, row-major.
struct Matrix {
    values: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Matrix {
    fn new(tensor: &Tensor) -> Result<Self> {
        let (rows, cols) = tensor.dims2()?;
        Ok(Self { values: tensor.detach().flatten_all()?.to_vec1()?, rows, cols })
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }
}

/// The terms of `n²`.
struct Expansion {
    /// `(R, in)`.
    a: Matrix,
    /// `(out, R)`.
    b: Matrix,
    /// `A Wᵀ` `(R, out)`.
    products: Vec<f32>,
    scaling: f64,
}

impl Expansion {
    fn lengths(&self, squares: &[f64], in_full: impl Fn(&[usize]) -> Vec<f64>) -> Vec<f64> {
        let gram = self.gram();
        let mut lengths = vec![0.0; squares.len()];
        pool::for_each_chunk(&mut lengths, CHUNK, |chunk, lengths| {
            let mut line = vec![0.0; self.a.rows];
            for (i, length) in (chunk * CHUNK..).zip(lengths) {
                let (cross, own) = self.terms(i, &gram, &mut line);
                let sum = squares[i] + cross + own;
                let cancelled = sum <= CANCELLED * (squares[i] + cross.abs() + own);
                *length = if cancelled { f64::NAN } else { sum.sqrt() };
            }
        });
        // Cancelled, or not a number already.
        let unknown: Vec<usize> = (0..lengths.len()).filter(|i| lengths[*i].is_nan()).collect();
        if !unknown.is_empty() {
            for (i, square) in unknown.iter().zip(in_full(&unknown)) {
                lengths[*i] = square.sqrt();
            }
        }
        lengths
    }

    /// `2s·(W Aᵀ)ᵢ·Bᵢ` and `s²·Bᵢ (A Aᵀ) Bᵢᵀ`, by way of `line` `(R,)`.
    fn terms(&self, i: usize, gram: &[f64], line: &mut [f64]) -> (f64, f64) {
        let (b, outputs) = (self.b.row(i), self.b.rows);
        let mut cross = 0.0;
        line.fill(0.0);
        for (k, (b, gram)) in b.iter().zip(gram.chunks_exact(line.len())).enumerate() {
            cross += f64::from(*b) * f64::from(self.products[k * outputs + i]);
            add(f64::from(*b), gram, line);
        }
        let own: f64 = line.iter().zip(b).map(|(x, b)| x * f64::from(*b)).sum();
        (2.0 * self.scaling * cross, self.scaling * self.scaling * own)
    }

    /// `A Aᵀ` `(R, R)`.
    fn gram(&self) -> Vec<f64> {
        let r = self.a.rows;
        let (mut gram, mut column) = (vec![0.0; r * r], vec![0.0; r]);
        for j in 0..self.a.cols {
            for (k, value) in column.iter_mut().enumerate() {
                *value = f64::from(self.a.values[k * self.a.cols + j]);
            }
            for (value, line) in column.iter().zip(gram.chunks_exact_mut(r)) {
                add(*value, &column, line);
            }
        }
        gram
    }

    /// `n²` of one row of `W + s·B·A`, every element formed.
    fn full_row(&self, weight: &Weight, row: usize) -> f64 {
        let mut stored = vec![0f32; weight.cols()];
        weight.read_row(row, &mut stored);
        let mut values: Vec<f64> = stored.into_iter().map(f64::from).collect();
        for (k, b) in self.b.row(row).iter().enumerate() {
            let factor = self.scaling * f64::from(*b);
            for (value, a) in values.iter_mut().zip(self.a.row(k)) {
                *value += factor * f64::from(*a);
            }
        }
        values.into_iter().map(|value| value * value).sum()
    }

    /// `n²` of some columns of `W + s·(B·A)ᵀ`, every element formed, in one pass over the table.
    fn full_columns(&self, weight: &Weight, columns: &[usize]) -> Vec<f64> {
        let (mut sums, mut row) = (vec![0.0; columns.len()], vec![0f32; weight.cols()]);
        for v in 0..weight.rows() {
            weight.read_row(v, &mut row);
            for (sum, column) in sums.iter_mut().zip(columns) {
                let b = self.b.row(*column).iter().enumerate();
                let delta: f64 = b.map(|(k, b)| f64::from(*b) * f64::from(self.a.row(k)[v])).sum();
                *sum += (f64::from(row[*column]) + self.scaling * delta).powi(2);
            }
        }
        sums
    }
}
