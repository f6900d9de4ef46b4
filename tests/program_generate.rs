//! `taper generate` and `taper chat`: answers of a base and of its adapters, from arguments, files and pipes.

use std::io::Read;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Room, command, taper, taper_with};

/// The answers of `--json` as (adapter, text, tokens, stop), prompt by prompt.
fn answers(found: &Value) -> Vec<Vec<(String, String, u64, String)>> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let answer = |a: &Value| {
        (text(&a["adapter"]), text(&a["text"]), a["tokens"].as_u64().expect("a number"), text(&a["stop"]))
    };
    let of = |prompt: &Value| prompt["answers"].as_array().expect("answers").iter().map(answer).collect();
    found["prompts"].as_array().expect("prompts").iter().map(of).collect()
}

/// A model, and flags that are enough of an answer for these tests.
struct Ask {
    room: Room,
    model: String,
    adapters: [String; 2],
}

impl Ask {
    fn new() -> Self {
        let room = Room::new();
        let adapters = [format!("a={}", room.adapter("llama")), format!("b={}", room.adapter("llama-dora"))];
        Self { model: room.model("llama"), adapters, room }
    }

    fn flags<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["generate", "--model", self.model.as_str(), "--max-tokens", "12"][..], more].concat()
    }
}

#[test]
fn greedy_text_is_the_same_each_time_and_adapters_change_it() {
    let ask = Ask::new();
    let [a, _] = &ask.adapters;
    let prompt = ["--prompt", "The wick"];
    let run = taper(&ask.flags(&prompt)).good();
    assert_eq!(run.err, "", "nothing to say");
    assert_eq!(run.out, taper(&ask.flags(&prompt)).good().out);
    let adapted = taper(&ask.flags(&[&prompt[..], &["--adapter", a]].concat())).good();
    assert_ne!(run.out, adapted.out);
    let found = taper(&ask.flags(&[&prompt[..], &["--adapter", a, "--json"]].concat())).json();
    let [(name, text, tokens, stop)] = &answers(&found)[0][..] else { panic!("{found}") };
    assert_eq!((name.as_str(), *tokens <= 12, ["eos", "length"].contains(&stop.as_str())), ("a", true, true));
    assert_eq!(adapted.out.trim_end(), text.trim_end());
}

#[test]
fn compare_shows_the_base_and_every_adapter_and_each_answers_as_alone() {
    let ask = Ask::new();
    let [a, b] = &ask.adapters;
    let prompt = ["--prompt", "The wick", "--adapter", a, "--adapter", b];
    taper(&ask.flags(&prompt)).bad(&["2 adapters", "--compare"]);
    let found = taper(&ask.flags(&[&prompt[..], &["--compare", "--json"]].concat())).json();
    let together = answers(&found).remove(0);
    assert_eq!(together.iter().map(|answer| answer.0.as_str()).collect::<Vec<_>>(), ["base", "a", "b"]);
    for (i, flags) in [&[][..], &["--adapter", a], &["--adapter", b]].into_iter().enumerate() {
        let alone = taper(&ask.flags(&[&["--prompt", "The wick", "--json"], flags].concat())).json();
        assert_eq!(answers(&alone)[0][0], together[i]);
    }
    let run = taper(&ask.flags(&[&prompt[..], &["--compare"]].concat())).good();
    for name in ["base | ", "a | ", "b | "] {
        assert!(run.out.contains(name), "{}", run.out);
    }
}

#[test]
fn many_prompts_answer_as_single_ones() {
    let ask = Ask::new();
    let [a, _] = &ask.adapters;
    let prompts = ["The wick", "x", "Why is the candle lit? So that we can read in the dark of the night."];
    let many: Vec<&str> =
        prompts.iter().flat_map(|prompt| ["--prompt", prompt]).chain(["--adapter", a, "--json"]).collect();
    let found = taper(&ask.flags(&many)).json();
    let together = answers(&found);
    for (i, prompt) in prompts.iter().enumerate() {
        let alone = taper(&ask.flags(&["--prompt", prompt, "--adapter", a, "--json"])).json();
        assert_eq!(answers(&alone)[0], together[i], "{prompt}");
        assert_eq!(found["prompts"][i]["prompt"], json!(prompt));
    }
    let run = taper(&ask.flags(&many[..many.len() - 1])).good();
    assert!(prompts.iter().all(|prompt| run.out.contains(&format!("> {prompt}"))), "{}", run.out);
}

