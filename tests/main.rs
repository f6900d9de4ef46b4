//! The integration tests, one binary so that everything is linked once: `oracle_cases` against PyTorch + PEFT's numbers, `traps`
//! for the mistakes that others shipped, `program_…` and `bad_input…` through the built binary.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "clippy allows them in test functions, but not in the functions that those call"
)]

mod support;

mod bad_input;
mod bad_input_gguf;
mod bad_input_train;
mod candle_witness;
mod label_losses;
mod oracle_cases;
mod peft_reads;
mod program_eval;
mod program_folder;
mod program_generate;
mod program_guards;
mod program_labels;
mod program_merge;
mod program_models;
mod program_peft;
mod program_quantize;
#[cfg(unix)]
mod program_resume;
mod program_seq2seq;
mod program_train;
mod traps;
