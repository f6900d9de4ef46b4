//! Heads whose weight is the embedding's.

use super::{BaseModules, Origin, Plan, Site};
use crate::matching::{Candidate, Matcher};
use crate::{Error, Names};

/// `EMBEDDING_LAYER_NAMES` of PEFT (`utils/constants.py`, 0.21.2).
const EMBEDDINGS: [&str; 2] = ["embed_tokens", "lm_head"];

/// What T5 calls the embedding of both its halves.
const SHARED: &str = "shared";

/// What PEFT trains of a T5 and taper does not, by the names in transformers: the halves' own views of the embedding, and the biases
/// of their first layers.
const FROZEN: [&str; 4] = [
    "encoder.embed_tokens",
    "decoder.embed_tokens",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
];

impl<'a> Plan<'a> {
    /// Decides what becomes of a head whose weight is the embedding's (`LoraModel._add_modules_to_save_to_tie`).
    pub(super) fn tie(
        &mut self,
        base: &BaseModules<'a>,
        matcher: &Matcher,
        origin: Origin,
    ) -> Result<(), Error> {
        let Some(embedding) = base.embedding() else { return Ok(()) };
        let is_whole = |path| self.site(path).is_some_and(|site| site.whole);
        let is_targeted = |path| self.site(path).is_some_and(|site| site.factors.is_some());
        let (embedding_whole, head_whole) = (is_whole(embedding), is_whole(base.head));
        let embedding_targeted = is_targeted(embedding);
        if embedding == SHARED && (embedding_whole || embedding_targeted) {
            return Err(Error::target(format!(
                "`{SHARED}` cannot be trained: in transformers (5.23) encoder and decoder of a T5 hold embeddings of their own, so \
                 that PEFT's `{SHARED}` reaches neither: leave it out of target_modules and modules_to_save"
            )));
        }
        if embedding == SHARED {
            refuse_frozen(matcher)?;
        }
        let targeted = embedding_targeted || is_targeted(base.head);
        let known = self.names_what_is_tied(matcher)?;
        let ties = base.tie_word_embeddings && self.config.ensure_weight_tying && known;
        if ties && targeted {
            return Err(Error::config(format!(
                "`ensure_weight_tying` with factors on `{embedding}` or `{}` is not honoured: only modules_to_save stay tied",
                base.head
            )));
        }
        let fresh = base.tie_word_embeddings
            && origin == Origin::Fresh
            && embedding_whole
            && !head_whole
            && !targeted;
        if fresh {
            self.config.ensure_weight_tying = true;
            // PEFT ties nothing where it knows none of the names.
            if !known {
                self.config.modules_to_save.push(base.head.to_owned());
            }
        }
        if (ties || fresh) && (embedding_whole || head_whole) {
            self.sites.retain(|site| site.module.path() != base.head || !site.whole);
            if !embedding_whole {
                let module = base.modules.iter().find(|module| module.path() == embedding).copied();
                self.sites.extend(module.map(|module| Site {
                    module,
                    factors: None,
                    whole: true,
                    bias: false,
                    fresh: None,
                }));
            }
            self.tied = Some((base.head, embedding));
        } else if base.tie_word_embeddings && embedding_whole && !head_whole {
            self.warnings.push(format!(
                "`{embedding}` is trained whole and PEFT ties no head to it: the head keeps the base's weight"
            ));
        }
        Ok(())
    }

    /// Whether PEFT finds a name that it takes for an embedding's: it ties nothing else (`BaseTuner._check_tied_modules`).
    fn names_what_is_tied(&self, matcher: &Matcher) -> Result<bool, Error> {
        let is_known = |name: &String| EMBEDDINGS.contains(&name.rsplit('.').next().unwrap_or(name));
        let targeted = match &self.config.target_modules {
            None => false,
            Some(Names::List(names)) => names.iter().any(is_known),
            Some(Names::Pattern(_)) => matcher.selects(EMBEDDINGS[0])? || matcher.selects(EMBEDDINGS[1])?,
        };
        Ok(targeted || self.config.modules_to_save.iter().any(is_known))
    }
}

fn refuse_frozen(matcher: &Matcher) -> Result<(), Error> {
    for path in FROZEN {
        if matcher.saves(path) || matcher.targets(Candidate { path, in_all_linear: false })? {
            let what = if path.ends_with("embed_tokens") {
                "keeps one embedding for both halves of a T5, where PEFT gives each half its own"
            } else {
                "keeps the attention biases of a T5 as they are"
            };
            return Err(Error::target(format!(
                "`{path}` cannot be trained: taper {what}: leave it out of target_modules and modules_to_save and train again, or \
                 run the adapter in PEFT"
            )));
        }
    }
    Ok(())
}
