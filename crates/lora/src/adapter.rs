//! A whole model's adapter, and what it does at the seam.

use std::collections::BTreeMap;

use candle_core::{Device, Result as Tensors, Tensor, Var};
use taper_base::{Adapter, Effect, Embedding, Head, Linear};
use taper_kernels::{Adapted, Dropout, Gradients, Labelled, LowRank, Scoring};

use crate::embedding::EmbeddingLora;
use crate::head::TrainedHead;
use crate::ops::mix;
use crate::plan::{BaseModules, Origin, Plan};
use crate::source::{Fresh, fingerprint};
use crate::variant::{Variant, View};
use crate::{Error, LoraConfig};

/// The adapter of a whole model.
///
/// At the seam it gives a targeted layer its variant, and every other parameter that it trains in the place of the frozen
/// one. It has no dropout: that is [`LoraAdapter::training`].
#[derive(Debug)]
pub struct LoraAdapter {
    pub(crate) config: LoraConfig,
    pub(crate) warnings: Vec<String>,
    pub(crate) linears: BTreeMap<String, AdaptedLinear>,
    pub(crate) embeddings: BTreeMap<String, AdaptedEmbedding>,
    /// What is trained whole, by the base's name for it.
    pub(crate) whole: BTreeMap<String, Tensor>,
    /// All tensors by their PEFT key.
    pub(crate) tensors: BTreeMap<String, Tensor>,
    pub(crate) params: BTreeMap<String, Var>,
    pub(crate) head: HeadTie,
}

/// How the base's head stands to its embedding.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeadTie {
    /// Path of the head.
    pub(crate) head: String,
    /// Path of the embedding whose weight the head has in the base.
    pub(crate) base: Option<String>,
    /// Whether the head follows that embedding, which is trained whole.
    pub(crate) follows: bool,
}

/// What an adapter does to a linear layer.
#[derive(Debug, Default)]
pub(crate) struct AdaptedLinear {
    pub(crate) variant: Option<Box<dyn Variant>>,
    /// `W` `(out, in)`, trained whole; a view of what is stored, where that is `(in, out)`.
    pub(crate) weight: Option<Tensor>,
    /// `b` `(out,)`, trained.
    pub(crate) bias: Option<Tensor>,
    /// Whether the base stores `W` as `(in, out)`.
    pub(crate) transposed: bool,
}

/// What an adapter does to an embedding.
#[derive(Debug)]
pub(crate) enum AdaptedEmbedding {
    Factors(EmbeddingLora),
    /// The table `(V, D)`, trained whole.
    Whole(Tensor),
}

/// How the loss of the head is computed.
enum HeadLoss<'a> {
    /// In one operation: the head is a frozen weight with at most factors.
    Fused(Option<LowRank<'a>>),
    /// From logits, some rows at a time.
    InChunks,
}

