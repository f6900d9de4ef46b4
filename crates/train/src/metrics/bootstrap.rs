//! How far a metric may be off because other rows could have been drawn.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::packing::below;

/// Times that rows are drawn anew, as `rouge-score` and sacrebleu do.
const DRAWS: usize = 1000;

/// The middle 95 % of `value` over 1000 draws of `rows` rows with replacement (percentile bootstrap; Efron & Tibshirani
/// 1993, §13.3). Draws on which the metric is not a number do not count; none where there are fewer than two rows, or no
/// draw counts. The same seed gives the same interval.
pub fn interval(rows: usize, seed: u64, value: impl Fn(&[usize]) -> f64) -> Option<[f64; 2]> {
    if rows < 2 {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = vec![0; rows];
    let mut values = Vec::with_capacity(DRAWS);
    for _ in 0..DRAWS {
        drawn.fill_with(|| below(&mut random, rows));
        values.push(value(&drawn));
    }
    values.retain(|value| value.is_finite());
    values.sort_unstable_by(f64::total_cmp);
    (!values.is_empty()).then(|| [percentile(&values, 0.025), percentile(&values, 0.975)])
}

/// The value below which a share of `sorted` lies, on the line between its neighbours (numpy's default).
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let low = at.floor() as usize;
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (at - low as f64) * (sorted[high] - sorted[low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_mean_is_two_standard_errors_wide_on_either_side() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let mean = |rows: &[usize]| rows.iter().map(|&row| values[row]).sum::<f64>() / rows.len() as f64;
        let [low, high] = interval(values.len(), 0, mean).unwrap();
        // 1.96 · 0.5 / √400, give or take what 1000 draws can tell.
        assert!((low - 0.451).abs() < 0.006 && (high - 0.549).abs() < 0.006, "{low} {high}");
        assert_eq!(interval(values.len(), 0, mean), interval(values.len(), 0, mean));
        assert_ne!(interval(values.len(), 0, mean), interval(values.len(), 1, mean));
    }

    #[test]
    fn too_few_rows_and_undefined_values_have_none() {
        assert_eq!(interval(1, 0, |_| 1.0), None);
        assert_eq!(interval(9, 0, |_| f64::NAN), None);
    }

    #[test]
    fn percentiles_are_numpys() {
        let values = [1.0, 2.0, 4.0, 8.0];
        // numpy.percentile([1, 2, 4, 8], [2.5, 50, 97.5])
        let found = [0.025, 0.5, 0.975].map(|share| percentile(&values, share));
        assert!(found.iter().zip([1.075, 3.0, 7.7]).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
    }
}
