//! The traps that other trainers fell into (`T1` to `T17`), each a test called `trap_tN_…`; `cargo test trap_t` runs them all.
//!
//! - T1 gradient accumulation: here, on PEFT's numbers in `program_peft`, and `taper-train`'s `gradients.rs`
//! - T2 padding in the loss: here
//! - T3 EOS masked with the padding: here, and `taper-train`'s `data/example.rs`
//! - T4 two BOS: here, and `taper-base`'s `tokenizer/tests.rs`
//! - T5 rounding twice in a merge: here
//! - T6 tied embeddings: here, and `taper-merge`'s `tests/tied.rs`
//! - T7 rope scaling: `taper-base`'s `rope.rs`; unknown types in `bad_input`
//! - T8 packed rows that see each other: here
//! - T9 padding for want of sorting: here
//! - T10 padding sides in generation: `taper-base`'s `decoder/tests.rs`, and `program_generate`
//! - T11 scaling of rsLoRA: here, and the oracle cases llama-rslora, llama-patterns and llama-dora
//! - T12 caches keyed by an adapter's name: with the server
//! - T13 everything masked: here, and `taper-train`'s `data/set.rs`
//! - T14 templates that are not prefix-stable: here, and `taper-train`'s `data/chat.rs`
//! - T15 adapters that are silently not applied: here
//! - T16 resuming: `program_resume`, and `taper-train`'s `trainer/tests.rs`
//! - T17 seed 0: here, and `taper-train`'s `packing.rs`

use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use taper_base::Base;
use taper_lora::LoraAdapter;
use taper_train::{DataFiles, DataOptions, DataSet, Example, Pass, evaluate, micro_batches, step_grads};

use crate::support::{Room, assert_gradient, fixtures, open, save, taper, tensors, values};

/// Rows of very different lengths.
fn ragged(room: &Room) -> String {
    let lengths = [1, 90, 3, 40, 12, 7, 61, 2, 25];
    let row = |n: &usize| json!({ "prompt": format!("{n}: "), "completion": "wax and wick ".chars().cycle().take(*n).collect::<String>() });
    room.rows("ragged.jsonl", &lengths.iter().map(row).collect::<Vec<_>>())
}

fn load(base: &Base, data: &str) -> DataSet {
    let files = DataFiles::named(data).expect("files");
    let files = files.first(&[taper_train::Split::Train]).expect("a file");
    DataSet::load(files, &base.tokenizer, &DataOptions::default()).expect("rows")
}

fn oracle(case: &str) -> (Room, Base, LoraAdapter) {
    let room = Room::new();
    let base = open(room.model(case).as_ref());
    let adapter = LoraAdapter::load_trainable(&fixtures().join("oracle").join(case).join("adapter"), &base)
        .expect("an adapter");
    (room, base, adapter)
}

#[test]
fn trap_t1_a_step_is_the_mean_over_its_labels_however_it_is_cut() {
    let (room, base, adapter) = oracle("llama-all-linear");
    let set = load(&base, &ragged(&room));
    let step = |examples: &[Example], budget: usize| {
        let micro: Vec<_> = micro_batches(examples, budget).collect();
        step_grads(&*base.model, &adapter, &micro, Pass::default()).expect("gradients")
    };
    // The window of eight, and the partial one that remains of an epoch.
    for window in set.examples.chunks(8) {
        let whole = step(window, 10_000);
        let alone: Vec<_> = window.iter().map(|example| step(std::slice::from_ref(example), 1)).collect();
        let labels: usize = window.iter().map(Example::labels).sum();
        for (name, found) in &whole.grads {
            let mean = |i: usize| {
                alone.iter().map(|one| one.grads[name][i] as f64 * one.labels).sum::<f64>() / labels as f64
            };
            let expected: Vec<f32> = (0..found.len()).map(|i| mean(i) as f32).collect();
            assert_gradient(name, found, &expected);
            assert_gradient(name, &step(window, 64).grads[name], &expected);
        }
        assert!((whole.labels - labels as f64).abs() < 1e-9);
    }
}

