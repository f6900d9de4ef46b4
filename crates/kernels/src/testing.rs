//! Checks of an operation against a reference in f64, and of its gradients against the reference's central differences.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, Var};

/// f32 rounding of a few hundred additions, relative to the largest value.
pub(crate) const VALUE_TOLERANCE: f64 = 5e-6;
/// The same through a backward pass, relative to the largest gradient.
pub(crate) const GRADIENT_TOLERANCE: f64 = 2e-5;
/// Step of the central differences: in f64 both its errors are below 1e-7.
const STEP: f64 = 1e-4;

/// An argument of the operation under test.
#[derive(Clone, Debug)]
pub(crate) struct Arg {
    pub(crate) shape: Vec<usize>,
    pub(crate) tracked: bool,
}

/// An argument that wants a gradient.
pub(crate) fn var(shape: &[usize]) -> Arg {
    Arg { shape: shape.to_vec(), tracked: true }
}

/// An argument that wants none.
pub(crate) fn constant(shape: &[usize]) -> Arg {
    Arg { shape: shape.to_vec(), tracked: false }
}

/// `count` values in ±[0.05, 1], different for each `seed`.
pub(crate) fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    for _ in 0..8 {
        next();
    }
    (0..count).map(|_| (0.05 + 0.95 * next()) * if next() < 0.5 { -1.0 } else { 1.0 }).collect()
}

/// A tensor of [`values`].
pub(crate) fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

/// A file of `bytes`, mapped; `name` is nobody else's.
pub(crate) fn mapped(name: &str, bytes: &[u8]) -> Arc<memmap2::Mmap> {
    let path = std::env::temp_dir().join(format!("taper-mapped-{name}-{}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let map = crate::map(&std::fs::File::open(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    Arc::new(map)
}

/// Compares `found` with `expected` relative to the largest of `expected`.
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let largest = expected.iter().fold(1e-3, |m: f64, e| m.max(e.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*f) - e).abs();
        assert!(error <= tolerance * largest, "{what}[{i}]: {f}, expected {e} (largest {largest})");
    }
}

/// The values of a tensor, flat.
pub(crate) fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Checks value and gradients of `op` against `reference`, that exactly the tracked arguments get a gradient, that no
/// gradient drags a graph along, and that nothing is recorded when nothing is tracked.
pub(crate) fn check(
    args: &[Arg],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    let vars: Vec<Var> =
        (0u64..).zip(args).map(|(i, arg)| Var::from_tensor(&tensor(i + 1, &arg.shape)).unwrap()).collect();
    let tracked = |var: &Var, arg: &Arg| {
        if arg.tracked { var.as_tensor().clone() } else { var.as_detached_tensor() }
    };
    let tensors: Vec<Tensor> = vars.iter().zip(args).map(|(var, arg)| tracked(var, arg)).collect();
    let y = op(&tensors).unwrap();
    let mut points: Vec<Vec<f64>> =
        vars.iter().map(|v| flat(v).into_iter().map(f64::from).collect()).collect();
    assert_close("value", &flat(&y), &reference(&points), VALUE_TOLERANCE);

    let weights = values(99, y.elem_count());
    let loss = y.apply_op1(WeightedSum(weights.clone())).unwrap();
    if loss.track_op() {
        let gradients = loss.backward().unwrap();
        for (i, (var, arg)) in vars.iter().zip(args).enumerate() {
            let Some(gradient) = gradients.get(var) else {
                assert!(!arg.tracked, "argument {i} got no gradient");
                continue;
            };
            assert!(arg.tracked, "argument {i} got a gradient");
            assert!(!gradient.track_op(), "the gradient of argument {i} has a graph");
            let expected = differences(&mut points, i, &weights, &reference);
            assert_close(&format!("gradient {i}"), &flat(gradient), &expected, GRADIENT_TOLERANCE);
        }
        let wanted = args.iter().filter(|arg| arg.tracked).count();
        assert_eq!(gradients.get_ids().count(), wanted, "entries of the gradient store");
    }
    let detached: Vec<Tensor> = vars.iter().map(Var::as_detached_tensor).collect();
    let plain = op(&detached).unwrap();
    assert!(!plain.track_op(), "a graph without a tracked argument");
    let recorded: Vec<f64> = flat(&y).into_iter().map(f64::from).collect();
    assert_close("the value without a graph", &flat(&plain), &recorded, VALUE_TOLERANCE);
}

fn differences(
    points: &mut [Vec<f64>],
    arg: usize,
    weights: &[f32],
    reference: &impl Fn(&[Vec<f64>]) -> Vec<f64>,
) -> Vec<f64> {
    let total = |points: &[Vec<f64>]| -> f64 {
        reference(points).iter().zip(weights).map(|(y, w)| y * f64::from(*w)).sum()
    };
    (0..points[arg].len())
        .map(|i| {
            let x = points[arg][i];
            points[arg][i] = x + STEP;
            let above = total(points);
            points[arg][i] = x - STEP;
            let below = total(points);
            points[arg][i] = x;
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

/// `Σ wᵢ yᵢ`, whose backward gives `y` alone a gradient.
pub(crate) struct WeightedSum(pub(crate) Vec<f32>);

impl CustomOp1 for WeightedSum {
    fn name(&self) -> &'static str {
        "weighted_sum"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = crate::operand::values("weighted_sum", storage, layout)?;
        let sum = y.iter().zip(&self.0).map(|(y, w)| y * w).sum();
        Ok((CpuStorage::F32(vec![sum]), Shape::from(())))
    }

    fn bwd(&self, y: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.to_scalar::<f32>()?;
        let values = self.0.iter().map(|w| w * g).collect();
        Ok(Some(Tensor::from_vec(values, y.shape(), &Device::Cpu)?))
    }
}
