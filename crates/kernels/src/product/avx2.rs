//! Products in AVX2 and FMA, for machines without AVX-512: packed panels for many rows, a stream of dot products for few.
//!
//! `C = A · B`, where `B` is `W` or its transpose.
//! `A` is read where it lies; `B` is widened to f32 in panels of 16 columns, just before the panels of a piece are used. A
//! tile is 6 rows of C by two vectors: twelve sums, two vectors of B and a value of A fill the sixteen registers.
//!
//! Everything `unsafe` here is so for two reasons: pointers, whose bounds each function states, and instructions, which
//! [`super::Kernels`] has found to exist.

#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "intrinsics, whose names say where they are from")
)]
#![expect(unsafe_code, reason = "vector instructions on pointers into slices")]

mod quantised;
mod rows;

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

pub(super) use rows::few_rows;

use super::plan::{Piece, Plan};
use super::portable::to_bf16;
use super::{Beneath, Direction, Matrix, Right};
use crate::Stored;
use crate::buffers::made;
use crate::pool::{self, Disjoint};

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

/// `C = A · B`, or `C += A · B` where `add`.
///
/// # Safety
/// AVX2, FMA and F16C.
pub(super) unsafe fn product(a: Left<'_>, right: Right<'_>, c: &mut [f32], add: bool) {
    if are_few(&a, right.direction) {
        // SAFETY: the caller's.
        return unsafe { few_rows(a, (&[right.w], &[Disjoint::new(c)]), add, &|_, _| ()) };
    }
    // SAFETY: what is written there are values.
    let c = unsafe { std::slice::from_raw_parts_mut(c.as_mut_ptr().cast(), c.len()) };
    // SAFETY: the caller's; C has values.
    unsafe { write(a, right, c, add.then_some(Onto::Itself)) }
}

/// `A · B` and what is `beneath` it.
///
/// # Safety
/// AVX2, FMA and F16C.
pub(super) unsafe fn product_onto(a: Left<'_>, right: Right<'_>, beneath: Beneath<'_>) -> Vec<f32> {
    // SAFETY: the caller's; all of C is written.
    unsafe { made(a.m * right.dims().1, |c| write(a, right, c, Some(Onto::Other(beneath)))) }
}

/// What a product is added to.
#[derive(Clone, Copy)]
enum Onto<'a> {
    Itself,
    Other(Beneath<'a>),
}

