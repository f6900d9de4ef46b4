//! What the tests share: fixtures, comparison with a stated tolerance, and the built binary.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use serde_json::Value;
use taper_base::{Base, ModelDir};
use taper_kernels::Compute;
use tempfile::TempDir;

/// The folder of the fixtures.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// Opens the model in `dir`, its products exact.
pub(crate) fn open(dir: &Path) -> Base {
    let dir = ModelDir { path: dir.to_path_buf(), name: dir.display().to_string() };
    Base::open_dir(dir, Compute::F32).expect("a model that opens")
}

/// All tensors of a safetensors file.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).expect("a readable file").into_iter().collect()
}

/// Writes a safetensors file.
pub(crate) fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    safetensors::serialize_to_file(tensors, None, path).expect("a written file");
}

/// Values of a tensor as f32, row by row.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.to_dtype(candle_core::DType::F32).expect("a float tensor");
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("values")
}

/// How far two numbers may be apart: `absolute + relative · |expected|`.
#[derive(Clone, Copy)]
pub(crate) struct Tolerance {
    pub(crate) relative: f32,
    pub(crate) absolute: f32,
}

/// f32 logits: the order of summation differs from PyTorch's in every product.
pub(crate) const LOGITS: Tolerance = Tolerance { relative: 2e-5, absolute: 2e-5 };

/// Fails, naming the worst place, if `found` is further from `expected` than allowed.
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32], allowed: Tolerance) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let excess = |(f, e): (&f32, &f32)| {
        let over = (f - e).abs() - allowed.absolute - allowed.relative * e.abs();
        if over.is_nan() { f32::INFINITY } else { over }
    };
    let over: Vec<f32> = found.iter().zip(expected).map(excess).collect();
    let worst = (0..over.len()).max_by(|&a, &b| over[a].total_cmp(&over[b]));
    if let Some(i) = worst.filter(|&i| over[i] > 0.0) {
        panic!("{what}: value {i} of {} is {}, expected {}", found.len(), found[i], expected[i]);
    }
}

/// Gradients: within 1e-4 of the tensor's largest value, since small entries are sums of large ones that cancel.
pub(crate) fn assert_gradient(what: &str, found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(largest > 0.0, "{what}: an expected gradient of zeros proves nothing");
    assert_close(what, found, expected, Tolerance { relative: 0.0, absolute: 1e-4 * largest });
}

/// The project's data and models, beside the checkout; none, said aloud, where they are not.
pub(crate) fn shared(what: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(what);
    if !path.exists() {
        println!("skipped: there is no {}", path.display());
    }
    path.exists().then_some(path)
}

/// A chat template that ends each turn with the EOS and begins it with the BOS.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}<|bos|>{{ m['role'] }}\n{{ m['content'] }}<|eos|>\n{% endfor %}\
    {% if add_generation_prompt %}<|bos|>assistant\n{% endif %}";

/// A temporary folder of one test.
pub(crate) struct Room(TempDir);

impl Room {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A path as an argument.
    pub(crate) fn arg(&self, name: &str) -> String {
        text(&self.path(name))
    }

    /// Writes a file and the folders above it.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(&path, bytes).expect("a written file");
        text(&path)
    }

    /// Writes rows as JSON lines.
    pub(crate) fn rows(&self, name: &str, rows: &[Value]) -> String {
        let lines: Vec<String> = rows.iter().map(ToString::to_string).collect();
        self.write(name, lines.join("\n") + "\n")
    }

    /// Copies the files of a folder.
    pub(crate) fn copy(&self, from: &Path, name: &str) -> String {
        std::fs::create_dir_all(self.path(name)).expect("a folder");
        for entry in std::fs::read_dir(from).expect("a folder") {
            let from = entry.expect("an entry").path();
            if from.is_file() {
                let bytes = std::fs::read(&from).expect("a readable file");
                std::fs::write(self.path(name).join(from.file_name().expect("a name")), bytes)
                    .expect("a written file");
            }
        }
        self.arg(name)
    }

    /// A copy of an oracle model, with a chat template.
    pub(crate) fn model(&self, case: &str) -> String {
        let name = format!("{case}-model");
        let model = self.copy(&fixtures().join("oracle").join(case).join("model"), &name);
        let config =
            serde_json::json!({ "bos_token": "<|bos|>", "eos_token": "<|eos|>", "chat_template": TEMPLATE });
        self.write(&format!("{name}/tokenizer_config.json"), config.to_string());
        model
    }

    /// A copy of an oracle adapter.
    pub(crate) fn adapter(&self, case: &str) -> String {
        self.copy(&fixtures().join("oracle").join(case).join("adapter"), &format!("{case}-adapter"))
    }

    /// Names in the folder, sorted.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).expect("a folder");
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<String> =
            entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).expect("JSON")
    }

    /// The rows of a JSONL file that say `event`.
    pub(crate) fn events(&self, name: &str, event: &str) -> Vec<Value> {
        let rows = self.read(name);
        let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON row"));
        rows.filter(|row| row["event"] == event).collect()
    }
}

/// A path as text.
pub(crate) fn text(path: &Path) -> String {
    path.to_str().expect("a path of text").to_owned()
}

/// The keys of a JSON object in their order.
pub(crate) fn keys(object: &Value) -> Vec<&str> {
    object.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// How the program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Run {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let run = Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        assert!(!run.err.contains("panicked"), "{run:?}");
        run
    }

    /// Fails unless the program succeeded.
    pub(crate) fn good(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.err, self.out);
        self
    }

    /// stdout, which has to be one JSON object and nothing else.
    pub(crate) fn json(self) -> Value {
        self.good().object()
    }

    /// As [`Run::json`], of an `inspect` that found problems: the object is printed whole, and the program ends with 1.
    pub(crate) fn problems(self) -> Value {
        assert!(self.code == Some(1) && self.err.contains("found"), "{}\n{}", self.err, self.out);
        let found = self.object();
        assert_ne!(found["problems"], serde_json::json!([]));
        found
    }

    fn object(self) -> Value {
        let value: Value =
            serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out));
        assert!(value.is_object(), "{value}");
        value
    }

    /// Fails unless the program ended with 1, nothing on stdout, and an error that has all of `words`.
    pub(crate) fn bad(self, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "{}\n{}", self.err, self.out);
        assert_eq!(self.out, "", "an error is no product");
        for word in words {
            assert!(self.err.contains(word), "`{word}` is not in: {}", self.err);
        }
        self
    }
}

/// The program, without the environment's hub.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taper"));
    command.args(args).env("HF_HUB_OFFLINE", "1").stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn taper(args: &[&str]) -> Run {
    Run::of(command(args).output().expect("a program that starts"))
}

/// Runs the program with the set of kernels of that name.
pub(crate) fn taper_on(kernels: &str, args: &[&str]) -> Run {
    Run::of(command(args).env("TAPER_KERNELS", kernels).output().expect("a program that starts"))
}

/// Runs the program with `input` on its stdin.
pub(crate) fn taper_with(input: &str, args: &[&str]) -> Run {
    use std::io::Write;
    let piped = command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = piped.expect("a program that starts");
    // A program that ends before it has read everything is the caller's to judge.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    Run::of(child.wait_with_output().expect("a program that ends"))
}

/// Starts the program in the background.
pub(crate) fn start(args: &[&str]) -> Child {
    command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program that starts")
}

/// Waits for a program that [`start`] began.
pub(crate) fn end(child: Child) -> Run {
    Run::of(child.wait_with_output().expect("a program that ends"))
}

/// Waits until `holds`, for at most a minute.
pub(crate) fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_mins(1), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
