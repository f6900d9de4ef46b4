//! A frozen matrix as it lies in its file, and the three things anyone may ask of it: the product, the transposed product,
//! and rows.

#![expect(unsafe_code, reason = "maps files")]

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use memmap2::Mmap;

use crate::product::{Direction, Matrix, Prepared, Rest, Right, Term};
use crate::{Error, RowOrder, Stored};

/// How the products of a weight are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// Operands as they are (activations f32, weights widened exactly), f32 accumulation. From AVX2 on, up to four rows of
    /// activations beside K-quants are rounded to 2^-24 of the largest of 256.
    #[default]
    F32,
    /// Operands rounded to bfloat16, f32 accumulation. From AVX2 on, up to four rows of activations beside K-quants are rounded
    /// to 2^-16 of the largest of 256 instead, and those weights not. Low-rank terms and attention are rounded where that is
    /// faster: with AVX-512 BF16, and not in products of few rows or against caches. There blocks keep what was attended, gate
    /// and up for backward in bf16 too.
    Bf16,
}

impl Compute {
    /// Whether [`blocks`](crate::blocks) keep in bf16, on this machine, what their products read so.
    pub fn keeps_bf16(self) -> bool {
        Prepared::keeps_bf16(self)
    }
}

/// A frozen matrix `W` of `rows x cols` values, row-major: a linear layer's `(out, in)` or an embedding's `(V, D)`.
///
/// Cloning shares the bytes. The values keep their stored dtype and, when mapped, stay in the file.
#[derive(Clone, Debug)]
pub struct Weight {
    bytes: Bytes,
    stored: Stored,
    order: RowOrder,
    compute: Compute,
    /// Of the bytes.
    rows: usize,
    cols: usize,
    /// Whether it is those bytes' transpose.
    transposed: bool,
}

#[derive(Clone)]
enum Bytes {
    Mapped { map: Arc<Mmap>, offset: usize, len: usize },
    Dense(Arc<Vec<f32>>),
}

impl fmt::Debug for Bytes {
    /// Where they are, not what.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped { offset, .. } => write!(f, "mapped at byte {offset}"),
            Self::Dense(_) => write!(f, "in memory"),
        }
    }
}

impl Weight {
    /// The `rows x cols` little-endian values of `stored` that start at byte `offset` of `map` (at any alignment).
    ///
    /// # Errors
    /// [`Error::WeightBytes`] where the map does not reach that far, or no map could; [`Error::WeightBlocks`] where rows
    /// are not whole blocks.
    pub fn mapped(
        map: Arc<Mmap>,
        offset: usize,
        stored: Stored,
        rows: usize,
        cols: usize,
    ) -> Result<Self, Error> {
        let found = map.len().saturating_sub(offset);
        let block = stored.block();
        if !cols.is_multiple_of(block) {
            return Err(Error::WeightBlocks { rows, cols, stored, block });
        }
        let expected = rows.checked_mul(cols).and_then(|values| stored.bytes(values));
        match expected {
            Some(len) if len <= found && offset <= map.len() => {
                let bytes = Bytes::Mapped { map, offset, len };
                Ok(Self {
                    bytes,
                    stored,
                    order: RowOrder::default(),
                    compute: Compute::default(),
                    rows,
                    cols,
                    transposed: false,
                })
            }
            _ => Err(Error::WeightBytes {
                rows,
                cols,
                offset,
                expected: expected.unwrap_or(usize::MAX),
                found,
            }),
        }
    }

