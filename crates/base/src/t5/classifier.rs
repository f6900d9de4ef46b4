//! A T5 that labels texts: it writes each text from itself, and a head reads the row of the last token.
//!
//! transformers `modeling_t5.py` `T5ForSequenceClassification`, `T5ClassificationHead` (5.23).

use candle_core::{Result as Tensors, Tensor};
use taper_kernels::Compute;

use super::{Body, T5Config};
use crate::network::{Fresh, head_linear, rows_at};
use crate::parts::Parts;
use crate::{
    Adapter, Batch, Checkpoint, Embedding, Error, Head, Kept, KvCache, Labels, Linear, Module, Network,
    Sizes, Task,
};

/// What transformers calls the head.
const HEAD: &str = "classification_head";
/// What it calls the rest.
const BODY: &str = "transformer.";

/// A frozen T5 under a head of labels.
#[derive(Debug)]
pub(crate) struct T5Classifier {
    body: Body,
    dense: Linear,
    head: Head,
    fresh: Vec<Fresh>,
}

impl T5Classifier {
    /// Whether the files hold a head of labels, whichever these are.
    pub(crate) fn is_in(checkpoint: &Checkpoint) -> bool {
        checkpoint.info(&format!("{HEAD}.out_proj.weight")).is_some()
    }

    /// Finds every weight that `config` calls for, and the head for `task`: that of the files if it is their `own`.
    pub(crate) fn load(
        mut config: T5Config,
        checkpoint: &Checkpoint,
        compute: Compute,
        (task, own): (&Task, bool),
    ) -> Result<Self, Error> {
        config.sizes.tie_word_embeddings = false;
        let (hidden, deviation) = (config.sizes.hidden_size, config.head_deviation);
        // Before the head: it holds config.json's sizes against the files', and a fresh head is allocated by them.
        let body = Body::load(config, Parts { checkpoint, compute, tied: false }, BODY)?;
        let outputs = task.labels().map_or(0, Labels::outputs);
        let (files, mut fresh) = ((Some(checkpoint).filter(|_| own), compute), Vec::new());
        let mut layer = |name: &str, outputs| {
            let path = format!("{HEAD}.{name}");
            head_linear(files, &path, (hidden, outputs), true, (deviation, &mut fresh))
        };
        let (dense, head) = (layer("dense", hidden)?, layer("out_proj", outputs)?.into());
        Ok(Self { body, dense, head, fresh })
    }
}

impl Network for T5Classifier {
    fn sizes(&self) -> &Sizes {
        &self.body.config.sizes
    }

    fn hidden(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Tensors<Tensor> {
        if !caches.is_empty() {
            candle_core::bail!("a T5 that labels reads a whole text at once: there is no cache to continue");
        }
        let mut written = Batch::default();
        for rows in batch.segments() {
            let text = &batch.tokens()[rows.clone()];
            let before = &text[..text.len().saturating_sub(1)];
            written.push_from(text, &[&[self.body.config.decoder_start], before].concat());
        }
        let rows = self.body.run(&written, &mut [], adapter)?;
        let last = rows_at(&rows, written.segments().iter().map(|rows| rows.end.saturating_sub(1)))?;
        self.dense.forward(&last, adapter)?.tanh()
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn embedding(&self) -> &Embedding {
        &self.body.embedding
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new(0, (0, 0))
    }

    /// Embedding, encoder, decoder, head.
    fn modules(&self) -> Vec<Module<'_>> {
        self.body.modules().chain([&self.dense, &self.head.linear].map(Module::Linear)).collect()
    }

    /// Of a token that is both read and written.
    fn kept_per_token(&self, _: bool) -> Kept {
        let (read, written) = self.body.kept_per_token();
        Kept { values: read + written, read: 0 }
    }

    fn head_modules(&self) -> &[&'static str] {
        &[HEAD]
    }

    fn fresh(&self) -> &[Fresh] {
        &self.fresh
    }
}
