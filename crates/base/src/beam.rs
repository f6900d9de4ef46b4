//! Beam search: the likeliest text, looked for along several at once.

use std::cmp::Ordering;
use std::time::Instant;

use candle_core::{DType, Tensor};

use crate::generate::room;
use crate::{Adapter, Base, Batch, Error, Generation, GenerationOptions, KvCache, Stop, TextStream};

/// How beams are searched. The defaults are those of transformers' `generate`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beams {
    /// Texts that are followed at once, and finished ones that are kept.
    pub count: usize,
    /// A finished text of `n` tokens scores `log p / n^length_penalty`.
    pub length_penalty: f32,
}

impl Default for Beams {
    fn default() -> Self {
        Self { count: 1, length_penalty: 1.0 }
    }
}

/// A text that goes on.
struct Running<'a> {
    tokens: Vec<u32>,
    spelt: Spelt<'a>,
    /// `log p`.
    score: f32,
    cache: KvCache,
}

/// What tokens spell, as far as it is certain.
#[derive(Clone)]
struct Spelt<'a> {
    text: String,
    stream: TextStream<'a>,
}

/// A text that is done, its last token included.
struct Finished {
    tokens: Vec<u32>,
    score: f32,
}

/// One more token for one of the running texts.
#[derive(Clone, Copy)]
struct Candidate {
    parent: usize,
    token: u32,
    score: f32,
}

/// The best text that continues `prompt`, or that is written from it, as transformers' beam search finds it
/// (`GenerationMixin._beam_search`, 5.23, `early_stopping` false): it ends when as many texts as there are beams are finished
/// and the best running one, were it finished now, would not beat the worst of them. Of `options` it takes `max_tokens`,
/// `stop` (a text that holds one of these is finished, and cut before it), and `cache_dtype`.
pub fn beam_search(
    base: &Base,
    adapter: &dyn Adapter,
    prompt: &[u32],
    options: &GenerationOptions,
    beams: Beams,
) -> Result<Generation, Error> {
    let started = Instant::now();
    if beams.count == 0 || options.max_tokens == 0 || prompt.is_empty() {
        let what = "a search needs a beam at least, a token to make, and a prompt with tokens".into();
        return Err(Error::Source { what });
    }
    let mut first = None;
    let max_tokens = room(base, prompt, 0, options.max_tokens)?;
    let mut search = Search { base, beams, max_tokens, stops: &options.stop, finished: Vec::new() };
    let mut running = Vec::new();
    let start = base.model.decoder_start();
    let stream = TextStream::new(&base.tokenizer, start.as_ref().map_or(prompt, std::slice::from_ref))?;
    let nothing = Spelt { text: String::new(), stream };
    loop {
        let parents = if running.is_empty() {
            let cache = base.model.new_cache().with_dtype(options.cache_dtype);
            vec![Running { tokens: Vec::new(), spelt: nothing.clone(), score: 0.0, cache }]
        } else {
            running
        };
        running = search.step(parents, prompt, adapter)?;
        first.get_or_insert_with(|| started.elapsed());
        if running.first().is_none_or(|best| search.is_over(best)) {
            break;
        }
    }
    let best = search.finished.into_iter().next().map(|best| best.tokens).unwrap_or_default();
    let mut found = written(base, nothing, best)?;
    cut(&mut found, &options.stop);
    let now = started.elapsed();
    Ok(Generation { times: [first.unwrap_or(now), now], ..found })
}

struct Search<'a> {
    base: &'a Base,
    beams: Beams,
    max_tokens: usize,
    stops: &'a [String],
    /// The best first, as many as there are beams at most.
    finished: Vec<Finished>,
}

