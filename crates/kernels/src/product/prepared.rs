//! The left operand of products: activations, converted once for any number of them.

use std::borrow::Cow;

use half::bf16;

use super::{Direction, Kernels, Rest, Right, Term, portable};
#[cfg(target_arch = "x86_64")]
use super::{Simd, avx2, avx512};
#[cfg(target_arch = "x86_64")]
use crate::buffers::made;
use crate::buffers::{copied, rows, zeros};
use crate::{Compute, Stored, parts};

/// Activations `(m, k)` as the left operand of any number of products, converted once.
pub(crate) struct Prepared<'a> {
    pub(super) kernels: Kernels,
    /// Empty where only pairs are left of them.
    exact: Cow<'a, [f32]>,
    pub(super) left: Left<'a>,
    pub(super) m: usize,
    pub(super) k: usize,
}

/// How the values are multiplied.
pub(super) enum Left<'a> {
    /// As they are.
    Exact,
    /// Rounded to bf16, held as f32.
    Rounded(Cow<'a, [f32]>),
    /// Rounded to bf16.
    #[cfg(target_arch = "x86_64")]
    Pairs(avx512::Left<'a>),
}

/// A row, as it is held.
#[derive(Clone, Copy)]
pub(crate) enum Row<'a> {
    F32(&'a [f32]),
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "of AVX-512 alone"))]
    Bf16(&'a [bf16]),
}

impl Kernels {
    /// See [`Prepared::new`].
    pub(super) fn prepare<'a>(
        self,
        compute: Compute,
        values: impl Into<Cow<'a, [f32]>>,
        k: usize,
    ) -> Prepared<'a> {
        let exact = values.into();
        let m = exact.len().checked_div(k).unwrap_or(0);
        assert!(exact.len() == m * k, "{} values in rows of {k}", exact.len());
        let left = match compute {
            _ if exact.is_empty() => Left::Exact,
            Compute::F32 => Left::Exact,
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `self` says that the instructions exist.
            Compute::Bf16 if self.in_pairs(compute) => {
                Left::Pairs(unsafe { avx512::Left::rounded(&exact, m, k) })
            }
            Compute::Bf16 => {
                let mut copy = exact.to_vec();
                portable::to_bf16(&mut copy);
                Left::Rounded(copy.into())
            }
        };
        Prepared { kernels: self, exact, left, m, k }
    }

    /// Whether operands are held in bf16.
    fn in_pairs(self, compute: Compute) -> bool {
        self == Self::Avx512Bf16 && compute == Compute::Bf16
    }
}

/// Operands that are made together.
#[derive(Clone, Copy)]
pub(crate) struct Made<'a> {
    /// How many are made row by row, of m rows of k values each.
    pub(crate) count: usize,
    pub(crate) m: usize,
    pub(crate) k: usize,
    /// More, as they are.
    pub(crate) besides: &'a [&'a [f32]],
}

impl Prepared<'static> {
    /// The operands of which `write(i, rows)` makes row `i`, and those besides them; what the rows held is not to be read.
    /// Values that are rounded are not held themselves, unless they are wanted `exact` as well, or there are so few rows that
    /// K-quants may ask for them.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_variables, reason = "nothing is held in pairs there")
    )]
    pub(crate) fn made(
        compute: Compute,
        what: Made<'_>,
        exact: bool,
        write: impl Fn(usize, &mut [&mut [f32]]) + Sync,
    ) -> Vec<Self> {
        let Made { count, m, k, besides } = what;
        let kernels = Kernels::in_force();
        #[cfg(target_arch = "x86_64")]
        if kernels.in_pairs(compute) && !exact && m > avx2::AS_INTEGERS && k > 0 {
            // SAFETY: there are pairs only where the instructions are.
            let made = unsafe { avx512::Left::made(what, write) };
            let rounded = |left| Self { kernels, exact: Cow::default(), left: Left::Pairs(left), m, k };
            return made.into_iter().map(rounded).collect();
        }
        let made = rows((count, m, k), write).into_iter();
        made.chain(besides.iter().map(|values| copied(values)))
            .map(|values| kernels.prepare(compute, values, k))
            .collect()
    }
}

impl<'a> Prepared<'a> {
    /// What `make` makes of each row of `values`, in their place; what it gives for row `i` becomes `given[i]`. One row of
    /// each, at least.
    pub(crate) fn within(
        compute: Compute,
        values: &'a mut [f32],
        given: &mut [f32],
        make: impl Fn(usize, &mut [f32]) -> f32 + Sync,
    ) -> Self {
        let kernels = Kernels::in_force();
        let k = values.len() / given.len();
        #[cfg(target_arch = "x86_64")]
        if kernels.in_pairs(compute) && given.len() > avx2::AS_INTEGERS {
            let m = given.len();
            // SAFETY: there are pairs only where the instructions are.
            let left = Left::Pairs(unsafe { avx512::Left::within(values, given, make) });
            return Self { kernels, exact: Cow::default(), left, m, k };
        }
        parts::for_each_row(values, given, make);
        kernels.prepare(compute, &*values, k)
    }

    /// `values`, row-major in rows of `k`.
    pub(crate) fn new(compute: Compute, values: impl Into<Cow<'a, [f32]>>, k: usize) -> Self {
        Kernels::in_force().prepare(compute, values, k)
    }

    /// Whether [`Prepared::kept`] keeps what `compute` reads in bf16.
    pub(crate) fn keeps_bf16(compute: Compute) -> bool {
        Kernels::in_force().in_pairs(compute)
    }

