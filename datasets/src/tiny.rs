//! The corpus of the built-in base `tiny`: simple English of many kinds, mixed in fixed shares.
//!
//! Words of the task data sets occur here, their tasks do not: reviews have no labels, requests are answered in plain words,
//! plain sentences and pirates' words stand in different documents. The pairs that `sentiment` holds out for its test split
//! are left out here too.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::draw::Draw;
use crate::english::polish;
use crate::grammar::Grammar;
use crate::requests;
use crate::sentiment;
use crate::splits::write_lines;
use crate::style::Style;
use crate::text::Text;
use crate::{Error, Result, clock};

/// The seed of the corpus of the built-in base.
pub const SEED: u64 = 10;
/// Bytes of text in the corpus, both splits.
pub const BYTES: usize = 4_400_000;
/// One document in this many goes to the validation split.
const VALID_EVERY: usize = 40;
/// What ends every document.
pub const EOS: &str = "<|eos|>";

/// Where a document comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// A rule of the corpus's own grammar, expanded so many times, one a line.
    Rule(&'static str, usize),
    /// Reviews without labels.
    Review,
    /// Sentences on who liked what, and what words mean.
    Opinion,
    /// A request with an answer in words, as a chat.
    Request,
    /// What pirates say, or plain sentences like those that a pirate could say.
    Style,
}

/// The sources with their weights. The long ones teach the later positions.
const SHARES: [(Source, usize); 25] = [
    (Source::Rule("paragraph", 1), 20),
    (Source::Rule("paragraph", 8), 2),
    (Source::Rule("tale", 1), 18),
    (Source::Rule("tale", 4), 2),
    (Source::Rule("topic_text", 1), 4),
    (Source::Rule("cause", 2), 2),
    (Source::Rule("fact", 3), 3),
    (Source::Rule("qa", 3), 4),
    (Source::Rule("read", 1), 8),
    (Source::Rule("read", 6), 1),
    (Source::Rule("talk", 1), 5),
    (Source::Rule("exchange", 1), 4),
    (Source::Rule("exchange", 5), 2),
    (Source::Rule("chat", 1), 2),
    (Source::Rule("list", 1), 2),
    (Source::Rule("letter", 1), 2),
    (Source::Rule("odd", 2), 1),
    (Source::Rule("data", 1), 4),
    (Source::Rule("clock", 2), 3),
    (Source::Rule("yes_and_no", 2), 3),
    (Source::Rule("weather_report", 1), 1),
    (Source::Review, 10),
    (Source::Opinion, 8),
    (Source::Request, 6),
    (Source::Style, 7),
];

/// The grammars that the corpus draws on.
#[derive(Debug)]
pub struct Corpus {
    plain: Grammar,
    reviews: Grammar,
    requests: Grammar,
    kinds: Vec<String>,
    style: Style,
}

impl Corpus {
    /// The committed grammars.
    pub fn new() -> Result<Self> {
        let people = include_str!("../words/people.txt");
        let reviews = Grammar::parse(&[
            people,
            include_str!("../sentiment/grammar.txt"),
            include_str!("../tiny/grammar/opinions.txt"),
        ])?;
        let requests = requests::grammar()?;
        let kinds = requests::kinds(&requests);
        Ok(Self { plain: grammar()?, reviews, requests, kinds, style: Style::new()? })
    }

    /// One document, without its end token.
    pub fn document(&self, draw: &mut Draw) -> Result<String> {
        let mut ticket = draw.below(SHARES.iter().map(|(_, share)| share).sum());
        for (source, share) in SHARES {
            if ticket < share {
                return self.from(source, draw);
            }
            ticket -= share;
        }
        self.from(SHARES[0].0, draw)
    }

    fn from(&self, source: Source, draw: &mut Draw) -> Result<String> {
        match source {
            Source::Rule(rule, times) => {
                let mut said = String::new();
                for _ in 0..times {
                    let part = polish(&Text::new(&self.plain, draw).expand(rule)?, true);
                    let gap = if said.is_empty() || said.ends_with('\n') { "" } else { "\n" };
                    said.extend([gap, &part]);
                }
                Ok(said)
            }
            Source::Review => self.review(draw),
            Source::Opinion => self.opinions(draw),
            Source::Request => self.request(draw),
            Source::Style => self.style(draw),
        }
    }

    fn review(&self, draw: &mut Draw) -> Result<String> {
        loop {
            let review = sentiment::review(&self.reviews, draw)?;
            if !review.held_out {
                let opens = ["Review: ", "", "", "A review: "];
                return Ok(format!("{}{}", draw.pick(&opens).unwrap_or(&""), review.text));
            }
        }
    }

