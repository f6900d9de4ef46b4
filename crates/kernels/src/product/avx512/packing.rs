//! How panels of W get into buffers: while the tiles of one panel are multiplied, the next is packed, some steps at a time,
//! each fetched from memory before its turn. (A whole panel fetched at once does not stay in the L2 cache, least of all where
//! the rows of W are 4 KiB apart.)

use std::arch::x86_64::*;

use super::Region;
use super::left::Block;
use super::right::{Packer, packer};
use crate::product::{Direction, Right};
use crate::{RowOrder, Stored};

/// Rows of A below which B, where it needs no conversion, is read in place: packing costs more than it saves.
const IN_PLACE: usize = 128;

/// Steps that are packed at a time: as many as a transposition takes.
const STEPS: usize = 16;

/// B, cut into panels of columns.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    right: Right<'a>,
    /// Vectors of 16 columns to a panel.
    vectors: usize,
    /// Values of the contraction to a step.
    per_step: usize,
    pack: Packer,
    in_place: bool,
}

impl<'a> Panels<'a> {
    /// For `m` rows of A, of pairs or not.
    pub(super) fn new(right: Right<'a>, vectors: usize, (m, pairs): (usize, bool)) -> Self {
        let in_place = !pairs
            && right.w.stored == Stored::F32
            && right.w.order == RowOrder::Plain
            && right.direction == Direction::Backward
            && m < IN_PLACE;
        let pack = packer(right.w.stored, right.direction, pairs);
        Self { right, vectors, per_step: if pairs { 2 } else { 1 }, pack, in_place }
    }

    /// Columns of panel `p`: the first, and how many.
    pub(super) fn columns(&self, p: usize) -> (usize, usize) {
        let (_, n) = self.right.dims();
        let width = 16 * self.vectors;
        (p * width, width.min(n - p * width))
    }

    /// Panel `p` of `block`, of which nothing is packed yet, for a buffer.
    pub(super) fn packing(self, p: usize, block: Block, buffer: *mut u32) -> Packing<'a> {
        let columns = self.columns(p);
        // A quantised row is widened by whole blocks.
        let whole = self.right.w.stored.block().max(4 * STEPS * self.per_step);
        let steps = match self.right.direction {
            Direction::Forward => whole / self.per_step,
            Direction::Backward => STEPS,
        };
        let to = (!self.in_place || columns.1 < 16 * self.vectors).then_some(buffer);
        let chunks = block.steps.div_ceil(steps);
        let mut packing =
            Packing { panels: self, columns, block, to, steps, chunks, packed: 0, fetched: 0, ahead: None };
        packing.ahead = Some(Ahead::new(&packing.region(0), self.right.w.stored));
        packing
    }
}

/// One panel: columns of B by a block of the contraction.
pub(super) struct Packing<'a> {
    panels: Panels<'a>,
    columns: (usize, usize),
    block: Block,
    /// Nothing where the panel is read where it lies.
    to: Option<*mut u32>,
    /// Steps to a chunk.
    steps: usize,
    chunks: usize,
    /// Chunks that are packed, and that are fetched.
    packed: usize,
    fetched: usize,
    /// The lines of the first chunk that is not.
    ahead: Option<Ahead>,
}

impl Packing<'_> {
    /// The part of W that is chunk `i`.
    fn region(&self, i: usize) -> Region {
        let Panels { ref right, per_step, .. } = self.panels;
        let (n0, n) = self.columns;
        let k0 = (i * self.steps * per_step).min(self.block.k);
        let k = (self.steps * per_step).min(self.block.k - k0);
        let k0 = self.block.k0 + k0;
        match right.direction {
            Direction::Forward => Region::new(&right.w, (n0, k0), (n, k)),
            Direction::Backward => Region::new(&right.w, (k0, n0), (k, n)),
        }
    }

    /// Packs what is due before part `i` of `parts` of other work, and fetches what is due after it: a chunk is packed when
    /// the time of one has passed since it was fetched.
    ///
    /// # Safety
    /// The packer's instructions exist; the buffer has room for the panel and is the caller's.
    #[inline]
    pub(super) unsafe fn advance(&mut self, i: usize, parts: usize) {
        let due = i * (self.chunks + 1) / parts;
        while self.packed + 1 < due {
            // SAFETY: the caller's.
            unsafe { self.pack() }
        }
        let (due, part) = ((i + 1) * (self.chunks + 1) / parts, (i + 1) * (self.chunks + 1) % parts);
        while self.fetched < due.min(self.chunks) {
            self.fetch(usize::MAX, 1);
        }
        self.fetch(part, parts);
    }

    /// Packs what is left, and gives the panel, and the words from step to step.
    ///
    /// # Safety
    /// As above.
    pub(super) unsafe fn panel(&mut self) -> (*const u32, usize) {
        while self.packed < self.chunks {
            while self.fetched < (self.packed + 3).min(self.chunks) {
                self.fetch(usize::MAX, 1);
            }
            // SAFETY: the caller's.
            unsafe { self.pack() }
        }
        if let Some(panel) = self.to {
            return (panel.cast_const(), 16 * self.panels.vectors);
        }
        let region = self.region(0);
        (region.row(0).cast(), region.stride / 4)
    }

    /// Packs a chunk.
    ///
    /// # Safety
    /// As above.
    unsafe fn pack(&mut self) {
        if let Some(to) = self.to {
            let vectors = self.panels.vectors;
            let to = to.wrapping_add(self.packed * self.steps * 16 * vectors);
            // SAFETY: the caller's; the region is inside W.
            unsafe { (self.panels.pack)(&self.region(self.packed), vectors, to) }
        }
        self.packed += 1;
    }

    /// Prefetches the lines of the chunk in turn, up to `part` of `parts` of them.
    #[inline]
    fn fetch(&mut self, part: usize, parts: usize) {
        let Some(ahead) = &mut self.ahead else { return };
        ahead.until(ahead.lines().min(part.saturating_mul(ahead.lines()) / parts));
        if ahead.done == ahead.lines() {
            self.fetched += 1;
            let left = self.fetched < self.chunks;
            self.ahead = left.then(|| Ahead::new(&self.region(self.fetched), self.panels.right.w.stored));
        }
    }
}

/// The cache lines of a region, to be prefetched.
struct Ahead {
    region: Region,
    /// Bytes of a row before what is needed.
    skipped: usize,
    /// Lines of a row.
    per_row: usize,
    row: usize,
    line: usize,
    /// All lines so far.
    done: usize,
}

impl Ahead {
    fn new(region: &Region, stored: Stored) -> Self {
        // Of a quantised row the blocks that the region lies in.
        let (first, end) =
            (region.at.1 / stored.block(), (region.at.1 + region.cols).div_ceil(stored.block()));
        let skipped = if stored.size().is_none() { first * stored.block_bytes() } else { 0 };
        let before = region.row(0).wrapping_add(skipped).addr() % LINE;
        let per_row = (before + (end - first) * stored.block_bytes()).div_ceil(LINE);
        Self { region: *region, skipped, per_row, row: 0, line: 0, done: 0 }
    }

    fn lines(&self) -> usize {
        self.region.rows * self.per_row
    }

    /// Prefetches lines until `done` are.
    #[inline]
    fn until(&mut self, done: usize) {
        while self.done < done {
            let at = self.region.row(self.row).wrapping_add(self.skipped + LINE * self.line);
            // SAFETY: a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
            self.done += 1;
            self.line += 1;
            if self.line == self.per_row {
                (self.row, self.line) = (self.row + 1, 0);
            }
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;
