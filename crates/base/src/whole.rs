//! Blocks as one operation each: their parts as `taper-kernels` takes them, and when an adapter leaves a block whole.

use candle_core::{Result, Tensor};
use taper_kernels::{Adapted, Norm, Projection};

use crate::{Adapter, Effect, LayerNorm, Linear, Module, RmsNorm};

/// The layer as a block has it.
pub(crate) fn projection(layer: &Linear) -> Result<Projection> {
    let bias = layer.bias.as_ref().map(Tensor::to_vec1).transpose()?;
    Ok(Projection { weight: layer.weight.clone(), bias })
}

/// The norm as a block has it.
pub(crate) fn rms_norm(norm: &RmsNorm) -> Result<Norm> {
    let gain = (&norm.gain + norm.offset)?.to_vec1()?;
    Ok(Norm::Rms { gain, eps: norm.eps as f32 })
}

/// The norm as a block has it.
pub(crate) fn layer_norm(norm: &LayerNorm) -> Result<Norm> {
    let gain: Vec<f32> = norm.gain.to_vec1()?;
    let bias = norm.bias.as_ref().map_or_else(|| Ok(vec![0.0; gain.len()]), Tensor::to_vec1)?;
    Ok(Norm::Layer { gain, bias, eps: norm.eps as f32 })
}

/// What `adapter` makes of a block's `layers`, which are in the order of [`taper_kernels::Block`]; none where it changes
/// `norms`, or a layer in another way, or has no place for gradients: then the block runs in its single operations.
pub(crate) fn adapted<'a>(
    adapter: &'a dyn Adapter,
    layers: &[&Linear],
    norms: &[Module<'_>],
) -> Result<Option<[Option<Adapted<'a>>; 7]>> {
    let mut params = norms.iter().flat_map(|norm| norm.params());
    if params.any(|(path, _)| adapter.param(path).is_some()) {
        return Ok(None);
    }
    let summed = adapter.gradients().is_some();
    let mut all = [const { None }; 7];
    for (adapted, layer) in all.iter_mut().zip(layers) {
        match adapter.effect(layer)? {
            Effect::Frozen => {}
            Effect::Adapted(change) if change.low_rank.is_tracked() && !summed => return Ok(None),
            Effect::Adapted(change) => *adapted = Some(change),
            Effect::Other => return Ok(None),
        }
    }
    Ok(Some(all))
}
