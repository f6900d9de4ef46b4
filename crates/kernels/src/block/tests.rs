//! Against the fine-grained operations.

use candle_core::Var;

use super::*;
use crate::testing::{WeightedSum, assert_close, flat, mapped, tensor, values};
use crate::{Activation, gated, rms_norm, rope, scale_columns};
use crate::{CacheDtype, CacheRows, Compute, Dropout, Stored, add_bias, attention, decode, encode, linear};

const HIDDEN: usize = 24;
const INNER: usize = 40;
const EPS: f64 = 1e-5;

/// One of the blocks under test.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "what varies from case to case")]
struct Case {
    head_norms: bool,
    biases: bool,
    rotates: bool,
    window: Option<usize>,
    dropout: f32,
    /// Bit `i`: projection `i` has a low-rank term.
    adapted: u8,
    /// Bit `i`: and a gain.
    gained: u8,
    track_x: bool,
    compute: Compute,
}

const PLAIN: Case = Case {
    head_norms: false,
    biases: false,
    rotates: true,
    window: None,
    dropout: 0.0,
    adapted: 0x7f,
    gained: 0,
    track_x: true,
    compute: Compute::F32,
};

fn make(case: Case) -> Arc<Block> {
    let shape = AttentionShape {
        heads: 6,
        kv_heads: 2,
        head_dim: 8,
        scale: 0.35,
        causal: true,
        window: case.window,
        cap: None,
    };
    let (q, k) = (shape.query_width(), shape.key_width());
    let sizes = [(q, HIDDEN), (k, HIDDEN), (k, HIDDEN), (HIDDEN, q)];
    let sizes = [&sizes[..], &[(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]].concat();
    let projections = std::array::from_fn(|i| {
        let (outputs, inputs) = sizes[i];
        let values_of = values(20 + i as u64, outputs * inputs).iter().map(|w| w * 0.4).collect();
        Projection {
            weight: Weight::dense(values_of, outputs, inputs).unwrap().with_compute(case.compute),
            bias: case.biases.then(|| values(40 + i as u64, outputs)),
        }
    });
    Arc::new(Block {
        projections,
        gains: [values(51, HIDDEN), values(52, HIDDEN)],
        head_gains: case.head_norms.then(|| [values(53, 8), values(54, 8)]),
        eps: EPS as f32,
        shape,
        rotates: case.rotates,
    })
}

fn pass(lengths: &[usize], recompute: bool) -> BlockPass {
    let rows: usize = lengths.iter().sum();
    let mut end = 0;
    let segments = lengths.iter().map(|length| {
        end += length;
        end - length..end
    });
    let segments = segments.collect();
    let angles: Vec<f32> = values(60, rows * 3).iter().map(|a| 3.0 * a).collect();
    let table = |f: fn(f32) -> f32| angles.iter().map(|&a| f(a)).collect();
    let rope = Arc::new(RopeTable { cos: table(f32::cos), sin: table(f32::sin), half: 3 });
    BlockPass { segments, rope, recompute, gradients: Some(Gradients::default()) }
}

/// The same block in single operations.
fn in_parts(
    x: &Tensor,
    block: &Block,
    pass: &BlockPass,
    adapted: &[Option<Adapted<'_>>; 7],
) -> Result<Tensor> {
    let vector = |values: &[f32]| Tensor::new(values, &Device::Cpu);
    let norm = |x: &Tensor, gain: &[f32]| rms_norm(x, &vector(gain)?, EPS);
    let project = |i: usize, x: &Tensor| {
        let Projection { weight, bias } = &block.projections[i];
        let bias = bias.as_deref().map(vector).transpose()?;
        let low_rank = adapted[i].as_ref().map(|adapted| adapted.low_rank);
        let Some(gain) = adapted[i].as_ref().and_then(|adapted| adapted.gain.as_ref()) else {
            return linear(x, weight, bias.as_ref(), low_rank);
        };
        let y = scale_columns(&linear(x, weight, None, low_rank)?, gain)?;
        bias.map_or_else(|| Ok(y.clone()), |bias| add_bias(&y, &bias))
    };
    let normed = norm(x, &block.gains[0])?;
    let (mut q, mut k, v) = (project(0, &normed)?, project(1, &normed)?, project(2, &normed)?);
    if let Some([q_gain, k_gain]) = &block.head_gains {
        (q, k) = (norm(&q, q_gain)?, norm(&k, k_gain)?);
    }
    if block.rotates {
        let size = block.shape.head_dim;
        (q, k) = (rope(&q, &pass.rope, size)?, rope(&k, &pass.rope, size)?);
    }
    let middle = (x + project(3, &attention(&q, &k, &v, &pass.segments, block.shape)?)?)?;
    let normed = norm(&middle, &block.gains[1])?;
    &middle + project(6, &gated(&project(4, &normed)?, &project(5, &normed)?, Activation::Silu)?)?
}

/// The value, and the gradients of x, of the factors and of the gains, where there are any.
fn run(
    case: Case,
    pass: &BlockPass,
    run: impl Fn(&Tensor, &Block, &[Option<Adapted<'_>>; 7]) -> Result<Tensor>,
) -> Vec<Vec<f32>> {
    let block = make(case);
    let rows = pass.segments.last().map_or(0, |segment| segment.end);
    let x = Var::from_tensor(&tensor(1, &[rows, HIDDEN])).unwrap();
    let parameters: Vec<[Var; 3]> = (0..7)
        .map(|i| {
            let Projection { weight, .. } = &block.projections[i];
            let (rank, seed) = (2 + i % 3, 70 + 3 * i as u64);
            let shapes: [&[usize]; 3] = [&[rank, weight.cols()], &[weight.rows(), rank], &[weight.rows()]];
            [0, 1, 2].map(|j| Var::from_tensor(&tensor(seed + j as u64, shapes[j])).unwrap())
        })
        .collect();
    let adapted = std::array::from_fn(|i| {
        let dropout = (case.dropout > 0.0).then_some(Dropout { p: case.dropout, seed: i as u64 });
        let gained = case.gained >> i & 1 == 1;
        let (dropout, scaling) = (dropout.filter(|_| !gained), 0.3 + i as f64 / 10.0);
        let [a, b, gain] = parameters[i].each_ref().map(Var::as_tensor);
        let low_rank = LowRank { a, b, scaling, dropout };
        (case.adapted >> i & 1 == 1).then(|| Adapted { low_rank, gain: gained.then(|| gain.clone()) })
    });
    let argument = if case.track_x { x.as_tensor().clone() } else { x.as_detached_tensor() };
    let y = run(&argument, &block, &adapted).unwrap();
    let mut found = vec![flat(&y)];
    let loss = y.apply_op1(WeightedSum(values(99, y.elem_count()))).unwrap();
    assert_eq!(loss.track_op(), case.track_x || case.adapted != 0);
    if loss.track_op() {
        let gradients = loss.backward().unwrap();
        for var in std::iter::once(&x).chain(parameters.iter().flatten()) {
            let sum = pass.gradients.as_ref().and_then(|sums| sums.take(var));
            found.push(gradients.get(var).map(flat).or(sum).unwrap_or_default());
        }
    }
    found
}

fn check(case: Case, lengths: &[usize], tolerance: f64) {
    let expected = pass(lengths, false);
    let expected = run(case, &expected, |x, block, adapted| in_parts(x, block, &expected, adapted));
    for recompute in [false, true] {
        let pass = pass(lengths, recompute);
        let found =
            run(case, &pass, |x, block, adapted| super::block(x, &Arc::new(block.clone()), &pass, adapted));
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let expected: Vec<f64> = expected.iter().map(|&e| f64::from(e)).collect();
            assert_close(&format!("result {i}, recompute {recompute}"), found, &expected, tolerance);
        }
    }
}

const LENGTHS: &[usize] = &[5, 1, 17, 9];

#[test]
fn value_and_gradients_are_those_of_the_single_operations() {
    for case in [
        PLAIN,
        Case { rotates: false, ..PLAIN },
        Case { head_norms: true, ..PLAIN },
        Case { biases: true, window: Some(4), ..PLAIN },
        Case { dropout: 0.3, ..PLAIN },
        Case { head_norms: true, biases: true, window: Some(3), dropout: 0.5, ..PLAIN },
    ] {
        check(case, LENGTHS, 1e-5);
    }
}

#[test]
fn any_part_may_be_frozen() {
    for adapted in [0, 0b101, 0b111, 0b1000, 0b11_0000, 0b100_0000, 0b101_1010] {
        for track_x in [true, false] {
            check(Case { adapted, track_x, dropout: 0.2, ..PLAIN }, LENGTHS, 1e-5);
        }
    }
}

#[test]
fn gains_scale_all_but_bias_and_residual() {
    let all = Case { gained: 0x7f, ..PLAIN };
    for case in [
        all,
        Case { biases: true, rotates: false, ..all },
        Case { head_norms: true, biases: true, window: Some(3), ..all },
        Case { gained: 0b010_1001, biases: true, dropout: 0.3, ..all },
        Case { gained: 0b101_0110, adapted: 0b101_0111, track_x: false, ..all },
    ] {
        check(case, LENGTHS, 1e-5);
    }
    check(Case { compute: Compute::Bf16, ..all }, LENGTHS, 1e-2);
}

#[test]
fn a_gain_that_does_not_fit_is_refused() {
    let (good, x) = (make(PLAIN), tensor(1, &[32, HIDDEN]));
    let (a, b) = (tensor(2, &[2, HIDDEN]), tensor(3, &[48, 2]));
    let refused = |gain: &[f32], dropout| {
        let low_rank = LowRank { a: &a, b: &b, scaling: 1.0, dropout };
        let mut adapted = [const { None }; 7];
        adapted[0] = Some(Adapted { low_rank, gain: Some(Tensor::new(gain, &Device::Cpu).unwrap()) });
        super::block(&x, &good, &pass(LENGTHS, false), &adapted).unwrap_err().to_string()
    };
    assert!(refused(&[1.0; 47], None).contains("gain [47]"));
    assert!(refused(&[1.0; 48], Some(Dropout { p: 0.1, seed: 0 })).contains("with dropout"));
    let mut one_zero = [1.0; 48];
    one_zero[7] = 0.0;
    assert!(refused(&one_zero, None).contains("a gain of 0"));
}

#[test]
fn products_in_bf16_are_the_same_ones() {
    let case = Case { compute: Compute::Bf16, ..PLAIN };
    check(case, LENGTHS, 1e-2);
    check(Case { head_norms: true, dropout: 0.1, ..case }, &[300, 20], 1e-2);
}

#[test]
fn a_batch_without_rows_has_gradients_of_nothing() {
    let pass = pass(&[], false);
    let found =
        run(PLAIN, &pass, |x, block, adapted| super::block(x, &Arc::new(block.clone()), &pass, adapted));
    assert!(found[0].is_empty());
    assert!(found.iter().flatten().all(|value| value.abs() < f32::MIN_POSITIVE));
}

#[test]
fn gradients_of_factors_are_summed_over_passes_and_need_a_place() {
    let pass = pass(LENGTHS, false);
    let block = make(PLAIN);
    let [a, b] = [[2, HIDDEN], [48, 2]].map(|shape| Var::from_tensor(&tensor(3, &shape)).unwrap());
    let mut adapted = [const { None }; 7];
    adapted[0] =
        Some(Adapted { low_rank: LowRank { a: &a, b: &b, scaling: 0.7, dropout: None }, gain: None });
    let x = tensor(1, &[32, HIDDEN]);
    let backward = || {
        let y = super::block(&x, &block, &pass, &adapted).unwrap();
        y.apply_op1(WeightedSum(values(99, y.elem_count()))).unwrap().backward().unwrap();
    };
    let take = || pass.gradients.as_ref().and_then(|sums| sums.take(&b));
    backward();
    let twice: Vec<f64> = take().unwrap().iter().map(|&g| 2.0 * f64::from(g)).collect();
    backward();
    backward();
    assert_close("twice", &take().unwrap(), &twice, 1e-6);
    assert!(take().is_none());

    let nowhere = BlockPass { gradients: None, ..pass.clone() };
    let refused = super::block(&x, &block, &nowhere, &adapted).unwrap_err().to_string();
    assert!(refused.contains("nowhere to go"), "{refused}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = make(PLAIN);
    let refused = |block: Block, width: usize, lengths: &[usize]| {
        let x = tensor(1, &[32, width]);
        super::block(&x, &Arc::new(block), &pass(lengths, false), &[const { None }; 7])
            .unwrap_err()
            .to_string()
    };
    assert!(refused((*good).clone(), HIDDEN + 1, LENGTHS).contains("projection 0"));
    assert!(refused((*good).clone(), HIDDEN, &[5, 1]).contains("angles"));
    let mut other = (*good).clone();
    other.projections[2].weight = other.projections[2].weight.clone().with_compute(Compute::Bf16);
    assert!(refused(other, HIDDEN, LENGTHS).contains("projection 2"));
    let gains = [values(1, HIDDEN), values(1, 3)];
    assert!(refused(Block { gains, ..(*good).clone() }, HIDDEN, LENGTHS).contains("gains"));
    let head_gains = Some([values(1, 8), values(1, 7)]);
    assert!(refused(Block { head_gains, ..(*good).clone() }, HIDDEN, LENGTHS).contains("gains"));
}

/// Two sequences of 40 and 7 tokens in several passes: rows of the first and of the second in each.
const PASSES: [[Range<usize>; 2]; 4] =
    [[0..34, 40..40], [34..35, 40..43], [35..36, 43..44], [36..40, 44..47]];

fn in_passes(x: &Tensor, block: &Block, whole: &BlockPass, adapted: &[Option<Adapted<'_>>; 7]) -> Vec<f32> {
    let mut caches = [(); 4].map(|()| CacheRows::new(block.shape.key_width(), CacheDtype::F32));
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
        let y = flat(&block_cached(&x, block, &part, adapted, &mut pairs).unwrap());
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
        // Where sums of another order fall on the other side of a rounding to bf16.
        (Case { compute: Compute::Bf16, ..PLAIN }, 1e-2),
    ] {
        let pass = pass(&[40, 7], false);
        run(case, &pass, |x, block, adapted| {
            let whole = super::block(x, &Arc::new(block.clone()), &pass, adapted)?;
            let expected: Vec<f64> = flat(&whole).into_iter().map(f64::from).collect();
            assert_close("y", &in_passes(x, block, &pass, adapted), &expected, tolerance);
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
    };
    let (q, k) = (shape.query_width(), shape.key_width());
    let sizes = [(q, hidden), (k, hidden), (k, hidden), (hidden, q)];
    let sizes = [&sizes[..], &[(inner, hidden), (inner, hidden), (hidden, inner)]].concat();
    let weights = std::array::from_fn(|i| {
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
            .each_ref()
            .map(|both: &[Weight; 2]| Projection { weight: both[which].clone(), bias: None }),
        gains: [values(51, hidden), values(52, hidden)],
        head_gains: None,
        eps: EPS as f32,
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
            let whole = super::block(&x, &Arc::new(lying), &pass, &adapted).unwrap();
            assert_close(&what, &flat(&whole), &expected, tolerance);
        }
    }
}
