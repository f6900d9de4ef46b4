//! What the tests share: fixtures, comparison with a stated tolerance, and the built binary.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use taper_base::{Base, ModelDir};
use taper_kernels::Compute;

/// The folder of the fixtures.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// Opens the model in `dir`, its products exact.
pub(crate) fn open(dir: &Path) -> Base {
    let dir = ModelDir { path: dir.to_path_buf(), name: dir.display().to_string() };
    Base::open_dir(dir, Compute::F32).expect("a model that opens")
}

/// All tensors of a safetensors file.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).expect("a readable file").into_iter().collect()
}

/// Values of a tensor as f32, row by row.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.to_dtype(candle_core::DType::F32).expect("a float tensor");
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("values")
}

/// How far two numbers may be apart: `absolute + relative · |expected|`.
#[derive(Clone, Copy)]
pub(crate) struct Tolerance {
    pub(crate) relative: f32,
    pub(crate) absolute: f32,
}

/// f32 logits: the order of summation differs from PyTorch's in every product.
pub(crate) const LOGITS: Tolerance = Tolerance { relative: 2e-5, absolute: 2e-5 };

/// Fails, naming the worst place, if `found` is further from `expected` than allowed.
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32], allowed: Tolerance) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let excess = |(f, e): (&f32, &f32)| {
        let over = (f - e).abs() - allowed.absolute - allowed.relative * e.abs();
        if over.is_nan() { f32::INFINITY } else { over }
    };
    let over: Vec<f32> = found.iter().zip(expected).map(excess).collect();
    let worst = (0..over.len()).max_by(|&a, &b| over[a].total_cmp(&over[b]));
    if let Some(i) = worst.filter(|&i| over[i] > 0.0) {
        panic!("{what}: value {i} of {} is {}, expected {}", found.len(), found[i], expected[i]);
    }
}

/// Gradients: within 1e-4 of the tensor's largest value, since small entries are sums of large ones that cancel.
pub(crate) fn assert_gradient(what: &str, found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(largest > 0.0, "{what}: an expected gradient of zeros proves nothing");
    assert_close(what, found, expected, Tolerance { relative: 0.0, absolute: 1e-4 * largest });
}
