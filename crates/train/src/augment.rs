//! Training rows changed a little, otherwise in each epoch: what a recipe's `[augment]` asks for. Rows that are evaluated
//! never come here.
//!
//! A row's changes are a function of seed, epoch and the row's line: a run that is resumed draws what an unbroken one drew.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use taper_base::Tokenizer;

use crate::gradients::mix;
use crate::packing::below;
use crate::recipe::Augment;
use crate::{Error, Example, Learn};

/// Random streams of the changes, apart from those of everything else.
const AUGMENT: u64 = 0x6175_676d_656e_7421;

/// Draws of a random token that may be a special one before the token stays as it is.
const TRIES: usize = 16;

/// Changes rows.
pub(crate) struct Augmenter<'a> {
    augment: Augment,
    tokenizer: &'a Tokenizer,
    /// What a dropped token becomes; none where the tokenizer has neither a mask nor an unknown token.
    blank: Option<u32>,
    /// Tokens that a model knows, from the first.
    vocabulary: usize,
    /// Tokens at which a row is cut.
    max_length: Option<usize>,
    seed: u64,
}

impl<'a> Augmenter<'a> {
    /// Nothing where `augment` asks for nothing.
    pub(crate) fn new(augment: Augment, tokenizer: &'a Tokenizer, seed: u64) -> Option<Self> {
        let ends = [tokenizer.bos(), tokenizer.eos(), tokenizer.pad()];
        let unknown = tokenizer.unk().filter(|id| !ends.contains(&Some(*id)));
        let blank = tokenizer.mask().or(unknown);
        let vocabulary = tokenizer.vocab_size();
        let changes = Self { augment, tokenizer, blank, vocabulary, max_length: None, seed };
        (!augment.is_off()).then_some(changes)
    }

    /// For a model of so many tokens that takes rows of `max_length`.
    pub(crate) fn within(self, vocabulary: usize, max_length: Option<usize>) -> Self {
        Self { vocabulary: self.vocabulary.min(vocabulary), max_length, ..self }
    }

    /// The row as it is in `epoch`.
    pub(crate) fn draw(&self, example: &Example, epoch: usize) -> Result<Example, Error> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed ^ AUGMENT);
        random.set_stream(mix(epoch as u64, example.line as u64));
        let mut drawn = example.clone();
        if let Some(first) = example.texts.first() {
            let first = self.words(first, &mut random);
            let second = example.texts.get(1).map(|second| self.words(second, &mut random));
            let input = self.tokenizer.input(&first, second.as_deref(), self.max_length)?;
            (drawn.tokens, drawn.types) = (input.ids, input.types);
        }
        if self.augment.token_dropout > 0.0 {
            if matches!(drawn.learn, Learn::Tokens(_)) {
                drawn.learn = Learn::Tags(drawn.labelled());
            }
            for tokens in drawn.source.iter_mut().chain([&mut drawn.tokens]) {
                for token in tokens {
                    self.drop_token(token, &mut random);
                }
            }
        }
        Ok(drawn)
    }

    fn drop_token(&self, token: &mut u32, random: &mut ChaCha8Rng) {
        if self.tokenizer.is_special(*token) || !chance(random, self.augment.token_dropout) {
            return;
        }
        let plain = |id: &u32| !self.tokenizer.is_special(*id);
        let any = || (0..TRIES).map(|_| below(random, self.vocabulary) as u32).find(plain);
        *token = self.blank.or_else(any).unwrap_or(*token);
    }

    /// A text with words left out and swapped; the white space between those that stay is what it was.
    fn words(&self, text: &str, random: &mut ChaCha8Rng) -> String {
        let mut words: Vec<(&str, &str)> = pieces(text);
        if self.augment.word_deletion > 0.0 && words.len() > 1 {
            let stays = words[below(random, words.len())];
            words.retain(|_| !chance(random, self.augment.word_deletion));
            if words.is_empty() {
                words.push(stays);
            }
        }
        if self.augment.word_swap > 0.0 && words.len() > 1 {
            let times = ((self.augment.word_swap * words.len() as f64) as usize).max(1);
            for _ in 0..times {
                let a = below(random, words.len());
                let b = (a + 1 + below(random, words.len() - 1)) % words.len();
                (words[a].0, words[b].0) = (words[b].0, words[a].0);
            }
        }
        let text: String = words.into_iter().flat_map(|(word, space)| [word, space]).collect();
        text.trim_end().to_owned()
    }
}

/// The words of a text, each with the white space behind it.
fn pieces(text: &str) -> Vec<(&str, &str)> {
    let mut rest = text.trim_start();
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let next = rest[end..].trim_start();
        pieces.push((&rest[..end], &rest[end..rest.len() - next.len()]));
        rest = next;
    }
    pieces
}

