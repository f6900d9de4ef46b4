//! The target modules that a base gets by default, and suggestions for names that select nothing.

use crate::Names;

/// PEFT's defaults by `model_type` (`TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`, 0.21.2), with the Llama-type
/// models that its table lacks.
pub(crate) fn default_targets(model_type: &str) -> Option<Names> {
    let names: &[&str] = match model_type {
        // Not in PEFT's table; its vision tower has layers of the same names.
        "gemma3" => return Some(Names::Pattern(r".*language_model\..*\.(q_proj|v_proj)".to_owned())),
        "llama" | "llama4" | "mistral" | "mixtral" | "stablelm" | "gemma" | "gemma2" | "gemma3_text"
        | "qwen2" | "qwen3" | "opt" | "gptj" | "gpt_neo" | "bart" => &["q_proj", "v_proj"],
        // Not in PEFT's table; nor are distilbert, modernbert and phi3.
        "smollm3" | "olmo2" | "qwen2_moe" | "qwen3_moe" | "granite" | "cohere" | "mistral3" | "gpt_oss" => {
            &["q_proj", "v_proj"]
        }
        "distilbert" => &["q_lin", "v_lin"],
        "phi" => &["q_proj", "v_proj", "fc1", "fc2"],
        "t5" | "mt5" => &["q", "v"],
        "bert" | "roberta" | "xlm-roberta" | "electra" | "layoutlm" => &["query", "value"],
        "deberta-v2" => &["query_proj", "value_proj"],
        "deberta" => &["in_proj"],
        "gpt2" | "gpt_bigcode" => &["c_attn"],
        "btlm" => &["c_proj", "c_attn"],
        "gpt_neox" | "bloom" | "falcon" | "RefinedWeb" | "RefinedWebModel" | "chatglm" => {
            &["query_key_value"]
        }
        "mpt" | "modernbert" => &["Wqkv"],
        "codegen" | "phi3" => &["qkv_proj"],
        "blip-2" => &["q", "v", "q_proj", "v_proj"],
        "nemotron_h" => &["q_proj", "k_proj", "v_proj", "o_proj"],
        "rwkv" => &["key", "value", "receptance", "output"],
        "rwkv7" => &["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
        _ => return None,
    };
    Some(Names::List(names.iter().map(|name| (*name).to_owned()).collect()))
}

/// The last names of module paths, each once, in the order they come.
pub(crate) fn last_names<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names = Vec::new();
    for path in paths {
        let name = path.rsplit('.').next().unwrap_or(path);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The nearest of `names` to a `name` that selects nothing, as a question, and all of them.
pub(crate) fn suggestion(name: &str, names: &[&str]) -> String {
    let last = name.rsplit('.').next().unwrap_or(name);
    let nearest = names.iter().min_by_key(|candidate| distance(last, candidate));
    let close = nearest
        .filter(|candidate| **candidate != last && distance(last, candidate) <= last.len().div_ceil(2));
    let question = close.map(|candidate| format!("did you mean `{candidate}`? ")).unwrap_or_default();
    format!("{question}this base has {}", names.join(", "))
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_is_answered_with_the_nearest_name() {
        let names = ["q_proj", "v_proj", "down_proj"];
        assert_eq!(
            suggestion("v_porj", &names),
            "did you mean `v_proj`? this base has q_proj, v_proj, down_proj"
        );
        assert_eq!(suggestion("self_attn.q_prj", &names[..1]), "did you mean `q_proj`? this base has q_proj");
        assert_eq!(suggestion("xx", &names[..1]), "this base has q_proj");
    }
}
