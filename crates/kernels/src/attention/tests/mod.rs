//! Attention against the plain formula.

mod cached;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, Device, Tensor, Var};

use super::{
    AttentionShape, CachedSegment, DistanceBias, Plan, attention, attention_across, attention_biased,
    attention_cached,
};
use crate::testing::{VALUE_TOLERANCE, assert_close, check, constant, flat, tensor, var};
use crate::{CacheDtype, CacheRows, Compute};

fn shape(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> AttentionShape {
    AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale: 1.3,
        causal: true,
        window,
        cap: None,
        compute: Compute::F32,
    }
}

/// As [`shape`], in both directions.
fn both_ways(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape { causal: false, ..shape(heads, kv_heads, head_dim, None) }
}

/// As [`both_ways`], of which a query sees those keys that are fewer than `window` places away.
fn around(heads: usize, kv_heads: usize, head_dim: usize, window: usize) -> AttentionShape {
    AttentionShape { window: Some(window), ..both_ways(heads, kv_heads, head_dim) }
}

fn segments(lengths: &[usize]) -> Arc<[Range<usize>]> {
    let ends = lengths.iter().scan(0, |end, len| {
        *end += len;
        Some(*end - len..*end)
    });
    ends.collect()
}

/// A bias that falls with the distance, another in each head, and another beyond than before.
fn slope(heads: usize, reach: usize) -> Arc<DistanceBias> {
    let value = |head: usize, distance: isize| {
        let near = 1.0 / (1.0 + distance.unsigned_abs() as f32);
        near * (0.5 + head as f32) * if distance > 0 { -1.5 } else { 1.0 }
    };
    Arc::new(DistanceBias::new(heads, reach, value))
}

