//! What templates use of Python and Jinja that neither the engine nor its `pycompat` has: `'…' % values`, `wordcount` and some
//! methods of strings.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// The filter that [`rewrite`] turns `%` into; Jinja has none of that name.
pub(super) const PERCENT: &str = "percent";

/// `format % values`: a tuple is several values, whatever else is one.
pub(super) fn percent(text: &str, values: &Value) -> Result<String, Error> {
    let values = match values.downcast_object_ref::<Tuple>() {
        Some(_) => values.try_iter()?.collect(),
        None => vec![values.clone()],
    };
    format(FormatStyle::Printf, text, &values)
}

/// Jinja's `wordcount`: the matches of `\w+`.
pub(super) fn wordcount(text: &str) -> usize {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .filter(|word| !word.is_empty())
        .count()
}

/// The methods of strings that are missing in `pycompat`, and those that it has.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args);
    };
    let triple = |parts: [&str; 3]| Value::from(Tuple::from(parts.map(Value::from).to_vec()));
    match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            let between = if before.len() < text.len() { separator } else { "" };
            Ok(triple([before, between, after]))
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.rsplit_once(separator).unwrap_or(("", text));
            let between = if after.len() < text.len() { separator } else { "" };
            Ok(triple([before, between, after]))
        }
        "rsplit" => rsplit(text, args),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// `str.rsplit(separator, most)`, at a separator.
fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (&str, Option<i64>) = from_args(args)?;
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "rsplit: the separator is empty"));
    }
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), separator).collect();
    parts.reverse();
    Ok(Value::from_iter(parts))
}

/// Rewrites `'…' % value`, which the engine has for numbers alone, to `'…' | percent(value)`: a filter binds tighter than any
/// operator, and the value is what Python's `%` would take. Only a literal can be known to be a text; no line moves.
pub(super) fn rewrite(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = ["{{", "{%", "{#"].into_iter().filter_map(|open| rest.find(open)).min() {
        let close = match rest.as_bytes()[start + 1] {
            b'{' => "}}",
            b'%' => "%}",
            _ => "#}",
        };
        let inside = start + 2;
        let length = if close == "#}" { rest[inside..].find(close) } else { until(&rest[inside..], close) };
        let Some(end) = length.map(|length| inside + length) else { break };
        out.push_str(&rest[..inside]);
        let tag = &rest[inside..end];
        out.push_str(&if close == "#}" { tag.to_owned() } else { expression(tag) });
        rest = &rest[end..];
        if close == "%}" && tag.trim_matches(['-', '+']).trim() == "raw" {
            let raw = super::generation::raw_length(rest);
            out.push_str(&rest[..raw]);
            rest = &rest[raw..];
        }
    }
    out.push_str(rest);
    out
}

/// Length of `text` up to `close`, which may stand in literals.
fn until(text: &str, close: &str) -> Option<usize> {
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(close) {
            return Some(at);
        }
        at += step(&text[at..]);
    }
    None
}

/// Length of the literal that `text` begins with, or of one character.
fn step(text: &str) -> usize {
    let mut letters = text.char_indices();
    let Some((_, first)) = letters.next() else { return 0 };
    if matches!(first, '"' | '\'') {
        let mut escaped = false;
        for (at, letter) in letters {
            match letter {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                _ if letter == first => return at + 1,
                _ => {}
            }
        }
    }
    first.len_utf8()
}

/// The inside of a tag, rewritten.
fn expression(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let length = step(&text[at..]);
        out.push_str(&text[at..at + length]);
        at += length;
        let behind = text[at..].trim_start();
        if length > 1
            && text[at - 1..].starts_with(['"', '\''])
            && let Some(value) = behind.strip_prefix('%')
        {
            let skipped = text.len() - at - behind.len();
            let length = operand(value);
            out.push_str(&text[at..at + skipped]);
            out.push_str("| percent(");
            out.push_str(&expression(&value[..length]));
            out.push(')');
            at += skipped + 1 + length;
        }
    }
    out
}

/// Length of what `%` takes: a name, literal or bracket with what is attached to it (`.name`, `[…]`, `(…)`, `| filter`).
fn operand(text: &str) -> usize {
    let name = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let space = |text: &str| text.len() - text.trim_start().len();
    let mut at = space(text);
    at += usize::from(text[at..].starts_with('-'));
    at += match text[at..].chars().next() {
        Some('(' | '[' | '{') => bracket(&text[at..]),
        Some('"' | '\'') => step(&text[at..]),
        _ => name(&text[at..]),
    };
    loop {
        let rest = &text[at..];
        let pipe = space(rest);
        at += match rest.chars().next() {
            Some('(' | '[') => bracket(rest),
            Some('.') => 1 + name(&rest[1..]),
            _ if rest[pipe..].starts_with('|') => {
                let filter = pipe + 1 + space(&rest[pipe + 1..]);
                filter + name(&rest[filter..])
            }
            _ => return at,
        };
    }
}

/// Length of the bracket that `text` begins with, to its end.
fn bracket(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0usize);
    while at < text.len() {
        match text.as_bytes()[at] {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += step(&text[at..]);
        if depth == 0 {
            break;
        }
    }
    at
}
