//! Words as one text, and the piece of it that stands for each word.

use std::ops::Range;

use taper_base::{Error, Input, Tokenizer};

/// Words side by side with a space between, as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    /// The text, framed by the tokenizer and cut to length.
    pub(crate) input: Input,
    /// `(word, piece)` for each word: the place of its first piece. A word that was cut off, or of which the tokenizer keeps
    /// nothing, has none.
    pub(crate) pieces: Vec<(usize, usize)>,
}

impl Words {
    pub(crate) fn new<S: AsRef<str>>(
        tokenizer: &Tokenizer,
        words: &[S],
        max_length: Option<usize>,
    ) -> Result<Self, Error> {
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        let input = tokenizer.input(&words.join(" "), None, max_length)?;
        let (mut pieces, mut piece, mut start) = (Vec::new(), 0, 0);
        for (word, text) in words.iter().enumerate() {
            let ends_before = |at: &Option<Range<usize>>| at.as_ref().is_none_or(|at| at.end <= start);
            piece += input.offsets[piece..].iter().take_while(|at| ends_before(at)).count();
            if let Some(Some(at)) = input.offsets.get(piece)
                && at.start < start + text.len()
            {
                pieces.push((word, piece));
            }
            start += text.len() + 1;
        }
        Ok(Self { input, pieces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample::{self, BOS, EOS};

    #[test]
    fn first_pieces_are_found_behind_what_the_tokenizer_adds() {
        let framed = sample::framed();
        let Words { input, pieces } = Words::new(&framed, &["ab", "ü", "c"], None).unwrap();
        assert_eq!((input.ids[0], input.ids.last()), (BOS, Some(&EOS)));
        assert_eq!(pieces, [(0, 1), (1, 4), (2, 7)]);
    }

    #[test]
    fn a_word_that_was_cut_off_has_no_piece() {
        let Words { input, pieces } = Words::new(&sample::framed(), &["ab", "cd", "e"], Some(6)).unwrap();
        assert_eq!((input.ids.len(), input.cut, input.ids.last()), (6, 3, Some(&EOS)));
        assert_eq!(pieces, [(0, 1), (1, 4)]);
    }
}
