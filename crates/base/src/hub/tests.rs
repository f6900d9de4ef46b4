//! The hub's client against a small hub on this machine.

use super::server::{COMMIT, Server, blob};
use super::*;

const CONFIG: &[u8] = b"{\"model_type\": \"llama\"}";

struct Fixture {
    server: Server,
    cache: tempfile::TempDir,
}

impl Fixture {
    fn new(repository: &str, files: &[(&str, &[u8])]) -> Self {
        let server = Server::start();
        server.add(repository, files);
        Self { server, cache: tempfile::tempdir().unwrap() }
    }

    fn model(files: &[(&str, &[u8])]) -> Self {
        Self::new("models/org/name", files)
    }

    fn hub(&self) -> Hub {
        let cache = self.cache.path().to_path_buf();
        Hub { endpoint: self.server.endpoint.clone(), cache, token: None, offline: false }
    }

    fn offline(&self) -> Hub {
        Hub { offline: true, ..self.hub() }
    }

    fn blobs(&self) -> PathBuf {
        self.cache.path().join("models--org--name/blobs")
    }
}

fn message(result: Result<PathBuf, Error>) -> String {
    result.unwrap_err().to_string()
}

fn names(folder: &Path) -> Vec<String> {
    cache::files_under(folder)
}

#[test]
fn a_model_is_fetched_once_and_only_what_it_needs() {
    let hub = Fixture::model(&[
        ("config.json", CONFIG),
        ("model.safetensors", b"weights"),
        ("tokenizer.json", b"{}"),
        ("pytorch_model.bin", b"pickle"),
        ("onnx/model.onnx", b"onnx"),
        ("README.md", b"card"),
    ]);
    let folder = hub.hub().model("org/name", None).unwrap();
    assert_eq!(folder, hub.cache.path().join("models--org--name/snapshots").join(COMMIT));
    assert_eq!(names(&folder), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"weights");
    assert!(!hub.server.take_requests().is_empty());

    assert_eq!(hub.hub().model("org/name", None).unwrap(), folder, "from the cache");
    assert_eq!(hub.offline().model("org/name", None).unwrap(), folder);
    assert_eq!(hub.hub().model("org/name", Some(COMMIT)).unwrap(), folder);
    assert_eq!(hub.server.take_requests(), [] as [String; 0]);
    assert_eq!(
        hub.hub().model("org/name", Some("v1")).unwrap(),
        folder,
        "another name of the commit is looked up"
    );
    assert!(
        hub.server.take_requests().iter().all(|request| request.contains("/api/")),
        "but no file is fetched again"
    );
}

#[test]
fn shards_are_those_of_the_index() {
    let index: &[u8] = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let hub = Fixture::model(&[
        ("config.json", CONFIG),
        (INDEX, index),
        ("model-00001-of-00002.safetensors", b"one"),
        ("model-00002-of-00002.safetensors", b"two"),
        ("consolidated.safetensors", b"all"),
    ]);
    let folder = hub.hub().model("org/name", None).unwrap();
    assert_eq!(names(&folder).len(), 4);
    std::fs::remove_file(hub.blobs().join(blob(b"two"))).unwrap();
    assert!(message(hub.offline().model("org/name", None)).contains("not in the cache"), "a shard is gone");
    hub.hub().model("org/name", None).unwrap();
    assert_eq!(std::fs::read(folder.join("model-00002-of-00002.safetensors")).unwrap(), b"two");
}

