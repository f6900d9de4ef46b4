//! `{% generation %}…{% endgeneration %}`: the blocks of a template that hold what the assistant wrote.
//!
//! The engine knows no custom tags. A block is rewritten to a filter block (which trims white space in the same way) whose
//! filter puts a mark before and after its text; the marks are taken out of the rendered text and become ranges.

use std::ops::Range;

use super::Rendered;
use crate::Error;

/// The filter's name; a template cannot mean another filter by it, as Jinja has none of that name.
pub(super) const FILTER: &str = "generation";

/// Code points that Unicode keeps for internal use: no text has them.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

/// The filter: marks the text of a block.
pub(super) fn mark(text: &str) -> String {
    format!("{OPEN}{text}{CLOSE}")
}

/// Rewrites the tags; says whether there are any. Comments and raw blocks are left alone, and no line moves. Line ends become
/// `\n`, as Jinja reads them.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len() + 16);
    let (mut rest, mut found) = (source.as_str(), false);
    while let Some(start) = rest.find("{%").into_iter().chain(rest.find("{#")).min() {
        let close = if rest[start..].starts_with("{#") { "#}" } else { "%}" };
        let Some(end) = rest[start + 2..].find(close).map(|end| start + 2 + end) else { break };
        out.push_str(&rest[..start]);
        let tag = &rest[start..end + 2];
        rest = &rest[end + 2..];
        if close == "#}" {
            out.push_str(tag);
            continue;
        }
        let name = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        match name {
            "generation" => out.push_str(&tag.replacen(name, "filter generation", 1)),
            "endgeneration" => out.push_str(&tag.replacen(name, "endfilter", 1)),
            _ => out.push_str(tag),
        }
        found |= name == "generation";
        if name == "raw" {
            let raw = raw_length(rest);
            out.push_str(&rest[..raw]);
            rest = &rest[raw..];
        }
    }
    out.push_str(rest);
    (out, found)
}

/// Length of the text up to the tag that ends a raw block.
pub(super) fn raw_length(text: &str) -> usize {
    let ends = |at: &usize| {
        let inside = text[at + 2..].trim_start_matches(['-', '+']).trim_start();
        inside.starts_with("endraw")
    };
    text.match_indices("{%").map(|(at, _)| at).find(ends).unwrap_or(text.len())
}

/// Messages with a mark in them would be misread.
pub(super) fn check_free_of_marks(
    messages: &serde_json::Value,
    tools: Option<&serde_json::Value>,
) -> Result<(), Error> {
    let marked = |json: &serde_json::Value| json.to_string().contains([OPEN, CLOSE]);
    if marked(messages) || tools.is_some_and(marked) {
        let what = "the messages hold U+FDD0 or U+FDD1, which are no characters: take them out";
        return Err(Error::Template { what: what.to_string() });
    }
    Ok(())
}

/// Takes the marks out of a rendered text.
pub(super) fn split(marked: &str) -> Result<Rendered, Error> {
    let mut text = String::with_capacity(marked.len());
    let mut generated: Vec<Range<usize>> = Vec::new();
    let mut open = Vec::new();
    let mut balanced = true;
    for piece in marked.split_inclusive([OPEN, CLOSE]) {
        let plain = piece.trim_end_matches([OPEN, CLOSE]);
        text.push_str(plain);
        if piece.ends_with(OPEN) {
            open.push(text.len());
        } else if piece.ends_with(CLOSE) {
            match open.pop() {
                Some(start) if open.is_empty() && start < text.len() => generated.push(start..text.len()),
                Some(_) => {}
                None => balanced = false,
            }
        }
    }
    if !balanced || !open.is_empty() {
        let what =
            "it cuts the text of a `generation` block apart, so what the assistant wrote cannot be told";
        return Err(Error::Template { what: what.to_string() });
    }
    Ok(Rendered { text, generated: Some(generated) })
}