/// True in `share` of all cases.
fn chance(random: &mut ChaCha8Rng, share: f64) -> bool {
    ((random.next_u64() >> 11) as f64) * (-53f64).exp2() < share
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample::{self, BOS, EOS};

    const TEXT: &str = "one two  three\nfour five six seven eight nine ten";

    fn augmenter(augment: Augment, tokenizer: &Tokenizer) -> Augmenter<'_> {
        Augmenter::new(augment, tokenizer, 0).unwrap()
    }

    fn words(text: &str) -> Vec<&str> {
        text.split_whitespace().collect()
    }

    /// A row with one label, framed.
    fn row(tokenizer: &Tokenizer, line: usize) -> Example {
        let tokens = tokenizer.input(TEXT, None, None).unwrap().ids;
        Example { tokens, texts: vec![TEXT.into()], learn: Learn::Class(1), line, ..Example::default() }
    }

    #[test]
    fn swapping_moves_words_and_deletion_loses_some() {
        let tokenizer = sample::framed();
        let swap = augmenter(Augment { word_swap: 0.2, ..Augment::default() }, &tokenizer);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..50 {
            let swapped = swap.words(TEXT, &mut random);
            let (mut found, mut all) = (words(&swapped), words(TEXT));
            let moved = found.iter().zip(&all).filter(|(a, b)| a != b).count();
            assert!((2..=4).contains(&moved), "{swapped}");
            assert!(swapped.contains("  ") && swapped.contains('\n'), "{swapped}");
            found.sort_unstable();
            all.sort_unstable();
            assert_eq!(found, all);
        }
        let delete = augmenter(Augment { word_deletion: 0.3, ..Augment::default() }, &tokenizer);
        let lengths: Vec<usize> = (0..400).map(|_| words(&delete.words(TEXT, &mut random)).len()).collect();
        let mean = lengths.iter().sum::<usize>() as f64 / 400.0;
        assert!((mean - 7.0).abs() < 0.3, "{mean}");
        let most = augmenter(Augment { word_deletion: 0.999, ..Augment::default() }, &tokenizer);
        assert!((0..50).all(|_| words(&most.words(TEXT, &mut random)).len() == 1));
        assert_eq!(delete.words("alone", &mut random), "alone");
    }

    #[test]
    fn each_epoch_and_row_has_its_own_draw_and_a_seed_gives_it_again() {
        let tokenizer = sample::framed();
        let augment = Augment { word_swap: 0.3, word_deletion: 0.2, token_dropout: 0.1 };
        let changes = augmenter(augment, &tokenizer);
        let draw = |line, epoch| changes.draw(&row(&tokenizer, line), epoch).unwrap();
        assert_eq!(draw(3, 1), draw(3, 1));
        assert_ne!(draw(3, 1).tokens, draw(3, 2).tokens);
        assert_ne!(draw(3, 1).tokens, draw(4, 1).tokens);
        let other = Augmenter::new(augment, &tokenizer, 1).unwrap();
        assert_ne!(other.draw(&row(&tokenizer, 3), 1).unwrap().tokens, draw(3, 1).tokens);
        let drawn = draw(3, 1);
        assert_eq!((drawn.tokens[0], drawn.tokens.last(), drawn.learn), (BOS, Some(&EOS), Learn::Class(1)));
        assert!(Augmenter::new(Augment::default(), &tokenizer, 0).is_none());
    }

    #[test]
    fn dropped_tokens_are_still_what_is_learned() {
        let tokenizer = sample::framed();
        let ids = tokenizer.encode(&"abcdefgh".repeat(50)).unwrap();
        let end = ids.len();
        let example = Example {
            source: Some(ids.clone()),
            learn: Learn::Tokens(std::iter::once(10..end).collect()),
            tokens: ids,
            ..Example::default()
        };
        let changes = augmenter(Augment { token_dropout: 0.2, ..Augment::default() }, &tokenizer);
        let drawn = changes.draw(&example, 0).unwrap();
        assert_eq!((drawn.labelled(), drawn.labels()), (example.labelled(), example.labels()));
        for (before, after) in [
            (&example.tokens, &drawn.tokens),
            (example.source.as_ref().unwrap(), drawn.source.as_ref().unwrap()),
        ] {
            assert_eq!((after[0], after.last()), (BOS, Some(&EOS)));
            let changed = before.iter().zip(after).filter(|(a, b)| a != b).count();
            assert!((50..110).contains(&changed), "{changed}");
            assert!(!after[1..end - 1].iter().any(|id| tokenizer.is_special(*id)));
        }
    }
}
