//! How a product is cut into pieces, and in which order threads take them.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Panels of columns to a piece at most.
const PIECE_PANELS: usize = 4;

/// The cutting of `C (m, n)` into tiles, panels and pieces.
pub(super) struct Plan {
    /// Panels of rows to a piece.
    per_piece: usize,
    panels: (usize, usize),
    threads: usize,
    next: AtomicUsize,
}

/// A piece of C: ranges of row panels and of column panels.
pub(super) struct Piece {
    pub(super) m: std::ops::Range<usize>,
    pub(super) n: std::ops::Range<usize>,
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
        let mut per_piece = panels.0.div_ceil(pieces);
        // Fewer rows to a piece where the pieces would be few, or (say 9 for 2 threads) leave a thread idle for more
        // than 1/16 of the time.
        let uneven = |per_piece: usize| {
            let pieces = panels.0.div_ceil(per_piece) * panels.1;
            threads > 1 && (pieces < 4 * threads || 16 * (pieces.next_multiple_of(threads) - pieces) > pieces)
        };
        while uneven(per_piece) && per_piece > 4 {
            per_piece = per_piece.div_ceil(2);
        }
        Self { per_piece, panels, threads, next: AtomicUsize::new(0) }
    }

    /// The next piece that no thread has taken: fewer panels of columns to a piece towards the end, so that all
    /// threads finish together.
    pub(super) fn take(&self) -> Option<Piece> {
        let across = self.panels.1;
        let total = self.panels.0.div_ceil(self.per_piece) * across;
        let panels = |at: usize| {
            let fair = ((total - at) / (2 * self.threads)).clamp(1, PIECE_PANELS);
            fair.min(across - at % across)
        };
        let at = self.next.fetch_update(Relaxed, Relaxed, |at| (at < total).then(|| at + panels(at))).ok()?;
        let (i, j) = (at / across * self.per_piece, at % across);
        Some(Piece { m: i..(i + self.per_piece).min(self.panels.0), n: j..j + panels(at) })
    }
}
