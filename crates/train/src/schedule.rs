//! The learning rate of each step.

use serde::{Deserialize, Serialize};

/// Course of the rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Stays.
    Constant,
    /// Falls to 0 in a line.
    #[default]
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
}

/// A learning rate over a run: transformers' `get_{constant,linear,cosine}_schedule_with_warmup`
/// (`transformers/optimization.py`, 5.0).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The rate at the end of the warm-up.
    pub peak: f64,
    /// Course from there.
    pub shape: Shape,
    /// Steps of the warm-up.
    pub warmup: usize,
    /// Steps of the run.
    pub steps: usize,
}

impl Schedule {
    /// A schedule whose warm-up is `ratio` of all steps, rounded up.
    pub fn new(peak: f64, shape: Shape, ratio: f64, steps: usize) -> Self {
        let warmup = (steps as f64 * ratio).ceil() as usize;
        Self { peak, shape, warmup, steps }
    }

    /// The rate of the step that comes after `done` steps. A warm-up starts at 0.
    pub fn lr_at(&self, done: usize) -> f64 {
        self.peak * self.share(done)
    }

    fn share(&self, done: usize) -> f64 {
        if done < self.warmup {
            return done as f64 / self.warmup as f64;
        }
        let rest = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let progress = ((done - self.warmup) as f64 / rest).min(1.0);
        match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => 1.0 - progress,
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// import torch
    /// from transformers import get_scheduler
    /// for name in ["constant_with_warmup", "linear", "cosine"]:
    ///     o = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.8)
    ///     s = get_scheduler(name, o, num_warmup_steps=2, num_training_steps=7)
    ///     l = []
    ///     for _ in range(7):
    ///         l.append(round(o.param_groups[0]["lr"], 12)); o.step(); s.step()
    ///     print(l)
    /// ```
    #[test]
    fn rates_are_transformers() {
        let expected = [
            (Shape::Constant, [0.0, 0.4, 0.8, 0.8, 0.8, 0.8, 0.8]),
            (Shape::Linear, [0.0, 0.4, 0.8, 0.64, 0.48, 0.32, 0.16]),
            (Shape::Cosine, [0.0, 0.4, 0.8, 0.723_606_8, 0.523_606_8, 0.276_393_2, 0.076_393_2]),
        ];
        for (shape, rates) in expected {
            let schedule = Schedule::new(0.8, shape, 0.2, 7);
            assert_eq!(schedule.warmup, 2);
            for (done, rate) in rates.into_iter().enumerate() {
                assert!((schedule.lr_at(done) - rate).abs() < 1e-7, "{shape:?} after {done}");
            }
        }
    }

    #[test]
    fn without_a_warm_up_the_first_step_has_the_peak() {
        assert!((Schedule::new(0.5, Shape::Cosine, 0.0, 3).lr_at(0) - 0.5).abs() < 1e-15);
    }
}
