//! The process's compute threads: a few that wait for the next job, shared by every kernel.
//!
//! One pool serves the whole process. A waiting thread spins for some 40 µs and then parks; the caller works on its own
//! job too, and waits only for threads that have joined it, so a job that is done before the others wake costs no more
//! than one that runs alone. What a task computes must not depend on the thread it runs on.

#![expect(
    unsafe_code,
    reason = "hands a borrowed closure, and disjoint parts of one slice, to other threads"
)]

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::marker::PhantomData;
use std::mem::transmute;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};
use std::thread::{Thread, available_parallelism, park, yield_now};

use crate::shares::Shares;

static POOL: OnceLock<Pool> = OnceLock::new();

thread_local! {
    /// Whether this thread is inside a task.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// More threads than any machine has cores, and fewer than it could not start.
const MOST: usize = 1024;

/// Sets the number of compute threads, at most 1024. The first call wins; later ones, or one after the first kernel ran,
/// return the number that is in force.
pub fn set_threads(threads: usize) -> usize {
    POOL.get_or_init(|| Pool::new(threads.min(MOST))).threads()
}

/// The number of compute threads in force (the machine's available parallelism unless set).
pub fn threads() -> usize {
    pool().threads()
}

/// Runs `task(i)` for every `i` in `0..tasks`, spread over the pool's threads, and returns when all are done.
///
/// Each thread has a run of them that it takes first, of equal jobs the same. A panic in a task ends the handing out, and is
/// carried to the caller when the running tasks have ended. Called from inside a task, or while another thread's job has the
/// pool, it runs the tasks on the calling thread.
pub fn for_each(tasks: usize, task: impl Fn(usize) + Sync) {
    if tasks == 1 {
        return task(0);
    }
    pool().run(tasks, &task);
}

/// Cuts `out` into runs of `chunk` values (the last may be shorter) and runs `task(i, run)` for each on the pool.
pub fn for_each_chunk<T: Send>(out: &mut [T], chunk: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let parts = Disjoint::new(out);
    for_each(parts.chunks(chunk), |i| {
        // SAFETY: each task has its own run.
        task(i, unsafe { parts.get(parts.chunk(i, chunk)) });
    });
}

/// The threads that a job started here would be spread over: one inside a task.
#[cfg(target_arch = "x86_64")]
pub(crate) fn width() -> usize {
    if INSIDE.get() { 1 } else { threads() }
}

/// Runs `body` with all its jobs on this thread.
#[cfg(test)]
pub(crate) fn alone<R>(body: impl FnOnce() -> R) -> R {
    let outer = INSIDE.replace(true);
    let result = body();
    INSIDE.set(outer);
    result
}

/// A mutable slice that tasks share, each taking parts that no other takes.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it gives out parts of a `&mut [T]`; `get`'s contract keeps them apart.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Takes the slice for as long as the tasks run.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Values of the slice.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The values in `range`, which must lie inside the slice.
    ///
    /// # Safety
    /// No two parts that overlap may be alive at once.
    #[expect(clippy::mut_from_ref, reason = "the contract keeps the parts apart")]
    pub(crate) unsafe fn get(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part outside the slice");
        // SAFETY: inside the slice, and alone there by contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The slice's first value, for kernels that write rows or columns of a matrix that are not one run.
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.start
    }

    fn chunks(&self, chunk: usize) -> usize {
        assert!(chunk > 0, "runs of no values");
        self.len.div_ceil(chunk)
    }

    fn chunk(&self, i: usize, chunk: usize) -> Range<usize> {
        i * chunk..((i + 1) * chunk).min(self.len)
    }
}

type Panic = Box<dyn Any + Send>;
type Job = *const (dyn Fn(usize) + Sync);

/// In `Shared::state`: whether the job may be joined; below it, how many threads have; above it, the job's number.
const OPEN: u64 = 1 << 16;
const NUMBER: u64 = OPEN << 1;
/// Looks at the state before a thread parks, or before a waiting caller lets others run: some 40 µs.
const SPINS: usize = 4000;

struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
}

// SAFETY: `job` is written only while the state is closed and no thread has joined, and read only by threads that
// have joined, which the state's orderings put after the writing.
unsafe impl Sync for Shared {}
// SAFETY: the pointer is to a `Sync` closure, and used as `Sync` says.
unsafe impl Send for Shared {}

struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Thread>,
    /// Held by the thread whose job has the pool.
    turn: Mutex<Shares>,
}

fn pool() -> &'static Pool {
    POOL.get_or_init(|| Pool::new(available_parallelism().map_or(1, usize::from)))
}

