//! Quantised rows of `W`: packed like plain ones, once they are widened.

mod dots;
mod groups;

use std::arch::x86_64::*;
use std::array::from_fn;
use std::mem::MaybeUninit;

use groups::each_group;

use super::right::{Packer, across, transposed};
use super::{BF16, F32, Line, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, Region};
use crate::product::Direction;
use crate::quantised::GROUP;
use crate::{RowOrder, Stored};

pub(super) use dots::dots;

/// Picks the instance of a function for a quantised type.
macro_rules! by_quantised {
    ($stored:expr, $f:ident $(, $rest:tt)*) => {
        match $stored {
            Stored::Q8_0 => $f::<Q8_0 $(, $rest)*>,
            Stored::Q4_0 => $f::<Q4_0 $(, $rest)*>,
            Stored::Q4_K => $f::<Q4_K $(, $rest)*>,
            Stored::Q5_K => $f::<Q5_K $(, $rest)*>,
            _ => $f::<Q6_K $(, $rest)*>,
        }
    };
}
use by_quantised;

/// The packer of `stored` values seen in `direction`, into f32 words or pairs.
pub(super) fn packer(stored: Stored, direction: Direction, pairs: bool) -> Packer {
    match (direction, pairs) {
        (Direction::Forward, false) => by_quantised!(stored, along_f32),
        (Direction::Forward, true) => by_quantised!(stored, along_pairs),
        (Direction::Backward, false) => by_quantised!(stored, across_f32),
        (Direction::Backward, true) => by_quantised!(stored, across_pairs),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn along_f32<const S: u8>(w: &Region, vectors: usize, panel: *mut u32) {
    // SAFETY: the caller's.
    unsafe { along::<S, false>(w, vectors, panel) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn along_pairs<const S: u8>(w: &Region, vectors: usize, panel: *mut u32) {
    // SAFETY: the caller's.
    unsafe { along::<S, true>(w, vectors, panel) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn across_f32<const S: u8>(w: &Region, vectors: usize, panel: *mut u32) {
    // SAFETY: the caller's.
    unsafe { down::<S, false>(w, vectors, panel) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn across_pairs<const S: u8>(w: &Region, vectors: usize, panel: *mut u32) {
    // SAFETY: the caller's.
    unsafe { down::<S, true>(w, vectors, panel) }
}

/// Values of a row that are widened before they are packed: 16 rows of them stay in the L1 cache.
const RUN: usize = 256;

/// Columns of B are rows of the region: 16 rows of a run are widened, then transposed.
#[inline(always)]
unsafe fn along<const S: u8, const PAIRS: bool>(w: &Region, vectors: usize, panel: *mut u32) {
    let size = if PAIRS { 2 } else { 4 };
    let mut scratch = [const { MaybeUninit::<Line>::uninit() }; RUN];
    let scratch: *mut u8 = scratch.as_mut_ptr().cast();
    let lines = from_fn(|i| scratch.wrapping_add(i * RUN * size).cast_const());
    for v in 0..vectors {
        let there = w.rows.saturating_sub(16 * v).min(16);
        let to = panel.wrapping_add(16 * v);
        let end = w.at.1 + w.cols;
        let mut first = w.at.1;
        while first < end {
            // Runs end where blocks do.
            let count = (RUN - first % RUN).min(end - first);
            let done = first - w.at.1;
            let at = if PAIRS { done / 2 } else { done };
            // SAFETY: rows and columns of the region; the scratch holds a run of 16 rows, the panel has room.
            unsafe {
                for i in 0..there {
                    widen::<S, PAIRS>(w.row(16 * v + i), (first, count), scratch.add(i * RUN * size));
                }
                let (lines, to) = ((&lines, there), to.wrapping_add(at * vectors * 16));
                if PAIRS {
                    transposed::<BF16, true>(lines, count, to, vectors * 16);
                } else {
                    transposed::<F32, false>(lines, count, to, vectors * 16);
                }
            }
            first += count;
        }
    }
}

/// Rows that are widened before they are packed.
const TALL: usize = 16;

/// Columns of B are columns of the region: some rows are widened, then packed.
#[inline(always)]
unsafe fn down<const S: u8, const PAIRS: bool>(w: &Region, vectors: usize, panel: *mut u32) {
    let stride = if PAIRS { 2 * 64 } else { 4 * 64 };
    let mut scratch = [const { MaybeUninit::<Line>::uninit() }; TALL * 4];
    let scratch: *mut u8 = scratch.as_mut_ptr().cast();
    for first in (0..w.rows).step_by(TALL) {
        let rows = TALL.min(w.rows - first);
        let widened = Region {
            start: scratch.cast_const(),
            stride,
            order: RowOrder::Plain,
            at: (0, 0),
            rows,
            cols: w.cols,
        };
        let done = if PAIRS { first / 2 } else { first };
        // SAFETY: rows and columns of the region, at most 64 of these; the panel has room.
        unsafe {
            for i in 0..rows {
                widen::<S, PAIRS>(w.row(first + i), (w.at.1, w.cols), scratch.add(i * stride));
            }
            let panel = panel.wrapping_add(done * vectors * 16);
            if PAIRS {
                across::<BF16, true>(&widened, vectors, panel);
            } else {
                across::<F32, false>(&widened, vectors, panel);
            }
        }
    }
}

/// Widens a part of a row into f32, or into bf16 where pairs of them are packed.
#[inline(always)]
unsafe fn widen<const S: u8, const PAIRS: bool>(row: *const u8, columns: (usize, usize), to: *mut u8) {
    let size = if PAIRS { 2 } else { 4 };
    // SAFETY: the caller's, who has room for the values.
    unsafe {
        each_group::<S, PAIRS>(
            row,
            columns,
            #[inline(always)]
            |i, _, [low, high]| {
                let to = to.add(GROUP * size * i);
                _mm512_storeu_si512(to.cast(), low);
                if !PAIRS {
                    _mm512_storeu_si512(to.add(64).cast(), high);
                }
            },
        );
    }
}
