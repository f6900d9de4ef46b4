//! The integration tests, one binary so that everything is linked once: `oracle` against PyTorch + PEFT's numbers, `traps` for
//! the mistakes that others shipped, `program` and `bad_input` through the built binary.

mod support;

mod oracle_cases;
mod program_eval;
mod program_generate;
mod program_merge;
mod program_models;
mod program_peft;
mod program_resume;
mod program_train;
