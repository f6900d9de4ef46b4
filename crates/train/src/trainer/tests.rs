//! Whole runs on a fixture of the oracle, in a temporary folder.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

/// A base, and a folder with rows and room for outputs.
struct Bench {
    base: Base,
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle/llama/model");
        let dir = taper_base::ModelDir { path, name: "fixture".into() };
        let base = Base::open_dir(dir, taper_kernels::Compute::F32).unwrap();
        let bench = Self { base, dir: tempfile::tempdir().unwrap() };
        let row = |i: u32| format!("{{\"text\": \"row {i}: {}\"}}\n", "ab ".repeat(1 + i as usize % 5));
        let rows = |range: std::ops::Range<u32>| range.map(row).collect::<Vec<_>>().concat();
        fs::create_dir(bench.dir.path().join("data")).unwrap();
        for (split, range) in [("train", 0..14), ("valid", 14..19), ("test", 19..23)] {
            fs::write(bench.dir.path().join(format!("data/{split}.jsonl")), rows(range)).unwrap();
        }
        bench
    }

    /// A small run of 12 steps: 3 epochs of 4, the last step of each a half one, with everything that has a state.
    fn recipe(&self, out: &str) -> Recipe {
        Recipe {
            model: "fixture".into(),
            data: self.dir.path().join("data").display().to_string(),
            out: self.dir.path().join(out),
            rank: Some(4),
            dropout: Some(0.2),
            lr: 1e-2,
            warmup_ratio: 0.2,
            schedule: crate::Shape::Cosine,
            batch_size: 2,
            gradient_accumulation: 2,
            micro_batch_tokens: Some(48),
            eval_every: Some(3),
            save_every: Some(5),
            ..Recipe::default()
        }
    }

    fn train(&self, recipe: &Recipe, start: Start) -> Result<(DoneReport, Vec<Event>), Error> {
        self.train_until(recipe, start, usize::MAX)
    }

    /// Trains until step `stop` is reported, then interrupts.
    fn train_until(
        &self,
        recipe: &Recipe,
        start: Start,
        stop: usize,
    ) -> Result<(DoneReport, Vec<Event>), Error> {
        let interrupt = AtomicBool::new(false);
        let mut events = Vec::new();
        let mut on_event = |event: &Event| {
            if matches!(event, Event::Step(report) if report.step >= stop) {
                interrupt.store(true, Ordering::Relaxed);
            }
            events.push(event.clone());
        };
        let done = train(&self.base, recipe, start, &mut on_event, &interrupt)?;
        Ok((done, events))
    }

    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(path)).unwrap()
    }

    /// `metrics.jsonl` without what differs from run to run.
    fn metrics(&self, out: &str) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.read(&format!("{out}/metrics.jsonl"))).unwrap();
        let mut rows: Vec<serde_json::Value> =
            text.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
        for row in &mut rows {
            for timing in ["seconds", "tokens_per_s", "peak_rss_bytes"] {
                row.as_object_mut().unwrap().shift_remove(timing);
            }
        }
        rows
    }

    /// Everything that two runs have to have in common.
    #[track_caller]
    fn assert_same(&self, a: &str, b: &str) {
        for file in
            ["adapter_model.safetensors", "adapter_config.json", "eval.json", "recipe.toml", "loss.svg"]
        {
            let (x, y) = (self.read(&format!("{a}/{file}")), self.read(&format!("{b}/{file}")));
            let named = |bytes: Vec<u8>, name: &str| String::from_utf8_lossy(&bytes).replace(name, "NAME");
            assert_eq!(named(x, &format!("{a}: LoRA")), named(y, &format!("{b}: LoRA")), "{file}");
        }
        assert_eq!(self.metrics(a), self.metrics(b));
    }
}

#[test]
fn a_run_lowers_the_loss_and_writes_all_its_files() {
    let bench = Bench::new();
    let recipe = bench.recipe("a");
    let (done, events) = bench.train(&recipe, Start::New).unwrap();
    assert_eq!((done.step, done.ending, done.kept_step), (12, Ending::Finished, Some(12)));
    let Event::Plan(plan) = &events[0] else { panic!("the plan comes first") };
    assert_eq!((plan.steps, plan.steps_per_epoch, plan.train.rows), (12, 4, 14));
    assert_eq!(plan.adapted_modules, 14);
    assert_eq!(done.results.iter().map(|result| result.split).collect::<Vec<_>>(), ["valid", "test"]);
    for result in &done.results {
        assert!(result.adapted.loss < result.base.loss, "{result:?}");
    }
    for file in ["README.md", "loss.svg", "eval.json", "recipe.toml", "metrics.jsonl"] {
        assert!(!bench.read(&format!("a/{file}")).is_empty(), "{file}");
    }
    let card = String::from_utf8(bench.read("a/README.md")).unwrap();
    for part in [
        "library_name: peft",
        "- \"base_model:adapter:fixture\"",
        "| Training rows | 14 (14 read as text) |",
        "| test | 4 |",
    ] {
        assert!(card.contains(part), "{part} in {card}");
    }
    let frozen = LoraAdapter::load(&recipe.out, &bench.base).unwrap();
    let rows = Rows::load(&bench.base, &recipe).unwrap();
    let again = evaluate(&*bench.base.model, &frozen, &rows.test.unwrap().examples, 48).unwrap();
    assert_eq!(again.loss.to_bits(), done.results[1].adapted.loss.to_bits());
}

