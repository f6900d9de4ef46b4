//! Distances between tokens in buckets: near ones each their own, far ones by their logarithm.

use candle_core::Tensor;
use taper_kernels::DistanceBias;

use crate::Error;

/// The longest reach: a bias is kept for every distance within it.
const MAX_REACH: usize = 1 << 16;

/// How distances fall into buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buckets {
    /// How many there are.
    pub(crate) count: usize,
    /// The distance from which on all are in the last bucket.
    pub(crate) reach: usize,
}

impl Buckets {
    /// These, if their numbers go together.
    pub(crate) fn checked(self) -> Result<Self, Error> {
        let reaches = self.count / 2 + 1..=MAX_REACH;
        if self.count >= 4 && self.count.is_multiple_of(2) && reaches.contains(&self.reach) {
            return Ok(self);
        }
        let Self { count, reach } = self;
        Err(Error::Unsupported {
            what: format!(
                "config.json: distances up to {reach} in {count} buckets: expected an even \
                 `relative_attention_num_buckets`, and a `relative_attention_max_distance` above half of it and at most \
                 {MAX_REACH}"
            ),
        })
    }

    /// The bucket of a key `distance` places after the query; of one before it, that is negative. In both directions half of
    /// the buckets are for either; else keys after the query, which are not seen, count as the query itself.
    pub(super) fn of(self, distance: isize, both_ways: bool) -> usize {
        let (count, first) = match both_ways {
            true if distance > 0 => (self.count / 2, self.count / 2),
            true => (self.count / 2, 0),
            false => (self.count, 0),
        };
        let distance = if both_ways { distance.unsigned_abs() } else { distance.min(0).unsigned_abs() };
        let exact = count / 2;
        if distance < exact {
            return first + distance;
        }
        // In f32 and in this order, as PyTorch computes it: some distances lie on an edge.
        let growth = (self.reach as f32 / exact as f32).ln();
        let beyond = (distance as f32 / exact as f32).ln() / growth * (count - exact) as f32;
        first + (exact + beyond as usize).min(count - 1)
    }

    /// The bias of every head by distance, from the `table` `(buckets, H)`.
    pub(super) fn bias(self, table: &Tensor, both_ways: bool) -> Result<DistanceBias, Error> {
        let table = table.to_vec2::<f32>()?;
        let heads = table.first().map_or(0, Vec::len);
        Ok(DistanceBias::new(heads, self.reach, |head, distance| table[self.of(distance, both_ways)][head]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each run of distances from -140 to 140 in one bucket the first, and the bucket: transformers 5.23,
    /// `T5Attention._relative_position_bucket`.
    fn assert_runs(buckets: Buckets, both_ways: bool, runs: &[(isize, usize)]) {
        for distance in -140..=140 {
            let expected = runs.iter().rev().find(|(first, _)| *first <= distance).unwrap().1;
            assert_eq!(buckets.of(distance, both_ways), expected, "{distance}");
        }
    }

    #[test]
    fn numbers_that_do_not_go_together_are_refused() {
        for (count, reach) in [(31, 128), (2, 128), (32, 16), (32, MAX_REACH + 1)] {
            let error = Buckets { count, reach }.checked().unwrap_err().to_string();
            assert!(error.contains(&format!("up to {reach} in {count} buckets")), "{error}");
            assert!(error.contains("at most 65536") && !error.contains("  "), "{error}");
        }
    }

    #[test]
    fn buckets_are_those_of_transformers() {
        let usual = Buckets { count: 32, reach: 128 };
        #[rustfmt::skip]
        assert_runs(usual, true, &[
            (-140, 15), (-90, 14), (-63, 13), (-45, 12), (-31, 11), (-22, 10), (-15, 9), (-11, 8), (-7, 7), (-6, 6),
            (-5, 5), (-4, 4), (-3, 3), (-2, 2), (-1, 1), (0, 0), (1, 17), (2, 18), (3, 19), (4, 20), (5, 21), (6, 22),
            (7, 23), (8, 24), (12, 25), (16, 26), (23, 27), (32, 28), (46, 29), (64, 30), (91, 31),
        ]);
        #[rustfmt::skip]
        assert_runs(usual, false, &[
            (-140, 31), (-112, 30), (-98, 29), (-86, 28), (-76, 27), (-66, 26), (-58, 25), (-51, 24), (-45, 23),
            (-39, 22), (-34, 21), (-30, 20), (-26, 19), (-23, 18), (-20, 17), (-18, 16), (-15, 15), (-14, 14),
            (-13, 13), (-12, 12), (-11, 11), (-10, 10), (-9, 9), (-8, 8), (-7, 7), (-6, 6), (-5, 5), (-4, 4), (-3, 3),
            (-2, 2), (-1, 1), (0, 0),
        ]);
        #[rustfmt::skip]
        assert_runs(Buckets { count: 16, reach: 50 }, true, &[
            (-140, 7), (-26, 6), (-14, 5), (-7, 4), (-3, 3), (-2, 2), (-1, 1), (0, 0), (1, 9), (2, 10), (3, 11),
            (4, 12), (8, 13), (15, 14), (27, 15),
        ]);
    }
}