#[test]
fn a_prompt_comes_from_stdin_or_a_file() {
    let ask = Ask::new();
    let expected = taper(&ask.flags(&["--prompt", "The wick\nburns"])).good().out;
    assert_eq!(taper_with("The wick\nburns", &ask.flags(&[])).good().out, expected);
    let file = ask.room.write("prompt.txt", "The wick\nburns");
    assert_eq!(taper(&ask.flags(&["--prompt-file", &file])).good().out, expected);
    taper(&ask.flags(&[])).bad(&["no prompt", "--prompt"]);
    taper(&ask.flags(&["--prompt-file", &ask.room.arg("none.txt")])).bad(&["none.txt"]);
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    let ask = Ask::new();
    let whole = answers(&taper(&ask.flags(&["--prompt", "The wick", "--json"])).json())[0][0].1.clone();
    let (at, stop) = whole.char_indices().nth(4).map(|(at, c)| (at, c.to_string())).expect("five characters");
    let at = whole.find(&stop).unwrap_or(at);
    let found = taper(&ask.flags(&["--prompt", "The wick", "--stop", &stop, "--json"])).json();
    let (_, text, _, why) = &answers(&found)[0][0];
    assert_eq!((text.as_str(), why.as_str()), (&whole[..at], "stop"));
    let run = taper(&ask.flags(&["--prompt", "The wick", "--stop", &stop])).good();
    assert_eq!(run.out.trim_end(), whole[..at].trim_end());
}

