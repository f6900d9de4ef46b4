//! The fused head and loss against the plain formula, and against the operations it is fused from.

use candle_core::{Device, Result, Tensor, Var};

use super::{HeadWeight, Labelled, Scoring, linear_cross_entropy, linear_nll};
use crate::testing::{Arg, VALUE_TOLERANCE, assert_close, check, constant, flat, tensor, values, var};
use crate::{Compute, Dropout, LowRank, Weight, cross_entropy, linear};

const WIDTH: usize = 6;
const CLASSES: usize = 9;
const RANK: usize = 2;

fn head() -> Weight {
    Weight::dense(values(50, CLASSES * WIDTH), CLASSES, WIDTH).unwrap()
}

/// A row without a label, one with two, and an order that is not the batch's.
fn labelled() -> Labelled {
    Labelled { rows: vec![3, 0, 4, 3], labels: vec![8, 2, 0, 1] }
}

/// What is run on top of the frozen head.
#[derive(Clone, Copy, Default)]
struct With {
    factors: bool,
    dropout: Option<Dropout>,
    cap: Option<f32>,
    scoring: Scoring<'static>,
}

const PLAIN: Scoring<'_> = Scoring { label_smoothing: 0.0, weights: None };
const WEIGHTS: [f32; CLASSES] = [0.5, 2.0, 3.0, 1.0, 0.25, 1.5, 0.75, 1.25, 4.0];
const FACTORS: With = With { factors: true, dropout: None, cap: None, scoring: PLAIN };

/// Arguments: hidden, A, B, bias.
fn run(args: &[Tensor], with: With) -> Result<Tensor> {
    let factors = LowRank { a: &args[1], b: &args[2], scaling: 1.6, dropout: with.dropout };
    let weight = head();
    let head = HeadWeight { weight: &weight, bias: Some(&args[3]), cap: with.cap };
    linear_cross_entropy(&args[0], head, with.factors.then_some(factors), &labelled(), with.scoring)
}

fn nll(args: &[Vec<f64>], With { factors, dropout, cap, scoring }: With) -> Vec<f64> {
    let w: Vec<f64> = values(50, CLASSES * WIDTH).into_iter().map(f64::from).collect();
    let labelled = labelled();
    let mut mask = vec![1f32; labelled.rows.len() * WIDTH];
    if let Some(dropout) = dropout {
        dropout.apply(&mut mask, 0);
    }
    let row = |(i, (row, _)): (usize, (&u32, &u32))| {
        let x = &args[0][*row as usize * WIDTH..][..WIDTH];
        let dropped: Vec<f64> = x.iter().zip(&mask[i * WIDTH..]).map(|(x, m)| x * f64::from(*m)).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let low = |j: usize| {
            let u: Vec<f64> = args[1].chunks(WIDTH).map(|a| dot(&dropped, a)).collect();
            1.6 * dot(&u, &args[2][j * RANK..][..RANK])
        };
        let logit =
            |j: usize| dot(x, &w[j * WIDTH..][..WIDTH]) + args[3][j] + if factors { low(j) } else { 0.0 };
        let capped = |y: f64| cap.map_or(y, |cap| f64::from(cap) * (y / f64::from(cap)).tanh());
        (0..CLASSES).map(|j| capped(logit(j))).collect::<Vec<f64>>()
    };
    let rows = labelled.rows.iter().zip(&labelled.labels).enumerate();
    of_logits(&rows.flat_map(row).collect::<Vec<f64>>(), scoring)
}

/// The loss of each of the labelled rows by its logits.
fn of_logits(logits: &[f64], scoring: Scoring<'_>) -> Vec<f64> {
    let smoothing = f64::from(scoring.label_smoothing);
    let row = |(logits, label): (&[f64], &u32)| {
        let log_sum = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
        let wanted = |j: usize| {
            let onehot = if j == *label as usize { 1.0 - smoothing } else { 0.0 };
            scoring.weights.map_or(1.0, |w| f64::from(w[j])) * (onehot + smoothing / CLASSES as f64)
        };
        (0..CLASSES).map(|j| wanted(j) * (log_sum - logits[j])).sum()
    };
    logits.chunks(CLASSES).zip(&labelled().labels).map(row).collect()
}

