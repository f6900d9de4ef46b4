//! Speed of a frozen weight's products: `cargo run --release -p taper-kernels --example products -- [THREADS] [KERNELS] [bf16|f16|f32|q8_0|q4_k|q5_k|q6_k]`,
//! KERNELS one of `avx512`, `avx2` and `portable`, where not the machine's best are to be measured.
//!
//! GF/s are `2 M K N / time`, with all conversion and packing in the time; GB/s are bytes of the weight. Best and median.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement for people")]

use std::sync::Arc;
use std::time::Instant;

use taper_kernels::{Compute, Kernels, Stored, Weight, keep_freed, map, pool};

/// Columns and rows of weights of small language models.
const SHAPES: [(usize, usize); 5] = [(576, 1536), (896, 4864), (2048, 5632), (2048, 2048), (896, 128)];

fn main() {
    // As in `taper`: without it a third of the time would be page faults.
    keep_freed();
    let args: Vec<String> = std::env::args().collect();
    let has = |name: &str| args.iter().any(|a| a == name);
    if let Some((_, kernels)) = Kernels::NAMES.iter().find(|(name, _)| has(name)) {
        kernels.choose();
    }
    let threads = args.iter().find_map(|a| a.parse().ok()).unwrap_or(usize::MAX);
    let threads = if threads == usize::MAX { pool::threads() } else { pool::set_threads(threads) };
    let kinds = [
        ("bf16", Stored::Bf16),
        ("f16", Stored::F16),
        ("f32", Stored::F32),
        ("q8_0", Stored::Q8_0),
        ("q4_k", Stored::Q4_K),
        ("q5_k", Stored::Q5_K),
        ("q6_k", Stored::Q6_K),
    ];
    let (name, stored) = *kinds.iter().find(|(name, _)| has(name)).unwrap_or(&kinds[0]);
    println!("{threads} threads, weights {name}");
    if !has("decode") {
        println!("{:>16} {:>5} {:>10} {:>15} {:>15}", "K,N", "M", "", "F32 GF/s", "Bf16 GF/s");
        for shape in SHAPES.into_iter().filter(|shape| shape.0 % stored.block() == 0) {
            many_rows(shape, stored);
        }
    }
    println!("M rows by a 1 GB run of (2048,5632), GB/s");
    for m in [1, 2, 4, 8, 12, 16, 24, 32] {
        few_rows(m, stored);
    }
}

/// Best and median seconds.
fn time(mut f: impl FnMut()) -> (f64, f64) {
    f();
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 7 || (start.elapsed().as_secs_f64() < 0.4 && times.len() < 101) {
        let start = Instant::now();
        f();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 4093) as f32 / 2046.5 - 1.0).collect()
}

/// `copies` weights in one mapped file, as in a checkpoint.
fn weights(copies: usize, (cols, rows): (usize, usize), stored: Stored) -> Vec<Weight> {
    let path = std::env::temp_dir().join(format!("taper-products-{}", std::process::id()));
    let one = values(rows * cols);
    let mut bytes = vec![0; stored.bytes(one.len()).unwrap()];
    taper_kernels::encode(&one, stored, &mut bytes);
    std::fs::write(&path, bytes.repeat(copies)).unwrap();
    let file = Arc::new(map(&std::fs::File::open(&path).unwrap()).unwrap());
    std::fs::remove_file(&path).unwrap();
    (0..copies)
        .map(|i| Weight::mapped(Arc::clone(&file), i * bytes.len(), stored, rows, cols).unwrap())
        .collect()
}

fn many_rows((k, n): (usize, usize), stored: Stored) {
    // More of them than the caches hold: the next one is always read from memory, as in a model.
    let weights = weights(100_000_000_usize.div_ceil(stored.bytes(k * n).unwrap()), (k, n), stored);
    for m in [128, 512, 1024] {
        let gf = 2e-9 * (m * n * k) as f64;
        let (x, g) = (values(m * k), values(m * n));
        let (mut y, mut dx) = (vec![0.0; m * n], vec![0.0; m * k]);
        for transposed in [false, true] {
            print!("{k:>10},{n:>5} {m:>5} {:>10}", if transposed { "transposed" } else { "product" });
            for compute in [Compute::F32, Compute::Bf16] {
                let weights: Vec<_> = weights.iter().map(|w| w.clone().with_compute(compute)).collect();
                let mut turn = weights.iter().cycle();
                let (best, median) = time(|| {
                    let weight = turn.next().unwrap();
                    if transposed {
                        weight.product_transposed(&g, &mut dx);
                    } else {
                        weight.product(&x, &mut y);
                    }
                });
                print!(" {:>7.0} {:>7.0}", gf / best, gf / median);
            }
            println!();
        }
    }
}

fn few_rows(m: usize, stored: Stored) {
    let (k, n) = (2048, 5632);
    let bytes = stored.bytes(k * n).unwrap();
    let copies = 1_000_000_000 / bytes;
    let all = weights(copies, (k, n), stored);
    let (x, mut y) = (values(m * k), vec![0.0; m * n]);
    print!("{m:>5}");
    for compute in [Compute::F32, Compute::Bf16] {
        let all: Vec<Weight> = all.iter().map(|w| w.clone().with_compute(compute)).collect();
        let (best, median) = time(|| all.iter().for_each(|w| w.product(&x, &mut y)));
        let gb = 1e-9 * (bytes * copies) as f64;
        print!("  {compute:?} {:>5.1} {:>5.1}", gb / best, gb / median);
    }
    println!();
}
