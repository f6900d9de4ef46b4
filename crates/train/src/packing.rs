//! Examples to steps, and a step to ragged micro-batches of a token budget.
//!
//! Everything here is a pure function of the examples, the options and (epoch, step): a run that resumes at a step sees the
//! micro-batches that an unbroken one saw. There is no padding: a micro-batch is a [`Batch`] of whole examples.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use taper_base::Batch;
use taper_kernels::Labelled;

use crate::{Example, Learn};

/// How examples are dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackOptions {
    /// Rows of a step: `--batch-size` times `--gradient-accumulation`.
    pub rows: usize,
    /// Most tokens of a micro-batch. A longer example is a micro-batch of its own.
    pub micro_batch_tokens: usize,
    /// Whether every epoch has its own order; else it is the order of the file.
    pub shuffle: bool,
    /// Seed of the order. 0 is a seed like any other.
    pub seed: u64,
}

/// One forward and backward pass.
#[derive(Clone, Debug, Default)]
pub struct MicroBatch {
    /// The tokens `(N,)`, one segment an example.
    pub batch: Batch,
    /// The rows of the hidden states that are scored, with the labels that they should predict: tokens, or labels of
    /// tokens or of whole sequences.
    pub labelled: Labelled,
    /// The number of each sequence, where those are learned.
    pub numbers: Vec<f32>,
}

impl MicroBatch {
    /// Tokens that run through the model.
    fn run_length(&self) -> usize {
        self.batch.len() + self.batch.source().map_or(0, Batch::len)
    }

    /// Appends an example as a segment of its own.
    pub fn push(&mut self, example: &Example) {
        let (start, sequence) = (self.batch.len(), self.batch.segments().len());
        match &example.source {
            Some(source) => self.batch.push_from(source, &example.tokens),
            None => self.batch.push_typed(&example.tokens, &example.types),
        }
        match example.learn {
            Learn::Class(label) => self.score(sequence, label),
            Learn::Number(value) => self.numbers.push(value),
            Learn::Tokens(_) | Learn::Tags(_) => {
                example.labelled().into_iter().for_each(|(at, label)| self.score(start + at, label));
            }
        }
    }

    fn score(&mut self, row: usize, label: u32) {
        self.labelled.rows.push(row as u32);
        self.labelled.labels.push(label);
    }

    /// Number of labels.
    pub fn labels(&self) -> usize {
        self.labelled.labels.len() + self.numbers.len()
    }
}

/// One update: its rows, cut into micro-batches.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The micro-batches; their gradients are summed and divided once by the labels of all.
    pub micro: Vec<MicroBatch>,
    /// Tokens of the step.
    pub tokens: usize,
}

/// The steps of every epoch over `examples`.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    examples: &'a [Example],
    options: PackOptions,
}

impl<'a> Plan<'a> {
    /// A plan over `examples`. Zero rows or tokens in `options` count as one.
    pub fn new(examples: &'a [Example], options: PackOptions) -> Self {
        Self { examples, options }
    }

    /// Updates of an epoch; the last may have fewer rows.
    pub fn steps_per_epoch(&self) -> usize {
        self.examples.len().div_ceil(self.options.rows.max(1))
    }

    /// The order of an epoch, which its steps are cut from: make it once an epoch.
    pub fn epoch(&self, epoch: usize) -> Epoch<'a> {
        let mut order: Vec<u32> = (0..self.examples.len() as u32).collect();
        if self.options.shuffle {
            shuffle(&mut order, self.options.seed, epoch as u64);
        }
        Epoch { plan: *self, order }
    }
}

/// The examples of a plan in the order of one epoch.
#[derive(Clone, Debug)]
pub struct Epoch<'a> {
    plan: Plan<'a>,
    /// Indices of the examples.
    order: Vec<u32>,
}

impl<'a> Epoch<'a> {
    /// The examples of step `index`, from 0; none beyond the epoch's end.
    pub fn examples(&self, index: usize) -> Vec<&'a Example> {
        let size = self.plan.options.rows.max(1);
        let rows = self.order.chunks(size).nth(index).unwrap_or_default();
        rows.iter().map(|&row| &self.plan.examples[row as usize]).collect()
    }

    /// Step `index`, from 0; empty beyond the epoch's end.
    pub fn step(&self, index: usize) -> Step {
        Step::new(self.examples(index), self.plan.options.micro_batch_tokens)
    }
}

impl Step {
    /// The step of `examples`, cut into micro-batches of `micro_batch_tokens` tokens.
    pub fn new(mut examples: Vec<&Example>, micro_batch_tokens: usize) -> Self {
        let tokens = examples.iter().map(|example| example.run_length()).sum();
        // Longest first, equals in the order of the epoch: the fewest micro-batches without a search.
        examples.sort_by_key(|example| std::cmp::Reverse(example.run_length()));
        Self { micro: fill(&examples, micro_batch_tokens), tokens }
    }
}

/// First fit: each example goes into the first micro-batch that has room for it.
fn fill(examples: &[&Example], budget: usize) -> Vec<MicroBatch> {
    let mut micro: Vec<MicroBatch> = Vec::new();
    for example in examples {
        let fits = |batch: &&mut MicroBatch| batch.run_length() + example.run_length() <= budget;
        if let Some(batch) = micro.iter_mut().find(fits) {
            batch.push(example);
        } else {
            let mut batch = MicroBatch::default();
            batch.push(example);
            micro.push(batch);
        }
    }
    micro
}