#[test]
fn trap_t2_only_tokens_of_the_completion_are_scored() {
    let (room, base, adapter) = oracle("llama");
    let set = load(&base, &ragged(&room));
    let expected = [1, 90, 3, 40, 12, 7, 61, 2, 25].map(|n| n + 1);
    assert_eq!(
        set.examples.iter().map(Example::labels).collect::<Vec<_>>(),
        expected,
        "the completion and its EOS"
    );
    let short = &set.examples[0];
    let alone = evaluate(&*base.model, &adapter, std::slice::from_ref(short), 1).expect("a loss");
    // Beside a row ninety times as long, as alone.
    let both = evaluate(&*base.model, &adapter, &set.examples[..2], 10_000).expect("a loss");
    let long = evaluate(&*base.model, &adapter, &set.examples[1..2], 1).expect("a loss");
    assert_eq!((alone.tokens, both.tokens), (2, 93));
    let sum = alone.loss * alone.tokens as f64 + long.loss * long.tokens as f64;
    assert!((both.loss * both.tokens as f64 - sum).abs() < 1e-5 * sum);
}

#[test]
fn trap_t3_the_eos_is_learned_though_it_is_the_padding_and_answers_end() {
    let room = Room::new();
    let model = room.model("llama");
    let config = json!({ "bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|eos|>" });
    room.write("llama-model/tokenizer_config.json", config.to_string());
    let rows = [("snow: ", "white"), ("coal: ", "black")]
        .map(|(prompt, answer)| json!({ "prompt": prompt, "completion": answer }));
    let (data, out) = (room.rows("rows.jsonl", &rows), room.arg("out"));
    let run = ["--max-steps", "60", "--lr", "0.02", "--rank", "8", "--schedule", "constant", "--quiet"];
    taper(&[&["train", "--model", &model, "--data", &data, "--out", &out][..], &run].concat()).good();
    let flags = [
        "generate",
        "--model",
        &model,
        "--adapter",
        &out,
        "--prompt",
        "snow: ",
        "--prompt",
        "coal: ",
        "--json",
    ];
    let found = taper(&flags).json();
    for (prompt, answer) in found["prompts"].as_array().expect("prompts").iter().zip(["white", "black"]) {
        assert_eq!(
            (&prompt["answers"][0]["text"], &prompt["answers"][0]["stop"]),
            (&json!(answer), &json!("eos")),
            "{found}"
        );
    }
}

#[test]
fn trap_t4_one_bos_in_training_and_the_same_tokens_in_generation() {
    let room = Room::new();
    let model = room.model("llama");
    let template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}\
        {% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let config = json!({ "bos_token": "<|bos|>", "eos_token": "<|eos|>", "add_bos_token": true, "chat_template": template });
    room.write("llama-model/tokenizer_config.json", config.to_string());
    let base = open(model.as_ref());
    let bos = |tokens: &[u32]| tokens.iter().filter(|&&token| token == 256).count();
    let question = json!({ "role": "user", "content": "why?" });
    let chat = json!({ "messages": [question, { "role": "assistant", "content": "so" }] });
    for row in [json!({ "text": "a text" }), json!({ "prompt": "p", "completion": "c" }), chat] {
        let set = load(&base, &room.rows("one.jsonl", std::slice::from_ref(&row)));
        let tokens = &set.examples[0].tokens;
        assert_eq!((bos(tokens), tokens[0]), (1, 256), "{row}: {tokens:?}");
    }
    let rendered =
        base.tokenizer.chat().expect("a template").render(&json!([question]), None, true).expect("a prompt");
    let prompt = base.tokenizer.encode_bare(&rendered.text).expect("ids");
    let trained = load(&base, &room.arg("one.jsonl")).examples.remove(0);
    assert!(trained.tokens.starts_with(&prompt), "{prompt:?} in {:?}", trained.tokens);
    assert_eq!(trained.labels(), trained.tokens.len() - prompt.len());
    assert_eq!(base.tokenizer.encode("p").expect("ids")[0], 256, "a plain prompt has its BOS too");
}

