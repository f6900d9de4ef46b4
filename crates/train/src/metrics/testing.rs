//! What Python packages gave (`tests/oracle/metrics.py`), for the tests of the families.

use std::path::Path;

use serde_json::Value;

/// A few roundings of doubles summed in another order than numpy's pairwise one.
const TOLERANCE: f64 = 1e-13;

/// The cases of one file in `tests/fixtures/metrics`.
pub(super) fn cases(name: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/metrics");
    let text = std::fs::read_to_string(folder.join(name).with_extension("json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let cases = file["cases"].as_array().unwrap().clone();
    assert!(!cases.is_empty());
    cases
}

/// Asserts that a value is the expected one; null is not a number.
pub(super) fn close(found: f64, expected: &Value) {
    match expected.as_f64() {
        Some(expected) => {
            assert!((found - expected).abs() <= TOLERANCE * expected.abs().max(1.0), "{found} {expected}");
        }
        None => assert!(expected.is_null() && found.is_nan(), "{found} {expected}"),
    }
}

pub(super) fn indices(list: &Value) -> Vec<usize> {
    list.as_array().unwrap().iter().map(|value| value.as_u64().unwrap() as usize).collect()
}

pub(super) fn texts(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned()).collect()
}

pub(super) fn lists(list: &Value) -> Vec<Vec<String>> {
    list.as_array().unwrap().iter().map(texts).collect()
}