#[test]
fn a_vocabulary_is_fetched_where_there_is_no_tokenizer_json() {
    let files = [("config.json", CONFIG), ("model.safetensors", b"w"), ("vocab.txt", b"[PAD]")];
    let old = Fixture::model(&files);
    assert_eq!(
        names(&old.hub().model("org/name", None).unwrap()),
        ["config.json", "model.safetensors", "vocab.txt"]
    );
    let new = Fixture::model(&[&files[..], &[("tokenizer.json", b"{}")]].concat());
    let found = names(&new.hub().model("org/name", None).unwrap());
    assert_eq!(found, ["config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn an_index_cannot_point_outside() {
    let hub = Fixture::model(&[
        ("config.json", CONFIG),
        (INDEX, br#"{"weight_map": {"a": "../../../x.safetensors"}}"#),
    ]);
    assert!(message(hub.hub().model("org/name", None)).contains("../../../x.safetensors"));
}

#[test]
fn an_interrupted_download_goes_on() {
    let weights: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    let hub = Fixture::model(&[("config.json", CONFIG), ("model.safetensors", &weights)]);
    std::fs::create_dir_all(hub.blobs()).unwrap();
    let partial = hub.blobs().join(format!("{}.incomplete", blob(&weights)));
    std::fs::write(&partial, &weights[..150_000]).unwrap();
    let folder = hub.hub().model("org/name", None).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights);
    let requests = hub.server.take_requests();
    assert!(requests.iter().any(|request| request.ends_with("bytes=150000-199999")), "{requests:?}");
    assert!(!partial.exists());
}

#[test]
fn a_broken_connection_is_tried_again() {
    let weights = vec![7_u8; 100_000];
    let hub = Fixture::model(&[("config.json", CONFIG), ("model.safetensors", &weights)]);
    hub.server.change(|content| content.broken_answers = 2);
    let folder = hub.hub().model("org/name", None).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights);
}

#[test]
fn a_server_without_ranges_works_too() {
    let hub = Fixture::model(&[("config.json", CONFIG), ("model.safetensors", b"0123456789")]);
    hub.server.change(|content| content.whole_files = true);
    std::fs::create_dir_all(hub.blobs()).unwrap();
    std::fs::write(hub.blobs().join(format!("{}.incomplete", blob(b"0123456789"))), b"0123").unwrap();
    let folder = hub.hub().model("org/name", None).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"0123456789");
}

#[test]
fn large_files_may_lie_elsewhere() {
    let hub = Fixture::model(&[("config.json", CONFIG), ("model.safetensors", b"0123456789")]);
    hub.server.change(|content| content.store = Some(format!("{}/store", hub.server.endpoint)));
    let folder = hub.hub().model("org/name", None).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"0123456789");
}

#[test]
fn what_is_not_there_is_told_apart() {
    let hub = Fixture::model(&[("config.json", CONFIG), ("pytorch_model.bin", b"x")]);
    let missing = message(hub.hub().model("org/other", None));
    assert!(missing.contains("`org/other` does not exist") && missing.contains("404"), "{missing}");
    let revision = message(hub.hub().model("org/name", Some("v9")));
    assert!(revision.contains("`v9`") && revision.contains("no such revision"), "{revision}");
    let weights = message(hub.hub().model("org/name", None));
    assert!(weights.contains("no safetensors") && weights.contains("pytorch_model.bin"), "{weights}");
    let adapter = message(hub.hub().adapter("org/name", None));
    assert!(adapter.contains("adapter_config.json"), "{adapter}");
    assert!(message(hub.offline().model("org/name", None)).contains("HF_HUB_OFFLINE"));
}

#[test]
fn what_may_not_be_read_says_how() {
    let hub = Fixture::model(&[("config.json", CONFIG), ("model.safetensors", b"x")]);
    hub.server.change(|content| content.refuse_files = Some((403, "GatedRepo")));
    let gated = message(hub.hub().model("org/name", None));
    assert!(gated.contains("gated") && gated.contains("HF_TOKEN") && gated.contains("/org/name"), "{gated}");
    assert_eq!(names(&hub.blobs()), [] as [String; 0], "no error page is kept as a file");
    hub.server.change(|content| content.refuse_files = None);
    hub.server.change(|content| content.token = Some("secret".to_string()));
    let private = message(hub.hub().model("org/name", None));
    assert!(private.contains("401") && private.contains("HF_TOKEN"), "{private}");
    let wrong = Hub { token: Some("wrong".to_string()), ..hub.hub() };
    assert!(message(wrong.model("org/name", None)).contains("401"));
    Hub { token: Some("secret".to_string()), ..hub.hub() }.model("org/name", None).unwrap();
}

