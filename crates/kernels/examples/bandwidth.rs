//! How fast this machine reads memory: the bound of decoding, which streams every weight once a token.
//!
//! `cargo run --release -p taper-kernels --example bandwidth [MIB]`: reads a buffer, in runs of 128 KiB taken in turn by the
//! threads, on one thread and on all, and prints GB/s, the best and the median of some rounds.
#![expect(clippy::print_stdout, reason = "a measurement for people")]

use std::hint::black_box;
use std::time::Instant;

use taper_kernels::pool;

const RUN: usize = 128 * 1024 / 8;
const ROUNDS: usize = 7;

fn main() {
    let mib = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(1024);
    let buffer: Vec<u64> = (0..mib * 1024 * 128).collect();
    let runs = buffer.len().div_ceil(RUN);
    let read = |i: usize| {
        // Sums of their own, so that the adds of one do not wait for another's.
        let run = &buffer[i * RUN..buffer.len().min((i + 1) * RUN)];
        black_box(run.chunks(64).fold([0u64; 64], |mut sums, chunk| {
            sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
            sums
        }));
    };
    report(&format!("{mib} MiB, 1 thread "), &buffer, || (0..runs).for_each(read));
    report(&format!("{mib} MiB, {} threads", pool::threads()), &buffer, || pool::for_each(runs, read));
}

fn report(what: &str, buffer: &[u64], body: impl Fn()) {
    let mut rates: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            body();
            size_of_val(buffer) as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("{what}: {:.1} GB/s, median {:.1}", rates[ROUNDS - 1], rates[ROUNDS / 2]);
}
