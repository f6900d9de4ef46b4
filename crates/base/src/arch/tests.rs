//! What config.json may say: a field of another kind, or a size that no file could fill, is refused by its name.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use taper_kernels::Compute;

use crate::decoder::DecoderConfig;
use crate::{Checkpoint, Error, Task, arch};

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle").join(case).join("model")
}

fn config(case: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder(case).join("config.json")).unwrap()).unwrap()
}

/// What becomes of the model with `field` set to `value`.
fn with(case: &str, field: &str, value: &Value) -> Result<(), String> {
    let mut config = config(case);
    let task = Task::of(&config);
    config[field] = value.clone();
    let checkpoint = Checkpoint::open(&folder(case)).unwrap();
    arch::build(&config, &checkpoint, Compute::F32, &task).map(drop).map_err(|error| error.to_string())
}

const LLAMA: &[&str] = &[
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "rms_norm_eps",
    "attention_dropout",
    "rope_parameters",
    "quantization_config",
];

/// The fields that every model type reads.
const FIELDS: [(&str, &[&str]); 11] = [
    ("llama-all-linear", &["hidden_act", "attention_bias", "mlp_bias"]),
    ("qwen2", &["use_sliding_window"]),
    (
        "gemma2",
        &[
            "hidden_activation",
            "attention_bias",
            "query_pre_attn_scalar",
            "final_logit_softcapping",
            "sliding_window",
            "use_bidirectional_attention",
            "layer_types",
        ],
    ),
    ("gemma3", &["sliding_window", "rope_theta", "rope_local_base_freq"]),
    ("smollm3", &["no_rope_layers", "use_sliding_window", "attention_bias"]),
    ("phi3", &["partial_rotary_factor", "original_max_position_embeddings", "sliding_window"]),
    (
        "gpt2",
        &[
            "n_embd",
            "n_head",
            "n_positions",
            "n_layer",
            "n_inner",
            "vocab_size",
            "tie_word_embeddings",
            "layer_norm_epsilon",
            "activation_function",
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
            "add_cross_attention",
        ],
    ),
    (
        "gpt-neox",
        &[
            "layer_norm_eps",
            "hidden_act",
            "rotary_pct",
            "rotary_emb_base",
            "attention_bias",
            "use_parallel_residual",
        ],
    ),
    (
        "bert-classify",
        &["layer_norm_eps", "hidden_act", "type_vocab_size", "initializer_range", "position_embedding_type"],
    ),
    (
        "modernbert-classify",
        &[
            "norm_eps",
            "norm_bias",
            "attention_bias",
            "classifier_pooling",
            "classifier_bias",
            "local_attention",
            "global_rope_theta",
            "initializer_range",
        ],
    ),
    (
        "t5",
        &[
            "d_model",
            "d_ff",
            "d_kv",
            "num_layers",
            "num_decoder_layers",
            "num_heads",
            "feed_forward_proj",
            "tie_word_embeddings",
            "layer_norm_epsilon",
            "relative_attention_num_buckets",
            "relative_attention_max_distance",
            "decoder_start_token_id",
            "initializer_factor",
        ],
    ),
];

#[test]
fn a_field_of_another_kind_is_never_its_default() {
    let llama = ["llama-all-linear", "qwen2", "gemma2", "gemma3", "smollm3", "phi3"];
    for (case, fields) in FIELDS {
        let shared = if llama.contains(&case) { LLAMA } else { &[] };
        for field in fields.iter().chain(shared) {
            // No field is a list of lists.
            let error = with(case, field, &json!([[]])).unwrap_err();
            assert!(
                error.contains(&format!("`{field}` is [[]]")) || error.contains("layer type `[]`"),
                "{case}: {error}"
            );
        }
    }
}