#[test]
fn without_a_network_the_cache_is_used_as_far_as_it_goes() {
    let hub = Fixture::model(&[("config.json", CONFIG), ("model.safetensors", b"x")]);
    let gone = Hub { endpoint: "http://127.0.0.1:9".to_string(), ..hub.hub() };
    let error = message(gone.model("org/name", None));
    assert!(error.contains("cannot reach the hub at http://127.0.0.1:9"), "{error}");
    let folder = hub.hub().model("org/name", None).unwrap();
    // As if another program had fetched the snapshot: it holds a model, but nobody knows about the optional files.
    std::fs::remove_dir_all(hub.cache.path().join("models--org--name/.no_exist")).unwrap();
    assert_eq!(gone.model("org/name", None).unwrap(), folder);
    assert_eq!(hub.offline().model("org/name", None).unwrap(), folder);
}

#[test]
fn adapters_and_data_sets() {
    let hub = Fixture::new(
        "models/org/lora",
        &[("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"ab"), ("training_args.bin", b"x")],
    );
    let folder = hub.hub().adapter("org/lora", None).unwrap();
    assert_eq!(names(&folder), ADAPTER_FILES);
    assert_eq!(hub.offline().adapter("org/lora", None).unwrap(), folder);
    let labelled =
        [("adapter_config.json", &b"{}"[..]), ("adapter_model.safetensors", b"ab"), ("config.json", b"{}")];
    hub.server.add("models/org/labels", &labelled);
    let folder = hub.hub().adapter("org/labels", None).unwrap();
    assert_eq!(names(&folder), ["adapter_config.json", "adapter_model.safetensors", "config.json"]);
    hub.server.take_requests();
    for id in ["org/lora", "org/labels"] {
        hub.hub().adapter(id, None).unwrap();
    }
    assert_eq!(hub.server.take_requests(), [] as [String; 0], "what is absent is known");

    hub.server.add(
        "datasets/org/data",
        &[
            ("data/train-00000-of-00001.parquet", b"p"),
            ("data/test-00000-of-00001.parquet", b"q"),
            ("dataset_infos.json", b"{}"),
            ("extra/notes.json", b"{}"),
            ("README.md", b"card"),
        ],
    );
    let folder = hub.hub().dataset("org/data", None, &[]).unwrap();
    assert!(folder.ends_with("data"), "{}", folder.display());
    assert_eq!(names(&folder), ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]);
    assert_eq!(hub.offline().dataset("org/data", None, &[]).unwrap(), folder);
    let named = hub.hub().dataset("org/data", None, &["extra/notes.json".to_string()]).unwrap();
    assert_eq!(names(&named), ["notes.json"]);
    assert!(message(hub.hub().dataset("org/data", None, &["none.csv".to_string()])).contains("none.csv"));
    assert!(message(hub.hub().dataset("org/none", None, &[])).contains("data set `org/none` does not exist"));
}

#[test]
fn two_processes_may_fetch_at_once() {
    let weights = vec![3; 50_000];
    let hub = Fixture::model(&[("config.json", CONFIG), ("model.safetensors", &weights)]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| hub.hub().model("org/name", None).unwrap());
        }
    });
    let folder = hub.offline().model("org/name", None).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights);
}

#[test]
fn ids_and_revisions() {
    for id in ["org/name", "org/name-1.5_B", "_o/n"] {
        assert!(is_id(id), "{id}");
    }
    for id in ["name", "a/b/c", "/name", "org/", "org/..", "../name", "o rg/name", "-o/n"] {
        assert!(!is_id(id), "{id}");
    }
    for revision in ["main", "v1.0", "refs/pr/1", COMMIT] {
        assert!(is_revision(revision), "{revision}");
    }
    for revision in ["", "a//b", "../x", "a/../b", "a b", "a\\b"] {
        assert!(!is_revision(revision), "{revision}");
    }
}