impl LoraAdapter {
    /// A new adapter, initialised as `config.init_lora_weights` says, its parameters ready to be trained.
    ///
    /// Every tensor has its own random stream, made of `seed` and its key: another module more or less changes no other.
    ///
    /// On a base whose head is tied, an embedding in `modules_to_save` drives the head as well unless the head is named
    /// too: its gradient is the sum over both uses. The configuration then says `ensure_weight_tying`, so that PEFT
    /// reads the folder the same way; without that field, which only a loaded folder can lack, the head keeps the base's
    /// weight, as in PEFT.
    ///
    /// `target_modules` may be an explicit empty list where `modules_to_save` or `bias` leaves something to train. PEFT does
    /// not load such a folder: merge it.
    ///
    /// # Errors
    /// [`Error::Config`] for a setting that is not possible, [`Error::Target`] for a name that matches nothing.
    pub fn fresh<'a>(config: LoraConfig, base: impl Into<BaseModules<'a>>, seed: u64) -> Result<Self, Error> {
        if let crate::Init::Other(name) = &config.init_lora_weights {
            return Err(Error::config(format!(
                "`init_lora_weights` is {name:?}; taper makes true, false and gaussian"
            )));
        }
        let base = base.into();
        let plan = Plan::new(config, &base, Origin::Fresh)?;
        let mut source = Fresh::new(seed);
        let mut adapter = Self::build(plan, &base, &mut source)?;
        adapter.params = source.vars;
        Ok(adapter)
    }

    /// How many values [`LoraAdapter::fresh`] would train, but for biases, norms and DoRA's magnitudes: before any are made.
    ///
    /// # Errors
    /// Those of [`LoraAdapter::fresh`].
    pub fn planned_values<'a>(config: LoraConfig, base: impl Into<BaseModules<'a>>) -> Result<u64, Error> {
        Ok(Plan::new(config, &base.into(), Origin::Fresh)?.values())
    }

    /// The configuration as [`LoraAdapter::save`] writes it.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// What is odd about the folder or the configuration, though it can be honoured.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Trainable parameters by their PEFT key, prefix included (`base_model.model.….lora_A.weight`); empty after `load`.
    pub fn params(&self) -> &BTreeMap<String, Var> {
        &self.params
    }

    /// All tensors by their PEFT key, f32.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Path and rank of every module with low-rank factors, sorted.
    pub fn ranks(&self) -> Vec<(&str, usize)> {
        let linears =
            self.linears.iter().filter_map(|(path, layer)| Some((path, layer.variant.as_ref()?.rank())));
        let embeddings = self.embeddings.iter().filter_map(|(path, layer)| match layer {
            AdaptedEmbedding::Factors(lora) => Some((path, lora.rank())),
            AdaptedEmbedding::Whole(_) => None,
        });
        let mut ranks: Vec<_> = linears.chain(embeddings).map(|(path, r)| (path.as_str(), r)).collect();
        ranks.sort_unstable();
        ranks
    }

    /// The same adapter with nothing tracked, sharing the values, for evaluation and generation.
    ///
    /// Take a new one after an update of the parameters: it may have kept what it computed from them (DoRA's lengths).
    #[must_use]
    pub fn frozen(&self) -> Self {
        self.seen(View { tracked: false })
    }

    /// The same adapter for the passes between two updates of the parameters: gradients reach them, and what it computes
    /// from them (DoRA's lengths) it computes once.
    #[must_use]
    pub fn between_updates(&self) -> Self {
        Self { params: self.params.clone(), ..self.seen(View { tracked: true }) }
    }

    fn seen(&self, view: View) -> Self {
        let linear = |layer: &AdaptedLinear| AdaptedLinear {
            variant: layer.variant.as_ref().map(|variant| variant.seen(view)),
            weight: layer.weight.as_ref().map(|weight| view.of(weight)),
            bias: layer.bias.as_ref().map(|bias| view.of(bias)),
            transposed: layer.transposed,
        };
        let embedding = |layer: &AdaptedEmbedding| match layer {
            AdaptedEmbedding::Factors(lora) => AdaptedEmbedding::Factors(lora.seen(view)),
            AdaptedEmbedding::Whole(table) => AdaptedEmbedding::Whole(view.of(table)),
        };
        let all = |tensors: &BTreeMap<String, Tensor>| {
            tensors.iter().map(|(name, tensor)| (name.clone(), view.of(tensor))).collect()
        };
        let linears = self.linears.iter().map(|(path, layer)| (path.clone(), linear(layer)));
        let embeddings = self.embeddings.iter().map(|(path, layer)| (path.clone(), embedding(layer)));
        Self {
            config: self.config.clone(),
            warnings: self.warnings.clone(),
            linears: linears.collect(),
            embeddings: embeddings.collect(),
            whole: all(&self.whole),
            tensors: all(&self.tensors),
            params: BTreeMap::new(),
            head: self.head.clone(),
        }
    }

    /// The adapter with its dropout, for one forward pass; `seed` is another for every pass.
    pub fn training(&self, seed: u64) -> Training<'_> {
        Training { adapter: self, seed, recomputed_blocks: 0, gradients: None }
    }

    /// The layer with the variant that takes part in it; `dropout` on the variant's input.
    fn forward(&self, layer: &Linear, x: &Tensor, dropout: Option<Dropout>) -> Tensors<Tensor> {
        let Some(adapted) = self.linears.get(&layer.path) else { return layer.frozen(x) };
        let bias = adapted.bias.as_ref().or(layer.bias.as_ref());
        match (&adapted.weight, &adapted.variant) {
            (Some(weight), _) => {
                let y = x.matmul(&weight.t()?)?;
                bias.map_or_else(|| Ok(y.clone()), |bias| taper_kernels::add_bias(&y, bias))
            }
            (None, Some(variant)) => variant.forward(layer, bias, x, dropout),
            (None, None) => taper_kernels::linear(x, &layer.weight, bias, None),
        }
    }

    /// What [`LoraAdapter::forward`] does to `layer`.
    fn effect_on(&self, layer: &Linear, dropout: Option<Dropout>) -> Tensors<Effect<'_>> {
        let Some(adapted) = self.linears.get(&layer.path) else { return Ok(Effect::Frozen) };
        Ok(match (&adapted.weight, &adapted.bias, &adapted.variant) {
            (None, None, None) => Effect::Frozen,
            (None, None, Some(variant)) => {
                variant.adapted(layer, dropout)?.map_or(Effect::Other, Effect::Adapted)
            }
            _ => Effect::Other,
        })
    }

    /// What the head's loss needs where it is not one fused operation.
    fn with_head<T>(
        &self,
        head: &Head,
        dropout: Option<Dropout>,
        run: impl FnOnce(&TrainedHead<'_>) -> Tensors<T>,
    ) -> Tensors<T> {
        let tensors = match self.linears.get(&head.linear.path) {
            None => Vec::new(),
            Some(adapted) => {
                let variant = adapted.variant.iter().flat_map(|variant| variant.tensors());
                variant.chain(&adapted.weight).chain(&adapted.bias).collect()
            }
        };
        let of_chunk = |chunk| dropout.map(|dropout| Dropout { seed: mix(dropout.seed, chunk), ..dropout });
        let logits = |x: &Tensor, chunk: u64| head.capped(self.forward(&head.linear, x, of_chunk(chunk))?);
        run(&TrainedHead { logits: &logits, tensors, outputs: head.linear.out_features() })
    }

    fn head_loss(&self, head: &Head, dropout: Option<Dropout>) -> Tensors<HeadLoss<'_>> {
        Ok(match self.effect_on(&head.linear, dropout)? {
            Effect::Frozen => HeadLoss::Fused(None),
            Effect::Adapted(Adapted { low_rank, gain: None }) => HeadLoss::Fused(Some(low_rank)),
            Effect::Adapted(_) | Effect::Other => HeadLoss::InChunks,
        })
    }

    fn loss(
        &self,
        head: &Head,
        x: &Tensor,
        (labelled, scoring): (&Labelled, Scoring<'_>),
        dropout: Option<Dropout>,
    ) -> Tensors<Tensor> {
        match self.head_loss(head, dropout)? {
            HeadLoss::Fused(low_rank) => {
                taper_kernels::linear_cross_entropy(x, head.weight(), low_rank, labelled, scoring)
            }
            HeadLoss::InChunks => {
                self.with_head(head, dropout, |head| head.cross_entropy(x, labelled, scoring))
            }
        }
    }

    fn rows(&self, layer: &Embedding, ids: &[u32]) -> Tensors<Tensor> {
        match self.embeddings.get(&layer.path) {
            None => layer.frozen(ids),
            Some(AdaptedEmbedding::Factors(lora)) => lora.forward(layer, ids),
            Some(AdaptedEmbedding::Whole(table)) => table.index_select(&Tensor::new(ids, &Device::Cpu)?, 0),
        }
    }
}