    /// What it was made of, or, where only that is left, what that was rounded to.
    pub(crate) fn values(&self) -> Cow<'_, [f32]> {
        match &self.left {
            #[cfg(target_arch = "x86_64")]
            Left::Pairs(left) if self.exact.is_empty() => left.widened().into(),
            _ => Cow::Borrowed(self.exact()),
        }
    }

    /// What it was made of, where that is held.
    pub(crate) fn exact(&self) -> &[f32] {
        &self.exact
    }

    /// The same.
    pub(crate) fn into_exact(self) -> Cow<'a, [f32]> {
        self.exact
    }

    /// Row `i`: of pairs, those.
    pub(crate) fn row(&self, i: usize) -> Row<'_> {
        match &self.left {
            #[cfg(target_arch = "x86_64")]
            Left::Pairs(left) => Row::Bf16(left.values(i)),
            _ => Row::F32(&self.exact[i * self.k..][..self.k]),
        }
    }

    /// The same operand.
    pub(crate) fn borrowed(&self) -> Prepared<'_> {
        let left = match &self.left {
            Left::Exact => Left::Exact,
            Left::Rounded(values) => Left::Rounded(Cow::Borrowed(values)),
            #[cfg(target_arch = "x86_64")]
            Left::Pairs(left) => Left::Pairs(left.borrowed()),
        };
        Prepared { exact: Cow::Borrowed(&self.exact), left, ..*self }
    }

    /// As few bytes of it as backward can do with: pairs, or else the values.
    pub(crate) fn kept(self) -> Prepared<'static> {
        let Self { kernels, exact, left, m, k } = self;
        match left {
            #[cfg(target_arch = "x86_64")]
            Left::Pairs(left) => {
                Prepared { kernels, exact: Cow::default(), left: Left::Pairs(left.into_owned()), m, k }
            }
            _ => Prepared { kernels, exact: exact.into_owned().into(), left: Left::Exact, m, k },
        }
    }

    /// What becomes of `A Wᵀ` or `A W` with the `rest` that belongs to it.
    pub(crate) fn finished(&self, right: Right<'_>, rest: &Rest<'_>) -> Vec<f32> {
        let (_, n) = right.dims();
        let len = self.m * n;
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = self.tiles(right) {
            rest.check(self.m, n);
            // SAFETY: all of C is written, and nothing added to what it had.
            return unsafe { made(len, |c| tiles.tiles(right, c, false, rest)) };
        }
        let mut c = zeros(len);
        self.finished_into(right, &mut c, rest);
        c
    }

    /// The same, into `c`; what it held is not read.
    pub(crate) fn finished_into(&self, right: Right<'_>, c: &mut [f32], rest: &Rest<'_>) {
        rest.check(self.m, right.dims().1);
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = self.tiles(right) {
            return tiles.add_tiles(right, c, false, rest);
        }
        self.product(right, c, false);
        rest.finish(self.m, c);
    }

    /// `C += A Wᵀ` or `C += A W`, and a low-rank term.
    pub(crate) fn add_to(&self, right: Right<'_>, c: &mut [f32], term: Option<Term<'_>>) {
        let rest = Rest { term, ..Rest::default() };
        rest.check(self.m, right.dims().1);
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = self.tiles(right) {
            return tiles.add_tiles(right, c, true, &rest);
        }
        self.product(right, c, true);
        rest.finish(self.m, c);
    }

    /// The operand where a product is best made by tiles, each value of which is written once.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn tiles(&self, right: Right<'_>) -> Option<Simd<'_>> {
        if self.are_few_across(right.direction) {
            return None;
        }
        self.simd(right.w.stored, right.direction).filter(|simd| !simd.are_few(right.direction))
    }

    /// Whether adding rows of W up is the fastest way; beside the tiles of AVX-512, for one row.
    fn are_few_across(&self, direction: Direction) -> bool {
        let few = match &self.left {
            #[cfg(target_arch = "x86_64")]
            Left::Pairs(_) => 0,
            _ if self.kernels >= Kernels::Avx512 => 1,
            _ => portable::FEW,
        };
        direction == Direction::Backward && self.m <= few
    }

    /// `C = A Wᵀ` or `C = A W`, or with `add` that is added to `C`.
    pub(crate) fn product(&self, right: Right<'_>, c: &mut [f32], add: bool) {
        let (k, n) = right.dims();
        assert!(
            k == self.k && (k == 0 || c.len() == self.m * n),
            "({}, {}) times ({k}, {n}) into {} values",
            self.m,
            self.k,
            c.len()
        );
        if c.is_empty() || k == 0 {
            if !add {
                c.fill(0.0);
            }
            return;
        }
        let few_across = self.are_few_across(right.direction);
        #[cfg(target_arch = "x86_64")]
        if !few_across && let Some(simd) = self.simd(right.w.stored, right.direction) {
            return simd.product(right, c, add);
        }
        let (values, round) = match &self.left {
            Left::Exact => (self.exact(), false),
            Left::Rounded(values) => (&**values, right.w.stored != Stored::Bf16),
            #[cfg(target_arch = "x86_64")]
            Left::Pairs(_) => unreachable!("where AVX-512 is"),
        };
        if few_across {
            return portable::few_rows_across(right, round, values, c, add);
        }
        if add {
            let mut product = vec![0.0; c.len()];
            portable::product(right, round, values, &mut product);
            c.iter_mut().zip(product).for_each(|(c, p)| *c += p);
        } else {
            portable::product(right, round, values, c);
        }
    }
}