#[test]
fn trap_t5_a_merge_into_bf16_rounds_once() {
    let room = Room::new();
    let (model, adapter) = (room.model("llama"), room.adapter("llama"));
    let path = room.path("llama-model/model.safetensors");
    let round = |(name, tensor): (_, Tensor)| (name, tensor.to_dtype(DType::BF16).expect("bf16"));
    let rounded = tensors(&path).into_iter().map(round).collect();
    save(&path, &rounded);
    taper(&["merge", "--model", &model, "--adapter", &adapter, "--out", &room.arg("merged")]).good();
    let merged = tensors(&room.path("merged/model.safetensors"));
    let factors = tensors(&room.path("llama-adapter/adapter_model.safetensors"));
    for module in ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"] {
        let factor = |part: &str| values(&factors[&format!("base_model.model.{module}.{part}.weight")]);
        let (a, b, weight) = (factor("lora_A"), factor("lora_B"), format!("{module}.weight"));
        let (w, found) = (values(&rounded[&weight]), values(&merged[&weight]));
        let (rank, inputs) = (4, 32);
        for (i, (w, found)) in w.iter().zip(&found).enumerate() {
            let (row, column) = (i / inputs, i % inputs);
            let update: f64 =
                (0..rank).map(|r| b[row * rank + r] as f64 * a[r * inputs + column] as f64).sum();
            let exact = *w as f64 + 7.0 / 4.0 * update;
            // Half of the last of 8 bits, and what f32 may add to the sum.
            let half = 2f64.powi(exact.abs().log2().floor() as i32 - 8);
            assert!(
                (*found as f64 - exact).abs() <= half * 1.001,
                "{module}[{row}, {column}]: {found}, exactly {exact}"
            );
        }
    }
}

#[test]
fn trap_t6_a_tied_head_is_untied_in_file_and_config_or_changed_with_its_embedding() {
    let room = Room::new();
    let model = room.model("llama-all-linear");
    assert_eq!(room.json("llama-all-linear-model/config.json")["tie_word_embeddings"], true);
    let data = room.rows("rows.jsonl", &[json!({ "text": "A taper is a slender candle." })]);
    for target in ["lm_head", "embed_tokens"] {
        let (out, merged) = (room.arg(target), room.arg(&format!("{target}-merged")));
        let flags = ["train", "--model", &model, "--data", &data, "--out", &out, "--target-modules", target];
        let run = taper(
            &[&flags[..], &["--max-steps", "5", "--lr", "0.02", "--rank", "4", "--init", "random"]].concat(),
        );
        run.good();
        let found =
            taper(&["merge", "--model", &model, "--adapter", &out, "--out", &merged, "--json"]).json();
        let loss = |flags: &[&str]| {
            taper(&[&["eval", "--data", &data, "--json"], flags].concat()).json()["loss"]
                .as_f64()
                .expect("a loss")
        };
        let (adapted, whole) = (loss(&["--model", &model, "--adapter", &out]), loss(&["--model", &merged]));
        assert!((adapted - whole).abs() < 1e-4 * adapted, "{target}: {adapted} adapted, {whole} merged");
        assert!((loss(&["--model", &model]) - adapted).abs() > 1e-3, "{target}: the adapter does something");
        let tied = &room.json(&format!("{target}-merged/config.json"))["tie_word_embeddings"];
        let stored = tensors(&room.path(&format!("{target}-merged/model.safetensors")));
        assert_eq!(
            (tied == &json!(false), stored.contains_key("lm_head.weight")),
            (found["untied"] == true, found["untied"] == true)
        );
    }
}

