//! The learning-rate range test: training at rates that grow from step to step, to see where the loss falls fastest and
//! where it breaks out (Smith 2015, arXiv:1506.01186, §3.3; growing by a factor as fastai's `lr_find`).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use taper_base::Base;

use crate::files::write_whole;
use crate::learner::{Learner, Opened};
use crate::{Error, Event, Recipe, Start, outputs, plot, prepare};

/// Rates that are tried where nobody says how many.
pub const RATES: usize = 100;

/// The least and the largest rate.
const RANGE: (f64, f64) = (1e-7, 10.0);

/// A loss of so many times the lowest ends the test.
const BROKEN_OUT: f64 = 4.0;

/// Weight of the losses before in the mean that is watched for that.
const MEMORY: f64 = 0.9;

/// The picture, in the recipe's `out`.
const PICTURE: &str = "lr.svg";

/// A fall of less than this share of the first loss is taken for noise.
const NOISE: f64 = 0.01;

/// What a range test found.
#[derive(Clone, Debug, Serialize)]
pub struct RangeTest {
    /// The rates, ascending.
    pub tried: Vec<Tried>,
    /// Whether the loss broke out before the largest rate.
    pub diverged: bool,
    /// The rate at which the smoothed loss falls fastest per factor of the rate; none if it never fell.
    pub steepest: Option<f64>,
    /// A tenth of the rate at which the smoothed loss is lowest; none if it never fell.
    pub tenth_of_lowest: Option<f64>,
    /// Where the picture is.
    pub picture: PathBuf,
}

/// One rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tried {
    /// The rate of an update.
    pub lr: f64,
    /// The next step's loss, which is after that update.
    pub loss: f64,
    /// The mean of the losses around it, the nearest counted most.
    pub smoothed: f64,
}

/// Trains as `recipe` says, but for `rates` steps at rates growing from 1e-7 to 10, and stops where the loss breaks out. The
/// adapter is thrown away; `lr.svg` in the recipe's `out` is all that is written. Nothing is where `interrupt` was set.
///
/// # Errors
/// As [`train`](crate::train); an output folder that holds an adapter is no obstacle.
pub fn find_lr(
    base: &Base,
    recipe: &Recipe,
    rates: usize,
    on_event: &mut dyn FnMut(&Event),
    interrupt: &AtomicBool,
) -> Result<Option<RangeTest>, Error> {
    let (recipe, rows) = prepare::begin(base, &Recipe { max_steps: Some(rates), ..recipe.clone() })?;
    let Opened { mut learner, .. } = Learner::open(base, &recipe, &rows, Start::Force, on_event)?;
    let mut course = Course::new(rates);
    while course.goes_on() {
        let done = course.losses.len();
        let step = match learner.update(done, course.lr()) {
            // Numbers that are none are what a rate too high ends in; at the first rate they have another cause.
            Err(Error::Training { .. }) if done > 1 => {
                course.diverged = true;
                break;
            }
            step => step?,
        };
        course.add(step.loss);
        on_event(&Event::Step(step));
        if interrupt.load(Ordering::Relaxed) {
            return Ok(None);
        }
    }
    let test = course.found(recipe.out.join(PICTURE));
    outputs::make_folder(&recipe.out)?;
    write_whole(
        &test.picture,
        plot::draw_rates(&format!("learning rates on {}", recipe.model), &test)?.as_bytes(),
    )?;
    Ok(Some(test))
}

/// A test under way.
struct Course {
    rates: usize,
    /// Before each update.
    losses: Vec<f64>,
    /// The decaying mean of the losses, and its lowest value.
    mean: f64,
    lowest: f64,
    diverged: bool,
}

impl Course {
    fn new(rates: usize) -> Self {
        Self { rates, losses: Vec::new(), mean: 0.0, lowest: f64::INFINITY, diverged: false }
    }

    /// One step more than there are rates: the last shows what the last rate did.
    fn goes_on(&self) -> bool {
        self.losses.len() <= self.rates && !self.diverged
    }

    /// The rate of the next update.
    fn lr(&self) -> f64 {
        self.rate(self.losses.len())
    }

    fn rate(&self, index: usize) -> f64 {
        let last = self.rates.saturating_sub(1).max(1);
        RANGE.0 * (RANGE.1 / RANGE.0).powf(index.min(last) as f64 / last as f64)
    }

    fn add(&mut self, loss: f64) {
        self.losses.push(loss);
        self.mean = MEMORY * self.mean + (1.0 - MEMORY) * loss;
        let mean = self.mean / (1.0 - MEMORY.powi(self.losses.len() as i32));
        self.lowest = self.lowest.min(mean);
        self.diverged = mean > BROKEN_OUT * self.lowest;
    }

