//! How a run keeps to its memory: how many tokens a micro-batch has, how many blocks are run again in backward instead of
//! being kept, and how much memory that needs.
//!
//! The process holds, at its peak, which is in the first backward pass of a step:
//!
//! - the base's files, which are mapped;
//! - the rows, as tokens;
//! - 4 bytes for each value that the network's blocks keep of a token (`Network::kept_per_token`), or 2 where it is kept in
//!   bf16, and 4 for each that its low-rank terms do (`u`, of their rank); of a block that is run again, its input alone;
//! - the one block that is in backward: its gradients and, where it is run again, what it then keeps;
//! - a chunk of logits, whose gradient takes their place;
//! - the adapter: parameters, the step's gradients, two moments and, where blocks are not run whole, the parameters' copy in
//!   the pass and its gradients, as operations and as candle's store have them;
//! - the tokenizer, the program, and what the allocator holds back.
//!
//! `bench/README.md` has the planned beside the measured peaks.

use taper_base::Base;
use taper_lora::{Bias, LoraAdapter};

use crate::prepare::Rows;
use crate::{Error, Size};

/// What activations of one micro-batch may take where neither `memory` nor `micro_batch_tokens` is given, and what they may
/// take up to [`FAST`] tokens. It depends on nothing but the model, so that the same recipe cuts the same micro-batches on
/// every machine with memory enough.
const ACTIVATIONS: u64 = 512 << 20;
const ACTIVATIONS_OF_FEW: u64 = 1 << 30;

/// Tokens from which more give products little: half as many take tinyllama-1.1b 6 % of its speed.
const FAST: usize = 512;

/// Fewest and most tokens chosen. Below the first, products run visibly slower; above the second, not faster.
const FEWEST: usize = 128;
const MOST: usize = 2048;

/// Logits of one chunk, as `taper-kernels` cuts them.
const LOGITS: u64 = 48 << 20;
const LOGITS_ROWS: u64 = 128;

/// Values that an adapter holds for each that it trains: in whole blocks, in others, and while its state is written.
const COPIES_IN_WHOLE: u64 = 4;
const COPIES: u64 = 7;

/// Program, tokenizer and allocator: measured, and rounded up so that the peak stays below the plan.
const PROCESS: u64 = 32 << 20;

/// Share of the free memory that a run takes by itself at most: other programs need some.
const FREE: (u64, u64) = (3, 4);

/// Refuses an adapter that trains so many `values` that it does not fit by itself, before they are made.
///
/// # Errors
/// [`Error::Recipe`] where they need more than `memory`, or, where that is not given, than is `free`.
pub(crate) fn check_adapter(values: u64, memory: Option<Size>, free: Option<u64>) -> Result<(), Error> {
    let needs = values.saturating_mul(COPIES * 4);
    let limit = memory.map(|size| size.0).or(free).unwrap_or(u64::MAX);
    if needs <= limit {
        return Ok(());
    }
    let needs = Size(needs.div_ceil(1 << 20) << 20);
    // What is free is rounded down, so that it never reads as enough.
    let there = match memory {
        Some(memory) => format!("`memory` is {memory}"),
        None => format!("{} are free", Size(limit >> 20 << 20)),
    };
    Err(Error::recipe(format!(
        "the adapter would train {values} values, which need {needs} with their gradients and moments, and {there}: a lower \
         `rank` or fewer `target_modules` need less"
    )))
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) micro_batch_tokens: usize,
    /// Blocks that are run again in backward, the first ones.
    pub(crate) recomputed_blocks: usize,
    /// Of the whole process, at its peak.
    pub(crate) bytes: u64,
}

/// What the memory of a run depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    base: u64,
    blocks: usize,
    /// D and V.
    hidden: u64,
    vocabulary: u64,
    /// Values that one token keeps in one block, and their bytes.
    kept: u64,
    kept_bytes: u64,
    /// Whether blocks run as one operation, and can be run again.
    whole_blocks: bool,
    /// Trained values.
    trainable: u64,
    /// Bytes of all rows.
    data: u64,
    /// Tokens of the longest row, and of the largest step.
    longest: usize,
    step: usize,
}

impl Budget {
    /// The budget of a run whose steps have `step_rows` of the training `rows`.
    pub(crate) fn new(base: &Base, adapter: &LoraAdapter, rows: &Rows, step_rows: usize) -> Self {
        let (sizes, longest) = (base.model.sizes(), rows.train.stats.longest);
        let whole_blocks = whole_blocks(base, adapter);
        let blocks = sizes.num_hidden_layers.max(1);
        let ranks: usize = adapter.ranks().iter().map(|(_, rank)| rank).sum();
        let kept = base.model.kept_per_token(whole_blocks);
        let halves = if base.compute.keeps_bf16() { kept.read } else { 0 };
        Self {
            base: base_bytes(base),
            blocks,
            hidden: sizes.hidden_size as u64,
            vocabulary: sizes.vocab_size as u64,
            kept: ((kept.values + ranks) / blocks) as u64,
            kept_bytes: ((4 * (kept.values + ranks) - 2 * halves) / blocks) as u64,
            whole_blocks,
            trainable: adapter.params().values().map(|var| var.elem_count() as u64).sum(),
            data: rows.sets().map(|set| set.bytes() as u64).sum(),
            longest,
            step: step_rows.saturating_mul(longest),
        }
    }