/// One row and head at a time, in f64.
fn reference(args: &[Vec<f64>], plan: Plan<'_>) -> Vec<f64> {
    let shape = *plan.shape;
    let (size, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let key =
        |data: &[f64], t: usize, h: usize| data[(t * shape.kv_heads + h / group) * size..][..size].to_vec();
    let mut out = Vec::new();
    for (queries, keys) in plan.sequences() {
        for (i, h) in (0..queries.len()).flat_map(|i| (0..shape.heads).map(move |h| (i, h))) {
            let q = &args[0][((queries.start + i) * shape.heads + h) * size..][..size];
            let from = keys.start + shape.window.map_or(0, |window| (i + 1).saturating_sub(window));
            let bias = |t: usize| plan.bias.map_or(0.0, |bias| f64::from(bias.of(h, i, t - keys.start)));
            let score = |t| q.iter().zip(key(&args[1], t, h)).map(|(q, k)| q * k).sum::<f64>();
            let capped = |s: f64| shape.cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh());
            let after = if shape.causal { 1 } else { shape.window.unwrap_or(keys.len()) };
            let to = keys.end.min(keys.start + i + after);
            let weights: Vec<f64> =
                (from..to).map(|t| (capped(f64::from(shape.scale) * score(t)) + bias(t)).exp()).collect();
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
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, plan: Plan<'_>) -> Tensor {
    let shape = *plan.shape;
    let heads = |x: &Tensor, s: &Range<usize>, heads: usize| {
        let x = x.narrow(0, s.start, s.len()).unwrap().reshape((s.len(), heads, shape.head_dim)).unwrap();
        let x = x.transpose(0, 1).unwrap().contiguous().unwrap();
        let group = shape.heads / heads;
        let x = x.unsqueeze(1).unwrap().broadcast_as((heads, group, s.len(), shape.head_dim)).unwrap();
        x.reshape((shape.heads, s.len(), shape.head_dim)).unwrap()
    };
    let out = plan.sequences().map(|(s, t)| {
        let (q, k, v) = (heads(q, s, shape.heads), heads(k, t, shape.kv_heads), heads(v, t, shape.kv_heads));
        let beyond = |w: usize, i: usize, j: usize| i.abs_diff(j) >= w;
        let hidden =
            |i: usize, j: usize| shape.causal && j > i || shape.window.is_some_and(|w| beyond(w, i, j));
        let bias = |h, i, j| plan.bias.map_or(0.0, |bias| bias.of(h, i, j));
        let added = (0..shape.heads * s.len() * t.len()).map(|at| {
            let (h, i, j) = (at / t.len() / s.len(), at / t.len() % s.len(), at % t.len());
            if hidden(i, j) { -1e30 } else { bias(h, i, j) }
        });
        let dims = (shape.heads, s.len(), t.len());
        let added = Tensor::from_vec(added.collect(), dims, &Device::Cpu).unwrap();
        let scores = (q.matmul(&k.t().unwrap()).unwrap() * f64::from(shape.scale)).unwrap();
        let scores = match shape.cap {
            None => scores,
            Some(cap) => ((scores / f64::from(cap)).unwrap().tanh().unwrap() * f64::from(cap)).unwrap(),
        };
        let weights = candle_nn::ops::softmax(&(scores + added).unwrap(), D::Minus1).unwrap();
        let y = weights.matmul(&v).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        y.reshape((s.len(), shape.heads * shape.head_dim)).unwrap()
    });
    Tensor::cat(&out.collect::<Vec<_>>(), 0).unwrap()
}

#[test]
fn values_and_gradients_match_the_reference() {
    let causal = [(2, 2, 4, None), (4, 2, 3, None), (4, 1, 5, None), (2, 1, 8, Some(3)), (1, 1, 1, Some(1))]
        .map(|(heads, kv_heads, head_dim, window)| shape(heads, kv_heads, head_dim, window));
    let both =
        [both_ways(2, 2, 4), both_ways(4, 2, 3), around(2, 2, 4, 3), around(4, 2, 3, 2), around(2, 1, 3, 6)];
    for shape in causal.into_iter().chain(both) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let segments = segments(&[5, 1, 0, 7]);
        let (wide, narrow) = ([13, heads * head_dim], [13, kv_heads * head_dim]);
        check(
            &[var(&wide), var(&narrow), var(&narrow)],
            |a| attention(&a[0], &a[1], &a[2], &segments, shape),
            |a| reference(a, Plan::within(&segments, &shape)),
        );
    }
}

#[test]
fn capped_scores_match_the_reference() {
    for (shape, cap) in
        [(shape(4, 2, 3, None), 1.5), (shape(4, 2, 3, Some(3)), 0.4), (around(4, 2, 3, 2), 0.4)]
    {
        let shape = AttentionShape { cap: Some(cap), ..shape };
        let segments = segments(&[5, 1, 0, 7]);
        check(
            &[var(&[13, 12]), var(&[13, 6]), var(&[13, 6])],
            |a| attention(&a[0], &a[1], &a[2], &segments, shape),
            |a| reference(a, Plan::within(&segments, &shape)),
        );
    }
}

#[test]
fn biased_scores_match_the_reference() {
    for (shape, reach) in [
        (both_ways(2, 2, 4), 3),
        (both_ways(4, 2, 3), 20),
        (shape(4, 2, 3, None), 2),
        (around(4, 2, 3, 3), 2),
    ] {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let (segments, bias) = (segments(&[5, 1, 0, 7]), slope(heads, reach));
        let (wide, narrow) = ([13, heads * head_dim], [13, kv_heads * head_dim]);
        check(
            &[var(&wide), var(&narrow), var(&narrow)],
            |a| attention_biased(&a[0], &a[1], &a[2], &segments, (shape, &bias)),
            |a| reference(a, Plan { bias: Some(&bias), ..Plan::within(&segments, &shape) }),
        );
    }
}

#[test]
fn rows_of_another_batch_match_the_reference() {
    let (queries, keys) = (segments(&[5, 1, 0, 7]), segments(&[2, 6, 3, 4]));
    for shape in [both_ways(2, 2, 4), both_ways(4, 2, 3)] {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let (wide, narrow) = ([13, heads * head_dim], [15, kv_heads * head_dim]);
        check(
            &[var(&wide), var(&narrow), var(&narrow)],
            |a| attention_across(&a[0], &a[1], &a[2], [&queries, &keys], shape),
            |a| reference(a, Plan { keys: &keys, ..Plan::within(&queries, &shape) }),
        );
    }
}

#[test]
fn a_window_of_another_batch_begins_with_its_keys() {
    let (queries, keys) = (segments(&[1, 5, 0, 3]), segments(&[7, 6, 2, 3]));
    for shape in [around(2, 2, 4, 3), around(4, 2, 3, 20), around(2, 1, 3, 2)] {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let (wide, narrow) = ([9, heads * head_dim], [18, kv_heads * head_dim]);
        check(
            &[var(&wide), var(&narrow), var(&narrow)],
            |a| attention_across(&a[0], &a[1], &a[2], [&queries, &keys], shape),
            |a| reference(a, Plan { keys: &keys, ..Plan::within(&queries, &shape) }),
        );
    }
    // A query without a key at its own place could see none.
    let (q, k) = (tensor(1, &[18, 8]), tensor(2, &[9, 8]));
    assert!(attention_across(&q, &k, &k, [&keys, &queries], around(2, 2, 4, 3)).is_err());
}

/// What q and k get then is a difference of equal numbers near 1, summed in other orders: nothing but their rounding.
#[test]
fn a_query_that_sees_one_key_passes_its_gradient_to_the_value() {
    let (queries, longer) = (segments(&[5, 1, 0, 3]), segments(&[7, 1, 2, 3]));
    let around = around(4, 2, 3, 1);
    for (shape, keys) in [(shape(2, 1, 3, Some(1)), &queries), (around, &queries), (around, &longer)] {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let rows = keys.last().map_or(0, |last| last.end);
        let (wide, narrow) = ([9, heads * head_dim], [rows, kv_heads * head_dim]);
        let run = |a: &[Tensor]| {
            if shape.causal {
                return attention(&a[0], &a[1], &a[2], keys, shape);
            }
            attention_across(&a[0], &a[1], &a[2], [&queries, keys], shape)
        };
        check(&[constant(&wide), constant(&narrow), var(&narrow)], run, |a| {
            reference(a, Plan { keys, ..Plan::within(&queries, &shape) })
        });
        let [q, k, v] = [(1, &wide), (2, &narrow), (3, &narrow)].map(|(seed, dims)| tensor(seed, dims));
        let [q, k] = [q, k].map(|x| Var::from_tensor(&x).unwrap());
        let y = run(&[q.as_tensor().clone(), k.as_tensor().clone(), v]).unwrap();
        let found = (y * tensor(9, &wide)).unwrap().sum_all().unwrap().backward().unwrap();
        for x in [&q, &k] {
            let largest = flat(found.get(x).unwrap()).iter().fold(0f32, |most, g| most.max(g.abs()));
            assert!(largest <= 8.0 * f32::EPSILON, "{largest}");
        }
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
            |a| reference(a, Plan::within(&segments, &shape)),
        );
    }
}