impl Adapter for LoraAdapter {
    fn linear(&self, layer: &Linear, x: &Tensor) -> Tensors<Tensor> {
        self.forward(layer, x, None)
    }

    fn effect(&self, layer: &Linear) -> Tensors<Effect<'_>> {
        self.effect_on(layer, None)
    }

    fn embedding(&self, layer: &Embedding, ids: &[u32]) -> Tensors<Tensor> {
        self.rows(layer, ids)
    }

    fn param(&self, path: &str) -> Option<&Tensor> {
        self.whole.get(path)
    }

    fn cross_entropy(
        &self,
        head: &Head,
        hidden: &Tensor,
        labelled: &Labelled,
        scoring: Scoring<'_>,
    ) -> Tensors<Tensor> {
        self.loss(head, hidden, (labelled, scoring), None)
    }

    fn nll(&self, head: &Head, hidden: &Tensor, labelled: &Labelled) -> Tensors<Vec<f32>> {
        match self.head_loss(head, None)? {
            HeadLoss::Fused(low_rank) => taper_kernels::linear_nll(hidden, head.weight(), low_rank, labelled),
            HeadLoss::InChunks => self.with_head(head, None, |head| head.nll(hidden, labelled)),
        }
    }
}

/// An adapter with its dropout, for one forward pass in training. Embeddings have none, as in PEFT.
#[derive(Clone, Copy, Debug)]
pub struct Training<'a> {
    adapter: &'a LoraAdapter,
    seed: u64,
    recomputed_blocks: usize,
    gradients: Option<&'a Gradients>,
}

