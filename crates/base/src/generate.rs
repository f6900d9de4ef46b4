//! Text from prompts: many sequences at once over one base, each with its own cache.

use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use taper_kernels::CacheDtype;

use crate::sampler::Sampler;
use crate::{Adapter, Base, Batch, Error, KvCache, Sampling, TextStream};

/// How long and how to generate.
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// At most this many new tokens a sequence.
    pub max_tokens: usize,
    /// Ends a sequence when its new text contains one of these; the text before it is kept.
    pub stop: Vec<String>,
    /// How tokens are chosen. Sequence `i` draws from stream `i` of the seed.
    pub sampling: Sampling,
    /// Prompt tokens run through the model in one pass, over all sequences.
    pub prefill_chunk: usize,
    /// What keys and values are kept in. f32 gives the logits of a pass without a cache; the others round, and need half the
    /// memory.
    pub cache_dtype: CacheDtype,
}

impl Default for GenerationOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            stop: Vec::new(),
            sampling: Sampling::default(),
            prefill_chunk: 512,
            cache_dtype: CacheDtype::F32,
        }
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// An end-of-sequence token.
    Eos,
    /// A stop string.
    String,
    /// `max_tokens` were made, or the model has no place for the last token ([`Network::places`](crate::Network::places)).
    Length,
}

/// One finished sequence.
#[derive(Clone, Debug)]
pub struct Generation {
    /// New tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Their text, up to the stop string if there was one.
    pub text: String,
    /// Why it ended.
    pub stop: Stop,
    /// From the start until its first new token was chosen, and until it ended.
    pub times: [Duration; 2],
}

/// Continues every prompt under `adapter`, or writes from it where the base is an encoder-decoder. `on_text(i, piece)` is called as text of sequence `i` becomes certain.
pub fn generate(
    base: &Base,
    adapter: &dyn Adapter,
    prompts: &[Vec<u32>],
    options: &GenerationOptions,
    on_text: &mut dyn FnMut(usize, &str),
) -> Result<Vec<Generation>, Error> {
    let mut sequences = Vec::with_capacity(prompts.len());
    for (i, prompt) in prompts.iter().enumerate() {
        let cache = base.model.new_cache().with_dtype(options.cache_dtype);
        sequences.push(Sequence::new(base, prompt, (i, cache), options)?);
    }
    while sequences.iter().any(Sequence::is_running) {
        advance(base, adapter, &mut sequences, options, on_text)?;
    }
    Ok(sequences.into_iter().map(|sequence| sequence.finish().0).collect())
}

/// A conversation under one adapter: keeps what the model has been through, so that a turn runs only what is new.
pub struct Session<'a> {
    base: &'a Base,
    cache: KvCache,
    /// The tokens that `cache` holds.
    tokens: Vec<u32>,
}

impl<'a> Session<'a> {
    /// A conversation that has not begun.
    pub fn new(base: &'a Base) -> Self {
        Self { base, cache: base.model.new_cache(), tokens: Vec::new() }
    }