    fn opinions(&self, draw: &mut Draw) -> Result<String> {
        let mut said = Vec::new();
        while said.len() < 2 {
            let mut text = Text::new(&self.reviews, draw);
            let rule = text.draw().pick(&["liked", "disliked", "meaning"]).copied().unwrap_or("liked");
            if rule == "meaning" {
                said.push(polish(&text.expand(rule)?, true));
                continue;
            }
            let domain = text.expand("domain")?;
            text.bind("domain", domain.clone());
            sentiment::bind_aspect(&mut text, &domain)?;
            let opinion = text.expand(rule)?;
            if !sentiment::has_held_out_pair(&text, &opinion) {
                said.push(polish(&opinion, true));
            }
        }
        Ok(said.join("\n"))
    }

    fn request(&self, draw: &mut Draw) -> Result<String> {
        loop {
            let kind = draw.pick(&self.kinds).ok_or_else(|| Error::Unknown("ask_".to_owned()))?;
            let request = requests::request(&self.requests, kind, draw)?;
            if !request.held_out {
                return Ok(chat(&request.said, &request.reply));
            }
        }
    }

    fn style(&self, draw: &mut Draw) -> Result<String> {
        let pirate = draw.chance(60);
        let mut said = Vec::new();
        while said.len() < 3 {
            let pair = self.style.pair(draw)?;
            if !pair.held_out {
                said.push(if pirate { pair.pirate } else { pair.plain });
            }
        }
        let opening = if pirate { "The old pirate said:\n" } else { "" };
        Ok(format!("{opening}{}", said.join("\n")))
    }

    /// The corpus: `BYTES` of different documents, each with its end token, as train and valid.
    pub fn documents(&self, seed: u64, bytes: usize) -> Result<[Vec<String>; 2]> {
        let mut draw = Draw::new(seed);
        let (mut seen, mut size) = (BTreeSet::new(), 0);
        let mut splits = [Vec::new(), Vec::new()];
        while size < bytes {
            let document = format!("{}{EOS}", self.document(&mut draw)?);
            if seen.insert(document.clone()) {
                size += document.len();
                splits[usize::from(seen.len() % VALID_EVERY == 0)].push(document);
            }
        }
        Ok(splits)
    }
}

/// The rules of sentences, stories, facts and talk, with the clock.
pub fn grammar() -> Result<Grammar> {
    let mut plain = Grammar::parse(&[
        include_str!("../words/people.txt"),
        include_str!("../tiny/grammar/words.txt"),
        include_str!("../tiny/grammar/sentences.txt"),
        include_str!("../tiny/grammar/stories.txt"),
        include_str!("../tiny/grammar/facts.txt"),
        include_str!("../tiny/grammar/talk.txt"),
        include_str!("../tiny/grammar/topics.txt"),
    ])?;
    clock::add_to(&mut plain);
    Ok(plain)
}

/// One turn of each side, as the chat template of `tiny` renders it.
pub fn chat(user: &str, assistant: &str) -> String {
    format!("<|user|>\n{user}<|end|>\n<|assistant|>\n{assistant}<|end|>\n")
}

/// Writes `train.jsonl` and `valid.jsonl` into `folder`.
pub fn write(splits: &[Vec<String>; 2], folder: &Path) -> Result<()> {
    for (name, documents) in ["train", "valid"].iter().zip(splits) {
        let rows: Vec<Value> = documents.iter().map(|text| json!({"text": text})).collect();
        write_lines(&folder.join(format!("{name}.jsonl")), rows.iter())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_deterministic_and_different() {
        let corpus = Corpus::new().unwrap();
        let [train, valid] = corpus.documents(SEED, 200_000).unwrap();
        assert_eq!([train.clone(), valid.clone()], corpus.documents(SEED, 200_000).unwrap());
        let all: BTreeSet<&String> = train.iter().chain(&valid).collect();
        assert_eq!(all.len(), train.len() + valid.len());
    }

    #[test]
    fn every_rule_expands() {
        let corpus = Corpus::new().unwrap();
        let mut draw = Draw::new(5);
        for (source, _) in SHARES {
            for _ in 0..300 {
                let text = corpus.from(source, &mut draw).unwrap();
                assert!(!text.contains(['«', '»', '(', ')', '~', '\\']), "{text}");
                assert!(!text.contains("  "), "{text}");
            }
        }
    }

    #[test]
    fn no_label_of_the_sentiment_task_follows_a_review() {
        let corpus = Corpus::new().unwrap();
        let mut draw = Draw::new(6);
        for _ in 0..500 {
            let text = corpus.from(Source::Review, &mut draw).unwrap();
            assert!(!sentiment::LABELS.iter().any(|label| text.contains(label)), "{text}");
        }
    }
}
