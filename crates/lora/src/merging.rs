//! The arithmetic of merging: rows of a base's tensor into those of the merged model. Files are `taper-merge`'s.

use std::collections::BTreeSet;
use std::ops::Range;

use candle_core::Tensor;

use crate::adapter::AdaptedEmbedding;
use crate::variant::Variant;
use crate::{Error, LoraAdapter};

impl LoraAdapter {
    /// Names of the base's tensors that merging changes (`model.layers.0.self_attn.q_proj.weight`), sorted.
    ///
    /// Where the head follows a saved embedding ([`LoraAdapter::fresh`]) only the embedding's name is here, though
    /// [`LoraAdapter::merge_rows`] takes the head's as well. A name that the base's files lack is a bias that `lora_bias`
    /// asks for, which PEFT does not merge either, or the head of a tied base: see [`LoraAdapter::unties`].
    pub fn changed_tensors(&self) -> Vec<String> {
        let mut names: BTreeSet<String> = self.whole.keys().cloned().collect();
        for (path, layer) in &self.linears {
            if let Some(variant) = &layer.variant {
                names.insert(format!("{path}.weight"));
                if matches!(variant.bias(), Ok(Some(_))) {
                    names.insert(format!("{path}.bias"));
                }
            }
        }
        let factors =
            self.embeddings.iter().filter(|(_, layer)| matches!(layer, AdaptedEmbedding::Factors(_)));
        names.extend(factors.map(|(path, _)| format!("{path}.weight")));
        names.into_iter().collect()
    }

    /// Whether merging makes the head's weight and the embedding's differ on a base where they are one: then both have to
    /// be written, each from the base's one matrix, and `tie_word_embeddings` set to false.
    pub fn unties(&self) -> bool {
        let Some(embedding) = self.head.base.as_ref().filter(|_| !self.head.follows) else { return false };
        let head = self.linears.get(&self.head.head);
        let changes_head = head.is_some_and(|layer| layer.weight.is_some() || layer.variant.is_some());
        changes_head || self.embeddings.contains_key(embedding)
    }

    /// Whether [`LoraAdapter::merge_rows`] takes `tensor` only whole: a layer that the base stores `(in, out)`, whose outputs
    /// lie across its rows.
    pub fn merges_whole(&self, tensor: &str) -> bool {
        let layer = tensor.strip_suffix(".weight").and_then(|path| self.linears.get(path));
        layer.is_some_and(|layer| layer.transposed && layer.variant.is_some())
    }

    /// Turns rows `rows` of the base tensor `tensor` into the merged ones, in f32: `values` holds those rows whole. A tensor
    /// of one dimension has rows of one value. A tensor that the adapter does not change is left alone.
    ///
    /// # Errors
    /// [`Error::Merge`] where `values` is not as many rows as `rows`, or rows of another length, or a part of a tensor that is
    /// taken whole.
    pub fn merge_rows(&self, tensor: &str, rows: Range<usize>, values: &mut [f32]) -> Result<(), Error> {
        let width = self.row_width(tensor);
        if let Some(width) = width
            && rows.len().checked_mul(width) != Some(values.len())
        {
            let found = values.len();
            let what = format!("rows {rows:?} of `{tensor}` are {found} values, expected {width} a row");
            return Err(Error::Merge { what });
        }
        if rows.is_empty() || width.is_none() {
            return Ok(());
        }
        if let Some(whole) = self.whole_tensor(tensor) {
            replace(whole, rows.clone(), values)?;
            return self.add_bias(tensor, rows, values);
        }
        if let Some(path) = tensor.strip_suffix(".weight") {
            if let Some(layer) = self.linears.get(path)
                && let Some(variant) = &layer.variant
            {
                return if layer.transposed {
                    merge_transposed(tensor, &**variant, rows, values)
                } else {
                    Ok(variant.merge_rows(rows, values)?)
                };
            }
            if let Some(AdaptedEmbedding::Factors(lora)) = self.embeddings.get(path) {
                return Ok(lora.merge_rows(rows, values)?);
            }
        }
        self.add_bias(tensor, rows, values)
    }

    /// Values of a row of `tensor` as the base stores it; none where the adapter does not change it.
    fn row_width(&self, tensor: &str) -> Option<usize> {
        if let Some(whole) = self.whole_tensor(tensor) {
            return Some(whole.dims().get(1..).unwrap_or_default().iter().product());
        }
        if let Some(path) = tensor.strip_suffix(".bias") {
            let variant = self.linears.get(path)?.variant.as_ref()?;
            return matches!(variant.bias(), Ok(Some(_)) | Err(_)).then_some(1);
        }
        let path = tensor.strip_suffix(".weight")?;
        if let Some(AdaptedEmbedding::Factors(lora)) = self.embeddings.get(path) {
            return Some(lora.width());
        }
        let layer = self.linears.get(path)?;
        let variant = layer.variant.as_ref()?;
        Some(if layer.transposed { variant.outputs() } else { variant.inputs() })
    }

    /// What is trained in the place of the base's `tensor`.
    fn whole_tensor(&self, tensor: &str) -> Option<&Tensor> {
        let tied = || {
            let path =
                tensor.strip_suffix(".weight").filter(|path| self.head.follows && *path == self.head.head);
            self.linears.get(path?)?.weight.as_ref()
        };
        self.whole.get(tensor).or_else(tied)
    }

    fn add_bias(&self, tensor: &str, rows: Range<usize>, values: &mut [f32]) -> Result<(), Error> {
        let Some(path) = tensor.strip_suffix(".bias") else { return Ok(()) };
        let Some(variant) = self.linears.get(path).and_then(|layer| layer.variant.as_ref()) else {
            return Ok(());
        };
        if let Some(bias) = variant.bias()? {
            let bias: Vec<f32> = bias.detach().narrow(0, rows.start, rows.len())?.to_vec1()?;
            values.iter_mut().zip(bias).for_each(|(value, b)| *value += b);
        }
        Ok(())
    }
}

/// [`Variant::merge_rows`] of all of a layer `(in, out)`.
fn merge_transposed(
    name: &str,
    variant: &dyn Variant,
    rows: Range<usize>,
    values: &mut [f32],
) -> Result<(), Error> {
    let outputs = variant.outputs();
    if rows != (0..variant.inputs()) {
        let what = format!("`{name}` is merged whole: rows {rows:?} of 0..{}", variant.inputs());
        return Err(Error::Merge { what });
    }
    let mut across = transpose(values, outputs);
    variant.merge_rows(0..outputs, &mut across)?;
    values.copy_from_slice(&transpose(&across, rows.len()));
    Ok(())
}

/// A matrix in rows of `cols` values, transposed.
fn transpose(values: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| values.iter().skip(col).step_by(cols).copied()).collect()
}

fn replace(whole: &Tensor, rows: Range<usize>, values: &mut [f32]) -> Result<(), Error> {
    let trained: Vec<f32> = whole.detach().narrow(0, rows.start, rows.len())?.flatten_all()?.to_vec1()?;
    values.copy_from_slice(&trained);
    Ok(())
}
