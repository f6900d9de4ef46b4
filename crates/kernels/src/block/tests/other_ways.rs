//! The same block where its rows continue caches, and where its weights are quantised.

use super::*;

/// Two sequences of 40 and 7 tokens in several passes: rows of the first and of the second in each.
const PASSES: [[Range<usize>; 2]; 4] =
    [[0..34, 40..40], [34..35, 40..43], [35..36, 43..44], [36..40, 44..47]];

fn in_passes(x: &Tensor, block: &Block, whole: &BlockPass, adapted: &[Option<Adapted<'_>>; 7]) -> Vec<f32> {
    let heads = (block.shape.kv_heads, block.shape.head_dim);
    let mut caches = [(); 4].map(|()| CacheRows::new(heads, CacheDtype::F32));
    let [ak, av, bk, bv] = &mut caches;
    let mut found = vec![0.0; x.elem_count()];
    let width = block.projections[0].weight.cols();
    for [a, b] in PASSES {
        let rows: Vec<usize> = a.clone().chain(b).collect();
        let pick = |values: &[f32], width: usize| -> Vec<f32> {
            rows.iter().flat_map(|row| &values[row * width..(row + 1) * width]).copied().collect()
        };
        let RopeTable { cos, sin, half } = &*whole.rope;
        let rope = Arc::new(RopeTable { cos: pick(cos, *half), sin: pick(sin, *half), half: *half });
        let segments = [0..a.len(), a.len()..rows.len()].into();
        let part = BlockPass { segments, rope, ..whole.clone() };
        let x = Tensor::from_vec(pick(&flat(x), width), (rows.len(), width), &Device::Cpu).unwrap();
        let mut pairs = [(&mut *ak, &mut *av), (&mut *bk, &mut *bv)];
        let y = flat(&block_cached(&x, &link(block, &part, adapted), &mut pairs).unwrap());
        for (row, y) in rows.iter().zip(y.chunks_exact(width)) {
            found[row * width..(row + 1) * width].copy_from_slice(y);
        }
    }
    found
}

#[test]
fn caches_give_what_one_pass_gives() {
    for (case, tolerance) in [
        (Case { adapted: 0x55, biases: true, ..PLAIN }, 1e-5),
        (Case { head_norms: true, window: Some(4), ..PLAIN }, 1e-5),
        (Case { rotates: false, adapted: 0, ..PLAIN }, 1e-5),
        (Case { biases: true, gained: 0x7f, ..PLAIN }, 1e-5),
        // As a decoder might be: norms after, no gate.
        (Case { causal: true, ..ENCODER }, 1e-5),
        (Case { sides: Sides::Around, head_norms: true, window: Some(4), ..PLAIN }, 1e-5),
        (Case { biases: true, gained: 0x5, ..JOINED }, 1e-5),
        (GPT, 1e-5),
        (NEOX, 1e-5),
        // Where sums of another order fall on the other side of a rounding to bf16.
        (Case { compute: Compute::Bf16, ..PLAIN }, 1e-2),
    ] {
        let pass = pass(&[40, 7], false);
        run(case, &pass, |x, of, adapted| {
            let whole = block(x, of, &pass, adapted)?;
            let expected: Vec<f64> = flat(&whole).into_iter().map(f64::from).collect();
            assert_close("y", &in_passes(x, of, &pass, adapted), &expected, tolerance);
            Ok(whole)
        });
    }
}

/// A block of 256 columns whose weights are `stored`, and the same one with the values that those stand for.
fn quantised(stored: Stored, compute: Compute) -> [Block; 2] {
    let (hidden, inner) = (256, 512);
    let shape = AttentionShape {
        heads: 8,
        kv_heads: 2,
        head_dim: 32,
        scale: 0.2,
        window: None,
        cap: None,
        causal: true,
        compute,
    };
    let (q, k) = (shape.query_width(), shape.key_width());
    let sizes = [(q, hidden), (k, hidden), (k, hidden), (hidden, q)];
    let sizes = [&sizes[..], &[(inner, hidden), (hidden, inner), (inner, hidden)]].concat();
    let weights: [_; 7] = std::array::from_fn(|i| {
        let (rows, cols) = sizes[i];
        let small: Vec<f32> = values(20 + i as u64, rows * cols).iter().map(|w| w * 0.1).collect();
        let mut bytes = vec![0; stored.bytes(small.len()).unwrap()];
        assert!(encode(&small, stored, &mut bytes));
        let mut exact = vec![0.0; small.len()];
        decode(&bytes, stored, &mut exact);
        let file = mapped(&format!("{stored:?}-{i}"), &bytes);
        let lying = Weight::mapped(file, 0, stored, rows, cols).unwrap();
        [lying, Weight::dense(exact, rows, cols).unwrap()].map(|weight| weight.with_compute(compute))
    });
    [0, 1].map(|which| Block {
        projections: weights
            .iter()
            .map(|both: &[Weight; 2]| Projection { weight: both[which].clone(), bias: None })
            .collect(),
        joined: Joined::default(),
        norms: Norms::Before([51, 52].map(|seed| Norm::Rms { gain: values(seed, hidden), eps: EPS as f32 })),
        head_norms: None,
        activation: Activation::Silu,
        shape,
        rotates: true,
    })
}

#[test]
fn quantised_blocks_give_what_their_values_give() {
    let (a, b) = (tensor(71, &[3, 256]), tensor(72, &[512, 3]));
    let x = tensor(1, &[47, 256]);
    for stored in [Stored::Q8_0, Stored::Q4_0, Stored::Q4_K, Stored::Q5_K, Stored::Q6_K] {
        for (compute, tolerance) in [(Compute::F32, 1e-5), (Compute::Bf16, 1e-2)] {
            let [lying, exact] = quantised(stored, compute);
            let low_rank = LowRank { a: &a, b: &b, scaling: 0.1, dropout: None };
            let mut adapted = [const { None }; 7];
            adapted[4] = Some(Adapted { low_rank, gain: None });
            let pass = pass(&[40, 7], false);
            let expected = flat(&in_parts(&x, &exact, &pass, &adapted).unwrap());
            let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
            let what = format!("{stored:?} {compute:?}");
            assert_close(&what, &in_passes(&x, &lying, &pass, &adapted), &expected, tolerance);
            let whole = block(&x, &lying, &pass, &adapted).unwrap();
            assert_close(&what, &flat(&whole), &expected, tolerance);
        }
    }
}
