//! The tokenizer of `tiny`: byte-level BPE trained on the corpus, its special tokens and its chat template.
//!
//! Digits are single tokens. Nothing is added around a text: no BOS, no post-processor.

use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer};

use crate::model::POSITIONS;
use crate::splits::write_file;
use crate::{Error, Result};

/// Tokens, special ones included.
pub const VOCABULARY: usize = 2048;

/// The chat template, in the form Hugging Face writes. What the assistant says, with its end, stands in a `generation` block,
/// which says what is to be learned.
pub const CHAT_TEMPLATE: &str = concat!(
    "{% for message in messages %}",
    "{{ '<|' + message['role'] + '|>\\n' }}",
    "{% if message['role'] == 'assistant' %}",
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}",
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}",
    "{{ '\\n' }}",
    "{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
);

/// The special tokens. Their ids are their places here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// `<|bos|>`, unused by the corpus.
    Bos,
    /// `<|eos|>`, the end of a text.
    Eos,
    /// `<|user|>`, opens a user's turn.
    User,
    /// `<|assistant|>`, opens an assistant's turn.
    Assistant,
    /// `<|system|>`, opens a system turn.
    System,
    /// `<|end|>`, the end of a turn.
    End,
}

impl Special {
    /// All of them, by id.
    pub const ALL: [Self; 6] = [Self::Bos, Self::Eos, Self::User, Self::Assistant, Self::System, Self::End];

    /// Its token id.
    pub fn id(self) -> usize {
        self as usize
    }

    /// Its text.
    pub fn text(self) -> &'static str {
        match self {
            Self::Bos => "<|bos|>",
            Self::Eos => "<|eos|>",
            Self::User => "<|user|>",
            Self::Assistant => "<|assistant|>",
            Self::System => "<|system|>",
            Self::End => "<|end|>",
        }
    }
}

/// Trains the tokenizer on `documents`; special tokens in them are left out of the merges.
pub fn train(documents: &[String]) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(BPE::default());
    let parts: Vec<PreTokenizerWrapper> =
        vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(parts)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(Special::ALL.map(|token| AddedToken::from(token.text(), true)).to_vec())
        .build();
    let texts: Vec<String> = documents.iter().map(|document| without_special_tokens(document)).collect();
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), texts.iter())
        .map_err(|error| Error::Tokenizer(error.to_string()))?;
    Ok(tokenizer)
}

fn without_special_tokens(text: &str) -> String {
    Special::ALL.iter().fold(text.to_owned(), |text, token| text.replace(token.text(), ""))
}

/// The tokenizer's `tokenizer_config.json`.
pub fn config() -> Value {
    let mut added = Map::new();
    for token in Special::ALL {
        let entry = json!({
            "content": token.text(), "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true,
        });
        added.insert(token.id().to_string(), entry);
    }
    json!({
        "added_tokens_decoder": added,
        "bos_token": Special::Bos.text(),
        "eos_token": Special::Eos.text(),
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "model_max_length": POSITIONS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}

/// Writes `tokenizer.json` and `tokenizer_config.json` into `folder`.
pub fn write(tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    let text = tokenizer.to_string(false).map_err(|error| Error::Tokenizer(error.to_string()))?;
    write_file(&folder.join("tokenizer.json"), text.as_bytes())?;
    write_file(&folder.join("tokenizer_config.json"), format!("{:#}\n", config()).as_bytes())
}

/// Characters a token, over `documents`.
pub fn characters_per_token(tokenizer: &Tokenizer, documents: &[String]) -> Result<f64> {
    let (mut characters, mut tokens) = (0, 0);
    for document in documents {
        let encoding = tokenizer
            .encode(document.as_str(), false)
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        characters += document.chars().count();
        tokens += encoding.len();
    }
    Ok(characters as f64 / f64::from(tokens.max(1) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::{Corpus, SEED};

    #[test]
    fn a_tokenizer_is_deterministic_and_lossless() {
        let [documents, _] = Corpus::new().unwrap().documents(SEED, 300_000).unwrap();
        let tokenizer = train(&documents).unwrap();
        assert_eq!(tokenizer.to_string(false).unwrap(), train(&documents).unwrap().to_string(false).unwrap());
        assert_eq!(tokenizer.get_vocab_size(true), VOCABULARY);
        for token in Special::ALL {
            assert_eq!(tokenizer.token_to_id(token.text()), Some(token.id() as u32));
        }
        let text = "<|user|>\nwake me at 10:45, Zoë {\"a\":1}<|end|>\n";
        let encoding = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), text);
        assert!(
            encoding.get_tokens().iter().filter(|token| token.chars().all(|c| c.is_ascii_digit())).count()
                == 5
        );
    }
}