/// Value and gradients of `op` against candle's own.
fn assert_autograd(plan: Plan<'_>, op: impl Fn(&Tensor, &Tensor, &Tensor) -> Tensor) {
    assert_near_autograd(plan, (VALUE_TOLERANCE, 2e-5), op);
}

/// The same to within a part of the largest value, and of the largest of each gradient.
fn assert_near_autograd(
    plan: Plan<'_>,
    (of_value, of_gradients): (f64, f64),
    op: impl Fn(&Tensor, &Tensor, &Tensor) -> Tensor,
) {
    let AttentionShape { heads, kv_heads, head_dim, .. } = *plan.shape;
    let rows = |segments: &[Range<usize>]| segments.last().map_or(0, |last| last.end);
    let (queries, keys) = (rows(plan.queries), rows(plan.keys));
    let widths = [(queries, heads), (keys, kv_heads), (keys, kv_heads)].map(|(n, h)| [n, h * head_dim]);
    let vars: Vec<Var> = (1..).zip(&widths).map(|(i, s)| Var::from_tensor(&tensor(i, s)).unwrap()).collect();
    let [q, k, v] = [&vars[0], &vars[1], &vars[2]].map(Var::as_tensor);
    let (expected, found) = (composed(q, k, v, plan), op(q, k, v));
    let wide = |t: &Tensor| flat(t).into_iter().map(f64::from).collect::<Vec<_>>();
    assert_close("value", &flat(&found), &wide(&expected), of_value);
    let weights = tensor(9, &widths[0]);
    let loss = |y: &Tensor| (y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let (expected, found) = (loss(&expected), loss(&found));
    for var in &vars {
        let (e, f) = (expected.get(var).unwrap(), found.get(var).unwrap());
        assert_close("gradient", &flat(f), &wide(e), of_gradients);
    }
}

/// Operands are rounded by up to 2^-9 of themselves.
#[test]
fn in_bf16_long_segments_are_near_autograd() {
    for (shape, lengths) in [
        (shape(3, 1, 64, None), vec![300, 17, 90]),
        (AttentionShape { cap: Some(2.0), ..shape(4, 2, 33, Some(70)) }, vec![400]),
        (both_ways(4, 2, 33), vec![620, 65]),
    ] {
        let shape = AttentionShape { scale: 0.3, compute: Compute::Bf16, ..shape };
        let segments = segments(&lengths);
        assert_near_autograd(Plan::within(&segments, &shape), (4e-3, 8e-3), |q, k, v| {
            attention(q, k, v, &segments, shape).unwrap()
        });
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
        (around(4, 4, 12, 65), vec![130, 1, 700]),
        (around(4, 2, 33, 300), vec![620, 65]),
        (around(6, 1, 16, 5), vec![40, 300]),
    ] {
        let shape = AttentionShape { scale: 0.3, ..shape };
        let segments = segments(&lengths);
        assert_autograd(Plan::within(&segments, &shape), |q, k, v| {
            attention(q, k, v, &segments, shape).unwrap()
        });
    }
}

#[test]
fn long_biased_segments_and_long_keys_match_autograd() {
    let (queries, keys) = (segments(&[620, 3, 65]), segments(&[70, 700, 300]));
    for (shape, reach) in [(both_ways(4, 2, 12), 128), (shape(3, 1, 16, None), 40)] {
        let (shape, bias) = (AttentionShape { scale: 0.3, ..shape }, slope(shape.heads, reach));
        let plan = Plan { bias: Some(&bias), ..Plan::within(&queries, &shape) };
        assert_autograd(plan, |q, k, v| attention_biased(q, k, v, &queries, (shape, &bias)).unwrap());
    }
    let shape = AttentionShape { scale: 0.3, ..both_ways(4, 2, 12) };
    assert_autograd(Plan { keys: &keys, ..Plan::within(&queries, &shape) }, |q, k, v| {
        attention_across(q, k, v, [&queries, &keys], shape).unwrap()
    });
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
    ] {
        assert!(run(&[0..2, 2..5], wrong).is_err(), "{wrong:?}");
    }
    let mut keys = CacheRows::new((1, 4), CacheDtype::F32);
    keys.append(&[0.0; 8]);
    let cached = |start, len| {
        attention_cached(&q, &[CachedSegment { start, len, keys: &keys, values: &keys }], shape, None)
    };
    assert!(cached(3, 2).is_ok());
    assert!(cached(0, 3).is_err());
    assert!(cached(4, 2).is_err());
}