    fn found(&self, picture: PathBuf) -> RangeTest {
        let after = self.losses.get(1..).unwrap_or_default();
        let smoothed = smooth(after);
        let tried: Vec<Tried> = (0..after.len())
            .map(|i| Tried { lr: self.rate(i), loss: after[i], smoothed: smoothed[i] })
            .collect();
        let lowest = lowest(&tried);
        let fell = lowest.filter(|&at| tried[at].smoothed < (1.0 - NOISE) * tried[0].smoothed);
        RangeTest {
            steepest: fell.and_then(|at| steepest(&tried[..=at])),
            tenth_of_lowest: fell.map(|at| tried[at].lr / 10.0),
            diverged: self.diverged,
            tried,
            picture,
        }
    }
}

/// Means over a twentieth of the points to each side, the nearest counted most; at the ends over as many on both sides as
/// there are, so that no end pulls.
fn smooth(losses: &[f64]) -> Vec<f64> {
    let reach = (losses.len() / 20).max(1);
    let mean = |at: usize| {
        let reach = reach.min(at).min(losses.len() - 1 - at);
        let weight = |to: usize| (reach + 1 - at.abs_diff(to)) as f64;
        let (sum, weights) = (at - reach..=at + reach)
            .fold((0.0, 0.0), |(sum, weights), to| (sum + weight(to) * losses[to], weights + weight(to)));
        sum / weights
    };
    (0..losses.len()).map(mean).collect()
}

fn lowest(tried: &[Tried]) -> Option<usize> {
    (0..tried.len()).min_by(|&a, &b| tried[a].smoothed.total_cmp(&tried[b].smoothed))
}

/// The rate in the middle of the steepest fall, over a tenth of a decade or three points.
fn steepest(tried: &[Tried]) -> Option<f64> {
    let slope = |points: &[Tried]| {
        let [first, .., last] = points else { return 0.0 };
        (last.smoothed - first.smoothed) / (last.lr / first.lr).ln()
    };
    let steepest = tried.windows(3).min_by(|a, b| slope(a).total_cmp(&slope(b)))?;
    (slope(steepest) < 0.0).then_some(steepest[1].lr)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A course whose loss after an update at the rate `lr` is `loss(lr)`.
    fn course(loss: impl Fn(f64) -> f64) -> RangeTest {
        let mut course = Course::new(100);
        course.add(loss(0.0));
        while course.goes_on() {
            course.add(loss(course.rate(course.losses.len() - 1)));
        }
        course.found(PathBuf::new())
    }

    #[test]
    fn rates_grow_by_a_factor_from_end_to_end() {
        let course = Course::new(9);
        let rates: Vec<f64> = (0..9).map(|i| course.rate(i)).collect();
        assert!((rates[0] - 1e-7).abs() < 1e-15 && (rates[8] - 10.0).abs() < 1e-9, "{rates:?}");
        assert!(rates.windows(2).all(|pair| (pair[1] / pair[0] - 10.0).abs() < 1e-9), "{rates:?}");
    }

    #[test]
    fn the_steepest_fall_and_the_lowest_loss_are_where_they_are() {
        // A logistic fall in the logarithm of the rate, steepest at 1e-3, and an explosion from 1 on.
        let test = course(|lr| 3.0 - 2.0 / (1.0 + (1e-3 / lr).powf(1.5)) + (lr / 0.5).powi(4));
        let steepest = test.steepest.unwrap();
        assert!((0.7e-3..1.4e-3).contains(&steepest), "{steepest}");
        let tenth = test.tenth_of_lowest.unwrap();
        assert!((3e-3..3e-2).contains(&tenth), "{tenth}");
        assert!(test.diverged && test.tried.len() < 100, "{}", test.tried.len());
        assert!(test.tried.iter().all(|tried| tried.loss.is_finite()));
    }

    #[test]
    fn a_loss_that_never_falls_suggests_nothing() {
        let test = course(|lr| 2.0 + lr);
        assert_eq!((test.steepest, test.tenth_of_lowest), (None, None));
        assert!(!course(|_| 1.0).diverged);
        assert_eq!(course(|_| 1.0).tried.len(), 100);
    }

    #[test]
    fn a_straight_line_stays_one() {
        let line: Vec<f64> = (0..100).map(|i| 5.0 - 0.03 * f64::from(i)).collect();
        assert!(smooth(&line).iter().zip(&line).all(|(found, wanted)| (found - wanted).abs() < 1e-12));
    }
}
