//! What the merged files hold, byte by byte: one sum in f32, one rounding (trap T5).

use std::fs;

use safetensors::Dtype;
use taper_base::Checkpoint;
use taper_lora::LoraAdapter;

use super::fixture::{HIDDEN, Room, Shape, adapter, bytes, floats, targets};

const Q: &str = "model.layers.1.self_attn.q_proj";

/// Bits of mantissa that a type stores.
fn mantissa(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::BF16 => 7,
        Dtype::F16 => 10,
        _ => 23,
    }
}

/// `Δ = α/r · B·A` of a module of rank 3 and α 4.5, in f64.
fn delta(adapter: &LoraAdapter, path: &str, rows: usize, cols: usize) -> Vec<f64> {
    let factor = |side: &str| {
        let key = format!("base_model.model.{path}.lora_{side}.weight");
        adapter.tensors()[&key].flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (a, b) = (factor("A"), factor("B"));
    let at = |i: usize, j: usize| {
        (0..3).map(|k| f64::from(b[i * 3 + k]) * f64::from(a[k * cols + j])).sum::<f64>() * 1.5
    };
    (0..rows * cols).map(|i| at(i / cols, i % cols)).collect()
}

/// Every value is the exact one rounded once: off by half a unit in the last place, and by what f32 sums are off.
fn assert_rounded_once(found: &[f32], exact: &[f64], dtype: Dtype) {
    for (found, exact) in found.iter().zip(exact) {
        let unit = 2f64.powi(exact.abs().log2().floor() as i32 - mantissa(dtype));
        let sums = 2e-6 * (exact.abs() + 1.0);
        let error = (f64::from(*found) - exact).abs();
        assert!(error <= unit / 2.0 + sums, "{found} for {exact}: off by {error}, unit {unit}, {dtype:?}");
    }
}

#[test]
fn merged_tensors_are_the_f32_sum_rounded_once_and_others_keep_their_bytes() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let room = Room::new(Shape::of(dtype));
        let base = room.base();
        let adapter = adapter(&base, targets(&["q_proj", "down_proj"]), 1);
        let merged = room.merge(&base, &[(&adapter, 1.0)]).unwrap();
        assert_eq!((merged.changed.len(), merged.untied, merged.tensors), (4, false, 21));
        let out = Checkpoint::open(&merged.path).unwrap();
        for name in base.checkpoint.names() {
            let same = out.bytes(name) == base.checkpoint.bytes(name);
            assert_eq!(same, !merged.changed.iter().any(|changed| changed == name), "{name}");
        }
        let name = format!("{Q}.weight");
        let sum = |(w, d): (&f32, &f64)| f64::from(*w) + d;
        let deltas = delta(&adapter, Q, HIDDEN, HIDDEN);
        let exact: Vec<f64> = floats(&base.checkpoint, &name).iter().zip(&deltas).map(sum).collect();
        assert_rounded_once(&floats(&out, &name), &exact, dtype);
    }
}

#[test]
fn files_headers_and_everything_beside_the_weights_are_kept() {
    for shards in [1, 3] {
        let room = Room::new(Shape { shards, ..Shape::of(Dtype::BF16) });
        let base = room.base();
        let adapter = adapter(&base, targets(&["v_proj"]), 2);
        fs::create_dir(room.path("base/original")).unwrap();
        fs::write(room.path("base/.gitattributes"), "x").unwrap();
        let out = room.merge(&base, &[(&adapter, 1.0)]).unwrap().path;
        let mut expected: Vec<_> =
            fs::read_dir(room.path("base")).unwrap().map(|e| e.unwrap().file_name()).collect();
        expected.retain(|name| {
            !["original", ".gitattributes", "pytorch_model.bin"].map(AsRef::as_ref).contains(&&**name)
        });
        let mut found: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
        for name in found {
            let (before, after) =
                (fs::read(room.path("base").join(&name)).unwrap(), fs::read(out.join(&name)).unwrap());
            let is_weights = name.to_str().unwrap().ends_with(".safetensors");
            let header = || 8 + u64::from_le_bytes(before[..8].try_into().unwrap()) as usize;
            let header = if is_weights { header() } else { before.len() };
            assert_eq!(before[..header], after[..header], "{}", name.display());
            assert_eq!(before.len(), after.len());
        }
        assert_eq!(room.names(), ["base", "out"]);
    }
}

#[test]
fn several_adapters_add_their_weighted_changes_in_any_order() {
    let room = Room::new(Shape::of(Dtype::BF16));
    let base = room.base();
    let a = adapter(&base, targets(&["q_proj"]), 3);
    let b = adapter(&base, targets(&["q_proj", "o_proj"]), 4);
    let out = room.merge(&base, &[(&a, 0.75), (&b, -0.5)]).unwrap().path;
    let name = format!("{Q}.weight");
    let w = floats(&base.checkpoint, &name);
    let (da, db) = (delta(&a, Q, HIDDEN, HIDDEN), delta(&b, Q, HIDDEN, HIDDEN));
    let exact: Vec<f64> = (0..w.len()).map(|i| f64::from(w[i]) + 0.75 * da[i] - 0.5 * db[i]).collect();
    assert_rounded_once(&floats(&Checkpoint::open(&out).unwrap(), &name), &exact, Dtype::BF16);
    let other = room.merge_to("other", false, &base, &[(&b, -0.5), (&a, 0.75)]).unwrap().path;
    assert_eq!(
        bytes(&out, "model.layers.0.self_attn.o_proj.weight"),
        bytes(&other, "model.layers.0.self_attn.o_proj.weight")
    );
}

#[test]
fn weight_zero_and_no_adapter_give_the_base() {
    let room = Room::new(Shape::of(Dtype::F16));
    let base = room.base();
    let a = adapter(&base, targets(&["q_proj"]), 5);
    for (out, adapters) in [("zero", &[(&a, 0.0)][..]), ("none", &[])] {
        room.merge_to(out, false, &base, adapters).unwrap();
        let [before, after] =
            ["base", out].map(|dir| fs::read(room.path(dir).join("model.safetensors")).unwrap());
        assert_eq!(before, after, "{out}");
    }
}

#[test]
fn merging_twice_gives_the_same_bytes() {
    let room = Room::new(Shape { shards: 2, ..Shape::of(Dtype::BF16) });
    let base = room.base();
    let a = adapter(&base, targets(&["q_proj", "gate_proj", "up_proj"]), 6);
    for out in ["one", "two"] {
        room.merge_to(out, false, &base, &[(&a, 1.0)]).unwrap();
    }
    for name in base.checkpoint.names() {
        assert_eq!(bytes(&room.path("one"), name), bytes(&room.path("two"), name), "{name}");
    }
}
