//! Formats that are recognised, so that their rows are not taken for something else, but whose tasks are not built yet.

use super::Format;

pub(super) const PREFERENCE: Format = Format {
    name: "preference",
    task: "preference",
    shape: r#"{"prompt","chosen","rejected"}"#,
    keys: &[&["chosen", "rejected"], &["messages", "label"], &["prompt", "completion", "label"]],
    build: None,
};