    /// A weight held in memory, `values` row by row.
    ///
    /// # Errors
    /// [`Error::WeightValues`] where there are not `rows x cols` values.
    pub fn dense(values: Vec<f32>, rows: usize, cols: usize) -> Result<Self, Error> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(Error::WeightValues { rows, cols, found: values.len() });
        }
        Ok(Self {
            bytes: Bytes::Dense(Arc::new(values)),
            stored: Stored::F32,
            order: RowOrder::default(),
            compute: Compute::default(),
            rows,
            cols,
            transposed: false,
        })
    }

    /// The same weight with its products computed in `compute`.
    #[must_use]
    pub fn with_compute(self, compute: Compute) -> Self {
        Self { compute, ..self }
    }

    /// The same bytes with their rows in `order`, each counted where a caller expects it.
    ///
    /// # Errors
    /// [`Error::WeightHeads`] where the rows are not whole heads.
    pub fn with_order(self, order: RowOrder) -> Result<Self, Error> {
        match order {
            RowOrder::Paired { head } if head == 0 || head % 2 != 0 || !self.rows.is_multiple_of(head) => {
                Err(Error::WeightHeads { rows: self.rows, head })
            }
            _ => Ok(Self { order, ..self }),
        }
    }

    /// The transpose, over the same bytes: for a layer that is stored `(in, out)`, as GPT-2's `Conv1D` is.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// Rows and columns of the bytes.
    pub fn stored_dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Whether the bytes hold its transpose.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Rows: a linear layer's output size.
    pub fn rows(&self) -> usize {
        if self.transposed { self.cols } else { self.rows }
    }

    /// Columns: a linear layer's input size.
    pub fn cols(&self) -> usize {
        if self.transposed { self.rows } else { self.cols }
    }

    /// How the values are stored.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// How products are computed.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// `y = x Wᵀ`: `x` `(n, cols)`, `y` `(n, rows)`, both row-major; `y` is overwritten.
    pub fn product(&self, x: &[f32], y: &mut [f32]) {
        Prepared::new(self.compute, x, self.cols()).product(self.right(Direction::Forward), y, false);
    }

    /// [`Weight::product`] of activations that are ready for it, and the `rest` that belongs to it.
    pub(crate) fn finished(&self, x: &Prepared<'_>, rest: &Rest<'_>) -> Vec<f32> {
        x.finished(self.right(Direction::Forward), rest)
    }

    /// [`Weight::product_transposed`] of a gradient that is ready for it, and the `rest` that belongs to it.
    pub(crate) fn transposed_finished(&self, g: &Prepared<'_>, rest: &Rest<'_>) -> Vec<f32> {
        g.finished(self.right(Direction::Backward), rest)
    }

    /// [`Weight::product_transposed`] of a gradient that is ready for it and a low-rank term, added to `dx`.
    pub(crate) fn add_product_transposed(&self, g: &Prepared<'_>, dx: &mut [f32], term: Option<Term<'_>>) {
        g.add_to(self.right(Direction::Backward), dx, term);
    }

    /// `dx = g W`: `g` `(n, rows)`, `dx` `(n, cols)`, both row-major; `dx` is overwritten.
    pub fn product_transposed(&self, g: &[f32], dx: &mut [f32]) {
        Prepared::new(self.compute, g, self.rows()).product(self.right(Direction::Backward), dx, false);
    }

    /// Row `row`, widened to f32, into `out` `(cols,)`.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows(), "row {row} of {}", self.rows());
        if self.transposed {
            return self.read_column(row, out);
        }
        self.matrix().read(row, 0, &mut out[..self.cols]);
    }

    /// Column `column` of the bytes, widened to f32.
    fn read_column(&self, column: usize, out: &mut [f32]) {
        let matrix = self.matrix();
        for (row, value) in out[..self.rows].iter_mut().enumerate() {
            matrix.read(row, column, std::slice::from_mut(value));
        }
    }

    /// All values as they are stored, widened to f32: of a transposed weight, its columns one after the other.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        let matrix = self.matrix();
        if self.cols > 0 {
            out.chunks_exact_mut(self.cols).enumerate().for_each(|(row, out)| matrix.read(row, 0, out));
        }
        out
    }

    /// The right operand of a product along `direction` of the weight.
    pub(crate) fn right(&self, direction: Direction) -> Right<'_> {
        let of_bytes = match (direction, self.transposed) {
            (direction, false) => direction,
            (Direction::Forward, true) => Direction::Backward,
            (Direction::Backward, true) => Direction::Forward,
        };
        Right::new(self.matrix(), of_bytes)
    }

    pub(crate) fn matrix(&self) -> Matrix<'_> {
        Matrix::new(self.bytes(), self.stored, self.rows, self.cols).in_order(self.order)
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped { map, offset, len } => &map[*offset..*offset + *len],
            Bytes::Dense(values) => bytemuck::cast_slice(values.as_slice()),
        }
    }
}

/// Maps a file for reading.
///
/// While it is mapped nobody may shorten or change the file: a checkpoint is written whole under another name and then
/// renamed, and not edited in place.
pub fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: as said above, checkpoints are not edited in place; taper itself never does.
    unsafe { Mmap::map(file) }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small numbers that every dtype holds")]
