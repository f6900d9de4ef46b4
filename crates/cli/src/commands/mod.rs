//! One file a command: resolve what was typed, call a library, print.

pub(crate) mod chat;
pub(crate) mod data;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod predict;
pub(crate) mod quantize;
pub(crate) mod train;
pub(crate) mod train_args;
