//! Attention against the plain formula.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, Device, Tensor, Var};

use super::{AttentionShape, CachedSegment, attention, attention_cached};
use crate::testing::{VALUE_TOLERANCE, assert_close, check, constant, flat, tensor, var};
use crate::{CacheDtype, CacheRows};

fn shape(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> AttentionShape {
    AttentionShape { heads, kv_heads, head_dim, scale: 1.3, causal: true, window, cap: None }
}

/// As [`shape`], in both directions.
fn both_ways(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape { causal: false, ..shape(heads, kv_heads, head_dim, None) }
}

fn segments(lengths: &[usize]) -> Arc<[Range<usize>]> {
    let ends = lengths.iter().scan(0, |end, len| {
        *end += len;
        Some(*end - len..*end)
    });
    ends.collect()
}

/// One row and head at a time, in f64.
fn reference(args: &[Vec<f64>], segments: &[Range<usize>], shape: AttentionShape) -> Vec<f64> {
    let (size, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let key =
        |data: &[f64], t: usize, h: usize| data[(t * shape.kv_heads + h / group) * size..][..size].to_vec();
    let mut out = Vec::new();
    for segment in segments {
        for (n, h) in segment.clone().flat_map(|n| (0..shape.heads).map(move |h| (n, h))) {
            let q = &args[0][(n * shape.heads + h) * size..][..size];
            let from = shape.window.map_or(0, |window| (n + 1).saturating_sub(window)).max(segment.start);
            let score = |t| q.iter().zip(key(&args[1], t, h)).map(|(q, k)| q * k).sum::<f64>();
            let capped = |s: f64| shape.cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh());
            let to = if shape.causal { n + 1 } else { segment.end };
            let weights: Vec<f64> =
                (from..to).map(|t| capped(f64::from(shape.scale) * score(t)).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut y = vec![0.0; size];
            for (t, w) in (from..).zip(&weights) {
                for (y, v) in y.iter_mut().zip(key(&args[2], t, h)) {
                    *y += w / total * v;
                }
            }
            out.extend(y);
        }
    }
    out
}

/// The same as a chain of candle's own operations on one segment at a time, with candle's gradients.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, segments: &[Range<usize>], shape: AttentionShape) -> Tensor {
    let heads = |x: &Tensor, s: &Range<usize>, heads: usize| {
        let x = x.narrow(0, s.start, s.len()).unwrap().reshape((s.len(), heads, shape.head_dim)).unwrap();
        let x = x.transpose(0, 1).unwrap().contiguous().unwrap();
        let group = shape.heads / heads;
        let x = x.unsqueeze(1).unwrap().broadcast_as((heads, group, s.len(), shape.head_dim)).unwrap();
        x.reshape((shape.heads, s.len(), shape.head_dim)).unwrap()
    };
    let out = segments.iter().map(|s| {
        let (q, k, v) = (heads(q, s, shape.heads), heads(k, s, shape.kv_heads), heads(v, s, shape.kv_heads));
        let hidden = |i: usize, j: usize| shape.causal && j > i || shape.window.is_some_and(|w| j + w <= i);
        let mask =
            (0..s.len() * s.len()).map(|at| if hidden(at / s.len(), at % s.len()) { -1e30 } else { 0f32 });
        let mask = Tensor::from_vec(mask.collect(), (s.len(), s.len()), &Device::Cpu).unwrap();
        let scores = (q.matmul(&k.t().unwrap()).unwrap() * f64::from(shape.scale)).unwrap();
        let scores = match shape.cap {
            None => scores,
            Some(cap) => ((scores / f64::from(cap)).unwrap().tanh().unwrap() * f64::from(cap)).unwrap(),
        };
        let weights = candle_nn::ops::softmax(&scores.broadcast_add(&mask).unwrap(), D::Minus1).unwrap();
        let y = weights.matmul(&v).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        y.reshape((s.len(), shape.heads * shape.head_dim)).unwrap()
    });
    Tensor::cat(&out.collect::<Vec<_>>(), 0).unwrap()
}

#[test]
fn values_and_gradients_match_the_reference() {
    let causal = [(2, 2, 4, None), (4, 2, 3, None), (4, 1, 5, None), (2, 1, 8, Some(3)), (1, 1, 1, Some(1))]
        .map(|(heads, kv_heads, head_dim, window)| shape(heads, kv_heads, head_dim, window));
    for shape in causal.into_iter().chain([both_ways(2, 2, 4), both_ways(4, 2, 3)]) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let segments = segments(&[5, 1, 0, 7]);
        let (wide, narrow) = ([13, heads * head_dim], [13, kv_heads * head_dim]);
        check(
            &[var(&wide), var(&narrow), var(&narrow)],
            |a| attention(&a[0], &a[1], &a[2], &segments, shape),
            |a| reference(a, &segments, shape),
        );
    }
}