mod tests {
    use super::*;
    use crate::testing::mapped;

    #[test]
    fn a_mapped_weight_is_the_dense_one() {
        let values: Vec<f32> = (0..6).map(|i| i as f32 - 2.5).collect();
        let dense = Weight::dense(values.clone(), 2, 3).unwrap();
        for stored in [Stored::F32, Stored::F16, Stored::Bf16] {
            let mut bytes = vec![0xff; 3];
            for &v in &values {
                match stored {
                    Stored::F32 => bytes.extend(v.to_le_bytes()),
                    Stored::F16 => bytes.extend(half::f16::from_f32(v).to_le_bytes()),
                    _ => bytes.extend(half::bf16::from_f32(v).to_le_bytes()),
                }
            }
            let weight = Weight::mapped(mapped(&format!("{stored:?}"), &bytes), 3, stored, 2, 3).unwrap();
            assert_eq!((weight.rows(), weight.cols(), weight.stored()), (2, 3, stored));
            assert_eq!(weight.to_f32(), values);
            let mut row = [0.0; 3];
            weight.read_row(1, &mut row);
            assert_eq!(row, values[3..]);
            for compute in [Compute::F32, Compute::Bf16] {
                let weight = weight.clone().with_compute(compute);
                let (mut y, mut dx) = ([[0.0; 2]; 2], [[0.0; 3]; 2]);
                for (w, i) in [(&weight, 0), (&dense, 1)] {
                    w.product(&[1.0, 2.0, -1.0], &mut y[i]);
                    w.product_transposed(&[3.0, -1.0], &mut dx[i]);
                }
                assert_eq!((y[0], dx[0]), (y[1], dx[1]));
                assert_eq!((y[0], dx[0]), ([-5.0, 1.0], [-8.0, -6.0, -4.0]));
            }
        }
    }

    #[test]
    fn a_transposed_weight_is_the_dense_transpose() {
        let values: Vec<f32> = (0..6).map(|i| i as f32 - 2.5).collect();
        let stored = Weight::dense(values, 3, 2).unwrap().transposed();
        let plain = Weight::dense(vec![-2.5, -0.5, 1.5, -1.5, 0.5, 2.5], 2, 3).unwrap();
        assert_eq!((stored.rows(), stored.cols(), stored.is_transposed()), (2, 3, true));
        for compute in [Compute::F32, Compute::Bf16] {
            let (mut y, mut dx, mut row) = ([[0.0; 2]; 2], [[0.0; 3]; 2], [[0.0; 3]; 2]);
            for (i, weight) in [&stored, &plain].into_iter().enumerate() {
                let weight = weight.clone().with_compute(compute);
                weight.product(&[1.0, 2.0, -1.0], &mut y[i]);
                weight.product_transposed(&[3.0, -1.0], &mut dx[i]);
                weight.read_row(1, &mut row[i]);
            }
            assert_eq!((y[0], dx[0], row[0]), (y[1], dx[1], row[1]));
        }
        assert_eq!(stored.transposed().to_f32(), (0..6).map(|i| i as f32 - 2.5).collect::<Vec<_>>());
    }

    #[test]
    fn sizes_are_checked_against_the_bytes() {
        let map = mapped("sizes", &[0; 25]);
        let weight = |offset, rows, cols| Weight::mapped(Arc::clone(&map), offset, Stored::F32, rows, cols);
        assert!(weight(1, 2, 3).is_ok() && weight(25, 0, 3).is_ok());
        for (offset, rows, cols) in
            [(2, 2, 3), (0, 7, 1), (26, 0, 3), (usize::MAX, 1, 1), (0, usize::MAX, 2), (0, 1 << 62, 1 << 2)]
        {
            let error = weight(offset, rows, cols).unwrap_err();
            assert!(matches!(error, Error::WeightBytes { .. }), "{error}");
        }
        assert!(Weight::dense(vec![0.0; 5], 2, 3).is_err());
        assert!(Weight::dense(Vec::new(), usize::MAX, 2).is_err());
    }

    #[test]
    fn bytes_are_not_printed() {
        let weight = Weight::dense(vec![1.25; 4], 2, 2).unwrap();
        assert!(!format!("{weight:?}").contains("1.25"));
    }
}