    /// Continues `prompt`, the whole conversation so far; the beginning that it shares with the last turn is not run again.
    /// `adapter` has to be the same in every call.
    pub fn generate(
        &mut self,
        adapter: &dyn Adapter,
        prompt: &[u32],
        options: &GenerationOptions,
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<Generation, Error> {
        let base = self.base;
        if base.model.decoder_start().is_some() {
            let what =
                format!("a {} writes one text from another: it holds no conversation", base.model_type());
            return Err(Error::Unsupported { what });
        }
        let shared = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        self.cache.truncate(shared.min(prompt.len().saturating_sub(1)));
        if self.cache.is_empty() {
            self.cache = self.cache.with_dtype(options.cache_dtype);
        }
        let cache = std::mem::replace(&mut self.cache, base.model.new_cache());
        self.tokens.clear();
        let mut sequence = [Sequence::new(base, prompt, (0, cache), options)?];
        while sequence[0].is_running() {
            advance(base, adapter, &mut sequence, options, on_text)?;
        }
        let [sequence] = sequence;
        let (generation, seen, cache) = sequence.finish();
        self.tokens.extend_from_slice(&seen[..cache.len()]);
        self.cache = cache;
        Ok(generation)
    }
}

/// One pass of the model: the next piece of each prompt still to be read, the last token of each sequence being written.
fn advance(
    base: &Base,
    adapter: &dyn Adapter,
    sequences: &mut [Sequence<'_>],
    options: &GenerationOptions,
    on_text: &mut dyn FnMut(usize, &str),
) -> Result<(), Error> {
    let mut room = options.prefill_chunk.max(1);
    let mut batch = Batch::default();
    let mut running: Vec<&mut Sequence<'_>> = sequences.iter_mut().filter(|s| s.is_running()).collect();
    let mut taken = 0;
    for sequence in &mut running {
        if room == 0 && sequence.pending.len() > 1 {
            break;
        }
        let piece = sequence.pending.len().min(room.max(1));
        match sequence.source.take() {
            Some(source) => batch.push_from(&source, &sequence.pending[..piece]),
            None => batch.push(&sequence.pending[..piece]),
        }
        sequence.pending.drain(..piece);
        room = room.saturating_sub(piece);
        taken += 1;
    }
    running.truncate(taken);
    let mut caches: Vec<&mut KvCache> = running.iter_mut().map(|s| &mut s.cache).collect();
    let hidden = base.model.hidden(&batch, &mut caches, adapter)?;
    let last = |rows: &std::ops::Range<usize>| rows.end as u32 - 1;
    let ready: Vec<usize> = (0..running.len()).filter(|&i| running[i].pending.is_empty()).collect();
    if ready.is_empty() {
        return Ok(());
    }
    let rows: Vec<u32> = ready.iter().map(|&i| last(&batch.segments()[i])).collect();
    let rows = hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?;
    let logits = base.model.head().forward(&rows, adapter)?.to_dtype(DType::F32)?;
    let mut logits = logits.flatten_all()?.to_vec1::<f32>()?;
    let vocabulary = logits.len() / ready.len();
    for (logits, &i) in logits.chunks_exact_mut(vocabulary).zip(&ready) {
        running[i].step(logits, base, options, on_text)?;
    }
    Ok(())
}

/// New tokens that can follow prompt `index`, `max_tokens` at most. The last place gives one more token, which needs none.
///
/// # Errors
/// Where the prompt itself has more tokens than the model has places.
pub(crate) fn room(base: &Base, prompt: &[u32], index: usize, max_tokens: usize) -> Result<usize, Error> {
    let Some(places) = base.model.places() else { return Ok(max_tokens) };
    match places.checked_sub(prompt.len()) {
        Some(left) => Ok(max_tokens.min(left + 1)),
        None => Err(Error::Source {
            what: format!(
                "prompt {index} has {} tokens, and this {} has places for {places}: shorten it",
                prompt.len(),
                base.model_type()
            ),
        }),
    }
}

/// New tokens for which a cache has room from the start, at most: it may be asked for far more than will come.
const RESERVED: usize = 1024;

/// A sequence being continued.
struct Sequence<'a> {
    index: usize,
    cache: KvCache,
    /// What it is written from, until the model has read it.
    source: Option<Vec<u32>>,
    /// Tokens that the model has not seen yet.
    pending: Vec<u32>,
    /// Prompt, or the token that begins what is written from it, and new tokens.
    seen: Vec<u32>,
    prompt_len: usize,
    /// New tokens at most.
    room: usize,
    sampler: Sampler,
    stream: Option<TextStream<'a>>,
    text: String,
    /// Bytes of `text` that have been handed out.
    told: usize,
    stop: Option<Stop>,
    started: Instant,
    times: [Option<Duration>; 2],
}

impl<'a> Sequence<'a> {
    /// `cache` holds a beginning of `prompt`, which is not run again.
    fn new(
        base: &'a Base,
        prompt: &[u32],
        (index, mut cache): (usize, KvCache),
        options: &GenerationOptions,
    ) -> Result<Self, Error> {
        if prompt.is_empty() {
            let what =
                format!("prompt {index} has no tokens, and the tokenizer adds none: give it some text");
            return Err(Error::Source { what });
        }
        let start = base.model.decoder_start();
        let source = start.map(|_| prompt.to_vec());
        let prompt = start.as_ref().map_or(prompt, std::slice::from_ref);
        let room = room(base, prompt, index, options.max_tokens)?;
        cache.reserve(prompt.len() + room.min(RESERVED));
        Ok(Self {
            index,
            source,
            pending: prompt[cache.len()..].to_vec(),
            cache,
            seen: prompt.to_vec(),
            prompt_len: prompt.len(),
            room,
            sampler: Sampler::new(&options.sampling, index as u64)?,
            stream: Some(TextStream::new(&base.tokenizer, prompt)?),
            text: String::new(),
            told: 0,
            stop: (room == 0).then_some(Stop::Length),
            started: Instant::now(),
            times: [None; 2],
        })
    }

    fn is_running(&self) -> bool {
        self.stop.is_none()
    }

