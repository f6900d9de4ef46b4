//! Times every operation at the shapes of SmolLM2-135M, 1024 tokens:
//! `cargo run --release -p taper-kernels --example ops -- [NAME] [THREADS]`.
//!
//! Forward and backward each print the median, the best, and the rate of the best.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement for people")]

use std::sync::Arc;
use std::time::Instant;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, Var};
use taper_kernels::{
    Activation, AttentionShape, CacheDtype, CacheRows, CachedSegment, Compute, Dropout, Labelled, LowRank,
    RopeTable, Scoring, Weight, add_bias, attention, attention_cached, gated, linear, linear_cross_entropy,
    pool, rms_norm, rope,
};

/// Tokens.
const N: usize = 1024;
/// Hidden size.
const D: usize = 576;
/// Width of the feed-forward layer.
const INNER: usize = 1536;
/// Vocabulary.
const V: usize = 49152;
/// Rank.
const R: usize = 16;
const SHAPE: AttentionShape = AttentionShape {
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    scale: 0.125,
    causal: true,
    window: None,
    cap: None,
    compute: Compute::F32,
};
/// Values of a token's queries, and of its keys.
const Q: usize = SHAPE.heads * SHAPE.head_dim;
const K: usize = SHAPE.kv_heads * SHAPE.head_dim;

/// A scalar whose gradient is the tensor.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

fn values(count: usize) -> Vec<f32> {
    let mut s = 12345u64 + count as u64;
    (0..count)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn t(shape: &[usize]) -> Tensor {
    Tensor::from_vec(values(shape.iter().product()), shape, &Device::Cpu).unwrap()
}

fn var(shape: &[usize]) -> Tensor {
    Var::from_tensor(&t(shape)).unwrap().as_tensor().clone()
}

fn median(mut v: Vec<f64>) -> (f64, f64) {
    v.sort_by(f64::total_cmp);
    (v[v.len() / 2], v[0])
}

fn bench(name: &str, gflop: (f64, f64), f: impl Fn() -> Tensor) {
    let only = std::env::args().nth(1).unwrap_or_default();
    if !name.contains(&only) {
        return;
    }
    let (mut fwd, mut bwd) = (vec![], vec![]);
    let seed = t(f().dims());
    let start = Instant::now();
    let mut i = 0;
    while i < 5 || (start.elapsed().as_secs_f64() < 2.0 && i < 300) {
        let s = Instant::now();
        let y = f();
        fwd.push(s.elapsed().as_secs_f64() * 1e3);
        let loss = if y.dims().is_empty() { y } else { y.apply_op1(Seed(seed.clone())).unwrap() };
        if loss.track_op() {
            let s = Instant::now();
            let g = loss.backward().unwrap();
            bwd.push(s.elapsed().as_secs_f64() * 1e3);
            drop(g);
        }
        i += 1;
    }
    let (f, f0) = median(fwd);
    print!("{name:28} fwd {f:8.3} ms (min {f0:8.3}) {:6.1} GF/s", gflop.0 / f0 * 1e3);
    if !bwd.is_empty() {
        let (b, b0) = median(bwd);
        print!("   bwd {b:8.3} ms (min {b0:8.3}) {:6.1} GF/s", gflop.1 / b0 * 1e3);
    }
    println!();
}

fn main() {
    if let Some(threads) = std::env::args().nth(2) {
        pool::set_threads(threads.parse().unwrap());
    }
    println!("threads {}", pool::threads());
    layers();
    rows();
    attentions();
    cached();
    head();
}

/// 1e9 operations of a product.
fn gf(m: usize, n: usize, k: usize) -> f64 {
    2e-9 * m as f64 * n as f64 * k as f64
}

fn layers() {
    for (inputs, outputs) in [(D, Q), (D, K), (D, INNER), (INNER, D)] {
        let w = Weight::dense(values(inputs * outputs), outputs, inputs).unwrap();
        let (x, a, b) = (var(&[N, inputs]), var(&[R, inputs]), var(&[outputs, R]));
        let (base, low) = (gf(N, inputs, outputs), gf(N, R, inputs + outputs));
        let name = format!("linear {inputs}>{outputs}");
        bench(&format!("{name} frozen"), (base, base), || linear(&x, &w, None, None).unwrap());
        for (kind, dropout) in [("lora", None), ("lora drop", Some(Dropout { p: 0.1, seed: 3 }))] {
            bench(&format!("{name} {kind}"), (base + low, base + 2.0 * low), || {
                linear(&x, &w, None, Some(LowRank { a: &a, b: &b, scaling: 2.0, dropout })).unwrap()
            });
        }
    }
}

fn rows() {
    let (x, gain) = (var(&[N, D]), t(&[D]));
    bench("rms_norm", (0., 0.), || rms_norm(&x, &gain, 1e-5).unwrap());
    let trained = var(&[D]);
    bench("rms_norm gain", (0., 0.), || rms_norm(&x, &trained, 1e-5).unwrap());
    let half = SHAPE.head_dim / 2;
    let angles = values(N * half);
    let table = Arc::new(RopeTable {
        cos: angles.iter().map(|a| a.cos()).collect(),
        sin: angles.iter().map(|a| a.sin()).collect(),
        half,
    });
    let q = var(&[N, Q]);
    bench("rope q", (0., 0.), || rope(&q, &table, SHAPE.head_dim).unwrap());
    let (gate, up) = (var(&[N, INNER]), var(&[N, INNER]));
    bench("swiglu", (0., 0.), || gated(&gate, &up, Activation::Silu).unwrap());
    bench("candle add", (0., 0.), || (&gate + &up).unwrap());
    let bias = t(&[INNER]);
    bench("add_bias", (0., 0.), || add_bias(&gate, &bias).unwrap());
}

fn attentions() {
    let (q, k, v) = (var(&[N, Q]), var(&[N, K]), var(&[N, K]));
    for len in [32usize, 256, 1024] {
        let segments: Arc<[_]> = (0..N / len).map(|i| i * len..(i + 1) * len).collect();
        let work = 2e-9 * 2.0 * (N * Q) as f64 * (len + 1) as f64 / 2.0;
        bench(&format!("attention {len}"), (work, 2.5 * work), || {
            attention(&q, &k, &v, &segments, SHAPE).unwrap()
        });
    }
}

fn cached() {
    for (rows, past) in [(1usize, 255usize), (1, 4095), (256, 0), (256, 2048)] {
        let mut keys = CacheRows::new((SHAPE.kv_heads, SHAPE.head_dim), CacheDtype::F32);
        keys.append(&values((rows + past) * K));
        let q = t(&[rows, Q]);
        let segment = [CachedSegment { start: 0, len: rows, keys: &keys, values: &keys }];
        let work = 4e-9 * (rows * Q) as f64 * (past as f64 + rows as f64 / 2.0);
        bench(&format!("cached {rows} after {past}"), (work, 0.), || {
            attention_cached(&q, &segment, SHAPE, None).unwrap()
        });
    }
}

fn head() {
    let w = Weight::dense(values(V * D), V, D).unwrap();
    let x = var(&[N, D]);
    let labelled =
        Labelled { rows: (0..N as u32).collect(), labels: (0..N as u32).map(|i| i * 37).collect() };
    bench("linear_cross_entropy", (2.0 * gf(N, D, V), 0.), || {
        linear_cross_entropy(&x, (&w).into(), None, &labelled, Scoring::default()).unwrap()
    });
    let detached = x.detach();
    bench("linear_cross_entropy, no gradient", (gf(N, D, V), 0.), || {
        linear_cross_entropy(&detached, (&w).into(), None, &labelled, Scoring::default()).unwrap()
    });
}
