//! Products on any machine: some rows of `W` at a time are widened to f32 and handed to the `gemm` crate.

#![expect(unsafe_code, reason = "the gemm crate takes pointers")]

#[cfg(target_endian = "big")]
compile_error!("weights are little-endian, and read as the machine's own");

use gemm::Parallelism;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::dense::Dims;
use super::{Direction, Right};
use crate::Stored;
use crate::pool::{self, Disjoint, for_each};
use crate::vector::{add_rows, dot, wide};

/// Values of W that a task widens at once, about.
const WIDENED: usize = 1 << 18;

/// Rows of A up to which a dot product each is faster than a call of `gemm`.
pub(super) const FEW: usize = 8;
/// Values of W to a task that makes such dot products, about.
const ROWS: usize = 1 << 16;
/// Tasks that rows of W are shared out to, and how many rows a task takes at a time.
const SHARES: usize = 16;
const TOGETHER: usize = 4;

/// A matrix in a slice, with its row and column strides.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a>(pub(super) &'a [f32], pub(super) usize, pub(super) usize);

/// The plain values of `stored` that `bytes` holds, widened exactly.
pub(crate) fn widen(bytes: &[u8], stored: Stored, out: &mut [f32]) {
    assert_eq!(Some(bytes.len()), stored.bytes(out.len()));
    match stored {
        Stored::F32 => bytemuck::cast_slice_mut(out).copy_from_slice(bytes),
        Stored::F16 => {
            let mut aligned = [f16::ZERO; 256];
            for (bytes, out) in bytes.chunks(512).zip(out.chunks_mut(256)) {
                let aligned = &mut aligned[..out.len()];
                bytemuck::cast_slice_mut(aligned).copy_from_slice(bytes);
                aligned.convert_to_f32_slice(out);
            }
        }
        _ => wide(
            #[inline(always)]
            || {
                for (o, &v) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *o = f32::from_bits((u16::from_le_bytes(v) as u32) << 16);
                }
            },
        ),
    }
}

/// Rounds to bf16, to nearest even; a NaN stays one.
pub(super) fn to_bf16(x: &mut [f32]) {
    let rounded = |x: f32| {
        let bits = x.to_bits();
        let up = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        f32::from_bits(if x.is_nan() { bits | 0x40_0000 } else { up } & 0xffff_0000)
    };
    wide(
        #[inline(always)]
        || x.iter_mut().for_each(|x| *x = rounded(*x)),
    );
}

/// `C = A · B`; W is rounded to bf16 first where `round`.
pub(super) fn product(right: Right<'_>, round: bool, a: &[f32], c: &mut [f32]) {
    match right.direction {
        Direction::Forward if c.len() / right.w.rows <= FEW => few_rows(right, round, a, c),
        Direction::Forward => forward(right, round, a, c),
        Direction::Backward => backward(right, round, a, c),
    }
}

/// For a few rows of A: each row of W is widened in the L1 cache and multiplied with them.
fn few_rows(right: Right<'_>, round: bool, a: &[f32], c: &mut [f32]) {
    let (k, n) = right.dims();
    let step = (ROWS / k).clamp(1, n);
    let c = Disjoint::new(c);
    for_each(n.div_ceil(step), |task| {
        let mut widened = vec![0.0; k];
        for row in task * step..n.min((task + 1) * step) {
            let block = Block { rows: (row, 1), cols: (0, k) };
            let w = block.in_place(right, round).unwrap_or_else(|| {
                block.read_into(right, round, &mut widened);
                &widened
            });
            for (i, a) in a.chunks_exact(k).enumerate() {
                let at = i * n + row;
                // SAFETY: this column of C belongs to this task.
                unsafe { c.get(at..at + 1)[0] = dot(a, w) }
            }
        }
    });
}

/// For a few rows of A: rows of W are streamed, and added to C as many times as A says. Each task has some rows and sums of
/// its own, whose number does not depend on the threads.
pub(super) fn few_rows_across(right: Right<'_>, round: bool, a: &[f32], c: &mut [f32], add: bool) {
    let (k, n) = right.dims();
    let per_task = k.div_ceil(SHARES).next_multiple_of(TOGETHER);
    let mut sums = vec![0.0; k.div_ceil(per_task) * c.len()];
    pool::for_each_chunk(&mut sums, c.len(), |task, sums| {
        let rows = task * per_task..k.min((task + 1) * per_task);
        let mut widened = vec![0.0; TOGETHER * n];
        for row in rows.clone().step_by(TOGETHER) {
            let count = TOGETHER.min(rows.end - row);
            let widened = &mut widened[..count * n];
            Block { rows: (row, count), cols: (0, n) }.read_into(right, round, widened);
            for (a, sums) in a.chunks_exact(k).zip(sums.chunks_exact_mut(n)) {
                add_rows(&a[row..row + count], widened, sums);
            }
        }
    });
    if !add {
        c.fill(0.0);
    }
    sums.chunks_exact(c.len()).for_each(|sums| add_rows(&[1.0], sums, c));
}