#[test]
fn t17_the_same_recipe_gives_the_same_bytes_and_another_seed_others() {
    let bench = Bench::new();
    bench.train(&bench.recipe("a"), Start::New).unwrap();
    bench.train(&bench.recipe("b"), Start::New).unwrap();
    bench.assert_same("a", "b");
    bench.train(&Recipe { seed: 1, ..bench.recipe("c") }, Start::New).unwrap();
    assert_ne!(bench.read("a/adapter_model.safetensors"), bench.read("c/adapter_model.safetensors"));
}

#[test]
fn t16_a_run_stopped_anywhere_and_resumed_is_as_if_it_had_not_been() {
    let bench = Bench::new();
    bench.train(&bench.recipe("whole"), Start::New).unwrap();
    // In the first epoch; where a checkpoint is due; where an evaluation is; at an epoch's end; twice.
    for stops in [vec![1], vec![5], vec![6], vec![8], vec![2, 7]] {
        let out = format!("cut{stops:?}");
        let recipe = bench.recipe(&out);
        let mut start = Start::New;
        for stop in stops {
            let (done, _) = bench.train_until(&recipe, start, stop).unwrap();
            assert_eq!((done.step, done.ending, done.kept_step), (stop, Ending::Interrupted, None));
            start = Start::Resume;
        }
        assert!(!recipe.out.join("adapter_model.safetensors").exists());
        bench.train(&recipe, start).unwrap();
        bench.assert_same("whole", &out);
    }
}

#[test]
fn a_finished_run_that_is_resumed_stays_as_it_is() {
    let bench = Bench::new();
    bench.train(&bench.recipe("a"), Start::New).unwrap();
    bench.train(&bench.recipe("b"), Start::New).unwrap();
    let (done, events) = bench.train(&bench.recipe("b"), Start::Resume).unwrap();
    assert_eq!(done.step, 12);
    assert!(!events.iter().any(|event| matches!(event, Event::Step(_))));
    bench.assert_same("a", "b");
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let bench = Bench::new();
    bench.train(&bench.recipe("a"), Start::New).unwrap();
    let recipe = bench.recipe("b");
    bench.train_until(&recipe, Start::New, 7).unwrap();
    // As if it had been killed after the checkpoint of step 7: a torn row, and a checkpoint half written.
    let metrics = recipe.out.join("metrics.jsonl");
    let torn = String::from_utf8(fs::read(&metrics).unwrap()).unwrap() + "{\"event\":\"st";
    fs::write(&metrics, torn).unwrap();
    fs::create_dir(recipe.out.join("checkpoints/.taper-step-9")).unwrap();
    fs::write(recipe.out.join("checkpoints/.taper-step-9/state.json"), "{").unwrap();
    bench.train(&recipe, Start::Resume).unwrap();
    bench.assert_same("a", "b");
    assert!(!recipe.out.join("checkpoints/.taper-step-9").exists());
}

#[test]
fn the_last_checkpoint_and_the_best_are_kept() {
    let bench = Bench::new();
    let (done, _) = bench.train(&bench.recipe("a"), Start::New).unwrap();
    let steps = Checkpoints::new(&bench.dir.path().join("a")).steps().unwrap();
    let mut expected = vec![done.best.unwrap().step, 12];
    expected.dedup();
    assert_eq!(steps, expected);
}