impl<'a> Search<'a> {
    /// Continues every text by one token: keeps what is finished, gives what goes on, the best first.
    fn step(
        &mut self,
        mut parents: Vec<Running<'a>>,
        prompt: &[u32],
        adapter: &dyn Adapter,
    ) -> Result<Vec<Running<'a>>, Error> {
        let rows = self.log_probabilities(&mut parents, prompt, adapter)?;
        // Enough that as many as there are beams go on, even if each of them could end in every way.
        let kept = self.beams.count * (1 + self.base.eos.len()).max(2);
        let made = parents.first().map_or(0, |parent| parent.tokens.len()) + 1;
        let mut running = Vec::new();
        for (rank, candidate) in best(&rows, &parents, kept).into_iter().enumerate() {
            let parent = &parents[candidate.parent];
            let tokens = [&parent.tokens[..], &[candidate.token]].concat();
            let mut spelt = parent.spelt.clone();
            let ends =
                self.base.eos.contains(&candidate.token) || self.stops_at(&mut spelt, candidate.token)?;
            if !ends && made < self.max_tokens {
                let cache = parent.cache.clone();
                running.push(Running { tokens, spelt, score: candidate.score, cache });
            } else if rank < self.beams.count {
                self.finished.push(Finished { tokens, score: self.finished_score(candidate.score, made) });
            }
            if running.len() == self.beams.count {
                break;
            }
        }
        self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.finished.truncate(self.beams.count);
        Ok(running)
    }

    /// Whether a text that goes on by `token` holds a stop string. Without stop strings no text is made while searching.
    fn stops_at(&self, spelt: &mut Spelt<'a>, token: u32) -> Result<bool, Error> {
        if self.stops.is_empty() {
            return Ok(false);
        }
        spelt.text.push_str(&spelt.stream.push(token)?);
        Ok(self.stops.iter().any(|stop| spelt.text.contains(stop.as_str())))
    }

    fn finished_score(&self, score: f32, tokens: usize) -> f32 {
        score / (tokens as f32).powf(self.beams.length_penalty)
    }

    /// Whether no text that goes on from `best` is expected to beat the finished ones.
    fn is_over(&self, best: &Running<'_>) -> bool {
        let could = self.finished_score(best.score, best.tokens.len());
        self.finished.len() == self.beams.count
            && self.finished.last().is_some_and(|worst| could <= worst.score)
    }

    /// `log p` of every next token `(V,)` of each text.
    fn log_probabilities(
        &self,
        parents: &mut [Running<'_>],
        prompt: &[u32],
        adapter: &dyn Adapter,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let model = &self.base.model;
        let mut batch = Batch::default();
        for parent in parents.iter() {
            match (parent.tokens.last(), model.decoder_start()) {
                (Some(last), _) => batch.push(&[*last]),
                (None, Some(start)) => batch.push_from(prompt, &[start]),
                (None, None) => batch.push(prompt),
            }
        }
        let mut caches: Vec<&mut KvCache> = parents.iter_mut().map(|parent| &mut parent.cache).collect();
        let hidden = model.hidden(&batch, &mut caches, adapter)?;
        let last: Vec<u32> = batch.segments().iter().map(|rows| rows.end as u32 - 1).collect();
        let rows = hidden.index_select(&Tensor::new(last, hidden.device())?, 0)?;
        let mut logits = model.head().forward(&rows, adapter)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        for row in &mut logits {
            log_softmax(row);
        }
        Ok(logits)
    }
}

fn log_softmax(logits: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    let log_sum = largest + sum.ln() as f32;
    for logit in logits {
        *logit -= log_sum;
    }
}

