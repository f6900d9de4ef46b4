//! PEFT's numbers on text rows through the binary: the loss of base and adapter, three steps of AdamW, and the loss of what
//! was trained and merged.
//!
//! The numbers are PEFT 0.21.2's with transformers 5.23 and PyTorch 2.15 in float32, made by this (`TEXT` and `PAIRS` as below):
//!
//! ```python
//! EOS = 257
//! def examples(tok, kind):
//!     for row in (TEXT if kind == "text" else PAIRS):
//!         if kind == "text":
//!             ids = tok.encode(row).ids; yield ids, [-100] + ids[1:]
//!         else:
//!             p, c = (tok.encode(part, add_special_tokens=False).ids for part in row)
//!             yield p + c + [EOS], [-100] * len(p) + c + [EOS]
//! def loss(model, rows):
//!     total, count = 0., 0
//!     for ids, labels in rows:
//!         n = sum(l != -100 for l in labels)
//!         total = total + model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss * n
//!         count += n
//!     return total / count
//! tok, rows = Tokenizer.from_file(root + "model/tokenizer.json"), list(examples(tok, kind))
//! base = AutoModelForCausalLM.from_pretrained(root + "model", dtype=torch.float32)
//! bare = loss(base, rows).item()
//! model = PeftModel.from_pretrained(base, root + "adapter", is_trainable=True)
//! adapted, steps = loss(model, rows).item(), []
//! opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.01)
//! for batch in [rows[:4], rows[4:], rows[:4]]:
//!     l = loss(model, batch); steps.append(l.item())
//!     opt.zero_grad(); l.backward(); opt.step()
//! after = loss(model, rows).item()
//! ```

use serde_json::{Value, json};

use crate::support::{Room, taper};

const TEXT: [&str; 5] = [
    "The wick draws the wax.",
    "Why is the candle lit? So that we can read.",
    "Ünïcode, 7 × 6 = 42 — done!",
    "light",
    "def f(x):\n    return x + 1\n",
];

const PAIRS: [(&str, &str); 5] = [
    ("Colour of snow? ", "white"),
    ("2 + 2 = ", "4"),
    ("Opposite of cold: ", "hot, or warm"),
    ("Capital of France: ", "Paris"),
    ("éà", "ç"),
];

/// What PEFT computes for one oracle model on one kind of rows.
struct Reference {
    case: &'static str,
    kind: &'static str,
    base: f64,
    adapted: f64,
    steps: [f64; 3],
    after: f64,
}

#[rustfmt::skip]
#[expect(clippy::unreadable_literal, reason = "PEFT's own digits, as Python prints them")]
const REFERENCES: [Reference; 10] = [
    Reference { case: "llama", kind: "text", base: 6.298731, adapted: 6.395037, steps: [6.429102, 6.271479, 6.336034], after: 6.271549 },
    Reference { case: "llama", kind: "pairs", base: 6.499408, adapted: 6.275185, steps: [6.356641, 5.547287, 6.189255], after: 6.049124 },
    Reference { case: "llama-dora", kind: "text", base: 6.298731, adapted: 6.380725, steps: [6.366321, 6.416891, 6.20258], after: 6.154616 },
    Reference { case: "llama-dora", kind: "pairs", base: 6.499408, adapted: 6.299561, steps: [6.317369, 6.143087, 6.032155], after: 5.908258 },
    Reference { case: "llama-modules-to-save", kind: "text", base: 6.298731, adapted: 6.395037, steps: [6.429102, 6.242938, 6.193564], after: 6.068393 },
    Reference { case: "llama-modules-to-save", kind: "pairs", base: 6.499408, adapted: 6.275185, steps: [6.356641, 5.552462, 6.002756], after: 5.789311 },
    Reference { case: "qwen2", kind: "text", base: 6.103503, adapted: 6.061501, steps: [6.025832, 6.187957, 5.93816], after: 5.930466 },
    Reference { case: "qwen2", kind: "pairs", base: 6.203996, adapted: 6.213982, steps: [6.117501, 7.077822, 5.984869], after: 6.027543 },
    Reference { case: "smollm3", kind: "text", base: 6.3699, adapted: 6.455814, steps: [6.505312, 6.279457, 6.41245], after: 6.333182 },
    Reference { case: "smollm3", kind: "pairs", base: 6.383023, adapted: 6.147792, steps: [6.206302, 5.626198, 6.050811], after: 5.937267 },
];

