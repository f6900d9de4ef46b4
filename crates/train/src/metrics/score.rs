//! Chosen metrics on predictions: names to values with intervals.

use serde::{Serialize, Serializer};

use super::bootstrap::interval;
use super::classes::Confusion;
use super::entities::Entities;
use super::table::{Metric, Of, Value};
use crate::Error;

/// Predictions beside what they should have been, row by row.
#[derive(Clone, Copy, Debug)]
pub enum Predictions<'a> {
    /// Texts, each with one reference or more.
    Texts(&'a [String], &'a [Vec<String>]),
    /// So many classes: predicted ones and labels, by index.
    Classes(usize, &'a [usize], &'a [usize]),
    /// Numbers predicted and given.
    Numbers(&'a [f64], &'a [f64]),
    /// Sequences of tags predicted and given.
    Tags(&'a [Vec<String>], &'a [Vec<String>]),
}

/// One value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The metric.
    #[serde(skip)]
    pub name: &'static str,
    /// Its value on all rows; `null` in JSON where it is not defined.
    pub value: f64,
    /// The middle 95 % of 1000 bootstrap draws of the rows.
    pub interval: Option<[f64; 2]>,
}

/// Values by name, in the order of the choice: in JSON an object of `{"value", "interval"}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores(pub Vec<Score>);

impl Scores {
    /// Whether no metric was asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The score of a name.
    pub fn get(&self, name: &str) -> Option<&Score> {
        self.0.iter().find(|score| score.name == name)
    }
}

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|score| (score.name, score)))
    }
}

/// Computes `metrics`. The same rows and seed give the same scores.
///
/// # Errors
/// [`Error::Data`] without rows, where predictions and references differ in number, or where a metric compares something
/// else than what is given.
pub fn score(metrics: &[&'static Metric], given: Predictions<'_>, seed: u64) -> Result<Scores, Error> {
    let (predicted, expected) = given.lengths();
    if predicted != expected || predicted == 0 {
        return Err(Error::data(format!(
            "{predicted} predictions for {expected} rows: metrics need one a row, and at least one"
        )));
    }
    let all: Vec<usize> = (0..predicted).collect();
    let one = |metric: &&'static Metric| {
        let value = given.value(metric)?;
        Ok(Score { name: metric.name, value: value(&all), interval: interval(predicted, seed, &*value) })
    };
    metrics.iter().map(one).collect::<Result<_, Error>>().map(Scores)
}

impl<'a> Predictions<'a> {
    fn lengths(&self) -> (usize, usize) {
        match self {
            Self::Texts(predicted, references) => (predicted.len(), references.len()),
            Self::Classes(_, predicted, labels) => (predicted.len(), labels.len()),
            Self::Numbers(predicted, labels) => (predicted.len(), labels.len()),
            Self::Tags(predicted, labels) => (predicted.len(), labels.len()),
        }
    }

    /// A metric on any of the rows.
    fn value(self, metric: &Metric) -> Result<Value<'a>, Error> {
        Ok(match (self, metric.of) {
            (Self::Texts(predicted, references), Of::Texts(of)) => of((predicted, references)),
            (Self::Classes(classes, predicted, labels), Of::Classes(of)) => {
                let pair = |&row: &usize| (labels[row], predicted[row]);
                Box::new(move |rows| of(&Confusion::new(classes, rows.iter().map(pair))))
            }
            (Self::Numbers(predicted, labels), Of::Numbers(of)) => Box::new(move |rows| {
                of(&rows.iter().map(|&row| (labels[row], predicted[row])).collect::<Vec<_>>())
            }),
            (Self::Tags(predicted, labels), Of::Entities(of)) => {
                let counts = Entities::by_row(labels, predicted);
                Box::new(move |rows| of(&Entities::sum(rows.iter().map(|&row| &counts[row]))))
            }
            _ => return Err(Error::data(format!("{} does not compare such predictions", metric.name))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::choose;
    use super::*;
    use crate::Task;

    #[test]
    fn scores_have_intervals_around_them_and_an_order() {
        let predicted: Vec<usize> = (0..60).map(|row| row % 3).collect();
        let labels: Vec<usize> = (0..60).map(|row| if row % 5 == 0 { 0 } else { row % 3 }).collect();
        let metrics = choose(&["mcc", "accuracy"], Task::Classify).unwrap();
        let scores = score(&metrics, Predictions::Classes(3, &predicted, &labels), 0).unwrap();
        let [low, high] = scores.get("accuracy").unwrap().interval.unwrap();
        let value = scores.get("accuracy").unwrap().value;
        assert!(low < value && value < high && high <= 1.0, "{low} {value} {high}");
        let json = serde_json::to_string(&scores).unwrap();
        assert!(json.starts_with("{\"mcc\":{\"value\":"), "{json}");
    }

    #[test]
    fn predictions_of_another_kind_or_number_are_refused() {
        let metrics = choose(&["accuracy"], Task::Classify).unwrap();
        let error = score(&metrics, Predictions::Numbers(&[1.0], &[1.0]), 0).unwrap_err().to_string();
        assert!(error.contains("accuracy does not compare"), "{error}");
        let error = score(&metrics, Predictions::Classes(2, &[1], &[1, 0]), 0).unwrap_err().to_string();
        assert!(error.contains("1 predictions for 2 rows"), "{error}");
    }
}