impl Pool {
    /// A pool of `threads`, or of as many as could be started.
    fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared { state: AtomicU64::new(0), job: UnsafeCell::new(None) });
        let start = |i: usize| {
            let shared = Arc::clone(&shared);
            let name = format!("taper-{i}");
            std::thread::Builder::new().name(name).spawn(move || serve(&shared, i)).ok()
        };
        let workers: Vec<_> =
            (1..threads.min(OPEN as usize - 1)).map_while(start).map(|t| t.thread().clone()).collect();
        let turn = Mutex::new(Shares::new(workers.len() + 1));
        Self { shared, workers, turn }
    }

    fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let turn = match self.turn.try_lock() {
            _ if self.workers.is_empty() || INSIDE.get() => None,
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let outer = INSIDE.replace(true);
        let result = match turn {
            Some(mut shares) => self.share(&mut shares, tasks, task),
            None => catch_unwind(AssertUnwindSafe(|| (0..tasks).for_each(task))),
        };
        INSIDE.set(outer);
        if let Err(payload) = result {
            resume_unwind(payload);
        }
    }

    /// Runs the tasks on this thread and on those that join in time.
    fn share(&self, shares: &mut Shares, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<(), Panic> {
        shares.fill(tasks);
        let shares = &*shares;
        let panic = Mutex::new(None::<Panic>);
        let work = |thread: usize| {
            let taking = || std::iter::from_fn(|| shares.take(thread, |_, _| 1)).flatten();
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| taking().for_each(task))) {
                shares.close();
                panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            }
        };
        self.run_on_all(&work);
        panic.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Runs `work` on this thread and on those that join in time. `work` must not panic.
    fn run_on_all(&self, work: &(dyn Fn(usize) + Sync)) {
        let state = &self.shared.state;
        // SAFETY: only the lifetime is changed, and the borrow outlives every use: no thread joins after the state is
        // closed below, and those that have joined are waited for. The caller has the pool's turn, so the state is
        // closed here and no thread is reading `job`.
        unsafe { *self.shared.job.get() = Some(transmute::<&(dyn Fn(usize) + Sync), Job>(work)) };
        state.store(((state.load(Relaxed) / NUMBER + 1) * NUMBER) | OPEN, Release);
        self.workers.iter().for_each(Thread::unpark);
        work(0);
        state.fetch_and(!OPEN, Relaxed);
        let mut spins = 0;
        while !state.load(Acquire).is_multiple_of(OPEN) {
            spins += 1;
            if spins < SPINS { spin_loop() } else { yield_now() }
        }
    }
}

/// The life of worker `thread`: joins every job that is open when it looks.
fn serve(shared: &Shared, thread: usize) {
    INSIDE.set(true);
    let (mut seen, mut spins) = (0, 0);
    loop {
        let state = shared.state.load(Relaxed);
        let number = state / NUMBER;
        let new = number != seen && state & OPEN != 0;
        if new && shared.state.compare_exchange(state, state + 1, AcqRel, Relaxed).is_ok() {
            (seen, spins) = (number, 0);
            // SAFETY: having joined while the job was open, it is alive until this thread leaves.
            if let Some(job) = unsafe { *shared.job.get() } {
                // SAFETY: as above.
                unsafe { (*job)(thread) };
            }
            shared.state.fetch_sub(1, Release);
        } else if spins < SPINS {
            spins += 1;
            spin_loop();
        } else {
            park();
            spins = 0;
        }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "small whole numbers")]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::thread::{scope, sleep};
    use std::time::Duration;

    use super::*;

    fn sum(pool: &Pool, tasks: usize) -> usize {
        let sum = AtomicUsize::new(0);
        pool.run(tasks, &|i| {
            sum.fetch_add(i + 1, Relaxed);
        });
        sum.into_inner()
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [0, 1, 2, 5] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 3, 1000] {
                for _ in 0..50 {
                    assert_eq!(sum(&pool, tasks), tasks * (tasks + 1) / 2);
                }
            }
        }
    }

    #[test]
    fn parked_threads_come_back() {
        let pool = Pool::new(3);
        for _ in 0..3 {
            sleep(Duration::from_millis(20));
            let together = Barrier::new(3);
            // Returns only if all three threads take part.
            pool.run(3, &|_| {
                together.wait();
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives() {
        let pool = Pool::new(3);
        let running = AtomicBool::new(false);
        for bad in [0, 1, 2] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(3, &|i| {
                    assert!(i != bad, "task {i}");
                    running.store(true, Relaxed);
                    sleep(Duration::from_millis(5));
                    running.store(false, Relaxed);
                });
            }));
            let payload = result.unwrap_err();
            assert_eq!(payload.downcast_ref::<String>(), Some(&format!("task {bad}")));
            assert!(!running.load(Relaxed));
            assert_eq!(sum(&pool, 100), 5050);
            assert!(!INSIDE.get());
        }
    }

    #[test]
    fn inner_jobs_run_where_they_are() {
        let sums = Mutex::new(Vec::new());
        for_each(4, |i| {
            let thread = std::thread::current().id();
            let mut inner = vec![0; 10];
            for_each_chunk(&mut inner, 3, |j, run| {
                assert_eq!(std::thread::current().id(), thread);
                run.fill(i + j);
            });
            sums.lock().unwrap().push(inner.iter().sum::<usize>());
        });
        let mut sums = sums.into_inner().unwrap();
        sums.sort_unstable();
        assert_eq!(sums, [12, 22, 32, 42]);
    }

    #[test]
    fn callers_do_not_wait_for_each_other() {
        let pool = Pool::new(2);
        scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..200).for_each(|_| assert_eq!(sum(&pool, 64), 2080)));
            }
        });
    }

    #[test]
    fn chunks_cover_the_slice() {
        let mut out = [0.0; 11];
        for_each_chunk(&mut out, 4, |i, run| run.fill(i as f32 * 10.0 + run.len() as f32));
        assert_eq!(out, [4., 4., 4., 4., 14., 14., 14., 14., 23., 23., 23.]);
        for_each_chunk(&mut [0.0; 0], 4, |_, _| unreachable!());
    }
}
