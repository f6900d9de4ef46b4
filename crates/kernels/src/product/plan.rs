//! How a product is cut into pieces, and in which order threads take them.

use std::ops::Range;

use crate::shares::Shares;

/// Panels of columns to a piece at most.
const PIECE_PANELS: usize = 4;

/// Panels of rows to a piece at least, where rows are cut to be shared: a panel of columns is packed again for each.
const LEAST: usize = 10;

/// The cutting of `C (m, n)` into tiles, panels and pieces.
pub(super) struct Plan {
    /// Panels of rows that are gone through together.
    per_piece: usize,
    panels: (usize, usize),
    shares: Shares,
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
        let least = panels.0.div_ceil((piece_rows / rows).min(panels.0));
        // More of them where panels of columns are few, or (say 9 for 2 threads) leave threads idle for long.
        let shares_well = |pieces: &usize| {
            let total = pieces * panels.1;
            total >= 2 * threads && 16 * (total.next_multiple_of(threads) - total) <= total
        };
        let pieces = (least..=panels.0 / LEAST).find(shares_well).filter(|_| threads > 1).unwrap_or(least);
        let per_piece = panels.0.div_ceil(pieces);
        let mut shares = Shares::new(threads);
        shares.fill(panels.0.div_ceil(per_piece) * panels.1);
        Self { per_piece, panels, shares }
    }

    /// The next piece for thread `thread`: some panels of columns, fewer towards the end, so that all threads finish together.
    pub(super) fn take(&self, thread: usize) -> Option<Piece> {
        let across = self.panels.1;
        let count = |at: usize, left: usize| (left / 2).clamp(1, PIECE_PANELS).min(across - at % across);
        let taken = self.shares.take(thread, count)?;
        let (first, panel) = (taken.start / across * self.per_piece, taken.start % across);
        let rows = self.per_piece.min(self.panels.0 - first);
        Some(Piece { m: first..first + rows, n: panel..panel + taken.len() })
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
                let taking = (0..threads).cycle().map_while(|thread| plan.take(thread));
                for Piece { m, n } in taking {
                    assert!(!m.is_empty() && !n.is_empty());
                    m.flat_map(|i| n.clone().map(move |j| (i, j)))
                        .for_each(|(i, j)| taken[i * plan.panels.1 + j] += 1);
                }
                assert!(taken.iter().all(|count| *count == 1), "{m} x {n} on {threads}: {taken:?}");
            }
        }
    }
}