    /// Chooses the next token from its logits and hands out the text that is certain.
    fn step(
        &mut self,
        logits: &mut [f32],
        base: &Base,
        options: &GenerationOptions,
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<(), Error> {
        let token = self.sampler.sample(logits, &self.seen)?;
        self.times[0].get_or_insert_with(|| self.started.elapsed());
        if base.eos.contains(&token) {
            self.stop = Some(Stop::Eos);
        } else {
            self.seen.push(token);
            self.pending.push(token);
            if let Some(stream) = &mut self.stream {
                self.text.push_str(&stream.push(token)?);
            }
            if self.seen.len() - self.prompt_len >= self.room {
                self.stop = Some(Stop::Length);
            }
        }
        if self.stop.is_some()
            && let Some(stream) = self.stream.take()
        {
            self.text.push_str(&stream.finish()?);
        }
        self.tell(&options.stop, on_text);
        self.times[1] = Some(self.started.elapsed());
        Ok(())
    }

    /// Cuts the text at a stop string, and hands out what cannot be the beginning of one.
    fn tell(&mut self, stops: &[String], on_text: &mut dyn FnMut(usize, &str)) {
        let found = stops.iter().filter_map(|stop| self.text.find(stop.as_str())).min();
        if let Some(at) = found {
            self.text.truncate(at);
            self.stop = Some(Stop::String);
        }
        let held = if self.stop.is_some() { 0 } else { held_back(&self.text, stops) };
        let certain = self.text.len() - held;
        if certain > self.told {
            on_text(self.index, &self.text[self.told..certain]);
            self.told = certain;
        }
    }

    /// The result, all tokens, and the cache of those that the model has seen.
    fn finish(self) -> (Generation, Vec<u32>, KvCache) {
        let tokens = self.seen[self.prompt_len..].to_vec();
        (
            Generation {
                tokens,
                text: self.text,
                stop: self.stop.unwrap_or(Stop::Length),
                times: self.times.map(Option::unwrap_or_default),
            },
            self.seen,
            self.cache,
        )
    }
}

/// Length of the longest end of `text` with which a stop string begins.
fn held_back(text: &str, stops: &[String]) -> usize {
    let longest = stops.iter().map(String::len).max().unwrap_or(0);
    (1..=longest.min(text.len()))
        .rev()
        .filter(|&n| text.is_char_boundary(text.len() - n))
        .find(|&n| stops.iter().any(|stop| stop.starts_with(&text[text.len() - n..])))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use taper_kernels::Compute;

    use super::*;
    use crate::{Beams, ModelSource, beam_search};

    /// A GPT-2 of 128 places, without a token that ends.
    fn gpt2() -> Base {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle/gpt2/model");
        let base = Base::open(&ModelSource::Folder(path), Compute::F32).unwrap();
        Base { eos: Vec::new(), ..base }
    }

    fn prompt(len: u32) -> Vec<u32> {
        (0..len).map(|i| (i * 37 + 11) % 250).collect()
    }

    #[test]
    fn a_sequence_ends_at_the_models_last_place() {
        let base = gpt2();
        let options = GenerationOptions::default();
        let prompts = [prompt(128), prompt(3), prompt(120)];
        let made = generate(&base, &(), &prompts, &options, &mut |_, _| ()).unwrap();
        assert!(made.iter().all(|made| made.stop == Stop::Length));
        assert_eq!(made.iter().map(|made| made.tokens.len()).collect::<Vec<_>>(), [1, 126, 9]);
        let few = GenerationOptions { max_tokens: 2, ..options.clone() };
        assert_eq!(generate(&base, &(), &prompts[2..], &few, &mut |_, _| ()).unwrap()[0].tokens.len(), 2);
        let beams = Beams { count: 2, ..Beams::default() };
        assert_eq!(beam_search(&base, &(), &prompts[2], &options, beams).unwrap().tokens.len(), 9);
        let error = generate(&base, &(), &[prompt(3), prompt(129)], &options, &mut |_, _| ()).unwrap_err();
        let words = "prompt 1 has 129 tokens, and this gpt2 has places for 128: shorten it";
        assert_eq!(error.to_string(), words);
        let error = beam_search(&base, &(), &prompt(129), &options, beams).map(drop).unwrap_err();
        assert!(error.to_string().contains("has 129 tokens"), "{error}");
    }

    #[test]
    fn a_turn_ends_at_the_models_last_place_and_the_next_may_fit_again() {
        let base = gpt2();
        let mut session = Session::new(&base);
        let mut turn =
            |prompt: &[u32]| session.generate(&(), prompt, &GenerationOptions::default(), &mut |_, _| ());
        let made = turn(&prompt(120)).unwrap();
        assert_eq!((made.tokens.len(), made.stop), (9, Stop::Length));
        let longer = [&prompt(120)[..], &made.tokens].concat();
        assert!(turn(&longer).unwrap_err().to_string().contains("has 129 tokens"));
        assert_eq!(turn(&longer[..128]).unwrap().tokens.len(), 1);
    }

    #[test]
    fn text_that_may_begin_a_stop_string_is_held_back() {
        let stops = ["\n\n".to_owned(), "User:".to_owned()];
        assert_eq!(held_back("hello", &stops), 0);
        assert_eq!(held_back("hello\n", &stops), 1);
        assert_eq!(held_back("so Us", &stops), 2);
        assert_eq!(held_back("so é", &stops), 0);
        assert_eq!(held_back("", &stops), 0);
    }
}
