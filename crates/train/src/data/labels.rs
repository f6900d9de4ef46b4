//! The labels of a data set: which there are, and how a row's value names one.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use taper_base::Labels;

use super::format::{Fields, Format, kind, tokens_and_tags};
use super::rows::Rows;
use super::set::format_of;
use super::{DataOptions, nearest};
use crate::Error;

/// Names listed in a message.
const LISTED: usize = 12;

/// The labels that stand in `files`, in `tags` where the rows are tagged and else in `label`, in order: integers by
/// value, texts by their bytes. A number where every label is one and some are not whole, or where `number` asks for it.
///
/// # Errors
/// As [`DataSet::load`](super::DataSet::load) for the first row, a row whose label cannot be read, by its line, and rows that all have one label.
pub fn labels(files: &[PathBuf], options: &DataOptions, number: Option<bool>) -> Result<Labels, Error> {
    let format = format_of(files, options)?;
    let mut names = BTreeSet::new();
    for (file, path) in files.iter().enumerate() {
        for row in Rows::open(path, file)? {
            let row = row?.renamed(&options.columns);
            let wrong =
                |what: String| Error::row(path, row.line, nearest::read_as(format, &row.fields, &what));
            let found = of_row(&row.fields, format).map_err(wrong)?;
            names.extend(found);
        }
    }
    let is_number = |name: &String| name.parse::<f64>().is_ok_and(f64::is_finite);
    let is_whole = |name: &String| name.parse::<i64>().is_ok();
    let numbers = names.iter().all(is_number);
    if number == Some(true) && !numbers {
        let odd = names.iter().find(|name| !is_number(name)).map_or("", String::as_str);
        return Err(Error::data(format!("`problem_type` is regression, but there is a label `{odd}`")));
    }
    if number.unwrap_or(numbers && !names.iter().all(is_whole)) {
        return Ok(Labels::Number);
    }
    let mut names: Vec<String> = names.into_iter().collect();
    if names.iter().all(is_whole) {
        names.sort_by_key(|name| name.parse::<i64>().unwrap_or_default());
    }
    if let [only] = names.as_slice() {
        let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        return Err(Error::data(format!(
            "{}: every row has the label `{only}`: there is nothing to tell apart, give rows with another label too",
            files.join(", ")
        )));
    }
    Ok(Labels::Names(names))
}

/// The names in the `tags` or the `label` of a row of `format`.
fn of_row(fields: &Fields, format: &Format) -> Result<Vec<String>, String> {
    if !format.has_keys(fields) {
        return Err(nearest::missing(format, fields));
    }
    if format.task == "tag" {
        let (_, tags) = tokens_and_tags(fields)?;
        let names = tags.iter().enumerate();
        return names.map(|(at, tag)| name(tag).map_err(|what| format!("tags[{at}] {what}"))).collect();
    }
    let label = fields.get("label").ok_or("`label` is missing")?;
    Ok(vec![name(label).map_err(|what| format!("`label` {what}"))?])
}

/// The name of a label as it stands in a row: a text, or a number or truth value in its usual spelling.
pub(super) fn name(value: &Value) -> Result<String, String> {
    match value {
        Value::String(name) if name.trim().is_empty() => Err("is empty".into()),
        Value::String(name) => Ok(name.trim().to_owned()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        other => Err(format!("is {}, expected a text or a number", kind(other))),
    }
}

/// The number of the label `name`; labels that the base has only numbers for may be named by those.
pub(super) fn id(labels: &Labels, name: &str) -> Result<u32, String> {
    let numbered = || labels.id(&format!("LABEL_{name}"));
    labels.id(name).or_else(numbered).ok_or_else(|| {
        let names = labels.names();
        let more = if names.len() > LISTED { ", …" } else { "" };
        let listed = names.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
        format!("the label `{name}` is none of those that are learned: {listed}{more}")
    })
}
