//! A conversation as tokens, rendered by the model's chat template, with the assistant's part learned.

use std::ops::Range;

use serde_json::Value;
use taper_base::ChatTemplate;

use super::Example;
use super::example::Encoder;

/// Messages as a chat template takes them.
pub(super) struct Chat {
    /// `{role, content, …}`, at least one.
    pub(super) messages: Vec<Value>,
    /// The schemas of the tools that the assistant may call.
    pub(super) tools: Option<Value>,
}

impl Encoder<'_> {
    /// The rendered conversation, nothing added to what the template prints (it prints the BOS itself, if there is one).
    ///
    /// Labels are the template's `{% generation %}` blocks where it has them. Else each assistant message is what
    /// rendering up to it adds to rendering what came before it with the generation prompt; both must be a beginning of the
    /// whole text and end between two tokens, otherwise the row is an error rather than wrong labels.
    pub(super) fn chat(&self, chat: &Chat) -> Result<Example, String> {
        let template = self.tokenizer.chat().ok_or(
            "the model has no chat template to render messages with: take a model that has one (often called instruct), \
             put a chat_template.jinja into its folder, or write the rows as {\"prompt\",\"completion\"}",
        )?;
        let rendered = render(template, chat, chat.messages.len(), false)?;
        let pieces = self.tokenizer.encode_with_offsets(&rendered.text).map_err(|error| error.to_string())?;
        let offsets: Vec<Range<usize>> = pieces.iter().map(|(_, offset)| offset.clone()).collect();
        let tokens = pieces.into_iter().map(|(id, _)| id).collect();
        let (spans, exact_end) = match rendered.generated {
            Some(generated) => (generated, false),
            None => (by_prefix(template, chat, &rendered.text)?, true),
        };
        let learn = spans
            .into_iter()
            .filter(|span| !span.is_empty())
            .map(|span| covered(&offsets, &span, exact_end).map_err(|at| straddled(&rendered.text, at)))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Example::new(tokens, learn))
    }
}

/// The first `count` messages as text.
fn render(
    template: &ChatTemplate,
    chat: &Chat,
    count: usize,
    prompt: bool,
) -> Result<taper_base::Rendered, String> {
    let messages = Value::Array(chat.messages[..count].to_vec());
    template.render(&messages, chat.tools.as_ref(), prompt).map_err(|error| match count {
        0 => format!(
            "the first message is the assistant's, and the chat template cannot start with one ({error}): put a user's or \
             system message before it"
        ),
        _ if count < chat.messages.len() => format!(
            "cannot tell which tokens are the assistant's, because its first {count} messages by themselves do not \
             render ({error}): use a chat template with generation blocks"
        ),
        _ => error.to_string(),
    })
}

/// The byte ranges of the assistant's messages in `whole`, each found by rendering what comes before it.
fn by_prefix(template: &ChatTemplate, chat: &Chat, whole: &str) -> Result<Vec<Range<usize>>, String> {
    let mut spans = Vec::new();
    for (at, message) in chat.messages.iter().enumerate() {
        if message.get("role").and_then(Value::as_str) != Some("assistant") {
            continue;
        }
        let before = render(template, chat, at, true)?.text;
        let through = render(template, chat, at + 1, false)?.text;
        if !through.starts_with(&before) || !whole.starts_with(&through) {
            return Err(format!(
                "cannot tell which tokens are the assistant's: the chat template renders messages[..{}] differently when \
                 more follows (thinking models drop earlier thoughts, for example). Use a chat template with generation \
                 blocks, or split the row so that each ends with its only answer",
                if through.starts_with(&before) { at + 1 } else { at },
            ));
        }
        spans.push(before.len()..through.len());
    }
    Ok(spans)
}

/// The tokens whose text lies in `span`, or the byte at which a token reaches over its edge. Unless `exact_end`, a token may
/// reach over the end (a template's block may end before the line break that its last token includes).
fn covered(offsets: &[Range<usize>], span: &Range<usize>, exact_end: bool) -> Result<Range<usize>, usize> {
    let start = offsets.iter().position(|offset| offset.end > span.start).unwrap_or(offsets.len());
    let length = offsets[start..].iter().take_while(|offset| offset.start < span.end).count();
    let tokens = start..start + length;
    let Some(covered) = offsets.get(tokens.clone()).filter(|covered| !covered.is_empty()) else {
        return Ok(tokens);
    };
    if covered[0].start < span.start {
        return Err(span.start);
    }
    if exact_end && covered[length - 1].end > span.end {
        return Err(span.end);
    }
    Ok(tokens)
}

