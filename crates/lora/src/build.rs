//! An adapter made out of a plan and a source of tensors: the same for a fresh one and for one that is loaded.

use std::collections::BTreeMap;

use candle_core::Tensor;
use taper_base::{Linear, Module};

use crate::adapter::{AdaptedEmbedding, AdaptedLinear, HeadTie};
use crate::dora::Dora;
use crate::embedding::EmbeddingLora;
use crate::lora::{Factors, Lora, PREFIX};
use crate::plan::{BaseModules, Plan, Site};
use crate::source::{Source, Start};
use crate::variant::Variant;
use crate::{Error, LoraAdapter};

impl LoraAdapter {
    /// Takes every tensor of `plan` from `source`.
    pub(crate) fn build(
        plan: Plan<'_>,
        base: &BaseModules<'_>,
        source: &mut dyn Source,
    ) -> Result<Self, Error> {
        let mut recorded = Recorded { source, tensors: BTreeMap::new() };
        let tied_to = base.modules.iter().find(|module| matches!(module, Module::Embedding(_)));
        let mut adapter = Self {
            config: plan.config,
            warnings: plan.warnings,
            linears: BTreeMap::new(),
            embeddings: BTreeMap::new(),
            whole: BTreeMap::new(),
            tensors: BTreeMap::new(),
            params: BTreeMap::new(),
            head: HeadTie {
                head: base.head.to_owned(),
                base: tied_to.filter(|_| base.tie_word_embeddings).map(|module| module.path().to_owned()),
                follows: plan.tied.is_some(),
            },
        };
        for site in &plan.sites {
            adapter.add(site, &mut recorded)?;
        }
        if let Some((head, embedding)) = plan.tied {
            let weight = adapter.whole.get(&format!("{embedding}.weight")).cloned();
            adapter.linears.entry(head.to_owned()).or_default().weight = weight;
        }
        adapter.tensors = recorded.tensors;
        Ok(adapter)
    }

    fn add(&mut self, site: &Site<'_>, source: &mut dyn Source) -> Result<(), Error> {
        let path = site.module.path();
        match site.module {
            Module::Linear(layer) => {
                let adapted = self.linear(layer, site, source)?;
                self.linears.insert(path.to_owned(), adapted);
            }
            Module::Embedding(layer) => {
                let adapted = if let Some(factors) = &site.factors {
                    AdaptedEmbedding::Factors(EmbeddingLora::new(factors, layer, source)?)
                } else {
                    let (name, start) = (format!("{path}.weight"), || Ok(layer.weight.to_f32()));
                    let shape = [layer.weight.rows(), layer.weight.cols()];
                    AdaptedEmbedding::Whole(self.whole(source, &name, &shape, Start::Values(&start))?)
                };
                self.embeddings.insert(path.to_owned(), adapted);
            }
            Module::Norm(_) | Module::LayerNorm(_) => {
                let trained = |name: &str| site.whole || site.bias && name.strip_suffix(".bias").is_some();
                for (name, value) in site.module.params().into_iter().filter(|(name, _)| trained(name)) {
                    self.whole(source, name, value.dims(), Start::Values(&|| value.to_vec1()))?;
                }
            }
        }
        Ok(())
    }

    fn linear(
        &mut self,
        layer: &Linear,
        site: &Site<'_>,
        source: &mut dyn Source,
    ) -> Result<AdaptedLinear, Error> {
        let path = &layer.path;
        let transposed = layer.weight.is_transposed();
        let mut adapted = AdaptedLinear { transposed, ..AdaptedLinear::default() };
        if let Some(factors) = &site.factors {
            adapted.variant = Some(variant(factors, layer, source)?);
        }
        if site.whole {
            let (rows, cols) = layer.weight.stored_dims();
            let values = || Ok(layer.weight.to_f32());
            let start = site.fresh.map_or(Start::Values(&values), Start::Normal);
            let stored = self.whole(source, &format!("{path}.weight"), &[rows, cols], start)?;
            adapted.weight = Some(if transposed { stored.t()? } else { stored });
        }
        if let Some(bias) = layer.bias.as_ref().filter(|_| site.whole || site.bias) {
            // PEFT's name for the bias of a layer that it has put its own around.
            let key = if site.factors.is_some() { "base_layer.bias" } else { "bias" };
            let start = || bias.detach().to_vec1();
            let trained =
                source.tensor(&format!("{PREFIX}{path}.{key}"), bias.dims(), Start::Values(&start))?;
            self.whole.insert(format!("{path}.bias"), trained.clone());
            adapted.bias = Some(trained);
        }
        Ok(adapted)
    }

    /// A tensor of the base's that is trained whole.
    fn whole(
        &mut self,
        source: &mut dyn Source,
        name: &str,
        shape: &[usize],
        start: Start<'_>,
    ) -> Result<Tensor, Error> {
        let tensor = source.tensor(&format!("{PREFIX}{name}"), shape, start)?;
        self.whole.insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }
}

/// The variant that `factors` asks for. A new one is a file, and an arm here.
fn variant(factors: &Factors, layer: &Linear, source: &mut dyn Source) -> Result<Box<dyn Variant>, Error> {
    if factors.use_dora {
        return Ok(Box::new(Dora::new(factors, layer, source)?));
    }
    Ok(Box::new(Lora::new(factors, layer, source)?))
}

/// A source that keeps what it gave.
struct Recorded<'s> {
    source: &'s mut dyn Source,
    tensors: BTreeMap<String, Tensor>,
}

impl Source for Recorded<'_> {
    fn tensor(&mut self, key: &str, shape: &[usize], start: Start<'_>) -> Result<Tensor, Error> {
        let tensor = self.source.tensor(key, shape, start)?;
        self.tensors.insert(key.to_owned(), tensor.clone());
        Ok(tensor)
    }
}
