//! What is wrong with the tensors of a folder, gathered and said once.

use crate::config_json::CONFIG_FILE;

/// Problems listed in an error; the rest are counted.
const LISTED: usize = 10;

/// Tensors by what is wrong with them.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    pub(crate) missing: Vec<String>,
    pub(crate) unexpected: Vec<String>,
    pub(crate) misshaped: Vec<String>,
    pub(crate) not_finite: Vec<String>,
    /// What is wrong with the name of a tensor that is missing under another.
    named: Option<String>,
    /// Whether some shape differs in more than the rank, or factors are of a module that the base lacks.
    pub(crate) other_base: bool,
}

impl Problems {
    /// Notes a tensor of the shape `stored` where `expected` was.
    pub(crate) fn misshaped(&mut self, key: &str, stored: &[usize], expected: &[usize]) {
        self.misshaped.push(format!("`{key}` {stored:?} for {expected:?}"));
        self.other_base |= !differ_by_rank(key, stored, expected);
    }

    /// Notes a tensor that nobody asked for, by its name in the file.
    pub(crate) fn unexpected(&mut self, key: &str) {
        let ends = ["embed_tokens.weight", "lm_head.weight", "base_layer.weight"];
        let whole = ends.iter().any(|end| key.ends_with(end)) && !key.contains(".lora_");
        let why = " (a base weight that differs from this base's: another base, or a resized vocabulary)";
        let why = if whole { why } else { "" };
        self.other_base |= key.contains(".lora_");
        self.unexpected.push(format!("`{key}`{why}"));
    }

    /// Whether the tensor `key` is missing.
    pub(crate) fn lacks(&self, key: &str) -> bool {
        self.missing.contains(&format!("`{key}`"))
    }

    /// Notes a tensor `key` that has the name of an `adapter` in it, where one without was `expected`.
    pub(crate) fn named(&mut self, key: &str, adapter: &str, expected: &str) {
        self.unexpected.push(format!("`{key}`"));
        self.named.get_or_insert_with(|| {
            format!(
                "the names have an adapter's name, `{adapter}`, in them, as in a PEFT model's state_dict: `{key}`, expected \
                 `{expected}`; save the adapter with save_pretrained, or rename the tensors"
            )
        });
    }

    /// All of it, with a guess at the reason; none where nothing is wrong. `made_for` is the base that the adapter names.
    pub(crate) fn report(&self, made_for: Option<&str>) -> Option<String> {
        let mut lines = Vec::new();
        let mut room = LISTED;
        for (kind, list) in [
            ("missing", &self.missing),
            ("unexpected", &self.unexpected),
            ("mis-shaped", &self.misshaped),
            ("not finite", &self.not_finite),
        ] {
            let mut shown: Vec<&str> = list.iter().map(String::as_str).take(room).collect();
            room -= shown.len();
            if shown.len() < list.len() {
                shown.push("…");
            }
            if !list.is_empty() {
                lines.push(format!("  {} {kind}: {}", list.len(), shown.join(", ")));
            }
        }
        if lines.is_empty() {
            return None;
        }
        if let Some(named) = self.named.as_ref().filter(|_| !self.other_base) {
            lines.push(format!("  {named}"));
        } else if self.other_base || (!self.missing.is_empty() && !self.unexpected.is_empty()) {
            let made_for = made_for.unwrap_or("a base it does not name");
            lines.push(format!("  is this the adapter of another base? it was made for {made_for}"));
        } else if !self.misshaped.is_empty() {
            lines.push(format!("  do `r` and `rank_pattern` of {CONFIG_FILE} belong to this file?"));
        }
        Some(format!("the tensors are not those of this base and {CONFIG_FILE}:\n{}", lines.join("\n")))
    }
}

/// Whether the shapes differ in the rank alone.
fn differ_by_rank(key: &str, stored: &[usize], expected: &[usize]) -> bool {
    let side = usize::from(key.ends_with("lora_A.weight") || key.ends_with("lora_embedding_A"));
    key.contains(".lora_") && stored.len() == 2 && expected.len() == 2 && stored[side] == expected[side]
}