fn args(tracked: usize) -> Vec<Arg> {
    let shapes: [&[usize]; 4] = [&[5, WIDTH], &[RANK, WIDTH], &[CLASSES, RANK], &[CLASSES]];
    (0..4).map(|i| if tracked >> i & 1 == 1 { var(shapes[i]) } else { constant(shapes[i]) }).collect()
}

#[test]
fn every_choice_of_tracked_arguments_gets_its_gradients() {
    let dropped = Some(Dropout { p: 0.3, seed: 11 });
    for with in [FACTORS, With { dropout: dropped, ..FACTORS }, With { cap: Some(0.9), ..FACTORS }] {
        for tracked in 0..8 {
            check(&args(tracked), |a| run(a, with), |a| vec![nll(a, with).iter().sum()]);
        }
    }
}

#[test]
fn smoothed_and_weighted_labels_get_their_gradients() {
    for weights in [None, Some(&WEIGHTS[..])] {
        for label_smoothing in [0.0, 0.1, 0.7] {
            let scoring = Scoring { label_smoothing, weights };
            for cap in [None, Some(0.9)] {
                let with = With { cap, scoring, ..FACTORS };
                check(&args(7), |a| run(a, with), |a| vec![nll(a, with).iter().sum()]);
            }
            let logits = |a: &[Tensor]| cross_entropy(&a[0], &labelled().labels, scoring);
            check(&[var(&[4, CLASSES])], logits, |a| vec![of_logits(&a[0], scoring).iter().sum()]);
        }
    }
}

#[test]
fn a_scoring_of_other_classes_is_refused() {
    let run =
        |scoring| linear_cross_entropy(&tensor(1, &[5, WIDTH]), (&head()).into(), None, &labelled(), scoring);
    let error = run(Scoring { weights: Some(&[1.0]), ..PLAIN }).unwrap_err().to_string();
    assert!(error.contains("1 weights for 9 classes"), "{error}");
    assert!(run(Scoring { label_smoothing: 1.0, ..PLAIN }).is_err());
}

#[test]
fn the_frozen_head_passes_the_gradient_of_the_hidden_states_alone() {
    let args = [var(&[5, WIDTH]), constant(&[RANK, WIDTH]), constant(&[CLASSES, RANK]), constant(&[CLASSES])];
    for with in [With::default(), With { cap: Some(2.0), ..With::default() }] {
        check(&args, |a| run(a, with), |a| vec![nll(a, with).iter().sum()]);
    }
}

#[test]
fn the_upstream_gradient_scales_it() {
    let halved = |a: &[Tensor]| run(a, FACTORS)?.affine(0.5, 0.0);
    check(&args(7), halved, |a| vec![0.5 * nll(a, FACTORS).iter().sum::<f64>()]);
}

#[test]
fn chunks_of_many_rows_agree_with_the_composed_operations() {
    // In bf16, a value close to the middle of two may be rounded to the other one.
    for (compute, tolerance) in [(Compute::F32, 1e-5), (Compute::Bf16, 1e-3)] {
        for classes in [50, 51] {
            check_chunks(compute, classes, tolerance);
        }
    }
}