#[test]
fn trap_t8_rows_of_one_batch_do_not_see_each_other() {
    for case in ["llama", "mistral", "smollm3"] {
        let (room, base, adapter) = oracle(case);
        let set = load(&base, &ragged(&room));
        let packed = evaluate(&*base.model, &adapter, &set.examples, 10_000).expect("a loss");
        let apart: f64 = (set.examples.iter())
            .map(|example| {
                evaluate(&*base.model, &adapter, std::slice::from_ref(example), 1).expect("a loss")
            })
            .map(|found| found.loss * found.tokens as f64)
            .sum();
        let apart = apart / packed.tokens as f64;
        assert!((packed.loss - apart).abs() < 1e-6 * apart, "{case}: {} packed, {apart} apart", packed.loss);
        let mut turned = set.examples.clone();
        turned.reverse();
        let turned = evaluate(&*base.model, &adapter, &turned, 10_000).expect("a loss");
        assert!((packed.loss - turned.loss).abs() < 1e-6 * apart, "{case}: in another order");
    }
}

#[test]
fn trap_t9_no_token_that_runs_through_the_model_is_padding() {
    let (room, base, _) = oracle("llama");
    let set = load(&base, &ragged(&room));
    let real: usize = set.examples.iter().map(|example| example.tokens.len()).sum();
    for budget in [1, 50, 128, 10_000] {
        let run: usize = micro_batches(&set.examples, budget).map(|micro| micro.batch.len()).sum();
        assert_eq!(run, real, "at most {budget} tokens at a time");
    }
    let (model, data, out) = (room.arg("llama-model"), room.arg("ragged.jsonl"), room.arg("out"));
    let run = ["--epochs", "1", "--batch-size", "4", "--micro-batch-tokens", "100", "--quiet"];
    taper(&[&["train", "--model", &model, "--data", &data, "--out", &out][..], &run].concat()).good();
    let steps = room.events("out/metrics.jsonl", "step");
    assert_eq!(steps.iter().filter_map(|step| step["tokens"].as_u64()).sum::<u64>(), real as u64);
}

#[test]
fn trap_t11_rslora_scales_by_the_root_of_the_rank() {
    let room = Room::new();
    let (model, adapter) = (room.model("llama-rslora"), room.adapter("llama-rslora"));
    let scaling = || {
        let found = taper(&["inspect", &adapter, "--json"]).json();
        found["modules"][0]["scaling"].as_f64().expect("a scaling")
    };
    let data = ragged(&room);
    let loss = || {
        let eval =
            taper(&["eval", "--model", &model, "--adapter", &adapter, "--data", &data, "--json"]).json();
        eval["loss"].as_f64().expect("a loss")
    };
    assert!((scaling() - 7.0 / 2.0).abs() < 1e-12, "alpha 7, rank 4");
    let with = loss();
    let mut config = room.json("llama-rslora-adapter/adapter_config.json");
    config["use_rslora"] = json!(false);
    room.write("llama-rslora-adapter/adapter_config.json", config.to_string());
    assert!((scaling() - 7.0 / 4.0).abs() < 1e-12, "without");
    assert!((loss() - with).abs() > 1e-3);
    config["lora_alpha"] = json!(14);
    room.write("llama-rslora-adapter/adapter_config.json", config.to_string());
    assert!((loss() - with).abs() < 1e-9 * with, "14 / 4 is 7 / 2");
}

#[test]
fn trap_t13_few_labels_are_warned_of_and_none_is_an_error() {
    let room = Room::new();
    let (model, out) = (room.model("llama"), room.arg("out"));
    let data = room.rows("rows.jsonl", &[json!({ "prompt": "a long prompt ".repeat(20), "completion": "" })]);
    let flags = ["train", "--model", &model, "--data", &data, "--out", &out, "--max-steps", "1"];
    taper(&[&flags[..], &["--max-length", "100"]].concat()).bad(&["rows.jsonl", "first 100 tokens"]);
    assert!(!room.path("out").exists());
    let run = taper(&[&flags[..], &["--max-length", "400"]].concat()).good();
    assert!(run.err.contains("only 0.36 % of the tokens are learned"), "{}", run.err);
}

