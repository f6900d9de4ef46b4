//! What goes wrong leaves nothing that looks finished, and says what it was.

use std::fs;
use std::ops::ControlFlow;

use safetensors::Dtype;
use taper_lora::LoraConfig;

use super::fixture::{Room, Shape, adapter, targets};
use crate::{Error, Out, Weighted, build, merge};

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
    fs::remove_file(room.path("out/old.txt")).unwrap();
    let forced = || room.merge_to("out", true, &base, &[(&a, 1.0)]);
    forced().unwrap();
    fs::write(room.path("out/old.json"), "{}").unwrap();
    forced().unwrap();
    assert!(!room.path("out/old.json").exists());
    assert!(room.path("out/config.json").exists());
    fs::write(room.path("file"), "x").unwrap();
    failure(room.merge_to("file", true, &base, &[(&a, 1.0)]), &["file", "not a folder"]);
    assert_eq!(room.names(), ["base", "file", "out"]);
}

#[test]
fn a_folder_that_is_no_models_is_not_replaced() {
    let room = Room::new(Shape::of(Dtype::BF16));
    let base = room.base();
    let forced = || room.merge_to("out", true, &base, &[]);
    for (file, words) in [
        ("thesis.txt", &["out", "no model", "config.json"][..]),
        ("config.json", &["no model", "model.safetensors"]),
        ("adapter_config.json", &["an adapter", "adapter_config.json"]),
        ("drafts/thesis.txt", &["`drafts`", "--force"]),
    ] {
        let file = room.path("out").join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "mine").unwrap();
        failure(forced(), words);
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        fs::remove_dir_all(room.path("out")).unwrap();
    }
    // A model that somebody has made a folder in.
    forced().unwrap();
    fs::create_dir(room.path("out/.git")).unwrap();
    failure(forced(), &["`.git`"]);
    assert!(room.path("out/model.safetensors").exists());
}

#[test]
fn the_adapters_folders_are_not_replaced() {
    let room = Room::new(Shape::of(Dtype::BF16));
    let base = room.base();
    // Beside a whole model, so that nothing else keeps it.
    room.merge_to("par", false, &base, &[]).unwrap();
    adapter(&base, targets(&["q_proj"]), 36).save(&room.path("par/ad")).unwrap();
    room.merge_to("kk", false, &base, &[]).unwrap();
    let keep = [room.path("par/ad"), room.path("kk")];
    let keep = keep.each_ref().map(std::path::PathBuf::as_path);
    for out in ["par", "par/ad", "kk"] {
        let path = room.path(out);
        let out = Out { path: &path, force: true, keep: &keep };
        failure(merge(&base, &[], out, &mut |_| ControlFlow::Continue(())), &["which is being merged"]);
    }
    assert!(room.path("par/ad/adapter_config.json").exists() && room.path("kk/config.json").exists());
}

#[test]
fn what_is_built_and_not_published_is_gone() {
    let room = Room::new(Shape::of(Dtype::BF16));
    let out = room.path("out");
    let built = build(&room.base(), &[], Out::new(&out), &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(built.dir().join("model.safetensors").exists() && !out.exists());
    drop(built);
    assert_eq!(room.names(), ["base"]);
    for force in [false, true] {
        let to = Out { force, ..Out::new(&out) };
        let built = build(&room.base(), &[], to, &mut |_| ControlFlow::Continue(())).unwrap();
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("thesis.txt"), "of somebody else, meanwhile").unwrap();
        failure(built.publish(), &["out", "--force"]);
        assert!(out.join("thesis.txt").exists());
        assert_eq!(room.names(), ["base", "out"]);
        fs::remove_dir_all(&out).unwrap();
    }
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
    let stopped = merge(&base, &weighted, Out::new(&room.path("out")), &mut |_| ControlFlow::Break(()));
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
        [4_999_999, std::process::id()].map(|id| room.path(&format!(".taper-{id}-9999.out.part")));
    for dir in [&dead, &alive] {
        fs::create_dir(dir).unwrap();
    }
    room.merge(&base, &[]).unwrap();
    assert_eq!(dead.exists(), !cfg!(target_os = "linux"));
    assert!(alive.exists());
    // Killed between the old folder's going and the new one's coming: the old one is there again, and not replaced unasked.
    if cfg!(target_os = "linux") {
        fs::write(room.path("out/old.json"), "{}").unwrap();
        fs::rename(room.path("out"), room.path(".taper-4999999-0.out.old")).unwrap();
        failure(room.merge(&base, &[]), &["out", "exists", "--force"]);
        assert!(room.path("out/old.json").exists());
    }
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
