//! Blocks as parts of one operation: as `taper-kernels` takes them, and when an adapter leaves a block whole.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use taper_kernels::{Block, BlockPass, Link, Norm, Projection, RopeTable};

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

/// Block number `layer` in a pass; none where `adapter` changes its `norms`, or one of its `layers`, which are in the order of
/// [`Block`], in a way that no block has, or has no place for gradients: then the block runs in its single operations.
pub(crate) fn link<'a>(
    block: &Arc<Block>,
    (layers, norms): (&[&Linear], &[Module<'_>]),
    (layer, segments, rope): (usize, Arc<[Range<usize>]>, Arc<RopeTable>),
    adapter: &'a dyn Adapter,
) -> Result<Option<Link<'a>>> {
    let mut params = norms.iter().flat_map(|norm| norm.params());
    if params.any(|(path, _)| adapter.param(path).is_some()) {
        return Ok(None);
    }
    let gradients = adapter.gradients().cloned();
    let mut adapted = [const { None }; 7];
    for (adapted, layer) in adapted.iter_mut().zip(layers) {
        match adapter.effect(layer)? {
            Effect::Frozen => {}
            Effect::Adapted(change) if change.low_rank.is_tracked() && gradients.is_none() => {
                return Ok(None);
            }
            Effect::Adapted(change) => *adapted = Some(change),
            Effect::Other => return Ok(None),
        }
    }
    let recompute = layer < adapter.recomputed_blocks();
    let pass = BlockPass { segments, rope, recompute, gradients };
    Ok(Some(Link { block: block.clone(), pass, adapted }))
}