#[test]
fn trap_t14_a_template_that_rewrites_earlier_turns_is_an_error() {
    let room = Room::new();
    let model = room.model("llama");
    // As thinking models do: only the last answer keeps what was thought.
    let template = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and loop.last %}<think>{{ m.thought }}</think>\
        {% endif %}{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    room.write("llama-model/chat_template.jinja", template);
    let turn = |n: usize| {
        [
            json!({ "role": "user", "content": format!("{n}?") }),
            json!({ "role": "assistant", "content": "yes", "thought": "hm" }),
        ]
    };
    let talk = |turns: usize| json!({ "messages": (0..turns).flat_map(turn).collect::<Vec<Value>>() });
    let data = room.rows("talk.jsonl", &[talk(1), talk(2)]);
    let words = ["talk.jsonl:2", "differently when more follows", "generation blocks"];
    taper(&["train", "--model", &model, "--data", &data, "--out", &room.arg("out")]).bad(&words);
    taper(&["data", "check", "--model", &model, "--data", &data]).bad(&words);
    assert!(!room.path("out").exists());
    let blocks = template.replace("<think>", "{% generation %}<think>").replace("{% endif %}{{ m.content }}{{ eos_token }}", "{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{{ eos_token }}{% endif %}");
    room.write("llama-model/chat_template.jinja", blocks);
    let shown =
        taper(&["data", "show", "--model", &model, "--data", &data, "--row", "2", "--count", "1", "--json"])
            .json();
    assert_eq!(shown["rows"][0]["labels"], json!("<think>hm</think>yes".len() + 1), "{shown}");
}

#[test]
fn trap_t15_an_adapter_that_does_not_bind_is_an_error() {
    let room = Room::new();
    let (model, adapter, data) = (room.model("llama"), room.adapter("llama"), ragged(&room));
    let path = room.path("llama-adapter/adapter_model.safetensors");
    let eval = || taper(&["eval", "--model", &model, "--adapter", &adapter, "--data", &data, "--json"]);
    let base = taper(&["eval", "--model", &model, "--data", &data, "--json"]).json();
    assert_ne!(eval().json()["loss"], base["loss"]);
    let whole = std::fs::read(&path).expect("the adapter");
    for (from, to) in [
        ("base_model.model.model.", "base_model.model.language_model.model."),
        ("self_attn", "attention"),
        ("lora_A", "lora_C"),
    ] {
        let renamed = tensors(&path).into_iter().map(|(name, tensor)| (name.replace(from, to), tensor));
        save(&path, &renamed.collect());
        eval().bad(&["adapter_model.safetensors", "missing", "unexpected"]);
        std::fs::write(&path, &whole).expect("a written file");
    }
}

#[test]
fn trap_t17_seed_zero_is_a_seed() {
    let room = Room::new();
    let (model, data) = (room.model("llama"), ragged(&room));
    let adapter = |out: &str, seed: &[&str]| {
        let path = room.arg(out);
        let flags = [
            "train",
            "--model",
            &model,
            "--data",
            &data,
            "--out",
            &path,
            "--max-steps",
            "6",
            "--batch-size",
            "2",
        ];
        taper(&[&flags[..], &["--dropout", "0.2", "--quiet"], seed].concat()).good();
        (
            room.bytes(&format!("{out}/adapter_model.safetensors")),
            room.events(&format!("{out}/metrics.jsonl"), "step")[5]["loss"].clone(),
        )
    };
    let zero = adapter("a", &["--seed", "0"]);
    assert_eq!(zero, adapter("b", &["--seed", "0"]));
    assert_eq!(zero, adapter("c", &[]), "the default");
    assert_ne!(zero, adapter("d", &["--seed", "1"]));
}
