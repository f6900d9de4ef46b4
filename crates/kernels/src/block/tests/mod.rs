//! Against the fine-grained operations.

mod cases;
mod chain;
mod other_ways;

use candle_core::{Device, Var};

use super::*;
use crate::testing::{WeightedSum, assert_close, flat, mapped, tensor, values};
use crate::{CacheDtype, CacheRows, Compute, Dropout, Stored, decode, encode};
use cases::*;

/// The block as an operation of its own.
fn block(x: &Tensor, block: &Block, pass: &BlockPass, adapted: &[Option<Adapted<'_>>; 7]) -> Result<Tensor> {
    blocks(x, &[link(block, pass, adapted)])
}

fn link<'a>(block: &Block, pass: &BlockPass, adapted: &[Option<Adapted<'a>>; 7]) -> Link<'a> {
    Link { block: Arc::new(block.clone()), pass: pass.clone(), adapted: adapted.clone() }
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
            let Projection { weight, .. } = block.projections.get(i).unwrap_or(&block.projections[0]);
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
        let found = run(case, &pass, |x, of, adapted| block(x, of, &pass, adapted));
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let expected: Vec<f64> = expected.iter().map(|&e| f64::from(e)).collect();
            assert_close(&format!("result {i}, recompute {recompute}"), found, &expected, tolerance);
        }
    }
}

/// In bf16 the value is that of the single operations, and every gradient is about as far from f32's as theirs is.
fn check_bf16(case: Case, lengths: &[usize]) {
    let [exact, case] = [Compute::F32, Compute::Bf16].map(|compute| Case { compute, ..case });
    let kept = pass(lengths, false);
    let [truth, parts] =
        [exact, case].map(|case| run(case, &kept, |x, of, adapted| in_parts(x, of, &kept, adapted)));
    let [once, again] = [false, true].map(|recompute| {
        let pass = pass(lengths, recompute);
        run(case, &pass, |x, of, adapted| block(x, of, &pass, adapted))
    });
    let value: Vec<f64> = parts[0].iter().map(|&y| f64::from(y)).collect();
    assert_close("value", &once[0], &value, 1e-5);
    for (i, truth) in truth.iter().enumerate() {
        let square = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let distance = |found: &[f32]| {
            let apart: Vec<f32> = found.iter().zip(truth).map(|(f, t)| f - t).collect();
            (square(&apart) / square(truth).max(1e-12)).sqrt()
        };
        let [of_parts, of_block] = [&parts, &once].map(|found| distance(&found[i]));
        assert!(of_block <= 1.6 * of_parts, "result {i}: {of_block}, {of_parts}");
        assert_eq!(once[i], again[i], "result {i}, run again");
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
        ENCODER,
        Case { dropout: 0.3, biases: false, ..ENCODER },
        Case { head_norms: true, rotates: true, ..ENCODER },
        Case { sides: Sides::Around, ..PLAIN },
        Case { sides: Sides::Around, head_norms: true, biases: true, window: Some(4), dropout: 0.3, ..PLAIN },
        JOINED,
        Case { biases: true, head_norms: true, dropout: 0.3, ..JOINED },
        GPT,
        Case { dropout: 0.4, window: Some(5), rotates: true, ..GPT },
        NEOX,
        Case { dropout: 0.4, ..NEOX },
    ] {
        check(case, LENGTHS, 1e-5);
    }
}