/// The `count` best continuations, the best first; of equals the one of the earlier text, and the lower token.
fn best(rows: &[Vec<f32>], parents: &[Running<'_>], count: usize) -> Vec<Candidate> {
    let of = |(parent, row): (usize, &Vec<f32>)| -> Vec<Candidate> {
        let score = parents[parent].score;
        (0..).zip(row).map(|(token, log)| Candidate { parent, token, score: score + log }).collect()
    };
    let mut all: Vec<Candidate> = rows.iter().enumerate().flat_map(of).collect();
    let order = |a: &Candidate, b: &Candidate| -> Ordering {
        b.score.total_cmp(&a.score).then((a.parent, a.token).cmp(&(b.parent, b.token)))
    };
    if all.len() > count {
        all.select_nth_unstable_by(count - 1, order);
        all.truncate(count);
    }
    all.sort_by(order);
    all
}

/// What was found, without the token that ended it.
fn written(base: &Base, nothing: Spelt<'_>, mut tokens: Vec<u32>) -> Result<Generation, Error> {
    let ended = tokens.last().is_some_and(|last| base.eos.contains(last));
    if ended {
        tokens.pop();
    }
    let Spelt { mut text, mut stream } = nothing;
    for token in &tokens {
        text.push_str(&stream.push(*token)?);
    }
    text.push_str(&stream.finish()?);
    let stop = if ended { Stop::Eos } else { Stop::Length };
    Ok(Generation { tokens, text, stop, times: Default::default() })
}

fn cut(found: &mut Generation, stops: &[String]) {
    if let Some(at) = stops.iter().filter_map(|stop| found.text.find(stop.as_str())).min() {
        found.text.truncate(at);
        found.stop = Stop::String;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use taper_kernels::Compute;

    use super::*;
    use crate::{ModelDir, generate};

    fn t5(eos: u32) -> Base {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle/t5/model");
        let dir = ModelDir { path, name: "t5".into() };
        Base { eos: vec![eos], ..Base::open_dir(dir, Compute::F32).unwrap() }
    }

    /// What `generate(source, num_beams=…, eos_token_id=…, max_new_tokens=12)` of transformers 5.23 gives on the oracle's t5.
    #[test]
    fn beams_find_what_transformers_finds() {
        let long = [84, 55, 135, 88, 150, 204, 243, 36, 158, 193, 68, 39, 132];
        let short = [172, 149, 70, 77, 189, 245, 17, 72];
        let cases: &[(&[u32], u32, usize, &[u32])] = &[
            (&long, 80, 2, &[46, 46, 46, 46, 46, 46, 46, 46, 80]),
            (&long, 80, 4, &[46, 46, 46, 46, 46, 46, 46, 46, 80]),
            (&long, 236, 4, &[46, 46, 46, 46, 46, 46, 46, 46, 80, 80, 80, 80]),
            (&short, 80, 4, &[46, 46, 46, 46, 46, 46, 80]),
            (&short, 46, 2, &[161, 80, 80, 80, 80, 80, 80, 80, 80, 80, 80, 80]),
            (&short, 46, 4, &[80, 80, 80, 18, 18, 18, 18, 18, 18, 18, 18, 18]),
            (&[234, 97, 45, 251, 241], 80, 2, &[217, 217, 217, 174, 174, 174, 174, 174, 174, 174, 174, 174]),
            (&[234, 97, 45, 251, 241], 80, 4, &[161, 161, 202, 202, 202, 202, 202, 202, 202, 202, 202, 202]),
            (&[40, 162, 61], 80, 2, &[185, 217, 217, 217, 217, 217, 217, 217, 217, 174, 174, 174]),
            (&[40, 181, 255, 25], 80, 4, &[46, 46, 46, 46, 80]),
        ];
        let options = GenerationOptions { max_tokens: 12, ..GenerationOptions::default() };
        for &(source, eos, count, expected) in cases {
            let beams = Beams { count, ..Beams::default() };
            let found = beam_search(&t5(eos), &(), source, &options, beams).unwrap();
            let (expected, stop) = match expected {
                [before @ .., last] if *last == eos => (before, Stop::Eos),
                whole => (whole, Stop::Length),
            };
            assert_eq!((found.tokens.as_slice(), found.stop), (expected, stop), "{source:?} {eos} {count}");
        }
    }

    /// `generate("Once upon a time", max_new_tokens=40, num_beams=…, stop_strings=…)` of transformers 5.23.
    #[test]
    fn a_stop_string_finishes_a_beam() {
        let Some(path) = crate::tokenizer::tests::shared_folder("models/stories260K") else { return };
        let base = Base::open_dir(ModelDir { path, name: "stories".into() }, Compute::F32).unwrap();
        let prompt = base.tokenizer.encode("Once upon a time").unwrap();
        let (one, two) = (", there was a little girl named Lily", ". She loved to play outside in the ");
        let cases = [
            (2, "park", 26, format!("{one}{two}"), Stop::String),
            (2, ".", 11, one.to_owned(), Stop::String),
            (2, "day", 29, format!("{one}{two}park. One "), Stop::String),
            (3, "park", 26, format!("{one}{two}"), Stop::String),
            (2, "He", 40, format!("{one}{two}sunshine. One day, she found a big,"), Stop::Length),
        ];
        for (count, stop, tokens, text, why) in cases {
            let options =
                GenerationOptions { max_tokens: 40, stop: vec![stop.into()], ..GenerationOptions::default() };
            let beams = Beams { count, ..Beams::default() };
            let found = beam_search(&base, &(), &prompt, &options, beams).unwrap();
            assert_eq!((found.tokens.len(), found.text, found.stop), (tokens, text, why), "{count} {stop}");
        }
    }

    #[test]
    fn one_beam_is_the_greedy_answer() {
        let base = t5(256);
        let sources =
            [vec![84, 55, 135, 88, 150, 204, 243, 36, 158, 193, 68, 39, 132], vec![172, 149, 70, 77]];
        let options = GenerationOptions { max_tokens: 12, ..GenerationOptions::default() };
        let greedy = generate(&base, &(), &sources, &options, &mut |_, _| ()).unwrap();
        assert_eq!(greedy[0].tokens, [80; 12], "transformers 5.23");
        for (source, greedy) in sources.iter().zip(&greedy) {
            let found = beam_search(&base, &(), source, &options, Beams::default()).unwrap();
            assert_eq!((found.tokens, found.text), (greedy.tokens.clone(), greedy.text.clone()));
        }
    }
}