fn check_chunks(compute: Compute, classes: usize, tolerance: f64) {
    let (rows, width) = (700, 16);
    let head = Weight::dense(values(5, classes * width), classes, width).unwrap().with_compute(compute);
    let labelled = Labelled {
        rows: (0..rows as u32).filter(|row| row % 7 != 3).collect(),
        labels: (0..rows as u32).filter(|row| row % 7 != 3).map(|row| row * 13 % 50).collect(),
    };
    let (hidden, a, b) = (tensor(1, &[rows, width]), tensor(2, &[3, width]), tensor(3, &[classes, 3]));
    let vars: Vec<_> = [hidden, a, b].iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let [hidden, a, b] = [&vars[0], &vars[1], &vars[2]].map(Var::as_tensor);
    let factors = LowRank { a, b, scaling: 0.7, dropout: Some(Dropout { p: 0.2, seed: 9 }) };
    let fused = linear_cross_entropy(hidden, (&head).into(), Some(factors), &labelled, PLAIN).unwrap();
    let index = Tensor::from_vec(labelled.rows.clone(), labelled.rows.len(), &Device::Cpu).unwrap();
    let logits = linear(&hidden.index_select(&index, 0).unwrap(), &head, None, Some(factors)).unwrap();
    let plain = cross_entropy(&logits, &labelled.labels, PLAIN).unwrap();
    let wide = |t: &Tensor| flat(t).into_iter().map(f64::from).collect::<Vec<_>>();
    assert_close("loss", &flat(&fused), &wide(&plain), VALUE_TOLERANCE);
    let (found, expected) = (fused.backward().unwrap(), plain.backward().unwrap());
    for var in &vars {
        assert_close(
            "gradient",
            &flat(found.get(var).unwrap()),
            &wide(expected.get(var).unwrap()),
            tolerance,
        );
    }
    let each = linear_nll(hidden, (&head).into(), Some(factors), &labelled).unwrap();
    let sum: f64 = each.iter().copied().map(f64::from).sum();
    assert_close("sum", &flat(&fused), &[sum], VALUE_TOLERANCE);
}

#[test]
fn every_row_by_itself() {
    let args = [tensor(1, &[5, WIDTH]), tensor(2, &[CLASSES])];
    let plain: Vec<Vec<f64>> =
        [0, 0, 0, 1].map(|i: usize| flat(&args[i]).into_iter().map(f64::from).collect()).to_vec();
    for cap in [None, Some(1.1)] {
        let weight = head();
        let head = HeadWeight { weight: &weight, bias: Some(&args[1]), cap };
        let found = linear_nll(&args[0], head, None, &labelled()).unwrap();
        assert_close("nll", &found, &nll(&plain, With { cap, ..With::default() }), VALUE_TOLERANCE);
    }
}

#[test]
fn no_labels_make_no_loss_and_a_gradient_of_zeros() {
    let hidden = Var::from_tensor(&tensor(1, &[3, WIDTH])).unwrap();
    let loss = linear_cross_entropy(&hidden, (&head()).into(), None, &Labelled::default(), PLAIN).unwrap();
    assert_eq!(flat(&loss), [0.0]);
    assert_eq!(flat(loss.backward().unwrap().get(&hidden).unwrap()), vec![0.0; 3 * WIDTH]);
}

#[test]
fn wrong_labels_and_a_trained_bias_are_refused() {
    let hidden = tensor(1, &[3, WIDTH]);
    let run = |rows: &[u32], labels: &[u32]| {
        let labelled = Labelled { rows: rows.to_vec(), labels: labels.to_vec() };
        linear_cross_entropy(&hidden, (&head()).into(), None, &labelled, PLAIN)
    };
    assert!(run(&[0, 2], &[0, 8]).is_ok());
    assert!(run(&[0, 3], &[0, 8]).unwrap_err().to_string().contains("row 3 is not one of 3"));
    assert!(run(&[0, 2], &[0, 9]).unwrap_err().to_string().contains("label 9"));
    assert!(run(&[0], &[0, 1]).is_err());
    let bias = Var::from_tensor(&tensor(2, &[CLASSES])).unwrap();
    let head = HeadWeight { weight: &head(), bias: Some(&bias), cap: None };
    assert!(linear_cross_entropy(&hidden, head, None, &labelled(), PLAIN).is_err());
}
