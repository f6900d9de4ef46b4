//! What an adapter's folder says of the task that it is for.

use std::path::Path;

use serde_json::Value;
use taper_base::{Checkpoint, Labels, Task};

use crate::tensor_file::TENSOR_FILE;
use crate::{Error, LoraConfig};

/// The task of the adapter in `dir` on a base whose config.json is `base`, by its `task_type`; that of the base where the
/// adapter does not say.
///
/// # Errors
/// As [`LoraConfig::read`], [`labels`] and [`Task::read`].
pub fn task(dir: &Path, base: &Value) -> Result<Task, Error> {
    let (config, _) = LoraConfig::read(dir)?;
    Ok(match config.task_type.as_deref() {
        Some("SEQ_CLS") => Task::Classify(labels(dir, base)?),
        Some("TOKEN_CLS") => Task::Tag(labels(dir, base)?),
        Some("CAUSAL_LM" | "SEQ_2_SEQ_LM") => Task::CausalLm,
        _ => Task::read(base)?,
    })
}

/// The labels of the adapter in `dir` on a base whose config.json is `base`: those that a `config.json` beside the adapter
/// names; or those of the base, where the adapter's head has as many rows or there is none; or else transformers' names for
/// as many. A lone row is a number, unless it labels tokens: [`Labels::read`].
///
/// # Errors
/// As [`LoraConfig::read`] and [`Labels::read`]; [`Error::File`] where `config.json` is not JSON or names labels that taper does
/// not give, or nothing has labels, or the head is empty.
pub fn labels(dir: &Path, base: &Value) -> Result<Labels, Error> {
    let (config, _) = LoraConfig::read(dir)?;
    let of_tokens = config.task_type.as_deref() == Some("TOKEN_CLS");
    let read = |config: &Value| if of_tokens { Labels::of_tokens(config) } else { Labels::read(config) };
    let path = dir.join("config.json");
    if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let config: Value = serde_json::from_str(&text)
            .map_err(|source| Error::file(&path, format!("not JSON: {source}")))?;
        if let Some(labels) = read(&config).map_err(|error| Error::file(&path, error.to_string()))? {
            return Ok(labels);
        }
    }
    let path = dir.join(TENSOR_FILE);
    let rows = head_rows(&path)?;
    match (read(base)?, rows) {
        (Some(labels), rows) if rows.is_none_or(|rows| rows == labels.outputs()) => Ok(labels),
        (_, Some(1)) if !of_tokens => Ok(Labels::Number),
        (_, Some(rows)) => Ok(Labels::numbered(rows)),
        (_, None) => {
            let heads = HEADS.join(", ");
            Err(Error::file(
                &path,
                format!("holds no head that labels ({heads}), and the base names no labels"),
            ))
        }
    }
}

/// What heads that label are called.
const HEADS: [&str; 4] = [
    "score.weight",
    "classifier.weight",
    "classifier.out_proj.weight",
    "classification_head.out_proj.weight",
];

/// Rows of the head in the adapter's file, if it has one.
fn head_rows(path: &Path) -> Result<Option<usize>, Error> {
    let file = Checkpoint::open_files(&[path.to_owned()])?;
    let is_head = |name: &&str| {
        let holder = HEADS.iter().find_map(|head| name.strip_suffix(head));
        holder.is_some_and(|holder| holder.is_empty() || holder.ends_with('.'))
    };
    let head = file.names().find(is_head).and_then(|name| Some((name, file.info(name)?)));
    let Some((name, info)) = head else { return Ok(None) };
    // An empty tensor may claim any number of rows.
    match info.shape[..] {
        [rows, columns] if rows > 0 && columns > 0 => Ok(Some(rows)),
        _ => Err(Error::file(
            path,
            format!("`{name}` is {:?}, expected (labels, hidden_size) with none of them 0", info.shape),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::{DType, Device, Tensor};
    use serde_json::json;

    use super::*;
    use crate::tensor_file::write_tensors;

    fn folder(task_type: &str, shape: &[usize], config: Option<&str>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let adapter = format!(r#"{{"peft_type": "LORA", "task_type": "{task_type}"}}"#);
        std::fs::write(dir.path().join("adapter_config.json"), adapter).unwrap();
        let head = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let tensors = BTreeMap::from([("base_model.model.score.weight".to_owned(), head)]);
        let mut bytes = Vec::new();
        write_tensors(&tensors, &mut bytes).unwrap();
        std::fs::write(dir.path().join(TENSOR_FILE), bytes).unwrap();
        if let Some(config) = config {
            std::fs::write(dir.path().join("config.json"), config).unwrap();
        }
        dir
    }

    #[test]
    fn a_lone_row_is_a_number_unless_it_labels_tokens() {
        let task = |kind, rows, config| task(folder(kind, &[rows, 4], config).path(), &json!({})).unwrap();
        assert_eq!(task("SEQ_CLS", 1, None), Task::Classify(Labels::Number));
        assert_eq!(task("SEQ_CLS", 3, None), Task::Classify(Labels::numbered(3)));
        assert_eq!(task("TOKEN_CLS", 1, None), Task::Tag(Labels::numbered(1)));
        let named = Some(r#"{"id2label": {"0": "x"}}"#);
        assert_eq!(task("SEQ_CLS", 1, named), Task::Classify(Labels::Number));
        assert_eq!(task("TOKEN_CLS", 1, named), Task::Tag(Labels::Names(vec!["x".into()])));
    }

    #[test]
    fn labels_without_names_are_those_of_a_base_with_as_many() {
        let names = Labels::Names(vec!["a".into(), "b".into(), "c".into()]);
        let base = json!({"id2label": {"0": "a", "1": "b", "2": "c"}});
        let found = |kind, rows| labels(folder(kind, &[rows, 4], None).path(), &base).unwrap();
        assert_eq!(found("SEQ_CLS", 3), names);
        assert_eq!(found("TOKEN_CLS", 3), names);
        assert_eq!(found("SEQ_CLS", 2), Labels::numbered(2));
        let several = json!({"problem_type": "multi_label_classification", "num_labels": 3});
        let error = labels(folder("SEQ_CLS", &[3, 4], None).path(), &several).unwrap_err().to_string();
        assert!(error.contains("multi_label_classification"), "{error}");
    }

    #[test]
    fn an_adapter_without_a_task_is_for_that_of_its_base() {
        let base = json!({"architectures": ["BertForSequenceClassification"], "num_labels": 3});
        let on = |kind| task(folder(kind, &[3, 4], None).path(), &base).unwrap();
        assert_eq!(on("FEATURE_EXTRACTION"), Task::Classify(Labels::numbered(3)));
        assert_eq!(on("CAUSAL_LM"), Task::CausalLm);
    }

    #[test]
    fn several_labels_a_text_are_refused_by_name() {
        let config = r#"{"problem_type": "multi_label_classification"}"#;
        let error =
            labels(folder("SEQ_CLS", &[2, 4], Some(config)).path(), &json!({})).unwrap_err().to_string();
        assert!(error.contains("config.json: ") && error.contains("multi_label_classification"), "{error}");
    }

    #[test]
    fn an_empty_head_has_no_labels_however_many_rows_it_claims() {
        let dir = folder("SEQ_CLS", &[1, 4], None);
        let header = r#"{"score.weight":{"dtype":"F32","shape":[100000000000,0],"data_offsets":[0,0]}}"#;
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(dir.path().join(TENSOR_FILE), bytes).unwrap();
        let error = labels(dir.path(), &json!({})).unwrap_err().to_string();
        assert!(error.contains("`score.weight` is [100000000000, 0]"), "{error}");
    }
}
