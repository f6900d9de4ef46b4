//! A decoder that labels: its last hidden states under a head of their own, in the place of the language model's.
//!
//! transformers `modeling_layers.py` `GenericForSequenceClassification`, `GenericForTokenClassification` (5.23), and the classes
//! of `modeling_gpt2.py` and `modeling_gpt_neox.py`.

use candle_core::{Result, Tensor};
use serde_json::Value;
use taper_kernels::Compute;

use crate::network::{Fresh, head_linear, rows_at};
use crate::{
    Adapter, Batch, Checkpoint, Embedding, Error, Head, Kept, KvCache, Module, Network, Sizes, Task, arch,
    fields,
};

/// What transformers calls the head for `task` on a `model_type`.
fn head_name(model_type: &str, task: &Task) -> &'static str {
    match (model_type, task) {
        ("gpt2" | "gpt_neox", Task::Tag(_)) => "classifier",
        _ => "score",
    }
}

/// A decoder under a head of labels.
#[derive(Debug)]
pub(crate) struct Classifier {
    body: Box<dyn Network>,
    sizes: Sizes,
    score: Head,
    /// The head's name.
    name: &'static str,
    fresh: Vec<Fresh>,
    /// Whether the head reads a sequence's last token alone; else every token.
    pooled: bool,
}

impl Classifier {
    /// Finds the decoder that `config` describes and its head for `task`.
    pub(crate) fn load(
        config: &Value,
        checkpoint: &Checkpoint,
        compute: Compute,
        task: &Task,
    ) -> std::result::Result<Self, Error> {
        // The language model's head may be missing: a tied one needs no file, and is left out of the modules.
        let mut headless = config.clone();
        headless["tie_word_embeddings"] = true.into();
        let body = arch::build(&headless, checkpoint, compute, &Task::CausalLm)?;
        let sizes = Sizes { tie_word_embeddings: false, ..*body.sizes() };
        let pooled = matches!(task, Task::Classify(_));
        let outputs = task.labels().map_or(0, crate::Labels::outputs);
        let deviation = fields::number(config, "initializer_range")?.unwrap_or(0.02);
        let found = if Task::of(config) == *task { Some(checkpoint) } else { None };
        let mut fresh = Vec::new();
        let name = head_name(config["model_type"].as_str().unwrap_or_default(), task);
        // The head that labels every token has a bias.
        let dims = (sizes.hidden_size, outputs);
        let score = head_linear((found, compute), name, dims, !pooled, (deviation, &mut fresh))?;
        Ok(Self { body, sizes, score: score.into(), name, fresh, pooled })
    }
}

impl Network for Classifier {
    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn hidden(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Result<Tensor> {
        let hidden = self.body.hidden(batch, caches, adapter)?;
        if self.pooled {
            rows_at(&hidden, batch.segments().iter().map(|rows| rows.end.saturating_sub(1)))
        } else {
            Ok(hidden)
        }
    }

    fn places(&self) -> Option<usize> {
        self.body.places()
    }

    fn head(&self) -> &Head {
        &self.score
    }

    fn embedding(&self) -> &Embedding {
        self.body.embedding()
    }

    fn new_cache(&self) -> KvCache {
        self.body.new_cache()
    }

    fn modules(&self) -> Vec<Module<'_>> {
        let mut modules = self.body.modules();
        modules.retain(|module| module.path() != self.body.head().linear.path);
        modules.push(Module::Linear(&self.score.linear));
        modules
    }

    fn kept_per_token(&self, whole_blocks: bool) -> Kept {
        self.body.kept_per_token(whole_blocks)
    }

    fn head_modules(&self) -> &[&'static str] {
        std::slice::from_ref(&self.name)
    }

    fn fresh(&self) -> &[Fresh] {
        &self.fresh
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{Base, Labels, ModelDir};

    #[test]
    fn the_head_is_called_as_transformers_calls_it() {
        let labels = Labels::numbered(3);
        for (case, task, name) in [
            ("gpt2", Task::Tag(labels.clone()), "classifier"),
            ("gpt-neox", Task::Tag(labels.clone()), "classifier"),
            ("llama", Task::Tag(labels.clone()), "score"),
            ("gpt2", Task::Classify(labels.clone()), "score"),
        ] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle");
            let dir = ModelDir { path: path.join(case).join("model"), name: case.to_owned() };
            let base = Base::open_for(dir, Compute::F32, task).unwrap();
            assert_eq!(base.model.head_modules(), [name], "{case}");
            assert_eq!(base.model.head().linear.path, name, "{case}");
            assert_eq!(base.model.fresh()[0].path, name, "{case}");
        }
    }
}
