//! Finds an encoder's parts in its checkpoint.

use std::sync::Arc;

use taper_kernels::{AttentionShape, Compute, Joined, Norms};

use super::{Block, Embeddings, Encoder, EncoderConfig, Pooling, Top};
use crate::network::{Fresh, head_linear, needs_labels};
use crate::parts::Parts;
use crate::whole;
use crate::{Checkpoint, Error, Head, Labels, LayerNorm, Linear, Task};

/// What encoders that label every token call their head, and what it is in `modules_to_save`.
const TAGGER: &str = "classifier";

struct Loader<'a> {
    config: &'a EncoderConfig,
    parts: Parts<'a>,
}

impl Encoder {
    /// Finds every weight that `config` and the task's head call for. The head is the files' where `own_head` says that it
    /// is for the same labels, and fresh where not, or where they have none.
    pub(crate) fn load(
        config: EncoderConfig,
        checkpoint: &Checkpoint,
        compute: Compute,
        (task, own_head): (&Task, bool),
    ) -> Result<Self, Error> {
        let loader = Loader { config: &config, parts: Parts { checkpoint, compute, tied: false } };
        let embeddings = loader.embeddings()?;
        let blocks =
            (0..config.sizes.num_hidden_layers).map(|i| loader.block(i)).collect::<Result<_, _>>()?;
        // After the blocks, which hold config.json's sizes against the files': a fresh head is allocated by them.
        let mut fresh = Vec::new();
        let top = loader.top(task, own_head, &mut fresh)?;
        Ok(Self { config, embeddings, blocks, top, fresh })
    }
}

impl Loader<'_> {
    fn embeddings(&self) -> Result<Embeddings, Error> {
        let c = self.config;
        let path = format!("{}.embeddings", c.names.body);
        let table = |name: &str, rows: usize| {
            self.parts.embedding(&format!("{path}.{name}"), (rows, c.sizes.hidden_size))
        };
        let kinds = c.type_vocab_size;
        Ok(Embeddings {
            word: table("word_embeddings", c.sizes.vocab_size)?,
            position: table("position_embeddings", c.first_position + c.sizes.max_position_embeddings)?,
            kind: (kinds > 0).then(|| table("token_type_embeddings", kinds)).transpose()?,
            norm: self.norm(&format!("{path}.LayerNorm"))?,
        })
    }

    fn block(&self, i: usize) -> Result<Block, Error> {
        let (names, sizes) = (self.config.names, &self.config.sizes);
        let path = |name: &str| format!("{}.{}.{i}.{name}", names.body, names.layers);
        let (hidden, inner) = (sizes.hidden_size, sizes.intermediate_size);
        let linear = |name: &str, input, output| self.parts.linear(&path(name), (input, output), true);
        let layers = [
            linear(names.query, hidden, hidden)?,
            linear(names.key, hidden, hidden)?,
            linear(names.value, hidden, hidden)?,
            linear(names.attention_output, hidden, hidden)?,
            linear(names.up, hidden, inner)?,
            linear(names.down, inner, hidden)?,
        ];
        let norms = [self.norm(&path(names.attention_norm))?, self.norm(&path(names.norm))?];
        let fused = taper_kernels::Block {
            projections: layers.iter().map(whole::projection).collect::<Result<_, _>>()?,
            joined: Joined::default(),
            norms: Norms::After([whole::layer_norm(&norms[0])?, whole::layer_norm(&norms[1])?]),
            head_norms: None,
            activation: self.config.hidden_act,
            shape: AttentionShape {
                heads: sizes.num_attention_heads,
                kv_heads: sizes.num_attention_heads,
                head_dim: sizes.head_dim,
                scale: 1.0 / (sizes.head_dim as f32).sqrt(),
                causal: false,
                window: None,
                cap: None,
                compute: self.parts.compute,
            },
            rotates: false,
        };
        Ok(Block { layers, norms, fused: Arc::new(fused) })
    }

    fn top(&self, task: &Task, own_head: bool, fresh: &mut Vec<Fresh>) -> Result<Top, Error> {
        let hidden = self.config.sizes.hidden_size;
        let outputs = task.labels().map_or(0, Labels::outputs);
        match task {
            Task::CausalLm => Err(needs_labels()),
            Task::Classify(_) => {
                let Pooling { dense, then, head, head_modules } = self.config.pooling;
                let head = self.head(head, (hidden, outputs), own_head, fresh)?;
                // A pooler of the body's own (BERT's) serves under any head.
                let in_body = dense.starts_with(self.config.names.body);
                let pooler = self.head(dense, (hidden, hidden), own_head || in_body, fresh)?;
                let mut modules = head_modules.to_vec();
                if in_body && fresh.iter().any(|fresh| fresh.path == dense) {
                    modules.insert(0, last_two(dense));
                }
                Ok(Top { pooler: Some((pooler, then)), head: Head::from(head), modules })
            }
            Task::Tag(_) => {
                let head = self.head(TAGGER, (hidden, outputs), own_head, fresh)?;
                Ok(Top { pooler: None, head: Head::from(head), modules: vec![TAGGER] })
            }
        }
    }

    /// A layer of the head: the files' if they have it and it may `serve`, else a fresh one.
    fn head(
        &self,
        path: &str,
        sizes: (usize, usize),
        serves: bool,
        fresh: &mut Vec<Fresh>,
    ) -> Result<Linear, Error> {
        let files = (Some(self.parts.checkpoint).filter(|_| serves), self.parts.compute);
        head_linear(files, path, sizes, true, (self.config.initializer_range, fresh))
    }

    fn norm(&self, path: &str) -> Result<LayerNorm, Error> {
        self.parts.layer_norm(path, self.config.sizes.hidden_size, self.config.layer_norm_eps, true)
    }
}

/// `pooler.dense` of `bert.pooler.dense`.
fn last_two(path: &'static str) -> &'static str {
    path.split_once('.').map_or(path, |(_, rest)| rest)
}
