//! What can be seen of a tensor's values in one pass.

use taper_base::Checkpoint;

/// Values widened at a time, whole blocks of any type.
const RUN: usize = 4096;

/// Of one tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Stats {
    /// Values that are infinite or not a number.
    pub(super) not_finite: usize,
    /// Sum of squares of the others.
    pub(super) squares: f64,
    /// Number of values.
    pub(super) values: usize,
}

impl Stats {
    /// Of the tensor `name`; none if it has a type that taper does not compute with.
    pub(super) fn of(checkpoint: &Checkpoint, name: &str) -> Option<Self> {
        let (info, bytes) = (checkpoint.info(name)?, checkpoint.bytes(name)?);
        let stored = info.dtype.stored()?;
        let mut run = [0.0; RUN];
        let mut stats = Self { values: info.shape.iter().product(), ..Self::default() };
        for bytes in bytes.chunks(RUN / stored.block() * stored.block_bytes()) {
            let run = &mut run[..bytes.len() / stored.block_bytes() * stored.block()];
            taper_kernels::decode(bytes, stored, run);
            let sum: f64 = run.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
            if sum.is_finite() {
                stats.squares += sum;
            } else {
                let finite = || run.iter().filter(|value| value.is_finite());
                stats.not_finite += run.len() - finite().count();
                stats.squares += finite().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>();
            }
        }
        Some(stats)
    }

    pub(super) fn norm(self) -> f64 {
        self.squares.sqrt()
    }

    /// Whether there are values and all are 0.
    pub(super) fn all_zero(self) -> bool {
        self.values > 0 && self.not_finite == 0 && self.squares <= 0.0
    }
}