fn rows(room: &Room, kind: &str) -> String {
    let rows: Vec<Value> = match kind {
        "text" => TEXT.iter().map(|text| json!({ "text": text })).collect(),
        _ => PAIRS
            .iter()
            .map(|(prompt, completion)| json!({ "prompt": prompt, "completion": completion }))
            .collect(),
    };
    room.rows(&format!("{kind}.jsonl"), &rows)
}

/// Sums in another order, and three updates made of them; PEFT's numbers are written with seven digits.
fn assert_same(what: &str, found: f64, expected: f64) {
    assert!((found - expected).abs() < 2e-5 * expected, "{what}: {found}, PEFT has {expected}");
}

fn agree(reference: &Reference, eos_in_tokenizer: bool) {
    let Reference { case, kind, .. } = reference;
    let room = Room::new();
    let (model, adapter, data) = (room.model(case), room.adapter(case), rows(&room, kind));
    if !eos_in_tokenizer {
        std::fs::remove_file(room.path(&format!("{case}-model/tokenizer_config.json"))).expect("removed");
    }
    let loss = |flags: &[&str]| {
        taper(&[&["eval", "--json", "--data", &data], flags].concat()).json()["loss"]
            .as_f64()
            .expect("a loss")
    };
    assert_same("the base", loss(&["--model", &model]), reference.base);
    assert_same("the adapter", loss(&["--model", &model, "--adapter", &adapter]), reference.adapted);
    let out = room.arg("out");
    let files = ["train", "--model", &model, "--init-adapter", &adapter, "--data", &data, "--out", &out];
    let optimiser =
        ["--lr", "0.003", "--schedule", "constant", "--weight-decay", "0.01", "--max-grad-norm", "0"];
    let run = ["--batch-size", "4", "--no-shuffle", "--max-steps", "3"];
    taper(&[&files[..], &optimiser, &run].concat()).good();
    for (i, step) in room.events("out/metrics.jsonl", "step").iter().enumerate() {
        assert_same(
            &format!("{case}, {kind}, step {i}"),
            step["loss"].as_f64().expect("a loss"),
            reference.steps[i],
        );
    }
    assert_same("after three steps", loss(&["--model", &model, "--adapter", &out]), reference.after);
    let merged = room.arg("merged");
    taper(&["merge", "--model", &model, "--adapter", &out, "--out", &merged]).good();
    assert_same("merged", loss(&["--model", &merged]), reference.after);
}

#[test]
fn losses_steps_and_merged_models_are_pefts_on_text_rows() {
    REFERENCES
        .iter()
        .filter(|reference| reference.kind == "text")
        .for_each(|reference| agree(reference, true));
}

#[test]
fn losses_steps_and_merged_models_are_pefts_on_prompts_and_completions() {
    REFERENCES
        .iter()
        .filter(|reference| reference.kind == "pairs")
        .for_each(|reference| agree(reference, true));
}

#[test]
fn a_model_whose_config_alone_names_the_eos_has_it_too() {
    agree(&REFERENCES[1], false);
}

#[test]
fn neither_micro_batches_nor_accumulation_change_a_step() {
    let room = Room::new();
    let Reference { case, kind, steps, .. } = &REFERENCES[1];
    let (model, adapter, data) = (room.model(case), room.adapter(case), rows(&room, kind));
    let cuts = [
        &["--batch-size", "4", "--micro-batch-tokens", "1"][..],
        &["--batch-size", "2", "--gradient-accumulation", "2"],
        &["--batch-size", "1", "--gradient-accumulation", "4", "--micro-batch-tokens", "40"],
    ];
    for (i, cut) in cuts.into_iter().enumerate() {
        let out = room.arg(&i.to_string());
        let files = ["train", "--model", &model, "--init-adapter", &adapter, "--data", &data, "--out", &out];
        let run = [
            "--lr",
            "0.003",
            "--schedule",
            "constant",
            "--max-grad-norm",
            "0",
            "--no-shuffle",
            "--max-steps",
            "3",
        ];
        taper(&[&files[..], &run, cut].concat()).good();
        for (step, expected) in room.events(&format!("{i}/metrics.jsonl"), "step").iter().zip(steps) {
            assert_same(&format!("{cut:?}, {step}"), step["loss"].as_f64().expect("a loss"), *expected);
        }
    }
}
