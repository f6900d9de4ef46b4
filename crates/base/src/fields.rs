//! Fields of config.json by what they have to be. One that is absent or null is none, whose default is its reader's to know; one of another
//! kind is an error, and never the default.

use serde_json::{Map, Value};
use taper_kernels::Activation;

use crate::Error;

/// Blocks of a model at most: some are kept by what config.json says alone, and the deepest models have a thousand.
const MAX_LAYERS: usize = 4096;

/// Characters of a value in an error.
const SHOWN: usize = 60;

/// The value of `field` as `read` takes it.
fn value<'a, T>(
    config: &'a Value,
    field: &str,
    expected: &str,
    read: impl FnOnce(&'a Value) -> Option<T>,
) -> Result<Option<T>, Error> {
    match &config[field] {
        Value::Null => Ok(None),
        found => read(found).map(Some).ok_or_else(|| wrong(field, found, expected)),
    }
}

fn wrong(field: &str, found: &Value, expected: &str) -> Error {
    let mut shown = found.to_string();
    if let Some((end, _)) = shown.char_indices().nth(SHOWN) {
        shown.truncate(end);
        shown.push('…');
    }
    unsupported(format!("config.json: `{field}` is {shown}, expected {expected}"))
}

/// True or false.
pub(crate) fn flag(config: &Value, field: &str, default: bool) -> Result<bool, Error> {
    Ok(value(config, field, "true or false", Value::as_bool)?.unwrap_or(default))
}

/// A number that f32 can hold.
pub(crate) fn number(config: &Value, field: &str) -> Result<Option<f64>, Error> {
    value(config, field, "a number", as_number)
}

/// A positive number that f32 can hold.
pub(crate) fn positive(config: &Value, field: &str) -> Result<Option<f64>, Error> {
    value(config, field, "a positive number", |found| as_number(found).filter(|x| *x as f32 > 0.0))
}

/// A list of numbers.
pub(crate) fn numbers(config: &Value, field: &str) -> Result<Option<Vec<f32>>, Error> {
    let list = |found: &Value| {
        found.as_array()?.iter().map(|item| as_number(item).map(|x| x as f32)).collect::<Option<_>>()
    };
    value(config, field, "a list of numbers", list)
}

fn as_number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|x| (*x as f32).is_finite())
}

/// A text.
pub(crate) fn text<'a>(config: &'a Value, field: &str) -> Result<Option<&'a str>, Error> {
    value(config, field, "a text", Value::as_str)
}

/// A list.
pub(crate) fn list<'a>(config: &'a Value, field: &str) -> Result<Option<&'a Vec<Value>>, Error> {
    value(config, field, "a list", Value::as_array)
}

/// An object.
pub(crate) fn object<'a>(config: &'a Value, field: &str) -> Result<Option<&'a Map<String, Value>>, Error> {
    value(config, field, "an object", Value::as_object)
}

/// A whole number from 0, as an id is.
pub(crate) fn whole(config: &Value, field: &str) -> Result<Option<u32>, Error> {
    let read = |found: &Value| found.as_u64().and_then(|n| u32::try_from(n).ok());
    value(config, field, "a whole number from 0", read)
}

/// A size that has to be there.
pub(crate) fn size(config: &Value, field: &str) -> Result<usize, Error> {
    optional(config, field)?.ok_or_else(|| missing(field))
}

/// A positive size.
pub(crate) fn optional(config: &Value, field: &str) -> Result<Option<usize>, Error> {
    let read = |found: &Value| found.as_u64().filter(|n| *n > 0 && *n < 1 << 32).map(|n| n as usize);
    value(config, field, "a positive whole number", read)
}

/// How many blocks there are.
pub(crate) fn layers(config: &Value, field: &str) -> Result<usize, Error> {
    optional_layers(config, field)?.ok_or_else(|| missing(field))
}

/// How many blocks there are, where that need not be said.
pub(crate) fn optional_layers(config: &Value, field: &str) -> Result<Option<usize>, Error> {
    match optional(config, field)? {
        Some(layers) if layers > MAX_LAYERS => {
            Err(wrong(field, &config[field], &format!("at most {MAX_LAYERS} blocks")))
        }
        layers => Ok(layers),
    }
}

/// The activation that `field` names.
pub(crate) fn activation(config: &Value, field: &str, default: &str) -> Result<Activation, Error> {
    let name = text(config, field)?.unwrap_or(default);
    Activation::named(name).ok_or_else(|| {
        unsupported(format!(
            "config.json: `{field}` is `{name}`, taper computes silu, gelu, gelu_new, gelu_pytorch_tanh and relu"
        ))
    })
}

fn missing(field: &str) -> Error {
    unsupported(format!("config.json: `{field}` is missing"))
}

pub(crate) fn unsupported(what: String) -> Error {
    Error::Unsupported { what }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_absent_or_null_is_none_and_what_is_of_another_kind_is_refused() {
        let config =
            json!({"a": null, "n": "500000", "b": [], "c": {}, "f": 1, "big": 1e39, "s": -3, "l": [1, "2"]});
        assert_eq!(number(&config, "a").unwrap(), None);
        assert_eq!(number(&config, "absent").unwrap(), None);
        assert!(flag(&config, "a", true).unwrap());
        let message = |error: Error| error.to_string();
        for (found, expected) in [
            (number(&config, "n").map(drop), r#"`n` is "500000", expected a number"#),
            (number(&config, "b").map(drop), "`b` is [], expected a number"),
            (number(&config, "big").map(drop), "`big` is 1e+39, expected a number"),
            (positive(&config, "s").map(drop), "`s` is -3, expected a positive number"),
            (flag(&config, "f", true).map(drop), "`f` is 1, expected true or false"),
            (text(&config, "f").map(drop), "`f` is 1, expected a text"),
            (optional(&config, "c").map(drop), "`c` is {}, expected a positive whole number"),
            (whole(&config, "s").map(drop), "`s` is -3, expected a whole number from 0"),
            (numbers(&config, "l").map(drop), r#"`l` is [1,"2"], expected a list of numbers"#),
            (object(&config, "b").map(drop), "`b` is [], expected an object"),
            (list(&config, "c").map(drop), "`c` is {}, expected a list"),
        ] {
            assert_eq!(message(found.unwrap_err()), format!("config.json: {expected}"));
        }
    }

    #[test]
    fn sizes_that_would_be_allocated_unseen_have_a_limit() {
        let config = json!({"num_hidden_layers": 4_000_000_000u32});
        let error = layers(&config, "num_hidden_layers").unwrap_err().to_string();
        assert!(error.contains("`num_hidden_layers` is 4000000000, expected at most 4096 blocks"), "{error}");
    }

    #[test]
    fn a_long_value_is_cut() {
        let error = number(&json!({"x": "é".repeat(1000)}), "x").unwrap_err().to_string();
        assert!(error.len() < 200 && error.contains('…'), "{error}");
    }
}
