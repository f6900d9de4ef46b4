//! Spans in sequences of tags (`B-PER`, `I-PER`, `O`) and how many of them were found: seqeval 1.2.2 in its default mode,
//! which reads BIO, IOB1, IOE and IOBES alike, as conlleval does.

use std::collections::BTreeMap;

use super::classes::Prf;

/// A span of one type: both ends belong to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entity {
    /// What follows the prefix: `PER`; `_` where nothing does.
    pub kind: String,
    /// Its first tag, counted over all sequences with one place between two of them.
    pub first: usize,
    /// Its last tag, counted likewise.
    pub last: usize,
}

/// The prefix of a tag and its type. A tag without `-` has all but its first letter for a type.
fn parts(tag: &str) -> (char, &str) {
    let mut letters = tag.chars();
    let prefix = letters.next().unwrap_or('O');
    let rest = letters.as_str();
    let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
    (prefix, if kind.is_empty() { "_" } else { kind })
}

/// Whether a span ends between two tags (`end_of_chunk`).
fn ends((before, kind): (char, &str), (tag, next): (char, &str)) -> bool {
    matches!((before, tag), ('E' | 'S', _) | ('B' | 'I', 'B' | 'S' | 'O'))
        || (!matches!(before, 'O' | '.') && kind != next)
}

/// Whether a span begins at the second of two tags (`start_of_chunk`).
fn starts((before, kind): (char, &str), (tag, next): (char, &str)) -> bool {
    matches!((before, tag), (_, 'B' | 'S') | ('E' | 'S' | 'O', 'E' | 'I'))
        || (!matches!(tag, 'O' | '.') && kind != next)
}

/// The entities of each sequence (`get_entities`).
pub fn entities<T: AsRef<str>>(sequences: &[Vec<T>]) -> Vec<Vec<Entity>> {
    let (mut before, mut first, mut at) = (('O', ""), 0, 0);
    let mut found = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let mut row = Vec::new();
        for tag in sequence.iter().map(AsRef::as_ref).chain(["O"]) {
            let tag = parts(tag);
            if ends(before, tag) {
                row.push(Entity { kind: before.1.to_owned(), first, last: at - 1 });
            }
            if starts(before, tag) {
                first = at;
            }
            before = tag;
            at += 1;
        }
        found.push(row);
    }
    found
}

/// Entities right, predicted and there, by type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entities {
    kinds: BTreeMap<String, [usize; 3]>,
}

impl Entities {
    /// Counts of each sequence.
    pub fn by_row<T: AsRef<str>>(labels: &[Vec<T>], predicted: &[Vec<T>]) -> Vec<Self> {
        let (labels, predicted) = (entities(labels), entities(predicted));
        labels.iter().zip(&predicted).map(|(there, predicted)| Self::row(there, predicted)).collect()
    }

    fn row(there: &[Entity], predicted: &[Entity]) -> Self {
        let mut row = Self::default();
        for entity in there {
            row.kinds.entry(entity.kind.clone()).or_default()[2] += 1;
        }
        for entity in predicted {
            let counts = row.kinds.entry(entity.kind.clone()).or_default();
            counts[1] += 1;
            counts[0] += usize::from(there.contains(entity));
        }
        row
    }

    /// The counts of many rows together.
    pub fn sum<'a>(rows: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for (kind, counts) in rows.into_iter().flat_map(|row| &row.kinds) {
            let all = match sum.kinds.get_mut(kind) {
                Some(all) => all,
                None => sum.kinds.entry(kind.clone()).or_default(),
            };
            all.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
        }
        sum
    }

    /// Each type by itself, in order of names.
    pub fn by_kind(&self) -> impl Iterator<Item = (&str, Prf)> {
        self.kinds
            .iter()
            .map(|(kind, [right, predicted, there])| (&**kind, Prf::of(*right, *predicted, *there)))
    }

    /// All types in one (`precision_score`, `recall_score`, `f1_score`).
    pub fn average(&self, average: super::Average) -> Prf {
        let kinds: Vec<Prf> = self.by_kind().map(|(_, prf)| prf).collect();
        match average {
            super::Average::Macro => Prf::mean(&kinds, |_| 1.0),
            super::Average::Weighted => Prf::mean(&kinds, |kind| kind.support as f64),
            super::Average::Micro => {
                let total = |column: usize| self.kinds.values().map(|counts| counts[column]).sum();
                Prf::of(total(0), total(1), total(2))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Average;
    use super::*;
    use crate::metrics::testing::{cases, close, lists};

    #[test]
    fn as_seqeval() {
        for case in cases("entities") {
            let (labels, predicted) = (lists(&case["labels"]), lists(&case["predicted"]));
            let expected = &case["expected"];
            let spans: Vec<_> = entities(&labels).into_iter().flatten().collect();
            let spans: Vec<_> = spans.iter().map(|span| (&span.kind, span.first, span.last)).collect();
            assert_eq!(serde_json::to_value(spans).unwrap(), expected["entities"]);
            let sum = Entities::sum(&Entities::by_row(&labels, &predicted));
            for (name, average) in
                [("micro", Average::Micro), ("macro", Average::Macro), ("weighted", Average::Weighted)]
            {
                let found = sum.average(average);
                close(found.precision, &expected[name][0]);
                close(found.recall, &expected[name][1]);
                close(found.f1, &expected[name][2]);
            }
            for ((kind, found), expected) in sum.by_kind().zip(expected["by_kind"].as_array().unwrap()) {
                assert_eq!(kind, expected[0]);
                close(found.f1, &expected[1]);
            }
        }
    }
}