/// Writes all of `c`.
///
/// # Safety
/// AVX2, FMA and F16C; `c` has values where it is added to itself.
unsafe fn write(a: Left<'_>, right: Right<'_>, c: &mut [MaybeUninit<f32>], onto: Option<Onto<'_>>) {
    let (k, n) = right.dims();
    assert!(a.k == k && k > 0 && a.m > 0 && a.values.len() == a.m * k && c.len() == a.m * n);
    if let Some(Onto::Other(beneath)) = onto {
        beneath.check(a.m, n);
    }
    let threads = pool::width();
    let plan = Plan::new((a.m, n), (ROWS, COLUMNS), PIECE_ROWS, threads);
    let call = Call { a, right, n, onto, c: Disjoint::new(c) };
    pool::for_each(threads, |_| {
        BUFFERS.with_borrow_mut(|(panels, lines)| {
            while let Some(piece) = plan.take() {
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
    onto: Option<Onto<'a>>,
    c: Disjoint<'a, MaybeUninit<f32>>,
}

impl Call<'_> {
    /// # Safety
    /// The instructions exist; the piece of C is the caller's alone.
    unsafe fn piece(&self, piece: &Piece, panels: &mut Vec<f32>, lines: &mut Vec<f32>) {
        let k = self.a.k;
        // Blocks of almost equal length.
        let depth = k.div_ceil(k.div_ceil(DEPTH));
        if panels.len() < piece.n.len() * depth * COLUMNS {
            panels.resize(piece.n.len() * depth * COLUMNS, 0.0);
        }
        let columns = |p: usize| p * COLUMNS..self.n.min((p + 1) * COLUMNS);
        for start in (0..k).step_by(depth) {
            let block = start..k.min(start + depth);
            let size = block.len() * COLUMNS;
            for (p, panel) in piece.n.clone().zip(panels.chunks_exact_mut(size)) {
                // SAFETY: the caller's.
                unsafe { self.fill(&columns(p), &block, panel, lines) };
            }
            for first in piece.m.clone().step_by(GROUP) {
                let group = first..piece.m.end.min(first + GROUP);
                for (p, panel) in piece.n.clone().zip(panels.chunks_exact(size)) {
                    for i in group.clone() {
                        let place = self.place(i, &columns(p), start == 0);
                        // SAFETY: the caller's.
                        unsafe { tile(self.rows(i, start), panel, &place) };
                    }
                }
            }
        }
    }

    /// The rows of tile `i` from step `first` on; one of them again for each that A lacks.
    fn rows(&self, i: usize, first: usize) -> [*const f32; ROWS] {
        let Left { values, m, k, .. } = self.a;
        let start = values.as_ptr().wrapping_add(first);
        std::array::from_fn(|j| start.wrapping_add((i * ROWS + j).min(m - 1) * k))
    }

    /// The place in C of row tile `i` and some `columns`, and what its first block, or a later one, is added to.
    fn place(&self, i: usize, columns: &Range<usize>, is_first: bool) -> Place<'_> {
        let rows = i * ROWS..self.a.m.min((i + 1) * ROWS);
        let start = rows.start * self.n + columns.start;
        let c = self.c.as_mut_ptr().wrapping_add(start).cast::<f32>();
        let (onto, bias) = match self.onto {
            _ if !is_first => (Some(c.cast_const()), None),
            None => (None, None),
            Some(Onto::Itself) => (Some(c.cast_const()), None),
            Some(Onto::Other(Beneath { matrix, row })) => {
                (matrix.map(|onto| onto.as_ptr().wrapping_add(start)), row.map(|row| &row[columns.clone()]))
            }
        };
        let (rows, columns) = (rows.len(), columns.len());
        Place { c, alpha: self.a.alpha, onto, bias, stride: self.n, rows, columns }
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
        let w = &self.right.w;
        // SAFETY: the caller's.
        unsafe {
            match self.right.direction {
                Direction::Forward => along(w, columns, block, panel, lines),
                Direction::Backward => across(w, columns, block, panel),
            }
        }
        if self.a.round && w.stored != Stored::Bf16 {
            to_bf16(panel);
        }
    }
}

/// Columns of B are rows of W, transposed eight by eight values at a time.
///
/// # Safety
/// AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
unsafe fn along(
    w: &Matrix<'_>,
    rows: &Range<usize>,
    steps: &Range<usize>,
    panel: &mut [f32],
    lines: &mut Vec<f32>,
) {
    let depth = steps.len();
    if w.stored.size().is_none() {
        lines.resize(depth * COLUMNS, 0.0);
        for (row, line) in rows.clone().zip(lines.chunks_exact_mut(depth)) {
            w.read(row, steps.start, line);
        }
    }
    let line = |i: usize| {
        let row = i.min(rows.len() - 1);
        match w.stored.size() {
            Some(size) => &w.row(rows.start + row)[steps.start * size..],
            None => bytemuck::cast_slice(&lines[row * depth..]),
        }
    };
    let (stored, size) = w.stored.size().map_or((Stored::F32, 4), |size| (w.stored, size));
    for half in (0..COLUMNS).step_by(LANES) {
        let lines: [&[u8]; LANES] = std::array::from_fn(|i| line(half + i));
        for (at, to) in (0..depth - depth % LANES).step_by(LANES).zip(panel.chunks_mut(COLUMNS * LANES)) {
            let mut values = [_mm256_setzero_ps(); LANES];
            for (values, line) in values.iter_mut().zip(lines) {
                *values = widened(stored, &line[at * size..]);
            }
            for (line, to) in transpose(values).into_iter().zip(to[half..].chunks_mut(COLUMNS)) {
                store(to, line);
            }
        }
    }
    let rest = depth - depth % LANES;
    let mut last = [0.0; LANES];
    for (i, row) in rows.clone().enumerate().filter(|_| rest < depth) {
        let last = &mut last[..depth - rest];
        w.read(row, steps.start + rest, last);
        for (step, &value) in (rest..).zip(&*last) {
            panel[step * COLUMNS + i] = value;
        }
    }
}

/// Columns of B are columns of W.
///
/// # Safety
/// AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
unsafe fn across(w: &Matrix<'_>, columns: &Range<usize>, rows: &Range<usize>, panel: &mut [f32]) {
    let plain = w.stored.size().filter(|_| columns.len() == COLUMNS);
    for (row, to) in rows.clone().zip(panel.chunks_exact_mut(COLUMNS)) {
        let Some(size) = plain else {
            w.read(row, columns.start, &mut to[..columns.len()]);
            continue;
        };
        let line = &w.row(row)[columns.start * size..][..COLUMNS * size];
        let (low, high) = line.split_at(LANES * size);
        store(&mut to[..LANES], widened(w.stored, low));
        store(&mut to[LANES..], widened(w.stored, high));
    }
}

/// Where a tile goes, its rows `stride` values apart.
struct Place<'a> {
    c: *mut f32,
    alpha: f32,
    /// What it is added to, laid out as C is.
    onto: Option<*const f32>,
    /// Added to each row.
    bias: Option<&'a [f32]>,
    stride: usize,
    /// How many are in C.
    rows: usize,
    columns: usize,
}

/// Writes a tile of `A · B` to its place.
///
/// # Safety
/// AVX2 and FMA; each row of A has as many values as the panel has steps; the rows and columns of C are the caller's alone,
/// and what they are added to has as many.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile(a: [*const f32; ROWS], b: &[f32], place: &Place<'_>) {
    // While the sums are made, what they are added to and their place come nearer.
    for i in 0..place.rows {
        for at in [0, place.columns - 1] {
            let at = i * place.stride + at;
            let to = place.onto.unwrap_or(place.c).wrapping_add(at);
            _mm_prefetch::<_MM_HINT_T0>(to.cast());
        }
    }
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for (step, b) in b.as_chunks::<COLUMNS>().0.iter().enumerate() {
        let b = [load(&b[..LANES]), load(&b[LANES..])];
        for (sums, a) in sums.iter_mut().zip(a) {
            // SAFETY: the caller's.
            let a = _mm256_set1_ps(unsafe { *a.add(step) });
            sums[0] = _mm256_fmadd_ps(a, b[0], sums[0]);
            sums[1] = _mm256_fmadd_ps(a, b[1], sums[1]);
        }
    }
    let alpha = _mm256_set1_ps(place.alpha);
    for (i, sums) in sums.into_iter().enumerate().take(place.rows) {
        let at = i * place.stride;
        let sums = [_mm256_mul_ps(alpha, sums[0]), _mm256_mul_ps(alpha, sums[1])];
        if place.columns < COLUMNS {
            // SAFETY: the caller's.
            unsafe { put_some(sums, at, place) };
            continue;
        }
        for (half, mut sum) in sums.into_iter().enumerate() {
            if let Some(bias) = place.bias {
                sum = _mm256_add_ps(sum, load(&bias[half * LANES..]));
            }
            // SAFETY: the caller's.
            unsafe {
                if let Some(onto) = place.onto {
                    sum = _mm256_add_ps(sum, _mm256_loadu_ps(onto.add(at + half * LANES)));
                }
                _mm256_storeu_ps(place.c.add(at + half * LANES), sum);
            }
        }
    }
}

/// Writes the columns of a row, `at` values from the first, that are in C.
///
/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx2")]
unsafe fn put_some(sums: [__m256; 2], at: usize, place: &Place<'_>) {
    let mut line = [0.0; COLUMNS];
    store(&mut line[..LANES], sums[0]);
    store(&mut line[LANES..], sums[1]);
    for (j, mut sum) in line.into_iter().enumerate().take(place.columns) {
        sum += place.bias.map_or(0.0, |bias| bias[j]);
        // SAFETY: the caller's.
        unsafe {
            sum += place.onto.map_or(0.0, |onto| *onto.add(at + j));
            place.c.add(at + j).write(sum);
        }
    }
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

/// Transposes eight by eight values.
#[target_feature(enable = "avx2")]
fn transpose(r: [__m256; LANES]) -> [__m256; LANES] {
    let pair = |i: usize| (_mm256_unpacklo_ps(r[i], r[i + 1]), _mm256_unpackhi_ps(r[i], r[i + 1]));
    let four = |i: usize| {
        let ((a, b), (c, d)) = (pair(i), pair(i + 2));
        [
            _mm256_shuffle_ps::<0x44>(a, c),
            _mm256_shuffle_ps::<0xee>(a, c),
            _mm256_shuffle_ps::<0x44>(b, d),
            _mm256_shuffle_ps::<0xee>(b, d),
        ]
    };
    let (top, bottom) = (four(0), four(4));
    std::array::from_fn(|i| {
        let (a, b) = (top[i % 4], bottom[i % 4]);
        if i < 4 { _mm256_permute2f128_ps::<0x20>(a, b) } else { _mm256_permute2f128_ps::<0x31>(a, b) }
    })
}
