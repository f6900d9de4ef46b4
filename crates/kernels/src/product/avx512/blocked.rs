//! The blocked product: threads take pieces of C; for each panel of columns and block of the contraction, B is packed
//! and all rows of the piece are multiplied with it.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use super::Line;
use super::kernel::{self, Factors, Kernel, Tile, full_rows, kernel};
use super::left::Left;
use super::packing::{Packing, Panels};
use super::right::SURPLUS;
use crate::pool::{self, Disjoint};
use crate::product::plan::{Piece, Plan};
use crate::product::{self, Rest, Right};

/// Rows of C to a piece.
const PIECE_ROWS: usize = 528;

thread_local! {
    /// This thread's packed panels.
    static PANELS: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Writes the `rest` of `A · B` into all of `c`, or adds it to `c` where `add`.
///
/// # Safety
/// AVX-512 F, BW, VL, and BF16 if A is of pairs; `c` has values where it is added to.
pub(in crate::product) unsafe fn tiles(
    a: &Left<'_>,
    right: Right<'_>,
    c: &mut [MaybeUninit<f32>],
    (add, rest): (bool, &Rest<'_>),
) {
    let (k, n) = right.dims();
    assert!(a.k == k && c.len() == a.m * n);
    let vectors = n.div_ceil(16).min(4).next_power_of_two();
    let threads = pool::width();
    let rows = full_rows(vectors);
    let call = Call {
        a,
        panels: Panels::new(right, vectors, (a.m, a.pairs)),
        n,
        // SAFETY: the caller's.
        term: rest.term.map(|term| unsafe { Term::new(&term, (a.m, n), (vectors, a.pairs)) }),
        add,
        rest,
        c: Disjoint::new(c),
        full: kernel(a.pairs, rows.min(a.m), vectors),
        rows,
        vectors,
        plan: Plan::new((a.m, n), (rows, 16 * vectors), PIECE_ROWS, threads),
    };
    let room = |steps: usize| (steps + SURPLUS) * vectors;
    let lines = room(a.longest());
    let more = call.term.as_ref().map_or(0, |term| room(term.u.longest()));
    pool::for_each(threads, |thread| {
        PANELS.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max(2 * lines + more), Line([0; 16]));
            let (one, others) = buffer.split_at_mut(lines);
            let (other, term) = others.split_at_mut(lines);
            let buffers = [one, other, term].map(|buffer| buffer.as_mut_ptr().cast());
            while let Some(piece) = call.plan.take(thread) {
                // SAFETY: the caller's; each buffer has room for its panel.
                unsafe { call.piece(&piece, buffers) }
            }
        });
    });
}

struct Call<'a> {
    a: &'a Left<'a>,
    panels: Panels<'a>,
    n: usize,
    term: Option<Term<'a>>,
    add: bool,
    rest: &'a Rest<'a>,
    c: Disjoint<'a, MaybeUninit<f32>>,
    full: Kernel,
    /// Of a tile: its rows, and its vectors of 16 columns.
    rows: usize,
    vectors: usize,
    plan: Plan,
}

/// A low-rank term: more steps of the last block.
struct Term<'a> {
    u: Left<'a>,
    panels: Panels<'a>,
}

impl<'a> Term<'a> {
    /// For panels of some `vectors`, of pairs or not.
    ///
    /// # Safety
    /// AVX-512 F, BW, VL, and BF16 for pairs.
    unsafe fn new(term: &product::Term<'a>, (m, n): (usize, usize), (vectors, pairs): (usize, bool)) -> Self {
        let u = Left::exact(term.u, m, term.rank);
        // SAFETY: the caller's.
        let u = if pairs { unsafe { u.in_pairs() } } else { u };
        Self { u: u.whole(), panels: Panels::new(term.right(n), vectors, (m, pairs)) }
    }
}

/// Words of a panel of B, and from step to step.
type Panel = (*const u32, usize);

impl Call<'_> {
    /// # Safety
    /// The instructions exist; the first two buffers have room for a panel, the last for one of the term.
    unsafe fn piece(&self, piece: &Piece, buffers: [*mut u32; 3]) {
        let blocks = self.a.blocks();
        let all = blocks * piece.n.len();
        let place = |i: usize| (i / piece.n.len(), piece.n.start + i % piece.n.len());
        let packing = |i: usize| {
            let (b, p) = place(i);
            self.panels.packing(p, self.a.block(b), buffers[i % 2])
        };
        let mut this = packing(0);
        for i in 0..all {
            let mut next = (i + 1 < all).then(|| packing(i + 1));
            let (b, p) = place(i);
            // SAFETY: the caller's; the buffer of the next panel is the other one.
            unsafe {
                let panel = this.panel();
                let term = self.term.as_ref().filter(|_| b + 1 == blocks);
                let term = term.map(|term| term.panels.packing(p, term.u.block(0), buffers[2]).panel());
                self.panel(piece, (b, p), (panel, term), next.as_mut());
            }
            match next {
                Some(next) => this = next,
                None => break,
            }
        }
    }

    /// The tiles of panel `p` of block `b` in a piece, and in the last block of the term's, while the `next` panel is packed.
    ///
    /// # Safety
    /// The instructions exist; the panels are packed, and the next one's buffer is another.
    unsafe fn panel(
        &self,
        piece: &Piece,
        (b, p): (usize, usize),
        (panel, of_term): (Panel, Option<Panel>),
        mut next: Option<&mut Packing<'_>>,
    ) {
        let (n0, cols) = self.panels.columns(p);
        let factors = |left: &Left<'_>, row: usize, b: usize, (words, stride): Panel| Factors {
            steps: left.block(b).steps,
            a: left.at(row, b),
            lda: left.stride(),
            b: words,
            ldb: stride,
        };
        for i in piece.m.clone() {
            if let Some(next) = &mut next {
                // SAFETY: the caller's.
                unsafe { next.advance(i - piece.m.start, piece.m.len()) }
            }
            let row = i * self.rows;
            let rows = self.rows.min(self.a.m - row);
            let start = row * self.n + n0;
            let term = self.term.as_ref().zip(of_term);
            let tile = Tile {
                main: factors(self.a, row, b, panel),
                term: term.map(|(term, panel)| factors(&term.u, row, 0, panel)),
                c: self.c.as_mut_ptr().wrapping_add(start).cast::<f32>(),
                ldc: self.n,
                cols,
                add: self.add || b > 0,
                rest: if b + 1 == self.a.blocks() {
                    self.rest_at(start, n0)
                } else {
                    kernel::Rest::default()
                },
            };
            let kernel = if rows == self.rows { self.full } else { kernel(self.a.pairs, rows, self.vectors) };
            // SAFETY: the caller's; A and the panels hold these rows, columns and steps, and this piece of C belongs
            // to this thread.
            unsafe { kernel(&tile) }
        }
    }

    /// The rest of a tile whose first value is at `start` of C, and whose first column is `n0`.
    fn rest_at(&self, start: usize, n0: usize) -> kernel::Rest {
        let at = |values: Option<&[f32]>, at: usize| values.map(|values| values[at..].as_ptr());
        let Rest { gain, bias, onto, .. } = *self.rest;
        kernel::Rest { gain: at(gain, n0), bias: at(bias, n0), onto: at(onto, start) }
    }
}
