//! Products in AVX2 and FMA, for machines without AVX-512: packed panels for many rows, a stream of dot products for few.
//!
//! `C = A · B`, where `B` is `W` or its transpose. `A` is read where it lies; `B` is widened to f32 in panels of 16 columns,
//! just before the panels of a piece are used. A tile is 6 rows of C by two vectors: twelve sums, two vectors of B and a value
//! of A fill the sixteen registers.
//!
//! Everything `unsafe` here is so for two reasons: pointers, whose bounds each function states, and instructions, which
//! [`super::Kernels`] has found to exist.

#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "intrinsics, whose names say where they are from")
)]
#![expect(unsafe_code, reason = "vector instructions on pointers into slices")]

mod panel;
mod quantised;
mod rows;
mod super_blocks;
mod tile;
mod vnni;

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

pub(super) use rows::{AS_INTEGERS, few_rows};

use panel::{across, along};
use tile::{Place, tile};

use super::plan::{Piece, Plan};
use super::portable::to_bf16;
use super::{Direction, Rest, Right};
use crate::Stored;
use crate::pool::{self, Disjoint};
use crate::quantised::Blocks;

/// Rows and columns of a tile.
const ROWS: usize = 6;
const COLUMNS: usize = 16;
/// Longest block of the contraction: a panel is then 48 KiB.
const DEPTH: usize = 768;
/// Rows of C to a piece.
const PIECE_ROWS: usize = 1056;
/// Row tiles that are gone through for all panels of a piece, so that both lie in the L2 cache.
const GROUP: usize = 8;
/// Values of a vector.
const LANES: usize = 8;

/// The left operand, row-major.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) values: &'a [f32],
    pub(super) m: usize,
    pub(super) k: usize,
    /// Whether B is rounded to bf16 where it is not of it, as A has been.
    pub(super) round: bool,
    /// What the product is multiplied by.
    pub(super) alpha: f32,
    /// Whether the machine has AVX-512 VNNI and VL too.
    pub(super) vnni: bool,
}

thread_local! {
    /// This thread's panels, and rows of W on their way into them.
    static BUFFERS: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Whether [`few_rows`] is the faster way: a dot product ends in a sum across lanes, which is not worth it for a short
/// contraction.
pub(super) fn are_few(a: &Left<'_>, direction: Direction) -> bool {
    direction == Direction::Forward && a.m <= rows::FEW && a.k >= 16 * a.m.min(16)
}

/// Whether [`few_rows`] multiplies the integers of a `stored` W, without widening them: K-quants by so few rows `m`.
pub(super) fn as_integers(m: usize, stored: Stored, direction: Direction) -> bool {
    let in_super_blocks = matches!(stored, Stored::Q4_K | Stored::Q5_K | Stored::Q6_K);
    direction == Direction::Forward && in_super_blocks && m <= AS_INTEGERS
}

/// Writes the `rest` of `A · B` into all of `c`, or adds it to `c` where `add`.
///
/// # Safety
/// AVX2, FMA and F16C; `c` has values where it is added to.
pub(super) unsafe fn tiles(
    a: Left<'_>,
    right: Right<'_>,
    c: &mut [MaybeUninit<f32>],
    (add, rest): (bool, &Rest<'_>),
) {
    let (k, n) = right.dims();
    assert!(a.k == k && k > 0 && a.m > 0 && a.values.len() == a.m * k && c.len() == a.m * n);
    let threads = pool::width();
    let plan = Plan::new((a.m, n), (ROWS, COLUMNS), PIECE_ROWS, threads);
    let call = Call { a, right, n, add, rest, c: Disjoint::new(c) };
    pool::for_each(threads, |thread| {
        BUFFERS.with_borrow_mut(|(panels, lines)| {
            while let Some(piece) = plan.take(thread) {
                // SAFETY: the caller's; the plan gives each piece of C to one thread.
                unsafe { call.piece(&piece, panels, lines) }
            }
        });
    });
}

struct Call<'a> {
    a: Left<'a>,
    right: Right<'a>,
    n: usize,
    add: bool,
    rest: &'a Rest<'a>,
    c: Disjoint<'a, MaybeUninit<f32>>,
}

impl Call<'_> {
    /// # Safety
    /// The instructions exist; the piece of C is the caller's alone.
    unsafe fn piece(&self, piece: &Piece, panels: &mut Vec<f32>, lines: &mut Vec<f32>) {
        let k = self.a.k;
        // Blocks of almost equal length.
        let depth = k.div_ceil(k.div_ceil(DEPTH));
        let rank = self.rest.term.map_or(0, |term| term.rank);
        if panels.len() < piece.n.len() * (depth + rank) * COLUMNS {
            panels.resize(piece.n.len() * (depth + rank) * COLUMNS, 0.0);
        }
        let columns = |p: usize| p * COLUMNS..self.n.min((p + 1) * COLUMNS);
        for start in (0..k).step_by(depth) {
            let block = start..k.min(start + depth);
            // The steps of a term follow the last block's.
            let term = self.rest.term.filter(|_| block.end == k);
            let (own, rank) = (block.len() * COLUMNS, term.map_or(0, |_| rank));
            let size = own + rank * COLUMNS;
            for (p, panel) in piece.n.clone().zip(panels.chunks_exact_mut(size)) {
                let (panel, of_term) = panel.split_at_mut(own);
                // SAFETY: the caller's.
                unsafe {
                    self.fill(&columns(p), &block, panel, lines);
                    if let Some(term) = term {
                        let right = term.right(self.n);
                        fill(&right, &columns(p), &(0..rank), of_term, lines);
                    }
                }
            }
            for first in piece.m.clone().step_by(GROUP) {
                let group = first..piece.m.end.min(first + GROUP);
                for (p, panel) in piece.n.clone().zip(panels.chunks_exact(size)) {
                    let (panel, of_term) = panel.split_at(own);
                    for i in group.clone() {
                        let place = self.place(i, &columns(p), &block);
                        let main = (rows(self.a.values, (self.a.m, k), i, start), panel);
                        let term = term.map(|term| (rows(term.u, (self.a.m, rank), i, 0), of_term));
                        // SAFETY: the caller's.
                        unsafe { tile(main, term, &place) };
                    }
                }
            }
        }
    }

    /// The place in C of row tile `i` and some `columns`, and what belongs to it after a `block`.
    fn place(&self, i: usize, columns: &Range<usize>, block: &Range<usize>) -> Place<'_> {
        let rows = i * ROWS..self.a.m.min((i + 1) * ROWS);
        let start = rows.start * self.n + columns.start;
        let last = block.end == self.a.k;
        let Rest { gain, bias, onto, .. } = if last { *self.rest } else { Rest::default() };
        Place {
            c: self.c.as_mut_ptr().wrapping_add(start).cast::<f32>(),
            alpha: self.a.alpha,
            add: self.add || block.start > 0,
            gain: gain.map(|gain| &gain[columns.clone()]),
            bias: bias.map(|bias| &bias[columns.clone()]),
            onto: onto.map(|onto| onto.as_ptr().wrapping_add(start)),
            stride: self.n,
            rows: rows.len(),
            columns: columns.len(),
        }
    }

    /// Fills `panel` with `columns` of B in `block`, step by step; what B lacks is left to be anything.
    ///
    /// # Safety
    /// The instructions exist.
    unsafe fn fill(
        &self,
        columns: &Range<usize>,
        block: &Range<usize>,
        panel: &mut [f32],
        lines: &mut Vec<f32>,
    ) {
        // SAFETY: the caller's.
        unsafe { fill(&self.right, columns, block, panel, lines) }
        if self.a.round && self.right.w.stored != Stored::Bf16 {
            to_bf16(panel);
        }
    }
}

