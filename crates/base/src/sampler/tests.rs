//! The sampler against probabilities worked out the long way.

use super::*;

const DRAWS: usize = 40_000;

fn sampling(change: impl FnOnce(&mut Sampling)) -> Sampling {
    let mut sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
    change(&mut sampling);
    sampling
}

/// What transformers does, written plainly: sort everything, filter, renormalise.
fn expected(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let scaled: Vec<f64> = logits.iter().map(|l| f64::from(*l) / f64::from(sampling.temperature)).collect();
    let softmax = |kept: &[bool]| -> Vec<f64> {
        let exps: Vec<f64> = scaled.iter().zip(kept).map(|(l, k)| if *k { l.exp() } else { 0.0 }).collect();
        let sum: f64 = exps.iter().sum();
        exps.iter().map(|e| e / sum).collect()
    };
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| scaled[*b].total_cmp(&scaled[*a]));
    let mut kept = vec![true; logits.len()];
    if let Some(k) = sampling.top_k.filter(|k| *k > 0 && *k < logits.len()) {
        let floor = scaled[order[k - 1]];
        kept = scaled.iter().map(|l| *l >= floor).collect();
    }
    if let Some(p) = sampling.top_p {
        let (probabilities, mut mass) = (softmax(&kept), 0.0);
        for (rank, id) in order.iter().enumerate() {
            kept[*id] &= rank == 0 || mass < f64::from(p);
            mass += probabilities[*id];
        }
    }
    if let Some(p) = sampling.min_p {
        let probabilities = softmax(&kept);
        let floor = f64::from(p) * probabilities.iter().copied().fold(0.0, f64::max);
        kept = kept.iter().zip(&probabilities).map(|(k, q)| *k && *q >= floor).collect();
    }
    softmax(&kept)
}

/// Draws many times and compares shares: 5 standard deviations of a share, and nothing outside the support.
fn assert_distribution(logits: &[f32], sampling: &Sampling) {
    let expected = expected(logits, sampling);
    let mut sampler = Sampler::new(sampling, 0).unwrap();
    let mut counts = vec![0_usize; logits.len()];
    for _ in 0..DRAWS {
        counts[sampler.sample(&mut logits.to_vec(), &[]).unwrap() as usize] += 1;
    }
    for (id, (count, p)) in counts.iter().zip(&expected).enumerate() {
        let share = *count as f64 / DRAWS as f64;
        let tolerance = 5.0 * (p * (1.0 - p) / DRAWS as f64).sqrt();
        assert!(
            (share - p).abs() <= tolerance,
            "token {id}: {share}, expected {p} ± {tolerance} ({sampling:?})"
        );
    }
}

const LOGITS: [f32; 8] = [1.0, -0.5, 2.0, 0.3, 2.0, -3.0, 1.7, 0.0];

#[test]
fn greedy_takes_the_first_maximum() {
    let mut sampler = Sampler::new(&Sampling::default(), 0).unwrap();
    assert_eq!(sampler.sample(&mut LOGITS.to_vec(), &[]).unwrap(), 2);
    assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, -1.0, -1.0], &[]).unwrap(), 1);
}

#[test]
fn every_filter_gives_the_exact_distribution() {
    assert_distribution(&LOGITS, &sampling(|_| ()));
    assert_distribution(&LOGITS, &sampling(|s| s.temperature = 0.6));
    assert_distribution(&LOGITS, &sampling(|s| s.top_k = Some(3)));
    assert_distribution(&LOGITS, &sampling(|s| s.top_k = Some(0)));
    assert_distribution(&LOGITS, &sampling(|s| s.top_p = Some(0.7)));
    assert_distribution(&LOGITS, &sampling(|s| s.top_p = Some(0.0)));
    assert_distribution(&LOGITS, &sampling(|s| s.min_p = Some(0.3)));
    assert_distribution(
        &LOGITS,
        &sampling(|s| {
            (s.temperature, s.top_k, s.top_p, s.min_p) = (1.7, Some(6), Some(0.8), Some(0.4));
        }),
    );
}

#[test]
fn top_k_keeps_what_ties_with_the_last() {
    let support: Vec<bool> =
        expected(&LOGITS, &sampling(|s| s.top_k = Some(1))).iter().map(|p| *p > 0.0).collect();
    assert_eq!(support.iter().filter(|kept| **kept).count(), 2);
    assert_distribution(&LOGITS, &sampling(|s| s.top_k = Some(1)));
}

#[test]
fn the_nucleus_of_a_large_vocabulary_is_exact() {
    let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919 % 5000) as f32 / 5000.0) * 2.0).collect();
    for p in [0.01, 0.3, 0.9] {
        let wanted = expected(&logits, &sampling(|s| s.top_p = Some(p)));
        let mut candidates: Vec<Candidate> =
            (0..).zip(&logits).map(|(id, logit)| Candidate { id, logit: logit - 2.0 }).collect();
        keep_top_p(&mut candidates, p);
        let mut ids: Vec<usize> = candidates.iter().map(|c| c.id as usize).collect();
        ids.sort_unstable();
        let expected_ids: Vec<usize> = (0..logits.len()).filter(|id| wanted[*id] > 0.0).collect();
        assert_eq!(ids, expected_ids, "p = {p}");
    }
}

#[test]
fn the_penalty_counts_a_token_once_and_comes_before_everything() {
    let mut logits = [3.0, -1.0, 2.9];
    penalise(&mut logits, &[0, 0, 1, 99], 1.5);
    assert_eq!(logits.map(f32::to_bits), [2.0_f32, -1.5, 2.9].map(f32::to_bits));
    let greedy = Sampling { repetition_penalty: Some(1.5), ..Sampling::default() };
    assert_eq!(Sampler::new(&greedy, 0).unwrap().sample(&mut [3.0, -1.0, 2.9], &[0]).unwrap(), 2);
}

#[test]
fn seed_and_stream_decide_and_seed_0_is_a_seed() {
    let run = |seed: u64, stream: u64| -> Vec<u32> {
        let mut sampler = Sampler::new(&sampling(|s| s.seed = seed), stream).unwrap();
        (0..32).map(|_| sampler.sample(&mut LOGITS.to_vec(), &[]).unwrap()).collect()
    };
    assert_eq!(run(0, 0), run(0, 0));
    assert_ne!(run(0, 0), run(0, 1));
    assert_ne!(run(0, 0), run(1, 0));
}

#[test]
fn broken_logits_and_settings_are_errors() {
    let mut sampler = Sampler::new(&Sampling::default(), 0).unwrap();
    for logits in [vec![0.0, f32::NAN], vec![f32::INFINITY, 0.0], vec![f32::NEG_INFINITY; 2], vec![]] {
        let error = sampler.sample(&mut logits.clone(), &[]).unwrap_err().to_string();
        assert!(error.contains("not finite"), "{logits:?}: {error}");
    }
    for bad in [
        sampling(|s| s.temperature = -1.0),
        sampling(|s| s.temperature = f32::NAN),
        sampling(|s| s.top_p = Some(1.5)),
        sampling(|s| s.min_p = Some(-0.1)),
        sampling(|s| s.repetition_penalty = Some(0.0)),
    ] {
        assert!(Sampler::new(&bad, 0).is_err(), "{bad:?}");
    }
}
