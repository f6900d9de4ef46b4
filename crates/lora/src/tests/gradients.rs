//! Gradients against central differences, and DoRA's against the formula of its paper in candle's own operations.

use taper_kernels::Dropout;

use super::*;
use crate::dora::Dora;
use crate::lora::Factors;
use crate::source::Fresh;
use crate::variant::Variant;
use crate::{Init, ops};

/// Step of the differences: rounding of the f32 loss and curvature are then both some 1e-3.
const STEP: f64 = 4e-3;
/// Of differences of an f32 loss, relative to the largest gradient of the tensor.
const DIFFERENCES: f32 = 1e-2;

#[test]
fn gradients_are_central_differences() {
    for (name, config) in configs() {
        check_differences(name, &Toy::new(false), &config);
    }
}

#[test]
fn a_tied_head_adds_its_gradient_to_the_embeddings() {
    let config = LoraConfig {
        target_modules: Some(list(&[])),
        modules_to_save: strings(&["embed_tokens", "norm", "up_proj", "down_proj"]),
        ..LoraConfig::default()
    };
    let toy = Toy::new(true);
    check_differences("tied", &toy, &config);
    let adapter = toy.trained(&config);
    assert!(adapter.config().ensure_weight_tying);
    // The table is what the head multiplies with.
    let table = flat(&adapter.tensors()["base_model.model.model.embed_tokens.weight"]);
    let x = tensor(9, &[1, DIM]);
    let expected: Vec<f32> =
        table.chunks(DIM).map(|w| w.iter().zip(flat(&x)).map(|(w, x)| w * x).sum()).collect();
    assert_close("logits", &flat(&toy.head.forward(&x, &adapter).unwrap()), &expected, TOLERANCE);
}

fn check_differences(name: &str, toy: &Toy, config: &LoraConfig) {
    let adapter = toy.trained(config);
    let gradients = toy.loss(&adapter).backward().unwrap();
    for (key, var) in adapter.params() {
        // DoRA's lengths are constants in backward: differences see them move (`dora_is_its_formula` has their gradients).
        if config.use_dora && key.contains(".lora_") && !key.contains("magnitude") {
            continue;
        }
        let start = var.as_detached_tensor().copy().unwrap();
        let at = |i: usize, step: f64| {
            let mut moved = flat(&start);
            moved[i] += step as f32;
            var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
            f64::from(toy.loss(&adapter).to_scalar::<f32>().unwrap())
        };
        let expected: Vec<f32> =
            (0..var.elem_count()).map(|i| ((at(i, STEP) - at(i, -STEP)) / (2.0 * STEP)) as f32).collect();
        var.set(&start).unwrap();
        assert_close(&format!("{name}: {key}"), &flat(gradients.get(var).unwrap()), &expected, DIFFERENCES);
    }
}

#[test]
fn dora_is_its_formula() {
    for dropout in [None, Some(Dropout { p: 0.4, seed: 5 })] {
        let toy = Toy::new(false);
        let factors = Factors { r: 2, scaling: 1.5, init: Init::Random, lora_bias: false, use_dora: true };
        let mut source = Fresh::new(3);
        let dora = Dora::new(&factors, &toy.up, &mut source).unwrap();
        for (i, var) in (0u64..).zip(source.vars.values()) {
            shift(var, 40 + i, 0.2);
        }
        let [a, b, m] = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"].map(|name| {
            source.vars[&format!("base_model.model.model.layers.0.up_proj.{name}")].as_tensor().clone()
        });
        let x = Var::from_tensor(&tensor(8, &[3, DIM])).unwrap();
        let found = dora.forward(&toy.up, toy.up.bias.as_ref(), &x, dropout).unwrap();

        let w = Tensor::from_vec(toy.up.weight.to_f32(), (WIDE, DIM), &Device::Cpu).unwrap();
        let low_rank = |x: &Tensor| {
            let term = x.matmul(&a.t().unwrap()).unwrap().matmul(&b.t().unwrap()).unwrap();
            (term * factors.scaling).unwrap()
        };
        let adapted = (&w + (b.detach().matmul(&a.detach()).unwrap() * factors.scaling).unwrap()).unwrap();
        let lengths = adapted.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
        let gain = (&m / lengths).unwrap();
        let product = |x: &Tensor| x.matmul(&w.t().unwrap()).unwrap();
        // PEFT: base + (g - 1)·(base - bias) + g·s·B(A(x)), the last two of the dropped input.
        let dropped =
            dropout.map_or_else(|| x.as_tensor().clone(), |dropout| ops::dropped(&x, dropout).unwrap());
        let rest = product(&dropped).broadcast_mul(&(&gain - 1.0).unwrap()).unwrap();
        let term = low_rank(&dropped).broadcast_mul(&gain).unwrap();
        let expected =
            (product(&x) + rest + term).unwrap().broadcast_add(toy.up.bias.as_ref().unwrap()).unwrap();
        assert_close("value", &flat(&found), &flat(&expected), TOLERANCE);

        let weights = tensor(9, &[3, WIDE]);
        let backward = |y: &Tensor| (y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let (found, expected) = (backward(&found), backward(&expected));
        for (what, var) in [("a", &a), ("b", &b), ("m", &m), ("x", x.as_tensor())] {
            assert_close(what, &flat(found.get(var).unwrap()), &flat(expected.get(var).unwrap()), 2e-5);
        }
    }
}

#[test]
fn a_row_that_cancels_is_measured_in_full() {
    // W + s·B·A is 1e-4 of W in one row: the expansion alone would lose its length in rounding.
    let toy = Toy::new(false);
    let w = toy.up.weight.to_f32();
    let a: Vec<f32> = w[..DIM].to_vec();
    let mut b = vec![0.5f32; WIDE];
    b[0] = -0.9999;
    let a = Tensor::from_vec(a, (1, DIM), &Device::Cpu).unwrap();
    let b = Tensor::from_vec(b, (WIDE, 1), &Device::Cpu).unwrap();
    let expected: Vec<f32> = (0..WIDE)
        .map(|i| {
            let delta = |j: usize| f64::from(flat(&b)[i]) * f64::from(flat(&a)[j]);
            (0..DIM).map(|j| (f64::from(w[i * DIM + j]) + delta(j)).powi(2)).sum::<f64>().sqrt() as f32
        })
        .collect();
    let squares = crate::norms::row_squares(&toy.up.weight);
    let lora = crate::lora::Lora::of(a.clone(), b.clone(), 1.0);
    let found = crate::norms::row_lengths(&toy.up.weight, &squares, &lora).unwrap();
    for (found, expected) in found.iter().zip(&expected) {
        assert!((*found as f32 - expected).abs() <= 1e-6 * expected, "{found}, expected {expected}");
    }

    // The same table turned over: lengths of columns.
    let turned: Vec<f32> = (0..WIDE * DIM).map(|i| w[i % WIDE * DIM + i / WIDE]).collect();
    let table = Weight::dense(turned, DIM, WIDE).unwrap();
    let squares = crate::norms::column_squares(&table);
    let found = crate::norms::column_lengths(&table, &squares, (&a, &b, 1.0)).unwrap();
    for (found, expected) in found.iter().zip(&expected) {
        assert!((*found as f32 - expected).abs() <= 1e-6 * expected, "{found}, expected {expected}");
    }
}
