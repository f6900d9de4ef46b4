//! Small operations that candle has only in forms that also form the gradients of constants, and the mixing of seeds.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use taper_kernels::Dropout;

/// `x` with each element dropped with probability `p` and the rest scaled by `1/(1 - p)`; the gradient goes the same way.
///
/// For DoRA, whose frozen product sees the dropped input too, and for what a head reads; elsewhere dropout is part of the
/// fused product.
pub fn dropped(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Elementwise::Dropped(dropout))
}

/// `x + constant`, of one shape.
pub(crate) fn plus(x: &Tensor, constant: &Tensor) -> Result<Tensor> {
    if constant.track_op() {
        return x + constant;
    }
    x.contiguous()?.apply_op1(Elementwise::Plus(constant.flatten_all()?.to_vec1()?))
}

/// `x ⊙ constant`, of one shape `(n,)`.
pub(crate) fn times(x: &Tensor, constant: Vec<f32>) -> Result<Tensor> {
    let constant = Tensor::from_vec(constant, x.shape(), &Device::Cpu)?;
    taper_kernels::scale_columns(&x.unsqueeze(0)?, &constant)?.squeeze(0)
}

/// 64 well-mixed bits for item `i` of a seed: splitmix64.
pub(crate) fn mix(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

enum Elementwise {
    Dropped(Dropout),
    Plus(Vec<f32>),
}

impl CustomOp1 for Elementwise {
    fn name(&self) -> &'static str {
        match self {
            Self::Dropped(_) => "dropped",
            Self::Plus(_) => "plus",
        }
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let start = layout.start_offset();
        let mut y = storage.as_slice::<f32>()?[start..start + layout.shape().elem_count()].to_vec();
        match self {
            Self::Dropped(dropout) => dropout.apply(&mut y, 0),
            Self::Plus(constant) => y.iter_mut().zip(constant).for_each(|(y, c)| *y += c),
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let Self::Dropped(dropout) = self else { return Ok(Some(g.clone())) };
        let mut values = g.flatten_all()?.to_vec1()?;
        dropout.apply(&mut values, 0);
        Ok(Some(Tensor::from_vec(values, g.shape(), g.device())?))
    }
}