#[test]
fn sampling_follows_its_seed_and_refuses_what_is_out_of_range() {
    let ask = Ask::new();
    let sample = |seed: &str, more: &[&str]| {
        let flags = ["--prompt", "The wick", "--temperature", "1.5", "--seed", seed, "--json"];
        let found = taper(&ask.flags(&[&flags[..], more].concat())).json();
        answers(&found)
    };
    assert_eq!(sample("0", &[]), sample("0", &[]));
    assert_ne!(sample("0", &[]), sample("1", &[]));
    let greedy = answers(&taper(&ask.flags(&["--prompt", "The wick", "--json"])).json());
    assert_eq!(sample("3", &["--top-k", "1"]), greedy);
    assert_eq!(sample("3", &["--top-p", "0.000001"]), greedy);
    assert_eq!(sample("3", &["--min-p", "1"]), greedy);
    for flag in ["--temperature=-1", "--top-p=1.5", "--top-k=0", "--repetition-penalty=0"] {
        let run = taper(&ask.flags(&["--prompt", "x", flag]));
        let name = flag.split('=').next().expect("a name");
        assert!(run.code == Some(2) && run.err.contains(name) && run.out.is_empty(), "{run:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let ask = Ask::new();
    let [a, b] = &ask.adapters;
    let prompt = ["--prompt", "The wick", "--max-tokens", "80", "--repetition-penalty", "1.3"];
    let many =
        [&prompt[2..], &["--prompt", "x", "--prompt", "y", "--adapter", a, "--adapter", b, "--compare"]]
            .concat();
    for flags in [&prompt[..], &many] {
        let mut flags = ask.flags(flags);
        flags.drain(3..5);
        let spawned = command(&flags).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.expect("a program that starts");
        let mut first = [0];
        child.stdout.take().expect("a pipe").read_exact(&mut first).expect("a byte");
        let output = child.wait_with_output().expect("a program that ends");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(!err.contains("panic") && err.is_empty(), "{err}");
        assert!(output.status.code() == Some(0), "{:?}", output.status);
    }
}

#[test]
fn chat_swaps_adapters_compares_and_begins_anew() {
    let ask = Ask::new();
    let [a, b] = &ask.adapters;
    let flags = ["chat", "--model", &ask.model, "--max-tokens", "8", "--adapter", a, "--adapter", b];
    let talk = "hello\n/adapter b\nand now?\n/adapters\n/adapter base\n/adapter zzz\n/reset\nhello\n/nonsense\n/exit\nnever\n";
    let run = taper_with(talk, &flags).good();
    for words in [
        "answering with a",
        "answering with b",
        "answering with the base",
        "no adapter `zzz`",
        "/nonsense",
        "new conversation",
    ] {
        assert!(run.err.contains(words), "`{words}` is not in: {}", run.err);
    }
    assert!(!run.out.contains("answering"), "{}", run.out);
    let listed = |line: &str| taper_with(line, &flags).good().err;
    assert_eq!(listed("/adapter\n"), listed("/adapters\n"));
    assert!(listed("/adapter\n").contains("* a\n  b\n"), "{}", listed("/adapter\n"));
    let base = taper_with("hello\n", &flags[..5]).good().out;
    assert!(run.out.ends_with(&base), "after /reset the base answers `{base}`: {}", run.out);
    let first = taper_with("hello\n", &flags).good().out;
    assert!(run.out.starts_with(&first), "a answers `{first}`: {}", run.out);
    assert_ne!(first, base);
}

/// Blanks at the ends of an answer are of it. A template that fails with what it was given shows the history.
#[test]
fn a_chat_goes_on_from_what_was_answered_as_it_was() {
    let ask = Ask::new();
    let template = "{% if messages|length > 1 %}{{ raise_exception('<' ~ messages[1].content ~ '>') }}{% endif %}The wick";
    let file = "llama-model/tokenizer_config.json";
    let mut config = ask.room.json(file);
    config["chat_template"] = json!(template);
    ask.room.write(file, config.to_string());
    let whole = answers(&taper(&ask.flags(&["--chat", "--prompt", "x", "--json"])).json())[0][0].1.clone();
    // A stop string behind a blank, where it is for the first time.
    let mut blanks = whole.char_indices().filter(|(_, c)| c.is_whitespace()).map(|(at, c)| at + c.len_utf8());
    let end =
        blanks.find(|&end| whole.len() > end && whole.find(&whole[end..]) == Some(end)).expect("a blank");
    let stop = whole[end..].to_owned();
    let flags = ["chat", "--model", &ask.model, "--max-tokens", "12", "--stop", &stop];
    let run = taper_with("x\ny\n", &flags).good();
    let answer = &whole[..end];
    assert!(answer != answer.trim() && run.err.contains(&format!("<{answer}>")), "{answer:?}: {}", run.err);
}

#[test]
fn compare_in_a_chat_leaves_the_conversation_as_it_was() {
    let ask = Ask::new();
    let [a, b] = &ask.adapters;
    let flags = ["chat", "--model", &ask.model, "--max-tokens", "8", "--adapter", a, "--adapter", b];
    let plain = taper_with("hello\nand now?\n", &flags).good().out;
    let run = taper_with("hello\n/compare who are you?\nand now?\n", &flags).good();
    let names = ["base | ", "a | ", "b | "].map(|name| run.out.matches(name).count());
    assert_eq!(names, [1, 1, 1], "{}", run.out);
    let first = taper_with("hello\n", &flags).good().out;
    let second = plain.strip_prefix(&first).expect("the first answer");
    assert!(run.out.starts_with(&first) && run.out.ends_with(second), "{plain}\n{}", run.out);
    // To compare anew what was asked last, without a text.
    let run = taper_with("hello\n/compare\n", &flags).good();
    let (compared, rest) = run.out.split_once("a | ").expect("a's answer");
    let again = rest.split_once("b | ").expect("b's answer").0;
    assert!(compared.starts_with(&first) && compared.contains("base | "), "{}", run.out);
    assert_eq!(again.trim(), first.trim());
}

/// The model was made for 128 tokens; GPT-2 has no place for more and ends there.
#[test]
fn a_text_that_outgrows_the_model_is_warned_about_once() {
    let ask = Ask::new();
    let warned = |err: &str| err.matches("and the model was made for 128").count();
    let flags = ["generate", "--model", &ask.model, "--prompt", "The wick", "--max-tokens", "200"];
    let found = taper(&[&flags[..], &["--prompt", "x", "--json"]].concat()).good();
    assert_eq!(warned(&found.err), 1, "{}", found.err);
    let run =
        taper_with("hello\nand now?\n/compare x\n", &[&["chat"], &flags[1..3], &flags[5..]].concat()).good();
    assert_eq!(warned(&run.err), 1, "{}", run.err);
    let lines = "The wick\n".repeat(300);
    let run = taper_with(&lines, &["predict", "--model", &ask.model, "--max-new-tokens", "130"]).good();
    assert_eq!(warned(&run.err), 1, "{}", run.err);
    let run = taper(&[&flags[..6], &["20"]].concat()).good();
    assert_eq!(run.err, "");
    let gpt2 = ask.room.model("gpt2");
    let run = taper(&["generate", "--model", &gpt2, "--prompt", "The wick", "--max-tokens", "200"]).good();
    assert_eq!(run.err, "");
}

#[test]
fn chatting_needs_a_template_and_says_so() {
    let ask = Ask::new();
    std::fs::remove_file(ask.room.path("llama-model/tokenizer_config.json")).expect("removed");
    taper(&ask.flags(&["--chat", "--prompt", "hello"])).bad(&["chat template", "llama-model"]);
    let run = taper_with("hello\n", &["chat", "--model", &ask.model]).bad(&["chat template", "llama-model"]);
    assert!(!run.err.contains("answering with"), "it is no use to begin: {}", run.err);
}

/// A pipe's end is a success, a full disk is not; nor is a line that cannot be read passed over.
#[cfg(target_os = "linux")]
#[test]
fn a_chat_that_cannot_be_read_or_written_fails() {
    let ask = Ask::new();
    let flags = ["chat", "--model", &ask.model, "--max-tokens", "4"];
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device");
    let input = std::fs::File::open(ask.room.write("talk.txt", "hello\n")).expect("a file");
    let output = command(&flags).stdin(input).stdout(full).output().expect("a program that ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && err.contains("standard output"), "{err}");

    let input =
        std::fs::File::open(ask.room.write("bad.txt", b"/adapters\nhell\xff\nhello\n")).expect("a file");
    let output = command(&flags).stdin(input).output().expect("a program that ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && err.contains("standard input, line 2"), "{err}");
    assert!(err.contains("UTF-8") && output.stdout.is_empty(), "{err}");
}