/// Each task makes some columns of C from as many rows of W.
fn forward(right: Right<'_>, round: bool, a: &[f32], c: &mut [f32]) {
    let (k, n) = right.dims();
    let m = c.len() / n;
    let step = (WIDENED / k).min(n.div_ceil(16)).max(64).min(n);
    let c = Disjoint::new(c);
    for_each(n.div_ceil(step), |task| {
        let first = task * step;
        let dims = Dims { m, n: step.min(n - first), k };
        let block = Block { rows: (first, dims.n), cols: (0, k) }.read(right, round);
        // SAFETY: these columns of C belong to this task; the operands are sliced to what `dims` says.
        unsafe {
            multiply(
                c.as_mut_ptr().add(first),
                n,
                (Strided(a, k, 1), Strided(&block, 1, k)),
                dims,
                (1.0, false),
            );
        }
    });
}

/// Each task makes some columns of C from as many columns of W.
fn backward(right: Right<'_>, round: bool, a: &[f32], c: &mut [f32]) {
    let (k, n) = right.dims();
    let m = c.len() / n;
    let step = n.div_ceil(16).clamp(64, 512).min(n);
    let tall = (WIDENED / step).min(k);
    let c = Disjoint::new(c);
    for_each(n.div_ceil(step), |task| {
        let first = task * step;
        for row in (0..k).step_by(tall) {
            let dims = Dims { m, n: step.min(n - first), k: tall.min(k - row) };
            let block = Block { rows: (row, dims.k), cols: (first, dims.n) }.read(right, round);
            let a = Strided(&a[row..], k, 1);
            // SAFETY: as above.
            unsafe {
                let c = c.as_mut_ptr().add(first);
                multiply(c, n, (a, Strided(&block, dims.n, 1)), dims, (1.0, row > 0));
            }
        }
    });
}

/// A part of W: first rows and columns, and how many.
struct Block {
    rows: (usize, usize),
    cols: (usize, usize),
}

impl Block {
    fn read(&self, right: Right<'_>, round: bool) -> Vec<f32> {
        let mut out = vec![0.0; self.rows.1 * self.cols.1];
        self.read_into(right, round, &mut out);
        out
    }

    /// The row, where it need not be widened.
    fn in_place<'a>(&self, right: Right<'a>, round: bool) -> Option<&'a [f32]> {
        let usable = right.w.stored == Stored::F32 && !round && self.rows.1 == 1;
        let first = 4 * (right.w.order.stored(self.rows.0) * right.w.cols + self.cols.0);
        if usable {
            bytemuck::try_cast_slice(&right.w.bytes[first..first + 4 * self.cols.1]).ok()
        } else {
            None
        }
    }

    fn read_into(&self, right: Right<'_>, round: bool, out: &mut [f32]) {
        for (row, out) in (self.rows.0..).zip(out.chunks_exact_mut(self.cols.1)) {
            right.w.read(row, self.cols.0, out);
        }
        if round {
            to_bf16(out);
        }
    }
}

/// `C (+)= alpha · A · B` of dense operands, in tiles whose size depends on `dims` alone.
pub(super) fn tiles(c: &mut [f32], (a, b): (Strided<'_>, Strided<'_>), dims: Dims, write: (f32, bool)) {
    let Dims { m, n, k } = dims;
    let part = |long: usize| long.div_ceil(16).clamp(64, 512);
    let (tm, tn) = if m >= n { (part(m), n) } else { (m, part(n)) };
    let across = n.div_ceil(tn);
    let c = Disjoint::new(c);
    for_each(m.div_ceil(tm) * across, |tile| {
        let (i, j) = (tile / across * tm, tile % across * tn);
        let a = Strided(&a.0[i * a.1..], a.1, a.2);
        let b = Strided(&b.0[j * b.2..], b.1, b.2);
        // SAFETY: no other task writes this tile, which lies inside C.
        unsafe {
            let c = c.as_mut_ptr().add(i * n + j);
            multiply(c, n, (a, b), Dims { m: tm.min(m - i), n: tn.min(n - j), k }, write);
        }
    });
}

/// `C (+)= alpha · A · B` on this thread; `write` is alpha and whether C is added to.
///
/// # Safety
/// `c` is a matrix of `dims` whose rows are `stride` values apart, and which nobody else uses.
#[rustfmt::skip]
unsafe fn multiply(
    c: *mut f32,
    stride: usize,
    (a, b): (Strided<'_>, Strided<'_>),
    Dims { m, n, k }: Dims,
    (alpha, add): (f32, bool),
) {
    let last = |s: &Strided<'_>, rows: usize, cols: usize| (rows - 1) * s.1 + (cols - 1) * s.2;
    assert!(m > 0 && n > 0 && k > 0 && last(&a, m, k) < a.0.len() && last(&b, k, n) < b.0.len());
    let by = |strides: usize| strides as isize;
    // SAFETY: the operands are checked above, and C is the caller's.
    unsafe {
        gemm::gemm(
            m, n, k,
            c, 1, by(stride), add,
            a.0.as_ptr(), by(a.2), by(a.1),
            b.0.as_ptr(), by(b.2), by(b.1),
            // The first factor is C's.
            1.0, alpha,
            false, false, false,
            Parallelism::None,
        );
    }
}
