//! Token ids to text as they come, never cutting a character.

#[cfg(test)]
mod tests;

use crate::{Error, Tokenizer};

/// What a decoder prints for bytes that are not (yet) a character.
const BROKEN: char = char::REPLACEMENT_CHARACTER;

/// So many tokens may wait for the rest of a character; a character has at most four bytes, and a token at least one.
const LONGEST_WAIT: usize = 32;

/// Turns a growing run of ids into pieces of text: a piece is held back while it might be half a UTF-8 character.
///
/// The pieces together are the text of prompt and new ids without the text of the prompt. Only a short window is decoded at
/// each step: the tokens printed last (which decide e.g. whether a space comes first) and those that wait.
#[derive(Clone)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The window: tokens printed last, then tokens that wait. Never special tokens, which print nothing.
    ids: Vec<u32>,
    /// So many of `ids` are printed whole.
    done: usize,
    /// The part of the window's text that is printed.
    printed: String,
}

impl<'a> TextStream<'a> {
    /// A stream that continues `prompt` (whose text is not printed, but decides e.g. whether a space comes first).
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Result<Self, Error> {
        let mut window = 8;
        loop {
            let mut ids: Vec<u32> =
                prompt.iter().rev().filter(|id| !tokenizer.is_special(**id)).take(window).copied().collect();
            ids.reverse();
            let printed = tokenizer.decode(&ids)?;
            // A window that starts inside a character would spoil what follows in its run of bytes: take a longer one.
            if !printed.starts_with(BROKEN) || ids.len() < window {
                return Ok(Self { tokenizer, done: ids.len(), ids, printed });
            }
            window *= 2;
        }
    }

    /// The text that `id` completes, which may be empty.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        if self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        let certain = text.trim_end_matches(BROKEN);
        if certain.len() < text.len() && self.ids.len() - self.done < LONGEST_WAIT {
            let piece = certain.strip_prefix(self.printed.as_str()).unwrap_or_default();
            self.printed.push_str(piece);
            return Ok(piece.to_string());
        }
        let piece = self.rest(&text)?;
        self.ids.drain(..self.done);
        self.done = self.ids.len();
        self.printed = self.tokenizer.decode(&self.ids)?;
        Ok(piece)
    }

    /// What was still held back.
    pub fn finish(self) -> Result<String, Error> {
        let text = self.tokenizer.decode(&self.ids)?;
        self.rest(&text)
    }

    /// The window's `text` without what is printed. Where a late byte changed the printed part (a run of byte tokens that
    /// turned out not to be UTF-8), the waiting tokens by themselves.
    fn rest(&self, text: &str) -> Result<String, Error> {
        match text.strip_prefix(self.printed.as_str()) {
            Some(rest) => Ok(rest.to_string()),
            None => self.tokenizer.decode(&self.ids[self.done..]),
        }
    }
}
