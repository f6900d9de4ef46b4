//! A small hub for tests: the routes of the real one that `hf-hub` uses, over plain HTTP on this machine.
//!
//! Routes: `GET /api/{models,datasets}/ID/revision/REV`, `GET /api/…/ID/tree/SHA`, `HEAD|GET /[datasets/]ID/resolve/SHA/FILE`
//! with `ETag`, `X-Repo-Commit` and `Range`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub holds and how it misbehaves.
#[derive(Default)]
pub(super) struct Content {
    /// Files by `models/org/name` or `datasets/org/name`, then by path.
    pub(super) repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Every answer for files is this status and error code instead.
    pub(super) refuse_files: Option<(u16, &'static str)>,
    /// Every answer is this status and error code instead.
    pub(super) refuse_all: Option<(u16, &'static str)>,
    /// A token that every request must bring.
    pub(super) token: Option<String>,
    /// So many answers with content break off in the middle.
    pub(super) broken_answers: usize,
    /// Ignores `Range`.
    pub(super) whole_files: bool,
    /// Sends whoever asks for a file on to this address, as the hub does for large ones.
    pub(super) store: Option<String>,
}

/// A running server; it ends with the process.
pub(super) struct Server {
    pub(super) endpoint: String,
    content: Arc<Mutex<Content>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let content = Arc::new(Mutex::new(Content::default()));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (shared, log) = (content.clone(), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, log) = (shared.clone(), log.clone());
                std::thread::spawn(move || answer(&stream, &shared, &log));
            }
        });
        Self { endpoint, content, requests }
    }

    /// Puts files into a repository.
    pub(super) fn add(&self, repository: &str, files: &[(&str, &[u8])]) {
        self.change(|content| {
            let held = content.repositories.entry(repository.to_string()).or_default();
            held.extend(files.iter().map(|(path, bytes)| ((*path).to_string(), bytes.to_vec())));
        });
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Content)) {
        change(&mut self.content.lock().unwrap());
    }

    /// The requests so far, as `METHOD /path [range]`; forgets them.
    pub(super) fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

/// One request and its answer; the connection is closed after it.
fn answer(mut stream: &TcpStream, content: &Mutex<Content>, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_string()))
        })
        .collect();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = target.split('?').next().unwrap_or("").to_string();
    let range = headers.get("range").cloned();
    log.lock()
        .unwrap()
        .push(format!("{method} {path} {}", range.as_deref().unwrap_or("")).trim_end().to_string());
    let mut content = content.lock().unwrap();
    let token = headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let mut reply = reply(&content, &path, range.as_deref(), token);
    let broken =
        method == "GET" && !reply.body.is_empty() && path.contains("/resolve/") && content.broken_answers > 0;
    reply.headers.push(("Content-Length", reply.body.len().to_string()));
    let fields: String =
        reply.headers.iter().map(|(name, value)| [name, ": ", value, "\r\n"].concat()).collect();
    let head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n{fields}", reply.status);
    if broken {
        content.broken_answers -= 1;
        reply.body.truncate(reply.body.len() / 2);
    }
    let body = if method == "HEAD" { &[] } else { reply.body.as_slice() };
    let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body));
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn refusal(status: u16, code: &str) -> Reply {
    let headers = if code.is_empty() { Vec::new() } else { vec![("X-Error-Code", code.to_string())] };
    Reply { status, headers, body: b"<html>no</html>".to_vec() }
}

fn json(value: &serde_json::Value) -> Reply {
    Reply {
        status: 200,
        headers: vec![("Content-Type", "application/json".into())],
        body: value.to_string().into_bytes(),
    }
}

fn reply(content: &Content, path: &str, range: Option<&str>, token: Option<&str>) -> Reply {
    if let Some((status, code)) = content.refuse_all {
        return refusal(status, code);
    }
    if content.token.as_deref().is_some_and(|expected| token != Some(expected)) {
        return refusal(401, "RepoNotFound");
    }
    let parts: Vec<&str> = path.trim_start_matches('/').splitn(7, '/').collect();
    match parts.as_slice() {
        ["api", kind, organisation, name, route, revision, ..] => {
            let id = format!("{organisation}/{name}");
            let Some(files) = content.repositories.get(&format!("{kind}/{id}")) else {
                return refusal(404, "RepoNotFound");
            };
            if !["main", "v1", COMMIT].contains(revision) {
                return refusal(404, "RevisionNotFound");
            }
            match *route {
                "revision" => json(&serde_json::json!({"id": id, "sha": COMMIT})),
                "tree" => json(&files.iter().map(|(path, bytes)| entry(path, bytes)).collect()),
                _ => refusal(404, ""),
            }
        }
        ["datasets", organisation, name, "resolve", COMMIT, file @ ..] => {
            self::file(content, &format!("datasets/{organisation}/{name}"), &file.join("/"), range)
        }
        [organisation, name, "resolve", COMMIT, file @ ..] => {
            self::file(content, &format!("models/{organisation}/{name}"), &file.join("/"), range)
        }
        ["store", rest @ ..] => {
            let held = rest.join("/");
            let found = content.repositories.iter().find_map(|(repository, files)| {
                files.get(held.strip_prefix(repository.as_str())?.strip_prefix('/')?)
            });
            found.map_or_else(|| refusal(404, ""), |bytes| send(content, bytes, Vec::new(), range))
        }
        _ => refusal(404, ""),
    }
}

fn entry(path: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({"type": "file", "oid": blob(bytes), "size": bytes.len(), "path": path})
}

/// A name for a content, as a git hash is.
pub(super) fn blob(bytes: &[u8]) -> String {
    let sum =
        bytes.iter().fold(7_u64, |sum, byte| sum.wrapping_mul(1_000_003).wrapping_add(u64::from(*byte)));
    format!("{sum:040x}")
}

fn file(content: &Content, repository: &str, path: &str, range: Option<&str>) -> Reply {
    if let Some((status, code)) = content.refuse_files {
        return refusal(status, code);
    }
    let Some(bytes) = content.repositories.get(repository).and_then(|files| files.get(path)) else {
        return refusal(404, "EntryNotFound");
    };
    let mut headers = vec![("ETag", format!("\"{}\"", blob(bytes))), ("X-Repo-Commit", COMMIT.to_string())];
    if let Some(store) = &content.store {
        headers.push(("Location", format!("{store}/{repository}/{path}")));
        return Reply { status: 302, headers, body: Vec::new() };
    }
    send(content, bytes, headers, range)
}

/// A file, or the asked part of it.
fn send(content: &Content, bytes: &[u8], headers: Vec<(&'static str, String)>, range: Option<&str>) -> Reply {
    let bounds = range.and_then(|range| range.strip_prefix("bytes=")).and_then(|range| range.split_once('-'));
    match bounds.filter(|_| !content.whole_files) {
        Some((start, end)) => {
            let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
            Reply { status: 206, headers, body: bytes[start..bytes.len().min(end + 1)].to_vec() }
        }
        None => Reply { status: 200, headers, body: bytes.to_vec() },
    }
}