#[test]
fn any_part_may_be_frozen() {
    for adapted in [0, 0b101, 0b111, 0b1000, 0b11_0000, 0b100_0000, 0b101_1010] {
        for track_x in [true, false] {
            check(Case { adapted, track_x, dropout: 0.2, ..PLAIN }, LENGTHS, 1e-5);
            check(Case { adapted: adapted & 0x3f, track_x, dropout: 0.2, ..ENCODER }, LENGTHS, 1e-5);
            check(Case { adapted, track_x, sides: Sides::Around, ..PLAIN }, LENGTHS, 1e-5);
            check(Case { adapted: adapted & 0xf, track_x, dropout: 0.2, ..JOINED }, LENGTHS, 1e-5);
            check(Case { adapted: adapted & 0xf, track_x, dropout: 0.2, ..GPT }, LENGTHS, 1e-5);
            check(Case { adapted: adapted & 0xf, track_x, dropout: 0.2, ..NEOX }, LENGTHS, 1e-5);
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
        Case { gained: 0x3f, ..ENCODER },
        Case { sides: Sides::Around, biases: true, ..all },
        Case { gained: 0xf, biases: true, ..JOINED },
        Case { gained: 0xf, biases: true, head_norms: true, ..JOINED },
        Case { gained: 0xf, ..GPT },
        Case { gained: 0xf, ..NEOX },
    ] {
        check(case, LENGTHS, 1e-5);
    }
    check_bf16(all, LENGTHS);
    check_bf16(Case { gained: 0b010_1001, ..all }, LENGTHS);
    check_bf16(Case { gained: 0x3, ..JOINED }, LENGTHS);
}

#[test]
fn a_gain_that_does_not_fit_is_refused() {
    let (good, x) = (make(PLAIN), tensor(1, &[32, HIDDEN]));
    let (a, b) = (tensor(2, &[2, HIDDEN]), tensor(3, &[48, 2]));
    let refused = |gain: &[f32], dropout| {
        let low_rank = LowRank { a: &a, b: &b, scaling: 1.0, dropout };
        let mut adapted = [const { None }; 7];
        adapted[0] = Some(Adapted { low_rank, gain: Some(Tensor::new(gain, &Device::Cpu).unwrap()) });
        block(&x, &good, &pass(LENGTHS, false), &adapted).unwrap_err().to_string()
    };
    assert!(refused(&[1.0; 47], None).contains("gain [47]"));
    assert!(refused(&[1.0; 48], Some(Dropout { p: 0.1, seed: 0 })).contains("with dropout"));
    let mut one_zero = [1.0; 48];
    one_zero[7] = 0.0;
    assert!(refused(&one_zero, None).contains("a gain of 0"));
}

#[test]
fn products_in_bf16_follow_those_in_f32() {
    check_bf16(PLAIN, LENGTHS);
    check_bf16(Case { head_norms: true, dropout: 0.1, ..PLAIN }, &[300, 20]);
    for case in [ENCODER, JOINED, GPT, NEOX, Case { sides: Sides::Around, ..PLAIN }] {
        check_bf16(case, LENGTHS);
    }
}

#[test]
fn a_batch_without_rows_has_gradients_of_nothing() {
    let pass = pass(&[], false);
    let found = run(PLAIN, &pass, |x, of, adapted| block(x, of, &pass, adapted));
    assert!(found[0].is_empty());
    assert!(found.iter().flatten().all(|value| value.abs() < f32::MIN_POSITIVE));
}

#[test]
fn gradients_of_factors_are_summed_over_passes_and_need_a_place() {
    let pass = pass(LENGTHS, false);
    let plain = make(PLAIN);
    let [a, b] = [[2, HIDDEN], [48, 2]].map(|shape| Var::from_tensor(&tensor(3, &shape)).unwrap());
    let mut adapted = [const { None }; 7];
    adapted[0] =
        Some(Adapted { low_rank: LowRank { a: &a, b: &b, scaling: 0.7, dropout: None }, gain: None });
    let x = tensor(1, &[32, HIDDEN]);
    let backward = || {
        let y = block(&x, &plain, &pass, &adapted).unwrap();
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
    let refused = block(&x, &plain, &nowhere, &adapted).unwrap_err().to_string();
    assert!(refused.contains("nowhere to go"), "{refused}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = make(PLAIN);
    let refused = |of: Block, width: usize, lengths: &[usize]| {
        let x = tensor(1, &[32, width]);
        block(&x, &of, &pass(lengths, false), &[const { None }; 7]).unwrap_err().to_string()
    };
    assert!(refused((*good).clone(), HIDDEN + 1, LENGTHS).contains("projection 0"));
    assert!(refused((*good).clone(), HIDDEN, &[5, 1]).contains("angles"));
    let mut other = (*good).clone();
    other.projections[2].weight = other.projections[2].weight.clone().with_compute(Compute::Bf16);
    assert!(refused(other, HIDDEN, LENGTHS).contains("projection 2"));
    let mut few = (*good).clone();
    few.projections.truncate(5);
    assert!(refused(few, HIDDEN, LENGTHS).contains("5 projections"));
    let joined = (*make(JOINED)).clone();
    let by_head = Joined { qkv: Some(Order::ByHead), gate_up: true };
    assert!(
        refused(Block { joined: by_head, ..joined.clone() }, HIDDEN, LENGTHS).contains("6 queries by head")
    );
    let apart = Joined { qkv: None, gate_up: true };
    assert!(refused(Block { joined: apart, ..joined.clone() }, HIDDEN, LENGTHS).contains("4 projections"));
    let ungated = Joined { gate_up: false, ..joined.joined };
    assert!(
        refused(Block { joined: ungated, ..joined }, HIDDEN, LENGTHS).contains("projection 2 is 80 x 24")
    );
    let norm = |size| Norm::Layer { gain: values(1, HIDDEN), bias: values(1, size), eps: 0.0 };
    let norms = Norms::After([norm(HIDDEN), norm(3)]);
    assert!(refused(Block { norms, ..(*good).clone() }, HIDDEN, LENGTHS).contains("norms"));
    let head_norms = Some([8, 7].map(|size| Norm::Rms { gain: values(1, size), eps: 0.0 }));
    assert!(refused(Block { head_norms, ..(*good).clone() }, HIDDEN, LENGTHS).contains("norms"));
}
