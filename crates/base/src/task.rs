//! What a network is opened to do, and the labels that it gives.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What the classes of each model type begin with in transformers (5.23).
const CLASSES: [(&str, &str); 17] = [
    ("bert", "Bert"),
    ("distilbert", "DistilBert"),
    ("gemma2", "Gemma2"),
    ("gemma3", "Gemma3"),
    ("gemma3_text", "Gemma3Text"),
    ("gpt2", "GPT2"),
    ("gpt_neox", "GPTNeoX"),
    ("llama", "Llama"),
    ("mistral", "Mistral"),
    ("modernbert", "ModernBert"),
    ("phi3", "Phi3"),
    ("qwen2", "Qwen2"),
    ("qwen3", "Qwen3"),
    ("roberta", "Roberta"),
    ("smollm3", "SmolLM3"),
    ("t5", "T5"),
    ("xlm-roberta", "XLMRoberta"),
];

/// What a network is opened to do: which head stands on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// Predicts the next token.
    #[default]
    CausalLm,
    /// Gives a text a label, or a number.
    Classify(Labels),
    /// Gives every token a label.
    Tag(Labels),
}

impl Task {
    /// The task that the weights of a model were saved for, by the `architectures` of its config.json: the next token
    /// where they do not say.
    pub fn of(config: &Value) -> Self {
        let architecture = config["architectures"][0].as_str().unwrap_or_default();
        let labels = || Labels::of(config).unwrap_or_else(|| Labels::numbered(2));
        if architecture.ends_with("ForSequenceClassification") {
            Self::Classify(labels())
        } else if architecture.ends_with("ForTokenClassification") {
            Self::Tag(labels())
        } else {
            Self::CausalLm
        }
    }

    /// Writes the task into a config.json, so that [`Task::of`] and transformers' Auto classes read it there: labels, and in
    /// `architectures` the class of the model under that head. That of a task without labels stays what it is.
    pub fn write_to(&self, config: &mut Map<String, Value>) {
        let (head, labels) = match self {
            Self::CausalLm => return,
            Self::Classify(labels) => ("ForSequenceClassification", labels),
            Self::Tag(labels) => ("ForTokenClassification", labels),
        };
        labels.write_to(config);
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        if let Some((_, class)) = CLASSES.iter().find(|(known, _)| *known == model_type) {
            config.insert("architectures".into(), json!([format!("{class}{head}")]));
        }
    }

    /// The labels that the head gives; none where it gives tokens.
    pub fn labels(&self) -> Option<&Labels> {
        match self {
            Self::CausalLm => None,
            Self::Classify(labels) | Self::Tag(labels) => Some(labels),
        }
    }
}

/// The outputs of a head, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Labels {
    /// One output a label, in this order.
    Names(Vec<String>),
    /// One output, which is a number: a regression.
    Number,
}

impl Labels {
    /// `LABEL_0`, `LABEL_1`, …: transformers' names for labels without one.
    pub fn numbered(count: usize) -> Self {
        Self::Names((0..count).map(|id| format!("LABEL_{id}")).collect())
    }

    /// The labels of a config.json: `id2label`, `num_labels`, `problem_type`, as transformers writes them; none where it
    /// has no `id2label`, whole and without gaps.
    pub fn of(config: &Value) -> Option<Self> {
        if config["problem_type"] == "regression" {
            return Some(Self::Number);
        }
        let pairs = config["id2label"].as_object()?.iter();
        let by_id: BTreeMap<usize, String> = pairs
            .map(|(id, name)| Some((id.parse().ok()?, name.as_str()?.to_owned())))
            .collect::<Option<_>>()?;
        let whole = !by_id.is_empty() && by_id.keys().copied().eq(0..by_id.len());
        whole.then(|| Self::Names(by_id.into_values().collect()))
    }

    /// Writes the labels into a config.json, so that [`Labels::of`] and transformers read them there.
    pub fn write_to(&self, config: &mut Map<String, Value>) {
        let names = self.names();
        let id2label: Map<String, Value> =
            names.iter().enumerate().map(|(id, name)| (id.to_string(), json!(name))).collect();
        let label2id: Map<String, Value> =
            names.iter().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
        let problem = match self {
            Self::Names(_) => "single_label_classification",
            Self::Number => "regression",
        };
        config.insert("id2label".into(), id2label.into());
        config.insert("label2id".into(), label2id.into());
        config.insert("problem_type".into(), problem.into());
    }

    /// Outputs of the head.
    pub fn outputs(&self) -> usize {
        self.names().len()
    }

    /// The names, in the order of the outputs; of a number, transformers' name for a lone output.
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Names(names) => names.clone(),
            Self::Number => vec!["LABEL_0".into()],
        }
    }

    /// The output of the label `name`.
    pub fn id(&self, name: &str) -> Option<u32> {
        match self {
            Self::Names(names) => names.iter().position(|known| known == name).map(|id| id as u32),
            Self::Number => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_survive_a_config() {
        let eleven = Labels::Names((0..11).map(|id| format!("class {id}")).collect());
        for labels in [eleven, Labels::Number, Labels::numbered(2)] {
            let mut config = Map::new();
            labels.write_to(&mut config);
            assert_eq!(Labels::of(&config.into()), Some(labels));
        }
        assert_eq!(Labels::of(&json!({})), None);
        assert_eq!(Labels::of(&json!({"id2label": {"0": "a", "2": "b"}})), None);
    }

    #[test]
    fn a_task_survives_a_config() {
        let labels = Labels::Names(vec!["x".into(), "y".into()]);
        let tasks = [
            (Task::Classify(labels.clone()), "GPT2ForSequenceClassification"),
            (Task::Classify(Labels::Number), "GPT2ForSequenceClassification"),
            (Task::Tag(labels), "GPT2ForTokenClassification"),
        ];
        for (task, class) in tasks {
            let mut config = json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]});
            task.write_to(config.as_object_mut().unwrap());
            assert_eq!((Task::of(&config), &config["architectures"]), (task, &json!([class])));
        }
    }

    #[test]
    fn a_task_is_told_by_the_architecture() {
        let config = |name: &str| json!({"architectures": [name], "id2label": {"0": "x", "1": "y"}});
        let labels = Labels::Names(vec!["x".into(), "y".into()]);
        assert_eq!(Task::of(&config("BertForSequenceClassification")), Task::Classify(labels.clone()));
        assert_eq!(Task::of(&config("BertForTokenClassification")), Task::Tag(labels));
        assert_eq!(Task::of(&config("LlamaForCausalLM")), Task::CausalLm);
        assert_eq!(Task::of(&json!({})), Task::CausalLm);
    }
}