#[test]
fn sizes_that_no_file_could_fill_are_refused_before_they_are_allocated() {
    let most = json!(u32::MAX);
    for (case, field) in [
        ("llama-all-linear", "num_hidden_layers"),
        ("llama-all-linear", "hidden_size"),
        ("llama-head-dim", "head_dim"),
        ("gemma3", "head_dim"),
        ("gpt2", "n_layer"),
        ("gpt2", "n_embd"),
        ("gpt-neox", "num_hidden_layers"),
        ("bert-classify", "num_hidden_layers"),
        ("bert-classify", "hidden_size"),
        ("modernbert-classify", "num_hidden_layers"),
        ("modernbert-classify", "hidden_size"),
        ("t5", "num_layers"),
        ("t5", "num_decoder_layers"),
        ("t5", "relative_attention_max_distance"),
        ("t5", "d_kv"),
    ] {
        with(case, field, &most).unwrap_err();
    }
    // A fresh head is as wide as the body, whose files are looked at first.
    let bare = json!(["BertModel"]);
    let mut config = config("bert-classify");
    let task = Task::of(&config);
    (config["architectures"], config["hidden_size"]) = (bare, json!(1u32 << 30));
    let checkpoint = Checkpoint::open(&folder("bert-classify")).unwrap();
    arch::build(&config, &checkpoint, Compute::F32, &task).unwrap_err();
}

#[test]
fn a_config_that_is_no_object_is_refused() {
    let checkpoint = Checkpoint::open(&folder("gpt2")).unwrap();
    let task = Task::Classify(crate::Labels::numbered(2));
    let error = arch::build(&json!([]), &checkpoint, Compute::F32, &task).unwrap_err().to_string();
    assert!(error.contains("holds no object"), "{error}");
}

type Facts = fn(&Value) -> Result<DecoderConfig, Error>;
/// K, E, positions, tied, eps, θ, window of the first layer.
type Defaults = (usize, usize, usize, bool, f64, f32, Option<usize>);

/// What `LlamaConfig()` and its like have in transformers 5.23 where a file says no more than its sizes.
#[test]
fn what_a_file_leaves_out_is_the_default_of_its_config_class() {
    let bare = json!({"hidden_size": 4096, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 32,
        "vocab_size": 9});
    let cases: [(&str, Facts, Defaults); 8] = [
        ("llama", super::llama::facts, (32, 128, 2048, false, 1e-6, 1e4, None)),
        ("mistral", super::mistral::facts, (8, 128, 131_072, false, 1e-6, 1e4, Some(4096))),
        ("qwen2", super::qwen2::facts, (32, 128, 32_768, false, 1e-6, 1e4, None)),
        ("qwen3", super::qwen3::facts, (32, 128, 32_768, false, 1e-6, 1e4, None)),
        ("smollm3", super::smollm3::facts, (4, 128, 32_768, true, 1e-6, 2e6, None)),
        ("phi3", super::phi3::facts, (32, 128, 4096, false, 1e-5, 1e4, None)),
        ("gemma2", super::gemma2::facts, (4, 256, 8192, true, 1e-6, 1e4, Some(4096))),
        ("gemma3_text", super::gemma3::facts, (4, 256, 131_072, true, 1e-6, 1e6, Some(4096))),
    ];
    for (name, facts, expected) in cases {
        let facts = facts(&bare).unwrap();
        let sizes = facts.sizes;
        // The second frequency is θ^(-2/E).
        let theta = facts.ropes[0].inv_freq()[1].powf(-(sizes.head_dim as f32) / 2.0);
        assert!((theta / expected.5 - 1.0).abs() < 1e-3, "{name}: {theta}");
        let found = (
            sizes.num_key_value_heads,
            sizes.head_dim,
            sizes.max_position_embeddings,
            sizes.tie_word_embeddings,
            facts.rms_norm_eps,
            expected.5,
            facts.layers[0].window,
        );
        assert_eq!(found, expected, "{name}");
    }
    let unbounded =
        super::with_defaults(&json!({ "sliding_window": null, "num_key_value_heads": null }), bare);
    let facts = super::mistral::facts(&unbounded).unwrap();
    assert_eq!((facts.layers[0].window, facts.sizes.num_key_value_heads), (None, 32));
}

#[test]
fn the_limit_of_a_model_is_read_without_its_weights() {
    for (name, mut config, expected) in [
        ("llama", json!({ "max_position_embeddings": 128 }), Some(128)),
        ("llama", json!({}), None),
        ("gpt2", json!({ "n_positions": 64, "max_position_embeddings": 7 }), Some(64)),
        ("roberta", json!({ "max_position_embeddings": 514, "pad_token_id": 1 }), Some(512)),
        ("gemma3", json!({ "text_config": { "max_position_embeddings": 99 } }), Some(99)),
        ("t5", json!({}), Some(512)),
    ] {
        config["model_type"] = name.into();
        assert_eq!(super::max_positions(&config).unwrap(), expected, "{name}");
    }
}
