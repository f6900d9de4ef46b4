//! Formats that are recognised, so that their rows are not taken for something else, but whose tasks are not built yet.

use super::Format;

pub(super) const PREFERENCE: Format = Format {
    name: "preference",
    task: "preference",
    shape: r#"{"prompt","chosen","rejected"}"#,
    keys: &[&["chosen", "rejected"], &["messages", "label"], &["prompt", "completion", "label"]],
    build: None,
};

pub(super) const CLASSIFY: Format = Format {
    name: "classify",
    task: "classify",
    shape: r#"{"text","label"} or {"text_a","text_b","label"}"#,
    keys: &[&["text", "label"], &["text_a", "text_b", "label"]],
    build: None,
};

pub(super) const TAG: Format = Format {
    name: "tag",
    task: "tag",
    shape: r#"{"tokens","tags"}"#,
    keys: &[&["tokens", "tags"]],
    build: None,
};
