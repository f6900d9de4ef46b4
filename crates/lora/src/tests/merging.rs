//! The merged model computes what base and adapter do, however it is cut into blocks of rows.

use super::*;

/// The base with every tensor merged, `block` rows at a time.
fn merged(toy: &Toy, adapter: &LoraAdapter, block: usize) -> Toy {
    let rows = |name: &str, mut values: Vec<f32>, width: usize| {
        for (i, values) in values.chunks_mut(block * width).enumerate() {
            let first = i * block;
            adapter.merge_rows(name, first..first + values.len() / width, values).unwrap();
        }
        values
    };
    let weight = |path: &str, weight: &Weight| {
        let values = rows(&format!("{path}.weight"), weight.to_f32(), weight.cols());
        Weight::dense(values, weight.rows(), weight.cols()).unwrap()
    };
    let vector = |name: &str, tensor: &Tensor| {
        Tensor::from_vec(rows(name, flat(tensor), 1), tensor.shape(), &Device::Cpu).unwrap()
    };
    let linear = |layer: &Linear| Linear {
        path: layer.path.clone(),
        weight: weight(&layer.path, &layer.weight),
        bias: layer.bias.as_ref().map(|bias| vector(&format!("{}.bias", layer.path), bias)),
    };
    let embed =
        Embedding { path: toy.embed.path.clone(), weight: weight(&toy.embed.path, &toy.embed.weight) };
    let mut head = linear(&toy.head.linear);
    if toy.tied && !adapter.unties() {
        head.weight = embed.weight.clone();
    }
    let norm = RmsNorm { gain: vector(&toy.norm.gain_path, &toy.norm.gain), ..toy.norm.clone() };
    Toy { embed, norm, up: linear(&toy.up), down: linear(&toy.down), head: head.into(), tied: toy.tied }
}

#[test]
fn merged_is_adapted() {
    for (name, config) in configs() {
        let toy = Toy::new(false);
        let adapter = toy.trained(&config);
        for block in [1, 3, 100] {
            let found = merged(&toy, &adapter, block).logits(&());
            assert_close(name, &found, &toy.logits(&adapter), TOLERANCE);
        }
        let change =
            toy.logits(&adapter).iter().zip(toy.logits(&())).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(change > 0.05, "{name}: the adapter does next to nothing");
    }
}

#[test]
fn merged_is_adapted_on_a_tied_base_too() {
    for (name, config) in configs() {
        let toy = Toy::new(true);
        let adapter = toy.trained(&config);
        assert_close(name, &merged(&toy, &adapter, 4).logits(&()), &toy.logits(&adapter), TOLERANCE);
        let touched = config.modules_to_save.iter().any(|name| name == "lm_head")
            || matches!(&config.target_modules, Some(Names::List(l)) if l.iter().any(|n| n == "lm_head" || n == "embed_tokens"));
        assert_eq!(adapter.unties(), touched, "{name}");
    }
}

#[test]
fn the_changed_tensors_are_exactly_those_that_merging_changes() {
    for (name, config) in configs() {
        let toy = Toy::new(false);
        let adapter = toy.trained(&config);
        let after = merged(&toy, &adapter, 2);
        let mut changed = Vec::new();
        for (old, new) in toy.modules().modules.into_iter().zip(after.modules().modules) {
            let path = old.path();
            let differs = match (old, new) {
                (Module::Linear(a), Module::Linear(b)) => {
                    let bias = |layer: &Linear| layer.bias.as_ref().map(flat);
                    if bias(a) != bias(b) {
                        changed.push(format!("{path}.bias"));
                    }
                    a.weight.to_f32() != b.weight.to_f32()
                }
                (Module::Embedding(a), Module::Embedding(b)) => a.weight.to_f32() != b.weight.to_f32(),
                (Module::Norm(a), Module::Norm(b)) => flat(&a.gain) != flat(&b.gain),
                _ => unreachable!(),
            };
            if differs {
                changed.push(format!("{path}.weight"));
            }
        }
        changed.sort();
        assert_eq!(adapter.changed_tensors(), changed, "{name}");
    }
}

#[test]
fn rows_of_another_length_are_refused() {
    for (name, config) in configs() {
        let toy = Toy::new(false);
        let adapter = toy.trained(&config);
        for tensor in adapter.changed_tensors() {
            for len in [0, 1, 3, 5, 7, 1000] {
                let (before, what) = (vec![0.5; len], format!("rows 0..3 of `{tensor}` are {len} values"));
                let mut values = before.clone();
                match adapter.merge_rows(&tensor, 0..3, &mut values) {
                    Ok(()) => assert!(
                        len == 3 && (tensor.contains("bias") || tensor.contains("norm")),
                        "{name}: {tensor}"
                    ),
                    Err(error) => {
                        assert!(error.to_string().contains(&what), "{name}: {error}");
                        assert_eq!(values, before);
                    }
                }
            }
        }
        adapter.merge_rows("no.such.tensor", 0..3, &mut [0.0]).unwrap();
    }
}