fn straddled(text: &str, at: usize) -> String {
    let before: String = text[..at].chars().rev().take(12).collect::<Vec<_>>().into_iter().rev().collect();
    let after: String = text[at..].chars().take(12).collect();
    format!(
        "cannot tell which tokens are the assistant's: one token reaches over the edge of its message, between \
         {before:?} and {after:?}. Let the message start with something else than spaces or line breaks"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::sample::{self, CHATML};

    fn chat(template: &str, messages: &Value) -> Result<Example, String> {
        let tokenizer = sample::chat(template);
        let encoder = Encoder::new(&tokenizer).unwrap();
        encoder.chat(&Chat { messages: messages.as_array().unwrap().clone(), tools: None })
    }

    fn two_turns() -> Value {
        json!([
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"},
            {"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}
        ])
    }

    #[test]
    fn answers_and_their_end_of_turn_are_learned_by_prefix() {
        // <|bos|> user \n a <|eos|> \n = 0..9, <|bos|> assistant \n = 9..20, b c <|eos|> \n = 20..24, and again.
        let example = chat(CHATML, &two_turns()).unwrap();
        assert_eq!(example.tokens.len(), 47);
        assert_eq!(example.spans(), [20..24, 44..47]);
        assert_eq!(example.tokens[22], sample::EOS);
    }

    #[test]
    fn generation_blocks_say_what_is_learned() {
        let template = "{% for m in messages %}<|bos|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}\
            {% generation %}{{ m['content'] }}<|eos|>{% endgeneration %}{% else %}{{ m['content'] }}<|eos|>{% endif %}{{ '\n' }}\
            {% endfor %}";
        let example = chat(template, &two_turns()).unwrap();
        assert_eq!(example.spans(), [20..23, 44..46]);
    }

    #[test]
    fn t14_a_template_that_is_not_prefix_stable_is_an_error() {
        // Drops what an assistant thought as soon as more follows.
        let template = "{% for m in messages %}<|bos|>{{ m['role'] }}\n\
            {% if loop.last and m['role'] == 'assistant' %}(hm) {% endif %}{{ m['content'] }}<|eos|>{% endfor %}\
            {% if add_generation_prompt %}<|bos|>assistant\n{% endif %}";
        let error = chat(template, &two_turns()).unwrap_err();
        assert!(error.contains("messages[..2] differently when more follows"), "{error}");
        let single = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        assert_eq!(chat(template, &single).unwrap().labels(), "(hm) b".len() + 1);
    }

    #[test]
    fn t14_a_token_over_the_edge_of_an_answer_is_an_error() {
        let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "\nb"}]);
        let error = chat(CHATML, &messages).unwrap_err();
        assert!(
            error.contains("one token reaches over the edge") && error.contains("assistant\\n"),
            "{error}"
        );
    }

    #[test]
    fn conversations_that_cannot_be_rendered_say_why() {
        let template = "{{ messages[0]['role'] + '' }}{% for m in messages %}{{ m['content'] }}{% endfor %}";
        let first = chat(template, &json!([{"role": "assistant", "content": "a"}])).unwrap_err();
        assert!(first.contains("the first message is the assistant's"), "{first}");
        let tokenizer = sample::plain();
        let encoder = Encoder::new(&tokenizer).unwrap();
        let none = encoder.chat(&Chat { messages: vec![json!({})], tools: None }).unwrap_err();
        assert!(none.contains("no chat template") && none.contains("completion"), "{none}");
    }

    #[test]
    fn a_conversation_without_an_answer_has_no_label() {
        let example = chat(CHATML, &json!([{"role": "user", "content": "a"}])).unwrap();
        assert!(example.spans().is_empty() && !example.tokens.is_empty());
    }

    #[test]
    fn edges_go_by_whole_tokens() {
        let offsets = [0..2, 2..5, 5..7, 7..9];
        assert_eq!(covered(&offsets, &(2..7), true), Ok(1..3));
        assert_eq!(covered(&offsets, &(3..7), true), Err(3));
        assert_eq!(covered(&offsets, &(2..6), true), Err(6));
        assert_eq!(covered(&offsets, &(2..6), false), Ok(1..3));
        assert_eq!(covered(&offsets, &(9..9), true), Ok(4..4));
    }
}
