//! Numbers against predicted numbers: correlations as scipy.stats gives them.

/// Pearson's r (`pearsonr`); not a number where there are fewer than two pairs, or one side is constant.
pub fn pearson(pairs: &[(f64, f64)]) -> f64 {
    let count = pairs.len() as f64;
    let (a, b) = pairs.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
    let (a, b) = (a / count, b / count);
    let sum = |term: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|(x, y)| term(x - a, y - b)).sum::<f64>();
    let constant = |value: fn(&(f64, f64)) -> f64| {
        pairs.windows(2).all(|two| value(&two[0]).total_cmp(&value(&two[1])).is_eq())
    };
    if pairs.len() < 2 || constant(|pair| pair.0) || constant(|pair| pair.1) {
        return f64::NAN;
    }
    let (spread_a, spread_b) = (sum(&|x, _| x * x).sqrt(), sum(&|_, y| y * y).sqrt());
    (sum(&|x, y| x / spread_a * (y / spread_b))).clamp(-1.0, 1.0)
}

/// Spearman's rho (`spearmanr`): Pearson's r of ranks, equal numbers sharing the mean of theirs.
pub fn spearman(pairs: &[(f64, f64)]) -> f64 {
    let ranks = |value: fn(&(f64, f64)) -> f64| ranks(&pairs.iter().map(value).collect::<Vec<_>>());
    let ranked: Vec<_> = ranks(|pair| pair.0).into_iter().zip(ranks(|pair| pair.1)).collect();
    pearson(&ranked)
}

/// Ranks from 1, ties averaged (`rankdata`).
fn ranks(values: &[f64]) -> Vec<f64> {
    // Adding 0 makes -0 the same as 0.
    let values: Vec<f64> = values.iter().map(|value| value + 0.0).collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|&a, &b| values[a].total_cmp(&values[b]).is_eq()) {
        for &at in equal {
            ranks[at] = before as f64 + (equal.len() + 1) as f64 / 2.0;
        }
        before += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::{cases, close};

    #[test]
    fn as_scipy() {
        for case in cases("numbers") {
            let list = |key: &str| -> Vec<f64> {
                case[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
            };
            let pairs: Vec<_> = list("labels").into_iter().zip(list("predicted")).collect();
            close(pearson(&pairs), &case["expected"]["pearson"]);
            close(spearman(&pairs), &case["expected"]["spearman"]);
        }
    }
}
