//! Choosing the next token from logits. The model's forward pass and the loop around it are `generate`'s.

use std::cmp::Ordering;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Error;

/// How the next token is chosen. The default is greedy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Softmax temperature; 0 is greedy.
    pub temperature: f32,
    /// Only the `k` likeliest tokens, if set; 0 is all of them.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together reach this probability, if set.
    pub top_p: Option<f32>,
    /// Only tokens at least this share of the likeliest one's probability, if set.
    pub min_p: Option<f32>,
    /// Divides (positive) or multiplies (negative) the logits of tokens already seen (arXiv:1909.05858 §4.1), if set.
    pub repetition_penalty: Option<f32>,
    /// Seed of the random choice.
    pub seed: u64,
}

impl Sampling {
    /// Refuses values that mean nothing, naming the setting and its range.
    pub fn check(&self) -> Result<(), Error> {
        let settings = [
            ("temperature", Some(self.temperature), "0 (greedy) or more", 0.0..=f32::MAX),
            ("top_p", self.top_p, "from 0 to 1", 0.0..=1.0),
            ("min_p", self.min_p, "from 0 to 1", 0.0..=1.0),
            (
                "repetition_penalty",
                self.repetition_penalty,
                "above 0 (1 is none)",
                f32::MIN_POSITIVE..=f32::MAX,
            ),
        ];
        for (name, value, expected, range) in settings {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                return Err(Error::Unsupported { what: format!("{name} = {value}: expected {expected}") });
            }
        }
        Ok(())
    }
}

/// A token that may still be chosen.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// Likeliest first; of equals the lower id.
fn likelier(a: Candidate, b: Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// A sampler with its own stream of random numbers: one a sequence.
pub(crate) struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler whose choices depend on the seed and `stream` alone.
    pub(crate) fn new(sampling: &Sampling, stream: u64) -> Result<Self, Error> {
        sampling.check()?;
        let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
        random.set_stream(stream);
        Ok(Self { sampling: sampling.clone(), random, candidates: Vec::new() })
    }

    /// The next token for `logits` (V,) after the tokens `seen`. `logits` are changed by the repetition penalty.
    ///
    /// Order as `GenerationMixin._get_logits_processor` of transformers 5: repetition penalty, temperature, top-k, top-p,
    /// min-p. Greedy takes the first maximum. NaN or no finite logit is an error: the model or its input is broken.
    pub(crate) fn sample(&mut self, logits: &mut [f32], seen: &[u32]) -> Result<u32, Error> {
        if let Some(penalty) = self.sampling.repetition_penalty {
            penalise(logits, seen, penalty);
        }
        let best = first_maximum(logits)?;
        if self.sampling.temperature <= 0.0 {
            return Ok(best.id);
        }
        self.collect(logits, best.logit);
        if let Some(k) = self.sampling.top_k.filter(|k| *k > 0) {
            keep_top_k(&mut self.candidates, k);
        }
        if let Some(p) = self.sampling.top_p.filter(|p| *p < 1.0) {
            keep_top_p(&mut self.candidates, p);
        }
        if let Some(p) = self.sampling.min_p.filter(|p| *p > 0.0) {
            self.candidates.retain(|candidate| candidate.logit >= p.ln());
        }
        Ok(self.draw(best.id))
    }

    /// The candidates: logits over the temperature, the largest moved to 0, so that `exp` is the unnormalised probability.
    fn collect(&mut self, logits: &[f32], largest: f32) {
        let temperature = self.sampling.temperature;
        self.candidates.clear();
        self.candidates.extend(
            (0..)
                .zip(logits)
                .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
                .map(|(id, logit)| Candidate { id, logit: (logit - largest) / temperature }),
        );
    }

    /// One of the candidates by its probability; `fallback` only if rounding leaves none.
    fn draw(&mut self, fallback: u32) -> u32 {
        let total: f64 = self.candidates.iter().map(|candidate| weight(*candidate)).sum();
        // 53 random bits: every value is exact in f64 and below 1.
        let uniform = (self.random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let mut left = uniform * total;
        for candidate in &self.candidates {
            left -= weight(*candidate);
            if left < 0.0 {
                return candidate.id;
            }
        }
        self.candidates.last().map_or(fallback, |candidate| candidate.id)
    }
}

/// Unnormalised probability.
fn weight(candidate: Candidate) -> f64 {
    f64::from(candidate.logit).exp()
}

/// The first of the largest logits.
fn first_maximum(logits: &[f32]) -> Result<Candidate, Error> {
    let mut best = Candidate { id: 0, logit: f32::NEG_INFINITY };
    let mut broken = false;
    for (id, logit) in (0..).zip(logits) {
        broken |= logit.is_nan();
        if *logit > best.logit {
            best = Candidate { id, logit: *logit };
        }
    }
    if broken || !best.logit.is_finite() {
        let what = "the model's logits are not finite numbers: its weights, its adapter or its configuration are wrong";
        return Err(candle_core::Error::Msg(what.to_string()).into());
    }
    Ok(best)
}

/// Each seen token once, however often it was seen (`RepetitionPenaltyLogitsProcessor`, transformers 5).
fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    let mut seen: Vec<u32> = seen.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// Keeps the `k` likeliest, and whatever equals the last of them (`TopKLogitsWarper`, transformers 5).
fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k >= candidates.len() {
        return;
    }
    let (_, last, _) = candidates.select_nth_unstable_by(k - 1, |a, b| likelier(*a, *b));
    let floor = last.logit;
    candidates.retain(|candidate| candidate.logit >= floor);
}

/// Keeps a token if the likelier ones together stay below `p`; always at least one (`TopPLogitsWarper`, transformers 5).
///
/// Sorts only the head of the list, a longer one while it does not hold `p`: the nucleus is small against a vocabulary.
fn keep_top_p(candidates: &mut Vec<Candidate>, p: f32) {
    let target = f64::from(p) * candidates.iter().map(|candidate| weight(*candidate)).sum::<f64>();
    let mut head = 64;
    loop {
        head = head.min(candidates.len());
        if head < candidates.len() {
            candidates.select_nth_unstable_by(head, |a, b| likelier(*a, *b));
        }
        candidates[..head].sort_unstable_by(|a, b| likelier(*a, *b));
        let mut mass = 0.0;
        let outside = candidates[..head].iter().position(|candidate| {
            let out = mass >= target;
            mass += weight(*candidate);
            out
        });
        match outside {
            Some(cut) => return candidates.truncate(cut.max(1)),
            None if head == candidates.len() => return,
            None => head *= 4,
        }
    }
}

#[cfg(test)]
mod tests;
