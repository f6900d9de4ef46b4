//! Labels against predicted labels: accuracy, precision, recall, F1, Matthews correlation. The numbers are
//! scikit-learn's (`sklearn.metrics`, 1.x, `zero_division=0`).

use serde::Serialize;

/// How often each label was predicted as which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// `counts[label][predicted]`, as `confusion_matrix` with all classes.
    pub counts: Vec<Vec<usize>>,
}

/// Precision, recall and their harmonic mean; each 0 where it is undefined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Prf {
    /// Share of what was predicted that is right.
    pub precision: f64,
    /// Share of what is there that was predicted.
    pub recall: f64,
    /// 2 · right / (predicted + there).
    pub f1: f64,
    /// How many there are.
    pub support: usize,
}

/// How classes are taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Average {
    /// The mean over classes that are a label or a prediction somewhere.
    Macro,
    /// Over all rows; with one label a row that is the accuracy.
    Micro,
    /// The mean over classes, each with its share of the labels.
    Weighted,
}

impl Prf {
    /// From counts of what is right, what was predicted and what is there.
    pub(super) fn of(right: usize, predicted: usize, there: usize) -> Self {
        let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        Self {
            precision: share(right, predicted),
            recall: share(right, there),
            f1: share(2 * right, predicted + there),
            support: there,
        }
    }

    /// The sum of `classes`, each times its weight, over the sum of the weights; 0 where that is 0.
    pub(super) fn mean(classes: &[Self], weight: impl Fn(&Self) -> f64) -> Self {
        let whole: f64 = classes.iter().map(&weight).sum();
        let mean = |value: fn(&Self) -> f64| {
            let sum: f64 = classes.iter().map(|class| value(class) * weight(class)).sum();
            if whole == 0.0 { 0.0 } else { sum / whole }
        };
        Self {
            precision: mean(|class| class.precision),
            recall: mean(|class| class.recall),
            f1: mean(|class| class.f1),
            support: classes.iter().map(|class| class.support).sum(),
        }
    }
}

impl Confusion {
    /// Counts pairs of a label and its prediction, all below `classes`; others are left out.
    pub fn new(classes: usize, pairs: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut counts = vec![vec![0; classes]; classes];
        for (label, predicted) in pairs {
            if let Some(count) = counts.get_mut(label).and_then(|row| row.get_mut(predicted)) {
                *count += 1;
            }
        }
        Self { counts }
    }

    fn rows(&self) -> usize {
        self.counts.iter().flatten().sum()
    }

    fn right(&self) -> usize {
        (0..self.counts.len()).map(|class| self.counts[class][class]).sum()
    }

    fn there(&self, class: usize) -> usize {
        self.counts[class].iter().sum()
    }

    fn predicted(&self, class: usize) -> usize {
        self.counts.iter().map(|row| row[class]).sum()
    }

    /// Share of rows whose prediction is the label; not a number without rows.
    pub fn accuracy(&self) -> f64 {
        self.right() as f64 / self.rows() as f64
    }

    /// One class against all others.
    pub fn class(&self, class: usize) -> Prf {
        Prf::of(self.counts[class][class], self.predicted(class), self.there(class))
    }

    /// All classes in one (`precision_recall_fscore_support`).
    pub fn average(&self, average: Average) -> Prf {
        let classes = (0..self.counts.len()).filter(|&class| self.there(class) + self.predicted(class) > 0);
        let classes: Vec<Prf> = classes.map(|class| self.class(class)).collect();
        match average {
            Average::Macro => Prf::mean(&classes, |_| 1.0),
            Average::Micro => Prf::of(self.right(), self.rows(), self.rows()),
            Average::Weighted => Prf::mean(&classes, |class| class.support as f64),
        }
    }

    /// Matthews correlation of any number of classes (`matthews_corrcoef`; Gorodkin 2004, the `R_K` statistic): from -1 to
    /// 1, and 0 where labels or predictions are all one class.
    pub fn mcc(&self) -> f64 {
        let sum = |term: &dyn Fn(usize) -> usize| (0..self.counts.len()).map(|c| term(c) as f64).sum::<f64>();
        let rows = self.rows() as f64;
        let both = self.right() as f64 * rows - sum(&|c| self.there(c) * self.predicted(c));
        let labels = rows * rows - sum(&|c| self.there(c).pow(2));
        let predictions = rows * rows - sum(&|c| self.predicted(c).pow(2));
        let spread = labels * predictions;
        if spread == 0.0 { 0.0 } else { both / spread.sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::{cases, close, indices};

    #[test]
    fn as_scikit_learn() {
        for case in cases("classes") {
            let (labels, predicted) = (indices(&case["labels"]), indices(&case["predicted"]));
            let classes = case["classes"].as_u64().unwrap() as usize;
            let found = Confusion::new(classes, labels.into_iter().zip(predicted));
            let expected = &case["expected"];
            assert_eq!(serde_json::to_value(&found.counts).unwrap(), expected["confusion"]);
            close(found.accuracy(), &expected["accuracy"]);
            close(found.mcc(), &expected["mcc"]);
            let prf = |found: Prf, expected: &serde_json::Value| {
                close(found.precision, &expected[0]);
                close(found.recall, &expected[1]);
                close(found.f1, &expected[2]);
            };
            prf(found.average(Average::Macro), &expected["macro"]);
            prf(found.average(Average::Micro), &expected["micro"]);
            prf(found.average(Average::Weighted), &expected["weighted"]);
            for class in 0..classes {
                prf(found.class(class), &expected["per_class"][class]);
            }
        }
    }
}