impl<'a> Training<'a> {
    /// The same pass, with the first `blocks` blocks run again in backward instead of being kept.
    #[must_use]
    pub fn recomputing(self, blocks: usize) -> Self {
        Self { recomputed_blocks: blocks, ..self }
    }

    /// The same pass, its whole blocks leaving the gradients of factors in `gradients`; see [`Adapter::gradients`].
    #[must_use]
    pub fn summing(self, gradients: &'a Gradients) -> Self {
        Self { gradients: Some(gradients), ..self }
    }

    /// The dropout of the layer at `path`: a mask of its own, which other layers do not change.
    fn dropout(&self, path: &str) -> Option<Dropout> {
        let p = self.adapter.config.lora_dropout as f32;
        (p > 0.0).then(|| Dropout { p, seed: mix(self.seed, fingerprint(path)) })
    }
}

impl Adapter for Training<'_> {
    fn linear(&self, layer: &Linear, x: &Tensor) -> Tensors<Tensor> {
        self.adapter.forward(layer, x, self.dropout(&layer.path))
    }

    fn effect(&self, layer: &Linear) -> Tensors<Effect<'_>> {
        self.adapter.effect_on(layer, self.dropout(&layer.path))
    }

    fn recomputed_blocks(&self) -> usize {
        self.recomputed_blocks
    }

    fn gradients(&self) -> Option<&Gradients> {
        self.gradients
    }

    fn embedding(&self, layer: &Embedding, ids: &[u32]) -> Tensors<Tensor> {
        self.adapter.rows(layer, ids)
    }

    fn param(&self, path: &str) -> Option<&Tensor> {
        self.adapter.param(path)
    }

    fn cross_entropy(
        &self,
        head: &Head,
        hidden: &Tensor,
        labelled: &Labelled,
        scoring: Scoring<'_>,
    ) -> Tensors<Tensor> {
        self.adapter.loss(head, hidden, (labelled, scoring), self.dropout(&head.linear.path))
    }

    fn nll(&self, head: &Head, hidden: &Tensor, labelled: &Labelled) -> Tensors<Vec<f32>> {
        self.adapter.nll(head, hidden, labelled)
    }
}
