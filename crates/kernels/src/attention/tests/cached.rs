//! Attention over caches against attention over whole segments.

use super::*;

#[test]
fn a_cache_gives_what_the_whole_segment_gives() {
    let causal = |window| shape(4, 2, 12, window);
    for (shape, cap, bias) in [
        (causal(None), None, None),
        (causal(Some(6)), None, None),
        (causal(None), Some(0.8), None),
        (causal(None), None, Some(slope(4, 9))),
    ] {
        let shape = AttentionShape { cap, ..shape };
        let (q, k, v) = (tensor(1, &[90, 48]), tensor(2, &[90, 24]), tensor(3, &[90, 24]));
        let segments = segments(&[80, 10]);
        let whole = match &bias {
            None => attention(&q, &k, &v, &segments, shape),
            Some(bias) => attention_biased(&q, &k, &v, &segments, (shape, bias)),
        };
        let whole = whole.unwrap().to_vec2::<f32>().unwrap();
        let (k, v) = (flat(&k), flat(&v));
        let cache = |rows: Range<usize>| {
            [&k, &v].map(|x| {
                let mut cache = CacheRows::new((2, 12), CacheDtype::F32);
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
        let y = attention_cached(&q, &cached, shape, bias.as_deref()).unwrap().to_vec2::<f32>().unwrap();
        for (row, expected) in (20..75).chain([75]).enumerate().chain([(57, 87), (58, 88), (59, 89)]) {
            let expected: Vec<f64> = whole[expected].iter().copied().map(f64::from).collect();
            assert_close(&format!("row {row}"), &y[row], &expected, VALUE_TOLERANCE);
        }
        assert_eq!(y[56], vec![0.0; 48]);
    }
}

/// The keys and values `(N, 24)` of each segment.
fn caches(segments: &[Range<usize>], kv: [&Tensor; 2]) -> Vec<[CacheRows; 2]> {
    let cache = |x: &Tensor, rows: &Range<usize>| {
        let mut cache = CacheRows::new((2, 12), CacheDtype::F32);
        cache.append(&flat(x)[rows.start * 24..rows.end * 24]);
        cache
    };
    segments.iter().map(|rows| kv.map(|x| cache(x, rows))).collect()
}

#[test]
fn in_a_window_the_queries_are_the_last_rows_of_a_cache() {
    let (shape, segments) = (around(4, 2, 12, 6), segments(&[80, 10]));
    let (q, k, v) = (tensor(1, &[90, 48]), tensor(2, &[90, 24]), tensor(3, &[90, 24]));
    let rows =
        |x: &Tensor| Tensor::cat(&[x.narrow(0, 25, 55).unwrap(), x.narrow(0, 89, 1).unwrap()], 0).unwrap();
    let whole = rows(&attention(&q, &k, &v, &segments, shape).unwrap());
    let caches = caches(&segments, [&k, &v]);
    let cached: Vec<_> = (caches.iter().zip([0..55, 55..56]))
        .map(|([keys, values], rows)| CachedSegment { start: rows.start, len: rows.len(), keys, values })
        .collect();
    let found = attention_cached(&rows(&q), &cached, shape, None).unwrap();
    let expected: Vec<f64> = flat(&whole).into_iter().map(f64::from).collect();
    assert_close("value", &flat(&found), &expected, VALUE_TOLERANCE);
}

#[test]
fn cached_keys_of_another_batch_are_all_seen() {
    let (shape, queries, keys) = (both_ways(4, 2, 12), segments(&[5, 40]), segments(&[9, 3]));
    let (q, k, v) = (tensor(1, &[45, 48]), tensor(2, &[12, 24]), tensor(3, &[12, 24]));
    let whole = attention_across(&q, &k, &v, [&queries, &keys], shape).unwrap();
    let caches = caches(&keys, [&k, &v]);
    let cached: Vec<_> = (queries.iter().zip(&caches))
        .map(|(rows, [keys, values])| CachedSegment { start: rows.start, len: rows.len(), keys, values })
        .collect();
    let found = attention_cached(&q, &cached, shape, None).unwrap();
    let expected: Vec<f64> = flat(&whole).into_iter().map(f64::from).collect();
    assert_close("value", &flat(&found), &expected, VALUE_TOLERANCE);
}
