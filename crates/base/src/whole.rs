//! Blocks as parts of one operation: as `taper-kernels` takes them, and when an adapter leaves a block whole.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use taper_kernels::{Block, BlockPass, Link, Norm, Projection, RopeTable, block_cached};

use crate::pass::Pass;
use crate::{Effect, LayerNorm, Linear, Module, RmsNorm};

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

/// A block of a network, as one operation and in its single ones.
pub(crate) trait Whole {
    /// Its frozen parts, for one operation; none where there is no such operation.
    fn fused(&self) -> Option<&Arc<Block>>;

    /// Its layers, in the order of [`Block`].
    fn layers(&self) -> Vec<&Linear>;

    /// All its norms.
    fn norms(&self) -> Vec<Module<'_>>;

    /// Which of the pass's ropes rotates q and k, if any.
    fn rope(&self) -> Option<usize>;

    /// Itself in its single operations, as number `layer` of a network: `x` `(N, D)` to `(N, D)`.
    fn in_parts(
        &self,
        layer: usize,
        x: &Tensor,
        rope: Option<&Arc<RopeTable>>,
        pass: &mut Pass<'_, '_>,
    ) -> Result<Tensor>;
}

/// `x` `(N, D)` through all `blocks`, as many in one operation as may be.
pub(crate) fn through<B: Whole>(
    mut x: Tensor,
    blocks: &[B],
    ropes: &[Arc<RopeTable>],
    pass: &mut Pass<'_, '_>,
) -> Result<Tensor> {
    let mut links = Vec::new();
    for (layer, block) in blocks.iter().enumerate() {
        let rope = block.rope().map(|i| &ropes[i]);
        let Some(link) = link(block, layer, rope, pass)? else {
            x = taper_kernels::blocks(&x, &std::mem::take(&mut links))?;
            x = block.in_parts(layer, &x, rope, pass)?;
            continue;
        };
        if pass.caches.is_empty() {
            links.push(link);
        } else {
            let mut caches: Vec<_> = pass.caches.iter_mut().map(|cache| cache.layer_mut(layer)).collect();
            x = block_cached(&x, &link, &mut caches)?;
        }
    }
    taper_kernels::blocks(&x, &links)
}

/// A block as a part of one operation; none where there is none for it, or where the adapter changes its norms, or one of its
/// layers in a way that no such operation has, or has no place for gradients.
fn link<'a>(
    block: &impl Whole,
    layer: usize,
    rope: Option<&Arc<RopeTable>>,
    pass: &Pass<'a, '_>,
) -> Result<Option<Link<'a>>> {
    let (Some(fused), adapter) = (block.fused(), pass.adapter) else { return Ok(None) };
    let mut params = block.norms().into_iter().flat_map(Module::params);
    if params.any(|(path, _)| adapter.param(path).is_some()) {
        return Ok(None);
    }
    let gradients = adapter.gradients().cloned();
    let mut adapted = [const { None }; 7];
    for (adapted, layer) in adapted.iter_mut().zip(block.layers()) {
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
    let rope = rope.cloned().unwrap_or_default();
    let pass = BlockPass { segments: pass.segments.clone(), rope, recompute, gradients };
    Ok(Some(Link { block: fused.clone(), pass, adapted }))
}