    /// Micro-batches and recomputed blocks within `memory`, or, where that is not given, within most of what is `free`.
    ///
    /// `tokens` of a micro-batch, where they are given, stay. Else they are the power of two, between 128 and 2048, that
    /// fits, or the longest row: up to the memory that is given, or up to 512 MiB of activations (1 GiB where they are no
    /// more than 512). Blocks are run again only where that is not enough, as that costs a third more work.
    ///
    /// # Errors
    /// [`Error::Recipe`] where `memory` is given and too little: it says what the least is.
    pub(crate) fn plan(
        &self,
        tokens: Option<usize>,
        memory: Option<Size>,
        free: Option<u64>,
    ) -> Result<Memory, Error> {
        let limit = memory.map(|size| size.0).or(free.map(|free| free / FREE.1 * FREE.0)).unwrap_or(u64::MAX);
        let fits = |plan: &Memory| plan.bytes <= limit;
        let (most, fewest) = match tokens {
            Some(tokens) => (tokens, tokens),
            None if memory.is_some() => (MOST, FEWEST),
            None => (self.lean(), FEWEST),
        };
        let kept = std::iter::successors(Some(most), |tokens| Some(tokens / 2)).take_while(|t| *t >= fewest);
        // The longest row runs in any case: where the choice is free, shorter ones may share as much.
        let least = if tokens.is_some() { 0 } else { self.longest };
        if let Some(plan) = kept.map(|tokens| self.memory(tokens.max(least), 0)).find(fits) {
            return Ok(plan);
        }
        let most_again = if self.whole_blocks { self.blocks } else { 0 };
        let again = (0..=most_again).map(|blocks| self.memory(fewest.max(least), blocks));
        match (again.clone().find(fits), again.min_by_key(|plan| plan.bytes), memory) {
            (Some(plan), _, _) | (None, Some(plan), None) => Ok(plan),
            (None, plan, Some(memory)) => Err(self.too_little(memory, plan.map_or(0, |plan| plan.bytes))),
            (None, None, None) => Ok(self.memory(fewest.max(least), 0)),
        }
    }

    fn too_little(&self, memory: Size, least: u64) -> Error {
        let least = Size(least.div_ceil(1 << 20) << 20);
        Error::recipe(format!(
            "`memory` is {memory}: training needs {least} at least, with rows of up to {} tokens; a lower `max_length` or \
             `rank` needs less",
            self.longest
        ))
    }

    /// Tokens whose activations are 512 MiB, or [`FAST`] ones up to 1 GiB.
    fn lean(&self) -> usize {
        let fitting = |bytes: u64| (bytes / (4 * self.kept * self.blocks as u64).max(1)) as usize;
        let tokens = fitting(ACTIVATIONS).max(fitting(ACTIVATIONS_OF_FEW).min(FAST));
        (tokens.clamp(FEWEST, MOST) + 1).next_power_of_two() / 2
    }

    /// What a run needs with micro-batches of `tokens` tokens, a longer row alone, and `blocks` blocks run again.
    fn memory(&self, tokens: usize, blocks: usize) -> Memory {
        let rows = tokens.min(self.step).max(self.longest) as u64;
        let kept = self.kept_bytes * (self.blocks - blocks) as u64 + 4 * self.hidden * blocks as u64;
        let in_backward = 4 * self.kept * if blocks > 0 { 2 } else { 1 };
        let logits = LOGITS.min(LOGITS_ROWS.min(rows) * self.vocabulary * 4);
        let copies = if self.whole_blocks { COPIES_IN_WHOLE } else { COPIES };
        let in_step = rows * (kept + in_backward) + logits + copies * 4 * self.trainable;
        let bytes = self.base + PROCESS + self.data + in_step.max(COPIES * 4 * self.trainable);
        Memory { micro_batch_tokens: tokens, recomputed_blocks: blocks, bytes }
    }
}

/// Whether blocks run as one operation each ([`taper_base::Effect`]): a head that is trained whole is in none of them.
fn whole_blocks(base: &Base, adapter: &LoraAdapter) -> bool {
    let lora = adapter.config();
    let dropped = lora.use_dora && lora.lora_dropout > 0.0;
    let mut saved = lora.modules_to_save.iter();
    let head_alone = saved.all(|name| base.model.head_modules().contains(&name.as_str()));
    !(dropped || lora.lora_bias || lora.bias != Bias::None) && head_alone
}

