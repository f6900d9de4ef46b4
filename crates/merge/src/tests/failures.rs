//! What goes wrong leaves nothing that looks finished, and says what it was.

use std::fs;
use std::ops::ControlFlow;

use safetensors::Dtype;
use taper_lora::LoraConfig;

use super::fixture::{Room, Shape, adapter, targets};
use crate::{Error, Weighted, merge};

fn failure(result: Result<crate::Merged, Error>, words: &[&str]) -> Error {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    error
}

#[test]
fn an_existing_folder_is_refused_and_with_force_replaced_whole() {
    let room = Room::new(Shape::of(Dtype::BF16));
    let base = room.base();
    let a = adapter(&base, targets(&["q_proj"]), 31);
    fs::create_dir(room.path("out")).unwrap();
    fs::write(room.path("out/old.txt"), "old").unwrap();
    failure(room.merge(&base, &[(&a, 1.0)]), &["out", "exists", "--force"]);
    assert!(room.path("out/old.txt").exists());
    room.merge_to("out", true, &base, &[(&a, 1.0)]).unwrap();
    assert!(!room.path("out/old.txt").exists());
    assert!(room.path("out/config.json").exists());
    fs::write(room.path("file"), "x").unwrap();
    failure(room.merge_to("file", true, &base, &[(&a, 1.0)]), &["file", "not a folder"]);
    assert_eq!(room.names(), ["base", "file", "out"]);
}

#[test]
fn base_and_output_may_not_lie_in_each_other() {
    let room = Room::new(Shape::of(Dtype::BF16));
    let base = room.base();
    for out in ["base", "base/out", "base/../base", "."] {
        failure(room.merge_to(out, true, &base, &[]), &["which is being merged"]);
    }
    assert_eq!(room.names(), ["base"]);
    assert!(!room.path("base/out").exists());
}

#[test]
fn a_merged_value_that_is_not_finite_is_named_and_nothing_is_left() {
    let room = Room::new(Shape::of(Dtype::F16));
    let base = room.base();
    let huge = adapter(&base, LoraConfig { lora_alpha: 1e7, ..targets(&["o_proj"]) }, 32);
    let error = failure(
        room.merge(&base, &[(&huge, 1.0)]),
        &["model.safetensors", "self_attn.o_proj.weight", "too large for F16"],
    );
    assert!(matches!(error, Error::NotFinite { .. }));
    let infinite = adapter(&base, LoraConfig { lora_alpha: 1e300, ..targets(&["o_proj"]) }, 33);
    failure(room.merge(&base, &[(&infinite, 1.0)]), &["self_attn.o_proj.weight", "broken"]);
    failure(room.merge(&base, &[(&huge, f64::NAN)]), &["weight is NaN"]);
    assert_eq!(room.names(), ["base"]);
}

#[test]
fn stopping_and_unwritable_places_leave_nothing() {
    let room = Room::new(Shape::of(Dtype::BF16));
    let base = room.base();
    let a = adapter(&base, targets(&["q_proj"]), 34);
    let weighted = [Weighted { adapter: &a, weight: 1.0 }];
    let stopped = merge(&base, &weighted, &room.path("out"), false, &mut |_| ControlFlow::Break(()));
    assert!(matches!(failure(stopped, &["stopped"]), Error::Stopped));
    fs::write(room.path("file"), "x").unwrap();
    failure(room.merge_to("file/out", false, &base, &[(&a, 1.0)]), &["file"]);
    failure(room.merge_to("..", false, &base, &[(&a, 1.0)]), &["which is being merged"]);
    assert_eq!(room.names(), ["base", "file"]);
}

#[test]
fn a_base_that_lacks_the_tensor_or_the_bias_is_refused() {
    let room = Room::new(Shape { bias: true, ..Shape::of(Dtype::F32) });
    let base = room.base();
    let a = adapter(&base, LoraConfig { lora_bias: true, ..targets(&["q_proj"]) }, 35);
    let bare = Room::new(Shape::of(Dtype::F32));
    failure(room.merge(&bare.base(), &[(&a, 1.0)]), &["model.layers.0.self_attn.q_proj.bias", "no bias"]);
    assert_eq!(room.names(), ["base"]);
}

#[test]
fn folders_that_a_killed_merge_left_are_removed() {
    let room = Room::new(Shape::of(Dtype::BF16));
    let base = room.base();
    // No process has this number: the largest is 2²².
    let [dead, alive] =
        [4_999_999, std::process::id()].map(|id| room.path(&format!(".out.partial-{id}-abc")));
    for dir in [&dead, &alive] {
        fs::create_dir(dir).unwrap();
    }
    room.merge(&base, &[]).unwrap();
    assert_eq!(dead.exists(), !cfg!(target_os = "linux"));
    assert!(alive.exists());
}

#[cfg(unix)]
#[test]
fn the_new_folder_can_be_read_like_any_other() {
    use std::os::unix::fs::PermissionsExt;
    let room = Room::new(Shape::of(Dtype::BF16));
    fs::create_dir(room.path("any")).unwrap();
    let mode = |name: &str| fs::metadata(room.path(name)).unwrap().permissions().mode();
    room.merge(&room.base(), &[]).unwrap();
    assert_eq!(mode("out"), mode("any"));
}
