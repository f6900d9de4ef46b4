//! The blocked product: threads take pieces of C; for each panel of columns and block of the contraction, B is packed
//! and all rows of the piece are multiplied with it.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use super::Line;
use super::kernel::{Kernel, Tile, full_rows, kernel};
use super::left::Left;
use super::packing::{Packing, Panels};
use super::right::SURPLUS;
use crate::pool::{self, Disjoint};
use crate::product::plan::{Piece, Plan};
use crate::product::{Onto, Right};

/// Rows of C to a piece.
const PIECE_ROWS: usize = 528;

thread_local! {
    /// This thread's packed panels.
    static PANELS: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Writes `A · B` and what it is added `onto` into all of `c`.
///
/// # Safety
/// AVX-512 F, BW, VL, and BF16 if A is of pairs; `c` has values where it is added to itself.
pub(super) unsafe fn blocked(a: &Left<'_>, right: Right<'_>, c: &mut [MaybeUninit<f32>], onto: Onto<'_>) {
    let (k, n) = right.dims();
    assert!(a.k == k && c.len() == a.m * n);
    onto.check(a.m, n);
    let vectors = if a.pairs { 4 } else { n.div_ceil(16).min(4).next_power_of_two() };
    let threads = pool::width();
    let rows = full_rows(vectors);
    let call = Call {
        a,
        panels: Panels::new(right, vectors, (a.m, a.pairs)),
        n,
        onto,
        c: Disjoint::new(c),
        full: kernel(a.pairs, rows.min(a.m), vectors),
        rows,
        vectors,
        plan: Plan::new((a.m, n), (rows, 16 * vectors), PIECE_ROWS, threads),
    };
    let lines = (a.longest() + SURPLUS) * vectors;
    pool::for_each(threads, |_| {
        PANELS.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max(2 * lines), Line([0; 16]));
            let (one, other) = buffer.split_at_mut(lines);
            let buffers = [one.as_mut_ptr().cast(), other.as_mut_ptr().cast()];
            while let Some(piece) = call.plan.take() {
                // SAFETY: the caller's; each buffer has room for a panel.
                unsafe { call.piece(&piece, buffers) }
            }
        });
    });
}

struct Call<'a> {
    a: &'a Left<'a>,
    panels: Panels<'a>,
    n: usize,
    onto: Onto<'a>,
    c: Disjoint<'a, MaybeUninit<f32>>,
    full: Kernel,
    /// Of a tile: its rows, and its vectors of 16 columns.
    rows: usize,
    vectors: usize,
    plan: Plan,
}

impl Call<'_> {
    /// # Safety
    /// The instructions exist; each buffer has room for a panel.
    unsafe fn piece(&self, piece: &Piece, buffers: [*mut u32; 2]) {
        let all = self.a.blocks() * piece.n.len();
        let place = |i: usize| (i / piece.n.len(), piece.n.start + i % piece.n.len());
        let packing = |i: usize| {
            let (b, p) = place(i);
            self.panels.packing(p, self.a.block(b), buffers[i % 2])
        };
        let mut this = packing(0);
        for i in 0..all {
            let mut next = (i + 1 < all).then(|| packing(i + 1));
            // SAFETY: the caller's; the buffer of the next panel is the other one.
            unsafe {
                let panel = this.panel();
                self.tiles(piece, place(i), panel, next.as_mut());
            }
            match next {
                Some(next) => this = next,
                None => break,
            }
        }
    }

    /// The tiles of panel `p` of block `b` in a piece, while the `next` panel is packed.
    ///
    /// # Safety
    /// The instructions exist; the panel is packed, and the next one's buffer is another.
    unsafe fn tiles(
        &self,
        piece: &Piece,
        (b, p): (usize, usize),
        (words, stride): (*const u32, usize),
        mut next: Option<&mut Packing<'_>>,
    ) {
        let (n0, cols) = self.panels.columns(p);
        for i in piece.m.clone() {
            if let Some(next) = &mut next {
                // SAFETY: the caller's.
                unsafe { next.advance(i - piece.m.start, piece.m.len()) }
            }
            let row = i * self.rows;
            let rows = self.rows.min(self.a.m - row);
            let start = row * self.n + n0;
            let c = self.c.as_mut_ptr().wrapping_add(start).cast::<f32>();
            let (onto, bias) = self.onto.at((c, start), n0..n0 + cols, b == 0);
            let tile = Tile {
                steps: self.a.block(b).steps,
                a: self.a.at(row, b),
                lda: self.a.stride(),
                b: words,
                ldb: stride,
                c,
                ldc: self.n,
                cols,
                onto,
                bias: bias.map(<[f32]>::as_ptr),
            };
            let kernel = if rows == self.rows { self.full } else { kernel(self.a.pairs, rows, self.vectors) };
            // SAFETY: the caller's; A and the panel hold these rows, columns and steps, and this piece of C belongs
            // to this thread.
            unsafe { kernel(&tile) }
        }
    }
}
