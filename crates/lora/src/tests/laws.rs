//! The laws that every variant keeps.

use super::*;
use crate::Init;

#[test]
fn a_fresh_adapter_is_the_base() {
    for (name, config) in configs() {
        for init in [Init::Default, Init::Gaussian] {
            if config.lora_bias && init == Init::Gaussian {
                continue;
            }
            let toy = Toy::new(false);
            let config = LoraConfig { init_lora_weights: init, ..config.clone() };
            let adapter = LoraAdapter::fresh(config, toy.modules(), 0).unwrap();
            assert_close(name, &toy.logits(&adapter), &toy.logits(&()), TOLERANCE);
        }
    }
}

/// Of all that is trained but biases, magnitudes and norms, which are vectors.
#[test]
fn values_are_known_before_they_are_made() {
    let toy = Toy::new(false);
    for (name, config) in configs() {
        let planned = LoraAdapter::planned_values(config.clone(), toy.modules()).unwrap();
        let adapter = LoraAdapter::fresh(config, toy.modules(), 0).unwrap();
        let matrices = adapter.params().values().filter(|var| var.rank() == 2);
        assert_eq!(planned, matrices.map(|var| var.elem_count() as u64).sum::<u64>(), "{name}");
    }
}

#[test]
fn a_random_start_changes_the_base() {
    let toy = Toy::new(false);
    for (name, config) in configs().into_iter().filter(|(_, config)| config.modules_to_save.is_empty()) {
        let config = LoraConfig { init_lora_weights: Init::Random, ..config };
        let adapter = LoraAdapter::fresh(config, toy.modules(), 0).unwrap();
        let change =
            toy.logits(&adapter).iter().zip(toy.logits(&())).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(change > 1e-3, "{name}: {change}");
    }
}

#[test]
fn seed_and_key_alone_decide_a_start() {
    let toy = Toy::new(false);
    let fresh = |targets: &[&str], seed| {
        let config = LoraConfig { target_modules: Some(list(targets)), ..LoraConfig::default() };
        LoraAdapter::fresh(config, toy.modules(), seed).unwrap()
    };
    let key = "base_model.model.model.layers.0.up_proj.lora_A.weight";
    let (one, two, other) =
        (fresh(&["up_proj"], 0), fresh(&["up_proj", "down_proj"], 0), fresh(&["up_proj"], 1));
    assert_eq!(flat(&one.tensors()[key]), flat(&two.tensors()[key]));
    assert_ne!(flat(&one.tensors()[key]), flat(&other.tensors()[key]));
    let bound = 1.0 / (DIM as f32).sqrt();
    assert!(flat(&one.tensors()[key]).iter().all(|a| a.abs() <= bound));
}

#[test]
fn every_parameter_and_only_parameters_get_gradients() {
    for (name, config) in configs() {
        let toy = Toy::new(false);
        let adapter = toy.trained(&config);
        let gradients = toy.loss(&adapter).backward().unwrap();
        for (key, var) in adapter.params() {
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name}: `{key}` got no gradient"));
            assert!(flat(gradient).iter().any(|g| *g != 0.0), "{name}: the gradient of `{key}` is zero");
        }
        assert_eq!(
            gradients.get_ids().count(),
            adapter.params().len(),
            "{name}: entries of the gradient store"
        );
    }
}

#[test]
fn a_frozen_view_tracks_nothing_and_computes_the_same() {
    for (name, config) in configs() {
        let toy = Toy::new(false);
        let adapter = toy.trained(&config);
        let frozen = adapter.frozen();
        assert!(!toy.loss(&frozen).track_op(), "{name}");
        assert!(frozen.params().is_empty());
        assert_close(name, &toy.logits(&frozen), &toy.logits(&adapter), TOLERANCE);
        for var in adapter.params().values() {
            shift(var, 1, 0.1);
        }
        assert_close(name, &toy.logits(&adapter.frozen()), &toy.logits(&adapter), TOLERANCE);
    }
}

#[test]
fn the_sum_of_nll_is_the_cross_entropy() {
    for (name, config) in configs() {
        let toy = Toy::new(false);
        let adapter = toy.trained(&config).frozen();
        let hidden = toy.hidden(&adapter);
        let nll = adapter.nll(&toy.head, &hidden, &labelled()).unwrap();
        let logits = toy.logits(&adapter);
        let expected: Vec<f32> = (labelled().rows.iter().zip(labelled().labels))
            .map(|(row, label)| {
                let logits = &logits[*row as usize * VOCABULARY..][..VOCABULARY];
                logits.iter().map(|x| x.exp()).sum::<f32>().ln() - logits[label as usize]
            })
            .collect();
        assert_close(name, &nll, &expected, 1e-5);
        let sum: f32 = expected.iter().sum();
        assert_close(name, &[toy.loss(&adapter).to_scalar().unwrap()], &[sum], 1e-5);
    }
}

#[test]
fn a_label_outside_the_vocabulary_is_an_error() {
    let toy = Toy::new(false);
    for (name, config) in configs() {
        let adapter = toy.trained(&config).frozen();
        let hidden = toy.hidden(&adapter);
        let outside = Labelled { rows: vec![0], labels: vec![VOCABULARY as u32] };
        assert!(adapter.nll(&toy.head, &hidden, &outside).is_err(), "{name}");
        assert!(adapter.cross_entropy(&toy.head, &hidden, &outside, Scoring::default()).is_err(), "{name}");
    }
}

#[test]
fn dropout_is_seeded_and_only_in_training() {
    for (name, config) in configs() {
        let toy = Toy::new(false);
        let config = LoraConfig { lora_dropout: 0.5, ..config };
        let adapter = toy.trained(&config);
        assert_eq!(toy.logits(&adapter.training(3)), toy.logits(&adapter.training(3)), "{name}");
        let factors = adapter.ranks().iter().any(|(path, _)| !path.ends_with("embed_tokens"));
        assert_eq!(toy.logits(&adapter.training(3)) != toy.logits(&adapter.training(4)), factors, "{name}");
        assert_eq!(toy.logits(&adapter.training(3)) != toy.logits(&adapter), factors, "{name}");
        let gradients = toy.loss(&adapter.training(3)).backward().unwrap();
        assert!(adapter.params().values().all(|var| gradients.get(var).is_some()), "{name}");
        let none = LoraConfig { lora_dropout: 0.0, ..config };
        let adapter = toy.trained(&none);
        assert_eq!(toy.logits(&adapter.training(3)), toy.logits(&adapter), "{name}");
    }
}
