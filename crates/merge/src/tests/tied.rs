//! Tied embeddings (trap T6): one matrix stays one, or becomes two in the files and in the configuration.

use std::fs;

use safetensors::Dtype;
use serde_json::Value;
use taper_base::Checkpoint;
use taper_lora::LoraConfig;

use super::fixture::{Room, Shape, Tensors, VOCAB, adapter, bytes, targets, tensors, write_model};
use super::laws::{assert_merged_is_adapted, cases};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

const TIED: Shape = Shape { dtype: Dtype::F32, tied: true, bias: false, shards: 1 };

fn json(room: &Room, file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(room.path(file)).unwrap()).unwrap()
}

#[test]
fn merged_is_adapted_with_a_tied_head() {
    let room = Room::new(TIED);
    for (name, config) in cases() {
        let adapter = adapter(&room.base(), config, 21);
        assert_merged_is_adapted(&room, &[(&adapter, 1.0)], name);
        let untied =
            ["embedding", "dora-embedding", "head", "both", "saved-norm-head", "saved-both"].contains(&name);
        let config = json(&room, &format!("{name}/config.json"));
        assert_eq!(config["tie_word_embeddings"], !untied, "{name}");
        assert_eq!(Checkpoint::open(&room.path(name)).unwrap().info(HEAD).is_some(), untied, "{name}");
        let keys = |config: &Value| config.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&config), keys(&json(&room, "base/config.json")));
    }
}

#[test]
fn an_untied_head_is_added_to_the_file_of_the_embedding_and_to_the_index() {
    let room = Room::new(Shape { shards: 3, dtype: Dtype::BF16, ..TIED });
    let base = room.base();
    let adapter = adapter(&base, targets(&["embed_tokens"]), 22);
    let merged = room.merge(&base, &[(&adapter, 1.0)]).unwrap();
    assert!(merged.untied);
    assert_eq!(merged.tensors, base.checkpoint.names().count() + 1);
    let out = Checkpoint::open(&merged.path).unwrap();
    assert_eq!(
        out.bytes(HEAD),
        base.checkpoint.bytes(EMBEDDING),
        "the head does not change with its embedding"
    );
    assert_ne!(out.bytes(EMBEDDING), base.checkpoint.bytes(EMBEDDING));
    for name in base.checkpoint.names().filter(|name| *name != EMBEDDING) {
        assert_eq!(out.bytes(name), base.checkpoint.bytes(name), "{name}");
        assert_eq!(out.info(name).unwrap().file, base.checkpoint.info(name).unwrap().file);
    }
    let [before, after] =
        ["base", "out"].map(|dir| json(&room, &format!("{dir}/model.safetensors.index.json")));
    assert_eq!(after["weight_map"][HEAD], before["weight_map"][EMBEDDING]);
    let more = before["metadata"]["total_size"].as_u64().unwrap() + bytes(&merged.path, HEAD).len() as u64;
    assert_eq!(after["metadata"]["total_size"], more);
    let file = fs::read(out.file_of(HEAD).unwrap()).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["made_by"], "a test");
}

/// A tied model whose files name its tensors in another way.
fn renamed(rename: impl Fn(&str) -> Vec<String>) -> Room {
    let room = Room::new(TIED);
    let mut renamed = Tensors::new();
    for (name, tensor) in tensors(TIED) {
        renamed.extend(rename(&name).into_iter().map(|name| (name, tensor.clone())));
    }
    write_model(&room.path("base"), &renamed, TIED);
    room
}

#[test]
fn tensors_with_other_names_than_their_modules_are_found() {
    let only_head = |name: &str| vec![if name == EMBEDDING { HEAD } else { name }.to_owned()];
    let bare = |name: &str| vec![name.strip_prefix("model.").unwrap_or(name).to_owned()];
    let stale = |name: &str| {
        if name == EMBEDDING { vec![name.to_owned(), HEAD.to_owned()] } else { vec![name.to_owned()] }
    };
    for (naming, room) in [("head", renamed(only_head)), ("bare", renamed(bare)), ("stale", renamed(stale))] {
        for (name, config) in cases() {
            let adapter = adapter(&room.base(), config, 23);
            assert_merged_is_adapted(&room, &[(&adapter, 1.0)], &format!("{naming}-{name}"));
        }
    }
}

#[test]
fn an_adapter_that_leaves_both_alone_leaves_the_tie() {
    let room = Room::new(TIED);
    let base = room.base();
    let adapter = adapter(&base, LoraConfig { use_dora: true, ..targets(&["q_proj"]) }, 24);
    let merged = room.merge(&base, &[(&adapter, 1.0)]).unwrap();
    assert!(!merged.untied);
    let [before, after] = ["base", "out"].map(|dir| fs::read(room.path(dir).join("config.json")).unwrap());
    assert_eq!(before, after);
    assert_eq!(Checkpoint::open(&merged.path).unwrap().info(EMBEDDING).unwrap().shape[0], VOCAB);
}
