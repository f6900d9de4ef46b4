//! A bias on attention's scores that depends on how far the key is from the query, each head its own.

use super::{AttentionShape, OP};

/// What each head adds to a score for the key's distance from the query (arXiv:1910.10683 §2.1). It is not trained.
#[derive(Clone, Debug, PartialEq)]
pub struct DistanceBias {
    /// Farther away, a key has the bias of this distance.
    reach: usize,
    /// `(H, 2·reach + 1)`, from the distance `-reach` on.
    values: Vec<f32>,
}

/// The bias of a group of heads, the first of which is the second field.
pub(super) type GroupBias<'a> = Option<(&'a DistanceBias, usize)>;

impl DistanceBias {
    /// `value(head, distance)` of each of `heads` heads, for a key `distance` places after the query (before it, where that
    /// is negative), up to `reach` places.
    pub fn new(heads: usize, reach: usize, value: impl Fn(usize, isize) -> f32) -> Self {
        let distances = |head| (-(reach as isize)..=reach as isize).map(move |distance| (head, distance));
        let values = (0..heads).flat_map(distances).map(|(head, distance)| value(head, distance)).collect();
        Self { reach, values }
    }

    /// Values of a head.
    fn width(&self) -> usize {
        2 * self.reach + 1
    }

    pub(super) fn check(&self, shape: &AttentionShape) -> candle_core::Result<()> {
        if self.values.len() != shape.heads * self.width() || shape.cap.is_some() {
            candle_core::bail!("{OP}: the bias of {} heads for {shape:?}", self.values.len() / self.width());
        }
        Ok(())
    }

    /// What `head` adds to the score of the keys at two positions.
    pub(super) fn of(&self, head: usize, query: usize, key: usize) -> f32 {
        self.values[head * self.width() + (key + self.reach).saturating_sub(query).min(2 * self.reach)]
    }

    /// Adds what `head` does to the `scores` of a query and the keys from `first` on.
    pub(super) fn add(&self, head: usize, query: usize, first: usize, scores: &mut [f32]) {
        let values = &self.values[head * self.width()..][..self.width()];
        let (near, far) = (query.saturating_sub(self.reach), query + self.reach + 1);
        let within = |position: usize| position.saturating_sub(first).min(scores.len());
        let (near, far) = (within(near), within(far));
        scores[..near].iter_mut().for_each(|score| *score += values[0]);
        scores[far..].iter_mut().for_each(|score| *score += values[2 * self.reach]);
        if near < far {
            let from = first + near + self.reach - query;
            for (score, value) in scores[near..far].iter_mut().zip(&values[from..]) {
                *score += value;
            }
        }
    }
}
