//! Products in AVX2 and FMA, for machines without AVX-512: `C = A · B`, where `B` is `W` or its transpose.
//!
//! `A` is copied once for any number of products, in the order in which tiles read it; `B` is widened to f32 one panel of 16
//! columns at a time, just before the panel is used. A tile is 6 rows of C by two vectors: twelve sums, two vectors of B and
//! a value of A fill the sixteen registers.
//!
//! Everything `unsafe` here is so for two reasons: pointers, whose bounds each function states, and instructions, which
//! [`super::Kernels`] has found to exist.

#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "intrinsics, whose names say where they are from")
)]
#![expect(unsafe_code, reason = "vector instructions on pointers into slices")]

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::plan::{Piece, Plan};
use super::portable::to_bf16;
use super::{Direction, Matrix, Right};
use crate::Stored;
use crate::buffers::zeros;
use crate::pool::{self, Disjoint};

/// Rows and columns of a tile.
const ROWS: usize = 6;
const COLUMNS: usize = 16;
/// Longest block of the contraction: a panel is then 64 KiB.
const DEPTH: usize = 1024;
/// Values of a vector.
const LANES: usize = 8;

/// `A` `(m, k)`, tile by tile: of each step the values of a tile's rows. The last tile's surplus rows are zeros.
pub(super) struct Left {
    values: Vec<f32>,
    m: usize,
    k: usize,
    /// Whether A is rounded to bf16, as B is then too.
    rounded: bool,
}

impl Left {
    /// `a (m, k)`, rounded to bf16 or as it is.
    ///
    /// # Safety
    /// AVX2.
    pub(super) unsafe fn new(a: &[f32], (m, k): (usize, usize), rounded: bool) -> Self {
        assert!(m > 0 && k > 0 && a.len() == m * k);
        let mut values = zeros(m.div_ceil(ROWS) * ROWS * k);
        pool::for_each_chunk(&mut values, ROWS * k, |tile, out| {
            // SAFETY: the caller's.
            unsafe { interleave(&a[tile * ROWS * k..m.min((tile + 1) * ROWS) * k], k, out) }
            if rounded {
                to_bf16(out);
            }
        });
        Self { values, m, k, rounded }
    }

    /// The steps of tile `tile` in `block`.
    fn tile(&self, tile: usize, block: &Range<usize>) -> &[f32] {
        let first = tile * ROWS * self.k;
        &self.values[first + block.start * ROWS..first + block.end * ROWS]
    }
}

/// Hands value `j` of row `i` of `a`, at most `ROWS` rows of `k`, to place `(j, i)` of `out`.
#[target_feature(enable = "avx2")]
fn interleave(a: &[f32], k: usize, out: &mut [f32]) {
    let vectors = if a.len() == ROWS * k { k / LANES } else { 0 };
    for v in 0..vectors {
        let mut lines = [_mm256_setzero_ps(); LANES];
        for (line, row) in lines.iter_mut().zip(a.chunks_exact(k)) {
            *line = load(&row[v * LANES..][..LANES]);
        }
        for (line, at) in transpose(lines).into_iter().zip((v * LANES * ROWS..).step_by(ROWS)) {
            // Two values more than the step has, which the next step's replace.
            if let Some(out) = out.get_mut(at..at + LANES) {
                store(out, line);
            } else {
                let mut whole = [0.0; LANES];
                store(&mut whole, line);
                out[at..at + ROWS].copy_from_slice(&whole[..ROWS]);
            }
        }
    }
    for (i, row) in a.chunks_exact(k).enumerate() {
        for (j, &value) in row.iter().enumerate().skip(vectors * LANES) {
            out[j * ROWS + i] = value;
        }
    }
}

thread_local! {
    /// This thread's panel, and rows of W on their way into it.
    static BUFFERS: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// `C = A · B`, or `C += A · B` where `add`.
///
/// # Safety
/// AVX2, FMA and F16C.
pub(super) unsafe fn product(a: &Left, right: Right<'_>, c: &mut [f32], add: bool) {
    let (k, n) = right.dims();
    assert!(a.k == k && c.len() == a.m * n);
    let threads = pool::width();
    let plan = Plan::new((a.m, n), (ROWS, COLUMNS), threads);
    let call = Call { a, right, n, add, c: Disjoint::new(c) };
    pool::for_each(threads, |_| {
        BUFFERS.with_borrow_mut(|(panel, lines)| {
            panel.resize(DEPTH * COLUMNS, 0.0);
            while let Some(piece) = plan.take() {
                // SAFETY: the caller's; the plan gives each piece of C to one thread.
                unsafe { call.piece(&piece, panel, lines) }
            }
        });
    });
}

struct Call<'a> {
    a: &'a Left,
    right: Right<'a>,
    n: usize,
    add: bool,
    c: Disjoint<'a, f32>,
}

impl Call<'_> {
    /// # Safety
    /// The instructions exist; the piece of C is the caller's alone.
    unsafe fn piece(&self, piece: &Piece, panel: &mut [f32], lines: &mut Vec<f32>) {
        let k = self.a.k;
        // Blocks of almost equal length.
        let depth = k.div_ceil(k.div_ceil(DEPTH));
        for start in (0..k).step_by(depth) {
            let block = start..k.min(start + depth);
            let panel = &mut panel[..block.len() * COLUMNS];
            for p in piece.n.clone() {
                let columns = p * COLUMNS..self.n.min((p + 1) * COLUMNS);
                // SAFETY: the caller's.
                unsafe { self.fill(&columns, &block, panel, lines) };
                for i in piece.m.clone() {
                    let rows = i * ROWS..self.a.m.min((i + 1) * ROWS);
                    let add = self.add || start > 0;
                    // SAFETY: the caller's; these rows and columns are in C.
                    unsafe {
                        let c = self.c.as_mut_ptr().add(rows.start * self.n + columns.start);
                        tile(self.a.tile(i, &block), panel, (c, self.n), (rows.len(), columns.len()), add);
                    }
                }
            }
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
        let w = &self.right.w;
        // SAFETY: the caller's.
        unsafe {
            match self.right.direction {
                Direction::Forward => along(w, columns, block, panel, lines),
                Direction::Backward => across(w, columns, block, panel),
            }
        }
        if self.a.rounded && w.stored != Stored::Bf16 {
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

/// `C (+)= A · B` of a tile, of which the first `rows` and `columns` are in C, whose rows are `stride` values apart.
///
/// # Safety
/// AVX2 and FMA; those rows and columns are the caller's alone.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile(
    a: &[f32],
    b: &[f32],
    (c, stride): (*mut f32, usize),
    (rows, columns): (usize, usize),
    add: bool,
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for (a, b) in a.as_chunks::<ROWS>().0.iter().zip(b.as_chunks::<COLUMNS>().0) {
        let b = [load(&b[..LANES]), load(&b[LANES..])];
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = _mm256_set1_ps(*a);
            sums[0] = _mm256_fmadd_ps(a, b[0], sums[0]);
            sums[1] = _mm256_fmadd_ps(a, b[1], sums[1]);
        }
    }
    for (i, sums) in sums.iter().enumerate().take(rows) {
        // SAFETY: the caller's.
        let c = unsafe { std::slice::from_raw_parts_mut(c.add(i * stride), columns) };
        let mut line = [0.0; COLUMNS];
        let (low, high) = line.split_at_mut(LANES);
        store(low, sums[0]);
        store(high, sums[1]);
        if add {
            c.iter_mut().zip(line).for_each(|(c, sum)| *c += sum);
        } else {
            c.copy_from_slice(&line[..columns]);
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