#[test]
fn early_stopping_ends_the_run_and_keeps_the_best() {
    let bench = Bench::new();
    // A rate so high that the loss soon rises.
    let recipe = Recipe {
        early_stopping: Some(2),
        lr: 0.5,
        eval_every: Some(1),
        max_steps: Some(60),
        max_grad_norm: 0.0,
        warmup_ratio: 1.0,
        ..bench.recipe("a")
    };
    let (done, _) = bench.train(&recipe, Start::New).unwrap();
    assert_eq!(done.ending, Ending::EarlyStopping);
    let best = done.best.unwrap();
    assert_eq!((done.kept_step, done.step), (Some(best.step), best.step + 2));
    let valid = done.results[0].adapted.loss;
    assert!((valid - best.loss).abs() < 1e-9, "{valid} {}", best.loss);
    let kept = format!("a/checkpoints/step-{}/adapter_model.safetensors", best.step);
    assert_eq!(bench.read("a/adapter_model.safetensors"), bench.read(&kept));
    bench.train_until(&Recipe { out: bench.dir.path().join("b"), ..recipe.clone() }, Start::New, 2).unwrap();
    bench.train(&Recipe { out: bench.dir.path().join("b"), ..recipe }, Start::Resume).unwrap();
    bench.assert_same("a", "b");
}

#[test]
fn early_stopping_without_rows_to_evaluate_is_refused() {
    let bench = Bench::new();
    let data = bench.dir.path().join("data/train.jsonl").display().to_string();
    let recipe = Recipe { early_stopping: Some(2), data, ..bench.recipe("a") };
    let error = bench.train(&recipe, Start::New).unwrap_err().to_string();
    assert!(error.contains("`early_stopping`") && error.contains("--eval-data"), "{error}");
    assert!(!recipe.out.exists());
}

#[test]
fn a_changed_recipe_or_changed_rows_are_not_resumed() {
    let bench = Bench::new();
    bench.train_until(&bench.recipe("a"), Start::New, 2).unwrap();
    let recipe = Recipe { lr: 0.5, batch_size: 1, ..bench.recipe("a") };
    let error = bench.train(&recipe, Start::Resume).unwrap_err().to_string();
    assert!(error.contains("`lr` was 0.01 and is now 0.5; `batch_size` was 2 and is now 1"), "{error}");
    let train = bench.dir.path().join("data/train.jsonl");
    let rows = fs::read_to_string(&train).unwrap().replace("row 3", "row x");
    fs::write(&train, rows).unwrap();
    let error = bench.train(&bench.recipe("a"), Start::Resume).unwrap_err().to_string();
    assert!(error.contains("the training rows are others"), "{error}");
    bench.train(&bench.recipe("a"), Start::Force).unwrap();
}

#[test]
fn max_steps_goes_through_the_rows_as_often_as_it_takes() {
    let bench = Bench::new();
    let recipe = Recipe { max_steps: Some(17), epochs: 1, ..bench.recipe("a") };
    let (done, events) = bench.train(&recipe, Start::New).unwrap();
    assert_eq!(done.step, 17);
    let last = events.iter().rev().find_map(|event| match event {
        Event::Step(report) => Some(report.epoch),
        _ => None,
    });
    assert!((last.unwrap() - 4.25).abs() < 1e-12);
}

#[test]
fn an_adapter_can_be_gone_on_from_and_has_to_agree() {
    let bench = Bench::new();
    bench.train(&bench.recipe("a"), Start::New).unwrap();
    let from = bench.dir.path().join("a").display().to_string();
    let recipe = Recipe { rank: None, dropout: None, init_adapter: Some(from), ..bench.recipe("b") };
    let (done, events) = bench.train(&recipe, Start::New).unwrap();
    let first = events.iter().find_map(|event| match event {
        Event::Step(report) => Some(report.loss),
        _ => None,
    });
    assert!(first.unwrap() < done.results[0].base.loss);
    let other = Recipe { rank: Some(9), out: bench.dir.path().join("c"), ..recipe };
    let error = bench.train(&other, Start::New).unwrap_err().to_string();
    assert!(error.contains("`rank` is 9, the adapter's is 4"), "{error}");
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_names_the_step() {
    let bench = Bench::new();
    let recipe =
        Recipe { lr: 1e30, warmup_ratio: 0.0, max_grad_norm: 0.0, eval_every: Some(50), ..bench.recipe("a") };
    let error = bench.train(&recipe, Start::New).unwrap_err().to_string();
    assert!(error.starts_with("step 2: the loss is") || error.starts_with("step 3: the loss is"), "{error}");
}

#[test]
fn a_full_disk_names_the_step_to_go_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let full = || Error::io(dir.path())(std::io::ErrorKind::StorageFull.into());
    assert_eq!(with_advice(full(), dir.path()).to_string(), full().to_string(), "nothing to go on from");
    std::fs::create_dir_all(dir.path().join("checkpoints/step-40")).unwrap();
    let advice = with_advice(full(), dir.path()).to_string();
    assert!(advice.contains("make room") && advice.contains("--resume goes on after step 40"), "{advice}");
    let other = Error::training("the loss is NaN");
    assert_eq!(with_advice(other, dir.path()).to_string(), "the loss is NaN");
}
