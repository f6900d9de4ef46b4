//! Templates in the style of well-known ones, against what transformers 5.23 with Jinja 3.1.6 renders.
//!
//! `cases/cases.json` is `render_jinja_template(…, return_assistant_tokens_mask=True)` over `cases/*.jinja`, the ranges turned
//! into bytes (empty ones are passed over) and today's date into `{DATE:format}`; an error's
//! text is kept as a remark, only that it fails is compared.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::*;
use crate::tokenizer::tests::shared;

const CASES: &str = include_str!("cases/cases.json");
const TEMPLATES: [(&str, &str); 8] = [
    ("chatml.jinja", include_str!("cases/chatml.jinja")),
    ("llama3.jinja", include_str!("cases/llama3.jinja")),
    ("zephyr.jinja", include_str!("cases/zephyr.jinja")),
    ("gemma.jinja", include_str!("cases/gemma.jinja")),
    ("generation.jinja", include_str!("cases/generation.jinja")),
    ("thinking.jinja", include_str!("cases/thinking.jinja")),
    ("percent.jinja", include_str!("cases/percent.jinja")),
    ("python.jinja", include_str!("cases/python.jinja")),
];

fn template(source: &str) -> ChatTemplate {
    let special = [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>")];
    let special = special.map(|(role, token)| (role.to_string(), token.to_string()));
    ChatTemplate::new(source, None, BTreeMap::from(special))
}

fn render(source: &str, messages: &Json) -> Result<Rendered, Error> {
    template(source).render(messages, None, false)
}

fn failure(source: &str, messages: &Json) -> String {
    render(source, messages).unwrap_err().to_string()
}

/// Today in place of `{DATE:format}`.
fn dated(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{DATE:") {
        let (format, after) = after.split_once('}').unwrap();
        out.push_str(before);
        out.push_str(&strftime_now(format).unwrap());
        rest = after;
    }
    out + rest
}

/// Why a case does not hold, if it does not.
fn compare(source: &str, conversation: &Json, row: &Json) -> Option<String> {
    let tools = Some(&conversation["tools"]).filter(|tools| !tools.is_null());
    let rendered = template(source).render(&conversation["messages"], tools, row[2] == true);
    let expected = row[3].as_str().map(dated);
    let label = format!("{} {} {}", row[0], row[1], row[2]);
    match (rendered, expected) {
        (Err(_), None) => None,
        (Err(error), Some(_)) => Some(format!("{label}: {error}")),
        (Ok(rendered), None) => Some(format!("{label}: {:?} instead of {}", rendered.text, row[5])),
        (Ok(rendered), Some(text)) if rendered.text != text => {
            Some(format!("{label}:\n  found    {:?}\n  expected {text:?}", rendered.text))
        }
        (Ok(rendered), Some(_)) => {
            let pairs: Vec<Vec<usize>> = serde_json::from_value(row[4].clone()).unwrap();
            let ranges: Vec<Range<usize>> =
                pairs.iter().map(|pair| pair[0]..pair[1]).filter(|range| !range.is_empty()).collect();
            let same = rendered.generated.as_ref().map_or(ranges.is_empty(), |found| *found == ranges);
            (!same).then(|| format!("{label}: generated {:?}, expected {ranges:?}", rendered.generated))
        }
    }
}

#[test]
fn templates_render_as_in_transformers() {
    let file: Json = serde_json::from_str(CASES).unwrap();
    let mut wrong = Vec::new();
    for row in file["cases"].as_array().unwrap() {
        let (_, source) = TEMPLATES.iter().find(|(name, _)| *name == row[0]).unwrap();
        wrong.extend(compare(source, &file["conversations"][row[1].as_str().unwrap()], row));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn real_tokenizers_render_and_encode_as_in_transformers() {
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 😀"}]);
    // AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True) of transformers 5.23.
    let expected: [(&str, &str, &[u32]); 2] = [
        (
            "qwen2",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi 😀<|im_end|>\n<|im_start|>assistant\n",
            &[
                151_644, 8948, 198, 3430, 9814, 13, 151_645, 198, 151_644, 872, 198, 13048, 90316, 151_645,
                198, 151_644, 77091, 198,
            ],
        ),
        (
            "mistral-v1",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi 😀<|im_end|>\n<|im_start|>assistant\n",
            &[
                32001, 1587, 13, 3574, 6817, 28723, 32000, 28705, 13, 32001, 2188, 13, 23809, 28705, 30575,
                32000, 28705, 13, 32001, 13892, 13,
            ],
        ),
    ];
    for (name, text, ids) in expected {
        let Some(tokenizer) = shared(name) else { continue };
        let rendered = tokenizer.chat().unwrap().render(&messages, None, true).unwrap();
        assert_eq!(rendered, Rendered { text: text.to_string(), generated: None }, "{name}");
        assert_eq!(tokenizer.encode_bare(&rendered.text).unwrap(), ids, "{name}");
    }
}

/// The mask of `apply_chat_template(…, return_assistant_tokens_mask=True)` of transformers 5.23, which also marks the
/// token around each empty block (11 and 32).
#[test]
fn generated_ranges_mark_the_tokens_that_transformers_marks() {
    let Some(qwen) = shared("qwen2") else { return };
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho 😀, 𝔘!"},
        {"role": "user", "content": "So"}, {"role": "assistant", "content": "No"}]);
    let special = BTreeMap::from([("eos_token".to_string(), "<|im_end|>".to_string())]);
    let template = ChatTemplate::new(include_str!("cases/generation.jinja"), None, special);
    let rendered = template.render(&messages, None, false).unwrap();
    let ranges = rendered.generated.unwrap();
    let marked: Vec<usize> = qwen
        .encode_with_offsets(&rendered.text)
        .unwrap()
        .iter()
        .enumerate()
        .filter(|(_, (_, at))| ranges.iter().any(|range| at.start < range.end && range.start < at.end))
        .map(|(index, _)| index)
        .collect();
    assert_eq!(marked, [15, 16, 17, 18, 19, 20, 21, 22, 36, 37]);
}

#[test]
fn keys_keep_their_order_and_html_is_left_alone() {
    let messages = json!([{"role": "user", "content": {"z": "<b>", "a": "&'"}}]);
    let rendered =
        render("{{ messages[0].content | tojson }}{{ messages[0].content.z }}", &messages).unwrap();
    assert_eq!(rendered.text, "{\"z\": \"<b>\", \"a\": \"&'\"}<b>");
}

#[test]
fn line_ends_of_the_template_are_jinjas_and_none_is_not_iterable() {
    let rendered =
        render("a\r\n{% if true %}\r\nb\r{% endif %}\nc{{ '\\r' }}{{ tools is iterable }}", &json!([]))
            .unwrap();
    assert_eq!(rendered.text, "a\nb\nc\rFalse");
}

#[test]
fn an_unknown_name_is_given_with_its_line() {
    let messages = json!([{"role": "user", "content": "x"}]);
    for (source, name) in [
        ("a\nb {{ no_function(1) }}", "no_function"),
        ("a\n{{ messages | no_filter }}", "no_filter"),
        ("a\n{{ messages is no_test }}", "no_test"),
        ("a\n{{ nothing.content }}", "nothing"),
        ("a\n{{ messages[0].nothing.more }}", "messages[0].nothing"),
        ("a\n{{ messages[0].content.no_method() }}", "no_method"),
        ("a\n{% no_tag %}", "no_tag"),
    ] {
        let error = failure(source, &messages);
        assert!(error.contains(name) && error.contains("line 2"), "{source:?}: {error}");
    }
    assert_eq!(render("a{{ nothing }}b{{ messages[0].nothing }}", &messages).unwrap().text, "ab");
}

#[test]
fn what_a_template_raises_is_passed_on() {
    let error = failure("{{ raise_exception('roles must alternate') }}", &json!([]));
    assert_eq!(error, "chat template: it refuses these messages: roles must alternate");
    assert!(failure("x", &json!({"role": "user"})).contains("list of objects"));
    assert!(failure("x", &json!(["hi"])).contains("list of objects"));
    assert!(failure("{{ strftime_now('%Q') }}", &json!([])).contains("%Q"));
}

#[test]
fn marks_do_not_leak_and_lost_ones_are_noticed() {
    let block = "{% generation %}{{ messages[0].content }}{% endgeneration %}";
    let messages = json!([{"role": "assistant", "content": "a\u{FDD0}b"}]);
    assert!(failure(block, &messages).contains("U+FDD0"));
    assert_eq!(render("{{ messages[0].content }}", &messages).unwrap().text, "a\u{FDD0}b");
    let cut = "{% set x %}{% generation %}abc{% endgeneration %}{% endset %}{{ x[:2] }}";
    assert!(failure(cut, &json!([])).contains("generation"));
    let nested = "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}c{% generation %}d{% endgeneration %}";
    assert_eq!(
        render(nested, &json!([])).unwrap(),
        Rendered { text: "abcd".to_string(), generated: Some(vec![0..2, 3..4]) }
    );
    assert!(failure("a\n{% generation %}b", &json!([])).contains("line 2"));
}
