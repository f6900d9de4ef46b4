//! The f32 values behind an operation's arguments, and the tensors it gives back.

use std::ops::Range;

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, StorageRef, Tensor};

/// The values of an argument of the operation `op`: contiguous, f32, on the CPU.
pub(crate) fn values<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let range = contiguous(op, layout)?;
    Ok(&storage.as_slice::<f32>()?[range])
}

fn contiguous(op: &str, layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!(
            "{op}: argument {:?} with strides {:?} is not contiguous: call contiguous() on it first",
            layout.shape(),
            layout.stride()
        ),
    }
}

/// A tensor's values, read outside the forward call of an operation; the tensor is locked while this lives.
pub(crate) struct Held<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Held<'a> {
    /// Checks that `tensor` is contiguous, f32 and on the CPU.
    pub(crate) fn new(op: &str, tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let range = contiguous(op, layout)?;
        match &*storage {
            Storage::Cpu(CpuStorage::F32(_)) => Ok(Self { storage, range }),
            Storage::Cpu(_) => candle_core::bail!("{op}: argument is {:?}, expected F32", tensor.dtype()),
            _ => {
                candle_core::bail!("{op}: argument is on {:?}, expected the CPU", tensor.device().location())
            }
        }
    }

    /// The values, row-major.
    pub(crate) fn values(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            // Ruled out by `new`.
            _ => &[],
        }
    }
}

/// What the forward call of an operation returns.
pub(crate) fn output(values: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.into())
}

/// The gradient of `argument` outside any graph, its `values` made only where the argument is tracked.
pub(crate) fn gradient(argument: &Tensor, values: impl FnOnce() -> Vec<f32>) -> Result<Option<Tensor>> {
    argument.track_op().then(|| Tensor::from_vec(values(), argument.shape(), &Device::Cpu)).transpose()
}
