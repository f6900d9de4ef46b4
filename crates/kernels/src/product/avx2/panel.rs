//! Panels of 16 columns of B, widened from `W` step by step.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{COLUMNS, LANES, store, widened};
use crate::Stored;
use crate::product::Matrix;

/// Columns of B are rows of W, transposed eight by eight values at a time.
///
/// # Safety
/// AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn along(
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
pub(super) unsafe fn across(w: &Matrix<'_>, columns: &Range<usize>, rows: &Range<usize>, panel: &mut [f32]) {
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
