//! What a network is opened to do, and the labels that it gives.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::Error;
use crate::fields::{self, unsupported};

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

/// Model types without a class for labels of tokens in transformers.
const NO_TAGGERS: [&str; 2] = ["gemma3", "gemma3_text"];

/// Labels at most where their number alone is given.
const MAX_LABELS: usize = 1 << 20;

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
    /// The task that the weights of a model were saved for, as [`Task::read`] has it: the next token where that is an error.
    pub fn of(config: &Value) -> Self {
        Self::read(config).unwrap_or_default()
    }

    /// The task that the weights of a model were saved for, by the `architectures` of its config.json: the next token
    /// where they do not say.
    ///
    /// # Errors
    /// As [`Labels::read`].
    pub fn read(config: &Value) -> Result<Self, Error> {
        let architecture = config["architectures"][0].as_str().unwrap_or_default();
        let two = || Labels::numbered(2);
        Ok(if architecture.ends_with("ForSequenceClassification") {
            Self::Classify(Labels::read(config)?.unwrap_or_else(two))
        } else if architecture.ends_with("ForTokenClassification") {
            Self::Tag(Labels::of_tokens(config)?.unwrap_or_else(two))
        } else {
            Self::CausalLm
        })
    }

    /// Refuses a head that no class of transformers has: nothing else could read its adapter, or a model with it.
    pub(crate) fn check_class(&self, model_type: &str) -> Result<(), Error> {
        if matches!(self, Self::Tag(_)) && NO_TAGGERS.contains(&model_type) {
            return Err(unsupported(format!(
                "transformers has no {model_type} that labels tokens, so it and PEFT could not read what is made: tag with another \
                 model, or give this one whole texts (--task classify)"
            )));
        }
        Ok(())
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
        let class = CLASSES.iter().find(|(known, _)| *known == model_type);
        if let Some((_, class)) = class.filter(|_| self.check_class(model_type).is_ok()) {
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

    /// [`Labels::read`], none where that is an error.
    pub fn of(config: &Value) -> Option<Self> {
        Self::read(config).ok().flatten()
    }

    /// What a config.json says that a head gives a text: by `problem_type`, and `id2label` or `num_labels`, as transformers
    /// writes them; none where it names no labels.
    ///
    /// A lone output without a `problem_type` is a number, as in the loss that transformers trains it by
    /// (`ForSequenceClassificationLoss`, 5.23). It is given as the head gives it; transformers' pipeline, and the cross-encoders
    /// of sentence-transformers, show its sigmoid, which orders texts alike.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for several labels a text (`multi_label_classification`), and fields of another kind.
    pub fn read(config: &Value) -> Result<Option<Self>, Error> {
        let several = match fields::text(config, "problem_type")? {
            Some("regression") => return Ok(Some(Self::Number)),
            None => false,
            Some("single_label_classification") => true,
            Some(other) => {
                return Err(unsupported(format!(
                    "config.json: `problem_type` is {other}, taper gives a text one label or a number: expected \
                     single_label_classification or regression"
                )));
            }
        };
        let labels = Self::of_tokens(config)?;
        let lone = labels.as_ref().is_some_and(|labels| labels.outputs() == 1) && !several;
        Ok(if lone { Some(Self::Number) } else { labels })
    }

    /// What a config.json says that a head gives a token: the names of `id2label`, or else transformers' for as many as
    /// `num_labels`; none where it has neither, or `id2label` has gaps.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for fields of another kind.
    pub fn of_tokens(config: &Value) -> Result<Option<Self>, Error> {
        let Some(pairs) = fields::object(config, "id2label")? else {
            let count = fields::optional(config, "num_labels")?;
            if let Some(count) = count.filter(|count| *count > MAX_LABELS) {
                return Err(unsupported(format!(
                    "config.json: `num_labels` is {count}, expected at most {MAX_LABELS}"
                )));
            }
            return Ok(count.map(Self::numbered));
        };
        let pair = |(id, name): (&String, &Value)| Some((id.parse().ok()?, name.as_str()?.to_owned()));
        let by_id: Option<BTreeMap<usize, String>> = pairs.iter().map(pair).collect();
        let whole =
            |by_id: &BTreeMap<usize, String>| !by_id.is_empty() && by_id.keys().copied().eq(0..by_id.len());
        Ok(by_id.filter(whole).map(|by_id| Self::Names(by_id.into_values().collect())))
    }

    /// Writes the labels into a config.json, so that [`Labels::of`] and transformers read them there.
    pub fn write_to(&self, config: &mut Map<String, Value>) {
        let names = self.names();
        let id2label: Map<String, Value> =
            names.iter().enumerate().map(|(id, name)| (id.to_string(), json!(name))).collect();
        let label2id: Map<String, Value> =
            names.iter().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
        let problem = match self {
            // transformers refuses the words for one label, which only tokens have.
            Self::Names(names) if names.len() == 1 => Value::Null,
            Self::Names(_) => json!("single_label_classification"),
            Self::Number => json!("regression"),
        };
        config.insert("id2label".into(), id2label.into());
        config.insert("label2id".into(), label2id.into());
        config.insert("problem_type".into(), problem);
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
    fn a_lone_output_is_a_number_and_several_labels_a_text_are_refused() {
        let config = |labels: Value, problem: Value| json!({"architectures": ["BertForSequenceClassification"], "id2label": labels, "problem_type": problem});
        let one = json!({"0": "LABEL_0"});
        assert_eq!(Labels::of(&config(one.clone(), Value::Null)), Some(Labels::Number));
        assert_eq!(Labels::of(&json!({"num_labels": 1})), Some(Labels::Number));
        assert_eq!(Labels::of(&json!({"num_labels": 3})), Some(Labels::numbered(3)));
        let single = config(one.clone(), json!("single_label_classification"));
        assert_eq!(Labels::of(&single), Some(Labels::numbered(1)));
        let mut tokens = config(one, Value::Null);
        tokens["architectures"] = json!(["BertForTokenClassification"]);
        assert_eq!(Task::of(&tokens), Task::Tag(Labels::numbered(1)));

        let several = config(json!({"0": "a", "1": "b"}), json!("multi_label_classification"));
        let error = Task::read(&several).unwrap_err().to_string();
        assert!(error.contains("`problem_type` is multi_label_classification"), "{error}");
        // Its head is for no task of taper's: one for single labels is fresh.
        assert_eq!(Task::of(&several), Task::CausalLm);
        let error = Labels::read(&json!({"num_labels": 4_000_000_000u32})).unwrap_err().to_string();
        assert!(error.contains("`num_labels` is 4000000000, expected at most"), "{error}");
        assert!(Labels::read(&json!({"id2label": ["a"]})).is_err());
    }

    #[test]
    fn one_label_of_tokens_survives_a_config_that_transformers_reads() {
        let task = Task::Tag(Labels::Names(vec!["x".into()]));
        let mut config = json!({"model_type": "bert", "problem_type": "single_label_classification"});
        task.write_to(config.as_object_mut().unwrap());
        assert_eq!((Task::of(&config), &config["problem_type"]), (task, &Value::Null));
    }

    #[test]
    fn no_class_is_named_that_transformers_lacks() {
        let tag = Task::Tag(Labels::numbered(2));
        for model_type in NO_TAGGERS {
            let mut config = json!({"model_type": model_type, "architectures": ["Gemma3ForCausalLM"]});
            tag.write_to(config.as_object_mut().unwrap());
            assert_eq!(config["architectures"], json!(["Gemma3ForCausalLM"]));
            let error = tag.check_class(model_type).unwrap_err().to_string();
            assert!(error.contains(&format!("no {model_type} that labels tokens")), "{error}");
            assert!(Task::Classify(Labels::numbered(2)).check_class(model_type).is_ok());
        }
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
