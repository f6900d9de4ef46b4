//! Work handed out so that threads come back to what their caches hold.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Runs of `0..total`, one for each thread, which it takes from first; when it is empty, from the others'.
///
/// Rows are cut alike from one operation to the next, so that a thread reads the rows it has written before. That counts most
/// where threads share no cache: on parts of a processor that are far apart, a line that another thread has written comes several
/// times more slowly than from the memory.
pub(crate) struct Shares {
    shares: Box<[Share]>,
    total: usize,
}

/// What is left of a run; on a cache line of its own, and the next, which are fetched together.
#[repr(align(128))]
struct Share(AtomicUsize);

impl Shares {
    /// For some number of threads; nothing to hand out yet.
    pub(crate) fn new(threads: usize) -> Self {
        Self { shares: (0..threads).map(|_| Share(AtomicUsize::new(0))).collect(), total: 0 }
    }

    /// Begins with `0..total`.
    pub(crate) fn fill(&mut self, total: usize) {
        self.total = total;
        for i in 0..self.shares.len() {
            *self.shares[i].0.get_mut() = self.start(i);
        }
    }

    /// The next run for thread `thread`: as many from the first that is left as `count(first, left)` says, at least 1 and not
    /// more than are left.
    pub(crate) fn take(&self, thread: usize, count: impl Fn(usize, usize) -> usize) -> Option<Range<usize>> {
        let threads = self.shares.len();
        (thread..threads).chain(0..thread).find_map(|i| {
            let end = self.start(i + 1);
            let next = |at: usize| (at < end).then(|| at + count(at, end - at));
            let at = self.shares[i].0.fetch_update(Relaxed, Relaxed, next).ok()?;
            Some(at..at + count(at, end - at))
        })
    }

    /// Takes all that is left.
    pub(crate) fn close(&self) {
        self.shares.iter().for_each(|share| share.0.store(self.total, Relaxed));
    }

    /// Where share `i` starts.
    fn start(&self, i: usize) -> usize {
        let threads = self.shares.len();
        self.total / threads * i + self.total % threads * i / threads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_taken_once_and_ones_own_first() {
        for threads in [1, 2, 3, 16] {
            let mut shares = Shares::new(threads);
            for total in [0, 1, 2, 15, 16, 1000] {
                shares.fill(total);
                let mut taken = vec![0; total];
                let mut take = |thread| {
                    let run = shares.take(thread, |_, left| left.min(3))?;
                    run.clone().for_each(|i| taken[i] += 1);
                    Some(run.start)
                };
                if total >= threads {
                    (0..threads).for_each(|thread| assert_eq!(take(thread), Some(shares.start(thread))));
                }
                while take(threads / 2).is_some() {}
                assert_eq!(taken, vec![1; total]);
            }
        }
    }

    #[test]
    fn nothing_is_left_once_closed() {
        let mut shares = Shares::new(3);
        shares.fill(100);
        assert_eq!(shares.take(1, |_, _| 1), Some(33..34));
        shares.close();
        assert!((0..3).all(|thread| shares.take(thread, |_, _| 1).is_none()));
    }
}