/// `examples` in their order as micro-batches of at most `budget` tokens, for evaluation: made one at a time, so that
/// memory does not follow the data set.
pub fn micro_batches(examples: &[Example], budget: usize) -> impl Iterator<Item = MicroBatch> + '_ {
    let mut rest = examples;
    std::iter::from_fn(move || {
        let mut batch = MicroBatch::default();
        while let Some((example, tail)) = rest.split_first() {
            if !batch.batch.is_empty() && batch.run_length() + example.run_length() > budget {
                break;
            }
            batch.push(example);
            rest = tail;
        }
        (!batch.batch.is_empty()).then_some(batch)
    })
}

/// Fisher-Yates with one `ChaCha8` stream an epoch, or whatever else is counted: no order depends on another's having been
/// made.
pub(crate) fn shuffle(order: &mut [u32], seed: u64, epoch: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch);
    for last in (1..order.len()).rev() {
        order.swap(last, below(&mut random, last + 1));
    }
}

/// A number below `end`: the high word of a product (Lemire 2019), whose bias is below `end` / 2⁶⁴.
pub(crate) fn below(random: &mut ChaCha8Rng, end: usize) -> usize {
    ((u128::from(random.next_u64()) * end as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Examples of the given lengths; the second half of each is learned.
    fn examples(lengths: &[usize]) -> Vec<Example> {
        let of = |(at, &length): (usize, &usize)| Example {
            tokens: (0..length as u32).map(|token| at as u32 * 100 + token).collect(),
            learn: crate::Learn::Tokens(std::iter::once((length / 2).max(1)..length).collect()),
            ..Example::default()
        };
        lengths.iter().enumerate().map(of).collect()
    }

    fn options(rows: usize, micro_batch_tokens: usize) -> PackOptions {
        PackOptions { rows, micro_batch_tokens, shuffle: true, seed: 7 }
    }

    #[test]
    fn row_before_a_label_predicts_it_and_no_row_reaches_into_the_next_segment() {
        let examples = examples(&[4, 3]);
        let plan = Plan::new(&examples, PackOptions { shuffle: false, ..options(2, 100) });
        let step = plan.epoch(0).step(0);
        assert_eq!(step.tokens, 7);
        let [micro] = step.micro.as_slice() else { panic!("one micro-batch") };
        assert_eq!(micro.batch.tokens(), [0, 1, 2, 3, 100, 101, 102]);
        assert_eq!(micro.batch.segments(), [0..4, 4..7]);
        assert_eq!(micro.labelled.rows, [1, 2, 4, 5]);
        assert_eq!(micro.labelled.labels, [2, 3, 101, 102]);
    }

    #[test]
    fn budget_is_kept_except_by_a_longer_example_alone() {
        let lengths = [5, 9, 40, 3, 8, 2, 12, 7];
        let examples = examples(&lengths);
        let step = Plan::new(&examples, options(8, 16)).epoch(0).step(0);
        let mut seen = 0;
        for micro in &step.micro {
            assert!(micro.batch.len() <= 16 || micro.batch.segments().len() == 1);
            seen += micro.batch.segments().len();
        }
        assert_eq!(seen, lengths.len());
        let labels: usize = examples.iter().map(Example::labels).sum();
        assert_eq!(step.micro.iter().map(|micro| micro.labelled.labels.len()).sum::<usize>(), labels);
        assert_eq!(step.micro.len(), 4, "40 | 12 3 | 9 7 | 8 5 2");
    }

    #[test]
    fn an_epoch_deals_every_example_once() {
        let examples = examples(&[3; 11]);
        let plan = Plan::new(&examples, options(4, 100));
        assert_eq!(plan.steps_per_epoch(), 3);
        let rows: Vec<_> = (0..3).map(|index| plan.epoch(2).examples(index).len()).collect();
        assert_eq!(rows, [4, 4, 3]);
        assert!(plan.epoch(2).step(3).micro.is_empty());
        let mut order = plan.epoch(2).order;
        order.sort_unstable();
        assert_eq!(order, (0..11).collect::<Vec<_>>());
    }

    #[test]
    fn t17_equal_seeds_give_equal_orders_zero_included() {
        let examples = examples(&[2; 50]);
        let order =
            |seed, epoch| Plan::new(&examples, PackOptions { seed, ..options(1, 10) }).epoch(epoch).order;
        assert_eq!(order(0, 0), order(0, 0));
        assert_ne!(order(0, 0), order(1, 0));
        assert_ne!(order(0, 0), order(0, 1));
        assert_ne!(order(0, 0), (0..50).collect::<Vec<_>>());
        let plain = Plan::new(&examples, PackOptions { shuffle: false, ..options(1, 10) });
        assert_eq!(plain.epoch(3).order, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn the_order_of_a_seed_is_for_ever() {
        let examples = examples(&[2; 8]);
        let order = Plan::new(&examples, PackOptions { seed: 0, ..options(1, 10) }).epoch(1).order;
        assert_eq!(order, [7, 0, 2, 1, 4, 3, 5, 6]);
    }

    #[test]
    fn batches_for_evaluation_keep_order_and_budget() {
        let examples = examples(&[5, 9, 40, 3, 8]);
        let lengths: Vec<Vec<usize>> = micro_batches(&examples, 16)
            .map(|micro| micro.batch.segments().iter().map(ExactSizeIterator::len).collect())
            .collect();
        assert_eq!(lengths, [vec![5, 9], vec![40], vec![3, 8]]);
        assert_eq!(micro_batches(&[], 16).count(), 0);
    }
}
