//! The blocked product: threads take pieces of C; for each panel of columns and block of the contraction, B is packed
//! and all rows of the piece are multiplied with it.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::kernel::{Kernel, Tile, full_rows, kernel};
use super::left::{Block, Left};
use super::right::{Packer, SURPLUS, packer};
use super::{Line, Region};
use crate::pool::{self, Disjoint};
use crate::product::plan::{Piece, Plan};
use crate::product::{Direction, Right};
use crate::{RowOrder, Stored};

/// Rows of A below which B, where it needs no conversion, is read in place: packing costs more than it saves.
const IN_PLACE: usize = 128;

/// Rows of C to a piece.
const PIECE_ROWS: usize = 528;

/// The part of W that is columns `n0..n0 + n` of B in `block`.
fn region(right: &Right<'_>, (n0, n): (usize, usize), block: Block) -> Region {
    match right.direction {
        Direction::Forward => Region::new(&right.w, (n0, block.k0), (n, block.k)),
        Direction::Backward => Region::new(&right.w, (block.k0, n0), (block.k, n)),
    }
}

thread_local! {
    /// This thread's packed panel.
    static PANEL: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// `C = A · B`, or `C += A · B` where `add`.
///
/// # Safety
/// AVX-512 F, BW, VL, and BF16 if A is of pairs.
pub(super) unsafe fn blocked(a: &Left<'_>, right: Right<'_>, c: &mut [f32], add: bool) {
    let (k, n) = right.dims();
    assert!(a.k == k && c.len() == a.m * n);
    let vectors = if a.pairs { 4 } else { n.div_ceil(16).min(4).next_power_of_two() };
    let threads = pool::width();
    let rows = full_rows(vectors);
    let call = Call {
        a,
        right,
        n,
        add,
        c: Disjoint::new(c),
        pack: packer(right.w.stored, right.direction, a.pairs),
        full: kernel(a.pairs, rows.min(a.m), vectors),
        rows,
        vectors,
        plan: Plan::new((a.m, n), (rows, 16 * vectors), PIECE_ROWS, threads),
    };
    let lines = (a.longest() + SURPLUS) * vectors;
    pool::for_each(threads, |_| {
        PANEL.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max(lines), Line([0; 16]));
            let panel = buffer.as_mut_ptr().cast();
            while let Some(piece) = call.plan.take() {
                // SAFETY: the caller's; the buffer has room for a panel.
                unsafe { call.piece(&piece, panel) }
            }
        });
    });
}

struct Call<'a> {
    a: &'a Left<'a>,
    right: Right<'a>,
    n: usize,
    add: bool,
    c: Disjoint<'a, f32>,
    pack: Packer,
    full: Kernel,
    /// Of a tile: its rows, and its vectors of 16 columns.
    rows: usize,
    vectors: usize,
    plan: Plan,
}

impl Call<'_> {
    /// Columns of panel `p`: the first, and how many.
    fn columns(&self, p: usize) -> (usize, usize) {
        let width = 16 * self.vectors;
        (p * width, width.min(self.n - p * width))
    }

    /// # Safety
    /// The instructions exist; `panel` has room for a panel.
    unsafe fn piece(&self, piece: &Piece, panel: *mut u32) {
        for b in 0..self.a.blocks() {
            for p in piece.n.clone() {
                // SAFETY: the caller's.
                let (words, stride) = unsafe { self.panel(p, b, panel) };
                let mut ahead = self.ahead(piece, p, b);
                let share = ahead.lines().div_ceil(piece.m.len());
                for i in piece.m.clone() {
                    ahead.some(share);
                    let (row, (n0, cols)) = (i * self.rows, self.columns(p));
                    let rows = self.rows.min(self.a.m - row);
                    let tile = Tile {
                        steps: self.a.block(b).steps,
                        a: self.a.at(row, b),
                        lda: self.a.stride(),
                        b: words,
                        ldb: stride,
                        c: self.c.as_mut_ptr().wrapping_add(row * self.n + n0),
                        ldc: self.n,
                        cols,
                        add: self.add || b > 0,
                    };
                    let full = rows == self.rows;
                    let kernel = if full { self.full } else { kernel(self.a.pairs, rows, self.vectors) };
                    // SAFETY: the caller's; A and the panel hold these rows, columns and steps, and this piece of C
                    // belongs to this thread.
                    unsafe { kernel(&tile) }
                }
            }
        }
    }

    /// Panel `p` of block `b`, and the words from step to step: packed into `panel`, or where it lies.
    ///
    /// # Safety
    /// As for `piece`.
    unsafe fn panel(&self, p: usize, b: usize, panel: *mut u32) -> (*const u32, usize) {
        let vectors = self.vectors;
        let region = region(&self.right, self.columns(p), self.a.block(b));
        let as_is = !self.a.pairs
            && self.right.w.stored == Stored::F32
            && self.right.direction == Direction::Backward
            && region.cols == 16 * vectors;
        if as_is && self.a.m < IN_PLACE && region.order == RowOrder::Plain {
            return (region.row(0).cast(), region.stride / 4);
        }
        // SAFETY: the caller's; the region is inside W.
        unsafe { (self.pack)(&region, vectors, panel) };
        (panel, 16 * vectors)
    }

    /// What will be packed after panel `p` of block `b`: the next panel in this block, or the first in the next.
    fn ahead(&self, piece: &Piece, p: usize, b: usize) -> Ahead {
        let (p, b) = if p + 1 < piece.n.end { (p + 1, b) } else { (piece.n.start, b + 1) };
        let region = region(&self.right, self.columns(p), self.a.block(b));
        let stored = self.right.w.stored;
        // Of a quantised row the blocks that the region lies in.
        let (first, end) =
            (region.at.1 / stored.block(), (region.at.1 + region.cols).div_ceil(stored.block()));
        let skipped = if stored.size().is_none() { first * stored.block_bytes() } else { 0 };
        let lines = ((end - first) * stored.block_bytes()).div_ceil(64);
        Ahead { region, skipped, lines, row: 0, line: 0 }
    }
}

/// Walks over the cache lines of a region, to prefetch it.
struct Ahead {
    region: Region,
    /// Bytes of a row before what is needed.
    skipped: usize,
    /// Lines of a row.
    lines: usize,
    row: usize,
    line: usize,
}

impl Ahead {
    fn lines(&self) -> usize {
        self.region.rows * self.lines
    }

    /// Prefetches the next `count` lines.
    #[inline]
    fn some(&mut self, count: usize) {
        for _ in 0..count {
            if self.row == self.region.rows {
                return;
            }
            let at = self.region.row(self.row).wrapping_add(self.skipped + 64 * self.line);
            // SAFETY: a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
            self.line += 1;
            if self.line == self.lines {
                (self.row, self.line) = (self.row + 1, 0);
            }
        }
    }
}
