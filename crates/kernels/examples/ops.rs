//! Times every operation at the shapes of SmolLM2-135M: 1024 tokens in 4 segments.
#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measuring script"
)]
use std::sync::Arc;
use std::time::Instant;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, Var};
use taper_kernels::*;

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
    let seed = {
        let y = f();
        t(&y.dims().to_vec())
    };
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
    let (n, d, ff, h, k, e, v, r) = (1024, 576, 1536, 9, 3, 64, 49152, 16);
    if let Some(t) = std::env::args().nth(2) {
        pool::set_threads(t.parse().unwrap());
    }
    println!("threads {}", pool::threads());
    let gf = |m: usize, n: usize, k: usize| 2e-9 * m as f64 * n as f64 * k as f64;
    for (name, i, o) in [
        ("linear 576>576", d, d),
        ("linear 576>192", d, k * e),
        ("linear 576>1536", d, ff),
        ("linear 1536>576", ff, d),
    ] {
        let w = Weight::dense(values(i * o), o, i).unwrap();
        let (x, a, b) = (var(&[n, i]), var(&[r, i]), var(&[o, r]));
        let base = gf(n, i, o);
        bench(&format!("{name} frozen"), (base, base), || linear(&x, &w, None, None).unwrap());
        let low = gf(n, r, i + o);
        bench(&format!("{name} lora"), (base + low, base + 2.0 * low), || {
            linear(&x, &w, None, Some(LowRank { a: &a, b: &b, scaling: 2.0, dropout: None })).unwrap()
        });
        bench(&format!("{name} lora drop"), (base + low, base + 2.0 * low), || {
            let dropout = Some(Dropout { p: 0.1, seed: 3 });
            linear(&x, &w, None, Some(LowRank { a: &a, b: &b, scaling: 2.0, dropout })).unwrap()
        });
    }
    let (x, gain) = (var(&[n, d]), t(&[d]));
    bench("rms_norm", (0., 0.), || rms_norm(&x, &gain, 1e-5).unwrap());
    let gain_var = var(&[d]);
    bench("rms_norm gain", (0., 0.), || rms_norm(&x, &gain_var, 1e-5).unwrap());
    let angles = values(n * e / 2);
    let table = Arc::new(RopeTable {
        cos: angles.iter().map(|a| a.cos()).collect(),
        sin: angles.iter().map(|a| a.sin()).collect(),
        half: e / 2,
    });
    let q = var(&[n, h * e]);
    bench("rope q", (0., 0.), || rope(&q, &table, e).unwrap());
    let (gate, up) = (var(&[n, ff]), var(&[n, ff]));
    bench("swiglu", (0., 0.), || swiglu(&gate, &up).unwrap());
    bench("candle add ff", (0., 0.), || (&gate + &up).unwrap());
    bench("add_bias", (0., 0.), || add_bias(&gate, &t(&[ff])).unwrap());
    for len in [32usize, 256, 1024] {
        let segments: Arc<[_]> = (0..n / len).map(|i| i * len..(i + 1) * len).collect();
        let (kk, vv) = (var(&[n, k * e]), var(&[n, k * e]));
        let shape = AttentionShape {
            heads: h,
            kv_heads: k,
            head_dim: e,
            scale: 0.125,
            causal: true,
            window: None,
            cap: None,
        };
        let work = 2e-9 * 2.0 * (n * h * e) as f64 * (len + 1) as f64 / 2.0;
        bench(&format!("attention {len}"), (work, 2.5 * work), || {
            attention(&q, &kk, &vv, &segments, shape).unwrap()
        });
    }
    let shape = AttentionShape {
        heads: h,
        kv_heads: k,
        head_dim: e,
        scale: 0.125,
        causal: true,
        window: None,
        cap: None,
    };
    for (rows, past) in [(1usize, 255usize), (1, 4095), (256, 0), (256, 2048)] {
        let mut keys = CacheRows::new(k * e, CacheDtype::F32);
        keys.append(&values((rows + past) * k * e));
        let q = t(&[rows, h * e]);
        let work = 4e-9 * (rows * h * e) as f64 * (past as f64 + rows as f64 / 2.0);
        bench(&format!("cached {rows} after {past}"), (work, 0.), || {
            attention_cached(
                &q,
                &[CachedSegment { start: 0, len: rows, keys: &keys, values: &keys }],
                shape,
                None,
            )
            .unwrap()
        });
    }
    let w = Weight::dense(values(v * d), v, d).unwrap();
    let x = var(&[n, d]);
    let labelled =
        Labelled { rows: (0..n as u32).collect(), labels: (0..n as u32).map(|i| i * 37).collect() };
    bench("linear_cross_entropy", (2.0 * gf(n, d, v), 0.), || {
        linear_cross_entropy(&x, (&w).into(), None, &labelled).unwrap()
    });
    let xd = x.detach();
    bench("linear_ce no grad", (gf(n, d, v), 0.), || {
        linear_cross_entropy(&xd, (&w).into(), None, &labelled).unwrap()
    });
}