/// Bytes of the base's mapped files.
pub(crate) fn base_bytes(base: &Base) -> u64 {
    let infos = base.checkpoint.names().filter_map(|name| base.checkpoint.info(name));
    infos.map(|info| info.range.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// smollm2-135m with rank 16 on all linear layers, rows of 256 tokens, 4 to a step.
    const SMALL: Budget = Budget {
        base: 257 * MIB,
        blocks: 30,
        hidden: 576,
        vocabulary: 49152,
        kept: 5872,
        kept_bytes: 4 * 5872,
        whole_blocks: true,
        trainable: 4_884_480,
        data: 0,
        longest: 256,
        step: 1024,
    };

    fn given(budget: &Budget, mib: u64) -> Memory {
        budget.plan(None, Some(Size(mib * MIB)), None).unwrap()
    }

    #[test]
    fn more_memory_is_used_for_tokens_first_and_less_is_made_up_by_recomputing() {
        assert_eq!(given(&SMALL, 4096).micro_batch_tokens, 2048);
        assert_eq!(given(&SMALL, 1000).micro_batch_tokens, 512);
        assert_eq!((given(&SMALL, 620).micro_batch_tokens, given(&SMALL, 620).recomputed_blocks), (256, 0));
        let mut before = 0;
        for mib in [560, 520, 490, 470] {
            let plan = given(&SMALL, mib);
            assert!(plan.bytes <= mib * MIB);
            assert!(plan.recomputed_blocks > before, "{mib}: {plan:?}");
            before = plan.recomputed_blocks;
        }
    }

    #[test]
    fn what_is_kept_in_bf16_takes_half() {
        let halves = Budget { kept_bytes: 4 * 5872 - 2 * 3648, ..SMALL };
        let [exact, rounded] = [SMALL, halves].map(|budget| budget.plan(None, None, None).unwrap());
        assert_eq!(exact.micro_batch_tokens, rounded.micro_batch_tokens);
        assert_eq!(exact.bytes - rounded.bytes, 512 * 30 * 2 * 3648);
    }

    #[test]
    fn too_little_says_the_least_and_the_least_is_enough() {
        let error = SMALL.plan(None, Some(Size(300 * MIB)), None).unwrap_err().to_string();
        let least: u64 = error.split_once("needs ").unwrap().1.split_once("MiB").unwrap().0.parse().unwrap();
        assert_eq!(given(&SMALL, least).recomputed_blocks, 30);
        assert!(SMALL.plan(None, Some(Size((least - 1) * MIB)), None).is_err());
    }

    #[test]
    fn an_adapter_too_large_by_itself_is_refused() {
        check_adapter(1 << 20, Some(Size(28 * MIB)), None).unwrap();
        check_adapter(1 << 40, None, None).unwrap();
        let given = check_adapter(1 << 20, Some(Size(27 * MIB)), Some(u64::MAX)).unwrap_err().to_string();
        assert!(
            given.contains("1048576 values, which need 28MiB") && given.contains("`memory` is 27MiB"),
            "{given}"
        );
        let small = check_adapter(1 << 20, Some(Size(1 << 10)), None).unwrap_err().to_string();
        assert!(small.contains("need 28MiB") && small.contains("`memory` is 1KiB"), "{small}");
        let free = check_adapter(1 << 20, None, Some(28 * MIB - 1)).unwrap_err().to_string();
        assert!(free.contains("27MiB are free"), "{free}");
    }

    #[test]
    fn tokens_that_are_given_stay() {
        let plan = SMALL.plan(Some(1024), Some(Size(844 * MIB)), None).unwrap();
        assert_eq!(plan.micro_batch_tokens, 1024);
        assert!(plan.recomputed_blocks > 0);
        assert_eq!(SMALL.plan(Some(1024), None, None).unwrap().recomputed_blocks, 0);
    }

    #[test]
    fn without_a_budget_a_run_is_lean_and_keeps_to_what_is_free() {
        let lean = SMALL.plan(None, None, Some(64 << 30)).unwrap();
        assert_eq!((lean.micro_batch_tokens, lean.recomputed_blocks), (512, 0));
        let tokens = |blocks, kept| {
            Budget { blocks, kept, kept_bytes: 4 * kept, ..SMALL }
                .plan(None, None, None)
                .unwrap()
                .micro_batch_tokens
        };
        // The shapes of a small BERT, and of Llama with 1.1 and with 8 billion values.
        assert_eq!((tokens(6, 4992), tokens(22, 20_416), tokens(32, 47_616)), (2048, 512, 256));
        let tight = SMALL.plan(None, None, Some(700 * MIB)).unwrap();
        assert!(tight.bytes <= 525 * MIB && tight.recomputed_blocks > 0, "{tight:?}");
        // Nothing fits: the least there is, with a warning elsewhere.
        assert_eq!(SMALL.plan(None, None, Some(MIB)).unwrap().recomputed_blocks, 30);
    }

    #[test]
    fn parts_cannot_be_run_again() {
        let parts = Budget { whole_blocks: false, ..SMALL };
        assert_eq!(parts.plan(None, None, Some(MIB)).unwrap().recomputed_blocks, 0);
    }
}
