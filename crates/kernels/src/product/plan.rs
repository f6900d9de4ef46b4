//! How a product is cut into pieces, and in which order threads take them.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Panels of columns to a piece at most.
const PIECE_PANELS: usize = 4;

/// Parts of a panel of columns that threads share, where there are rows enough.
const PARTS: usize = 4;

/// The cutting of `C (m, n)` into tiles, panels and pieces.
pub(super) struct Plan {
    /// Panels of rows that are gone through together.
    per_piece: usize,
    panels: (usize, usize),
    /// Parts of a panel of columns, of some of those rows each.
    parts: usize,
    threads: usize,
    next: AtomicUsize,
}

/// A piece of C: ranges of row panels and of column panels.
pub(super) struct Piece {
    pub(super) m: Range<usize>,
    pub(super) n: Range<usize>,
}

impl Plan {
    /// For tiles of `rows` and `columns`, in pieces of `piece_rows` at most: many use a packed panel often, few keep C and A
    /// in cache.
    pub(super) fn new(
        (m, n): (usize, usize),
        (rows, columns): (usize, usize),
        piece_rows: usize,
        threads: usize,
    ) -> Self {
        let panels = (m.div_ceil(rows), n.div_ceil(columns));
        let pieces = panels.0.div_ceil((piece_rows / rows).min(panels.0));
        let per_piece = panels.0.div_ceil(pieces);
        // Only where whole panels would be few, or (say 9 for 2 threads) leave a thread idle for more than 1/16 of the time: a
        // panel is packed again for each of its parts.
        let pieces = pieces * panels.1;
        let idle = pieces.next_multiple_of(threads) - pieces;
        let few = (4 * threads).div_ceil(pieces).min(per_piece / 4);
        let uneven = if 16 * idle > pieces { PARTS.min(per_piece / 8) } else { 1 };
        let parts = if threads > 1 { few.max(uneven).max(1) } else { 1 };
        Self { per_piece, panels, parts, threads, next: AtomicUsize::new(0) }
    }

    /// The next piece that no thread has taken: some whole panels of columns, fewer towards the end, and at last parts of one,
    /// so that all threads finish together.
    pub(super) fn take(&self) -> Option<Piece> {
        let (across, parts) = (self.panels.1, self.parts);
        let total = self.panels.0.div_ceil(self.per_piece) * across * parts;
        let count = |at: usize| {
            let (left, panel, part) = (total - at, at / parts % across, at % parts);
            if part > 0 || left <= (self.threads - 1) * parts {
                return (left / self.threads).clamp(1, parts - part);
            }
            let fair = (left / (2 * self.threads * parts)).clamp(1, PIECE_PANELS);
            fair.min(across - panel) * parts
        };
        let at = self.next.fetch_update(Relaxed, Relaxed, |at| (at < total).then(|| at + count(at))).ok()?;
        let (first, panel, part) = (at / parts / across * self.per_piece, at / parts % across, at % parts);
        let (whole, rest) = (count(at) / parts, count(at) % parts);
        if whole > 0 {
            return Some(Piece { m: self.rows(first, 0..parts), n: panel..panel + whole });
        }
        Some(Piece { m: self.rows(first, part..part + rest), n: panel..panel + 1 })
    }

    /// Some parts of the panels of rows from `first` on.
    fn rows(&self, first: usize, parts: Range<usize>) -> Range<usize> {
        let rows = self.per_piece.min(self.panels.0 - first);
        let row = |part: usize| first + rows * part / self.parts;
        row(parts.start)..row(parts.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_is_taken_once() {
        for (m, n) in [(1, 1), (6, 64), (509, 576), (512, 192), (1100, 4864), (128, 64), (2048, 100)] {
            for threads in [1, 2, 3, 16] {
                let plan = Plan::new((m, n), (6, 64), 528, threads);
                let mut taken = vec![0; plan.panels.0 * plan.panels.1];
                while let Some(Piece { m, n }) = plan.take() {
                    assert!(!m.is_empty() && !n.is_empty());
                    m.flat_map(|i| n.clone().map(move |j| (i, j)))
                        .for_each(|(i, j)| taken[i * plan.panels.1 + j] += 1);
                }
                assert!(taken.iter().all(|count| *count == 1), "{m} x {n} on {threads}: {taken:?}");
            }
        }
    }
}