#[test]
fn capped_scores_match_the_reference() {
    for (window, cap) in [(None, 1.5), (Some(3), 0.4)] {
        let shape = AttentionShape { cap: Some(cap), ..shape(4, 2, 3, window) };
        let segments = segments(&[5, 1, 0, 7]);
        check(
            &[var(&[13, 12]), var(&[13, 6]), var(&[13, 6])],
            |a| attention(&a[0], &a[1], &a[2], &segments, shape),
            |a| reference(a, &segments, shape),
        );
    }
}

#[test]
fn an_untracked_argument_gets_no_gradient() {
    let (shape, segments) = (shape(2, 1, 4, None), segments(&[4]));
    for tracked in 1..7 {
        let arg = |i: usize, dims: &[usize]| if tracked >> i & 1 == 1 { var(dims) } else { constant(dims) };
        check(
            &[arg(0, &[4, 8]), arg(1, &[4, 4]), arg(2, &[4, 4])],
            |a| attention(&a[0], &a[1], &a[2], &segments, shape),
            |a| reference(a, &segments, shape),
        );
    }
}

#[test]
fn long_segments_match_autograd() {
    let capped = |shape: AttentionShape, cap: f32| AttentionShape { cap: Some(cap), ..shape };
    for (shape, lengths) in [
        (shape(3, 1, 64, None), vec![300, 17, 90]),
        (shape(4, 4, 12, None), vec![130, 257]),
        (capped(shape(4, 2, 33, Some(70)), 2.0), vec![400]),
        (shape(2, 1, 128, Some(300)), vec![620, 65]),
        (shape(16, 1, 16, None), vec![70]),
        (capped(shape(2, 2, 8, None), 0.7), vec![900]),
        (both_ways(4, 4, 12), vec![130, 1, 257]),
        (both_ways(4, 2, 33), vec![620, 65]),
    ] {
        let shape = AttentionShape { scale: 0.3, ..shape };
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let segments = segments(&lengths);
        let rows = lengths.iter().sum();
        let widths = [heads, kv_heads, kv_heads].map(|h| [rows, h * head_dim]);
        let vars: Vec<Var> =
            (1..).zip(&widths).map(|(i, s)| Var::from_tensor(&tensor(i, s)).unwrap()).collect();
        let [q, k, v] = [&vars[0], &vars[1], &vars[2]].map(Var::as_tensor);
        let expected = composed(q, k, v, &segments, shape);
        let found = attention(q, k, v, &segments, shape).unwrap();
        let wide = |t: &Tensor| flat(t).into_iter().map(f64::from).collect::<Vec<_>>();
        assert_close("value", &flat(&found), &wide(&expected), VALUE_TOLERANCE);
        let weights = tensor(9, &widths[0]);
        let loss = |y: &Tensor| (y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let (expected, found) = (loss(&expected), loss(&found));
        for var in &vars {
            let (e, f) = (expected.get(var).unwrap(), found.get(var).unwrap());
            assert_close("gradient", &flat(f), &wide(e), 2e-5);
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (shape, segments) = (shape(4, 2, 8, None), segments(&[1000, 30]));
    let vars = [32, 16, 16].map(|width| Var::from_tensor(&tensor(width, &[1030, width as usize])).unwrap());
    let run = || {
        let y = attention(&vars[0], &vars[1], &vars[2], &segments, shape).unwrap();
        let found = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let gradients = vars.iter().map(|var| flat(found.get(var).unwrap()));
        gradients.chain([flat(&y)]).collect::<Vec<_>>()
    };
    let whole = run();
    // Inside a task everything runs on one thread.
    crate::pool::for_each(2, |_| assert!(run() == whole));
}

#[test]
fn scores_far_apart_do_not_overflow() {
    let shape = AttentionShape { scale: 400.0, ..shape(1, 1, 4, None) };
    let args = [tensor(1, &[600, 4]), tensor(2, &[600, 4]), tensor(3, &[600, 4])];
    let y = flat(&attention(&args[0], &args[1], &args[2], &segments(&[600]), shape).unwrap());
    assert!(y.iter().all(|y| y.is_finite() && y.abs() <= 1.0));
}

#[test]
fn a_cache_gives_what_the_whole_segment_gives() {
    for (window, cap) in [(None, None), (Some(6), None), (None, Some(0.8))] {
        let shape = AttentionShape { cap, ..shape(4, 2, 12, window) };
        let (q, k, v) = (tensor(1, &[90, 48]), tensor(2, &[90, 24]), tensor(3, &[90, 24]));
        let whole = attention(&q, &k, &v, &segments(&[80, 10]), shape).unwrap().to_vec2::<f32>().unwrap();
        let (k, v) = (flat(&k), flat(&v));
        let cache = |rows: Range<usize>| {
            [&k, &v].map(|x| {
                let mut cache = CacheRows::new(24, CacheDtype::F32);
                cache.append(&x[rows.start * 24..rows.end * 24]);
                cache
            })
        };
        // A chunk of the first sequence, one token of it, and the last 3 of the second, with a row of nobody between.
        let rows: Vec<u32> = (20..75).chain([75, 0, 87, 88, 89]).collect();
        let count = rows.len();
        let q = q.index_select(&Tensor::from_vec(rows, count, &Device::Cpu).unwrap(), 0).unwrap();
        let caches = [cache(0..75), cache(0..76), cache(80..90)];
        let segment = |i: usize, start, len| {
            let [keys, values] = &caches[i];
            CachedSegment { start, len, keys, values }
        };
        let cached = [segment(0, 0, 55), segment(1, 55, 1), segment(2, 57, 3)];
        let y = attention_cached(&q, &cached, shape).unwrap().to_vec2::<f32>().unwrap();
        for (row, expected) in (20..75).chain([75]).enumerate().chain([(57, 87), (58, 88), (59, 89)]) {
            let expected: Vec<f64> = whole[expected].iter().copied().map(f64::from).collect();
            assert_close(&format!("row {row}"), &y[row], &expected, VALUE_TOLERANCE);
        }
        assert_eq!(y[56], vec![0.0; 48]);
    }
}

#[test]
fn wrong_segments_and_shapes_are_refused() {
    let (q, k) = (tensor(1, &[5, 8]), tensor(2, &[5, 4]));
    let shape = shape(2, 1, 4, None);
    let run = |segments: &[Range<usize>], shape| attention(&q, &k, &k, &segments.into(), shape);
    assert!(run(&[0..2, 2..5], shape).is_ok());
    for segments in [&[0..2, 3..5][..], &[0..2, 2..4], &[0..2, 2..6], &[0..3, 2..5]] {
        assert!(run(segments, shape).is_err(), "{segments:?}");
    }
    for wrong in [
        AttentionShape { heads: 3, ..shape },
        AttentionShape { kv_heads: 2, ..shape },
        AttentionShape { head_dim: 8, ..shape },
        AttentionShape { window: Some(0), ..shape },
        AttentionShape { cap: Some(0.0), ..shape },
        AttentionShape { window: Some(2), causal: false, ..shape },
    ] {
        assert!(run(&[0..2, 2..5], wrong).is_err(), "{wrong:?}");
    }
    let mut keys = CacheRows::new(4, CacheDtype::F32);
    keys.append(&[0.0; 8]);
    let cached =
        |start, len| attention_cached(&q, &[CachedSegment { start, len, keys: &keys, values: &keys }], shape);
    assert!(cached(3, 2).is_ok());
    assert!(cached(0, 3).is_err());
    assert!(cached(4, 2).is_err());
}
