//! The `tojson` filter as transformers has it: Python's `json.dumps`, to the byte.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// How `json.dumps` writes: its keyword arguments, with the defaults of transformers.
struct Style {
    ensure_ascii: bool,
    indent: Option<usize>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`; keys keep their order.
#[expect(clippy::needless_pass_by_value, reason = "the engine hands keyword arguments over by value")]
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let default = [if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()];
    let [between_items, after_key] = match separators {
        Some(pair) => <[String; 2]>::try_from(pair)
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings"))?,
        None => default,
    };
    let style = Style {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent,
        between_items,
        after_key,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(out)
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.text(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                out.push('[');
                self.items(out, depth, &items, |out, item| self.write(out, item, depth + 1))?;
                out.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                out.push('{');
                self.items(out, depth, &keys, |out, key| {
                    self.key(out, key)?;
                    out.push_str(&self.after_key);
                    self.write(out, &value.get_item(key)?, depth + 1)
                })?;
                out.push('}');
            }
            kind => {
                let what = format!("tojson: a value of the kind `{kind}` cannot be written as JSON");
                let kind = if value.is_undefined() {
                    ErrorKind::UndefinedError
                } else {
                    ErrorKind::BadSerialization
                };
                return Err(Error::new(kind, what));
            }
        }
        Ok(())
    }

    /// Items with separators between them, on lines of their own with an indent.
    fn items(
        &self,
        out: &mut String,
        depth: usize,
        items: &[Value],
        mut item: impl FnMut(&mut String, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for (index, value) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.between_items);
            }
            self.line(out, depth + 1);
            item(out, value)?;
        }
        if !items.is_empty() {
            self.line(out, depth);
        }
        Ok(())
    }

    fn line(&self, out: &mut String, depth: usize) {
        if let Some(width) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    }

    /// JSON's keys are texts: Python writes other ones in quotes.
    fn key(&self, out: &mut String, key: &Value) -> Result<(), Error> {
        if let Some(text) = key.as_str() {
            self.text(out, text);
            return Ok(());
        }
        let mut text = String::new();
        self.write(&mut text, key, 0)?;
        self.text(out, &text);
        Ok(())
    }

    fn text(&self, out: &mut String, text: &str) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                plain if plain >= ' ' && (plain.is_ascii() || !self.ensure_ascii) => {
                    // 0x7f is escaped by `ensure_ascii` neither.
                    out.push(plain);
                }
                escaped => {
                    for unit in escaped.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
            }
        }
        out.push('"');
    }
}

/// A number as Python's `repr` writes it.
fn number(value: &Value) -> String {
    let Some(float) = (!value.is_integer()).then(|| f64::try_from(value.clone()).ok()).flatten() else {
        return value.to_string();
    };
    if float.is_nan() {
        return "NaN".to_string();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.to_string();
    }
    // Rust's shortest digits are Python's; only where the exponent form starts differs.
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if float != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = float.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}