/// As [`Call::fill`], unrounded.
///
/// # Safety
/// The instructions exist.
unsafe fn fill(
    right: &Right<'_>,
    columns: &Range<usize>,
    block: &Range<usize>,
    panel: &mut [f32],
    lines: &mut Vec<f32>,
) {
    // SAFETY: the caller's.
    unsafe {
        match right.direction {
            Direction::Forward => along(&right.w, columns, block, panel, lines),
            Direction::Backward => across(&right.w, columns, block, panel),
        }
    }
}

/// The rows of tile `i` of a left operand `(m, k)` from step `first` on; one of them again for each that it lacks.
fn rows(values: &[f32], (m, k): (usize, usize), i: usize, first: usize) -> [*const f32; ROWS] {
    let start = values.as_ptr().wrapping_add(first);
    std::array::from_fn(|j| start.wrapping_add((i * ROWS + j).min(m - 1) * k))
}

/// Eight values of a plain type at the start of `bytes`, widened.
#[target_feature(enable = "avx2,f16c")]
fn widened(stored: Stored, bytes: &[u8]) -> __m256 {
    if stored == Stored::F32 {
        let bytes = &bytes[..4 * LANES];
        // SAFETY: as many bytes as are read.
        return unsafe { _mm256_loadu_ps(bytes.as_ptr().cast()) };
    }
    let bytes = &bytes[..2 * LANES];
    // SAFETY: as above.
    let halves = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    if stored == Stored::F16 {
        _mm256_cvtph_ps(halves)
    } else {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }
}

/// Brings nearer what lies 4 KiB after a block.
#[target_feature(enable = "avx2")]
fn fetch_ahead<T: Blocks>(block: &[u8]) {
    for line in (0..T::STORED.block_bytes()).step_by(64) {
        _mm_prefetch::<_MM_HINT_T1>(block.as_ptr().wrapping_add(4096 + line).cast());
    }
}

/// Two f16, each in all places of a vector.
#[target_feature(enable = "avx2,f16c")]
fn halves([first, second]: [u16; 2]) -> [__m256; 2] {
    let both = u32::from(first) | u32::from(second) << 16;
    let both = _mm_cvtph_ps(_mm_cvtsi32_si128(both.cast_signed()));
    [_mm256_broadcastss_ps(both), _mm256_broadcastss_ps(_mm_movehdup_ps(both))]
}

/// The first eight of `values`.
#[target_feature(enable = "avx2")]
fn load(values: &[f32]) -> __m256 {
    let values = &values[..LANES];
    // SAFETY: as many values as are read.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

/// Sets the first eight of `values`.
#[target_feature(enable = "avx2")]
fn store(values: &mut [f32], vector: __m256) {
    let values = &mut values[..LANES];
    // SAFETY: as many values as are written.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), vector) }
}
