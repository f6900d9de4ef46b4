//! Fetching files of a repository into the cache, in parts, so that an interrupted download goes on where it stopped.
//!
//! `hf-hub`'s own `download_file` starts a file anew each time and keeps the body of an error page as if it were the file, so
//! only its requests are used here, and its cache layout is written by [`super::cache`].

use std::fs;
use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::path::Path;

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFClientSync, HFError, HFResult, RepoTypeDataset, RepoTypeModel};
use indicatif::{ProgressBar, ProgressStyle};

use super::cache::{self, Cached};
use super::{Hub, Kind, failure};
use crate::Error;
use crate::files::make_parent;

/// Bytes asked for in one request: what an interruption loses at most.
const PART: u64 = 32 << 20;

/// So often a part is asked for again after a broken connection, beyond the retries inside a request.
const ATTEMPTS: usize = 4;

/// A repository on the hub, its files listed.
pub(super) struct Remote {
    client: HFClientSync,
    endpoint: String,
    cached: Cached,
    commit: String,
    files: Vec<File>,
    names: Vec<String>,
}

/// A file of the repository.
#[derive(Clone, Debug)]
struct File {
    path: String,
    size: u64,
    /// Git's hash of it (of its pointer, if it is a large one): the name of its blob in the cache.
    blob: String,
}

impl Remote {
    /// Asks which commit the revision is and which files it has.
    pub(super) fn open(hub: &Hub, cached: &Cached) -> Result<Self, Error> {
        let fail = |error: HFError| failure::explain(&error, hub, cached);
        let client = connect(hub).map_err(fail)?;
        let commit = commit(&client, cached).map_err(fail)?;
        if !cache::is_commit(&commit) {
            let what =
                format!("{}: says that `{}` is at commit `{commit}`, which is none", hub.endpoint, cached.id);
            return Err(Error::Source { what });
        }
        let mut files = list(&client, cached, &commit).map_err(fail)?;
        files.retain(|file| {
            cache::is_inside(&file.path) && file.blob.chars().all(|c| c.is_ascii_alphanumeric())
        });
        let names = files.iter().map(|file| file.path.clone()).collect();
        let cached = cached.at(&commit);
        Ok(Self { client, endpoint: hub.endpoint.clone(), cached, commit, files, names })
    }

    /// The cache's place for this commit.
    pub(super) fn cached(&self) -> &Cached {
        &self.cached
    }

    /// Paths of all files.
    pub(super) fn files(&self) -> &[String] {
        &self.names
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.names.iter().any(|name| name == file)
    }

    /// Those of `files` that the repository has.
    pub(super) fn among(&self, files: &[&str]) -> Vec<String> {
        files.iter().filter(|file| self.has(file)).map(|file| (*file).to_string()).collect()
    }

    /// Notes which of `files` the repository does not have.
    pub(super) fn note_absent(&self, files: &[&str]) -> Result<(), Error> {
        files.iter().filter(|file| !self.has(file)).try_for_each(|file| self.cached.note_absent(file))
    }

    pub(super) fn lacks(&self, file: &str, why: &str) -> Error {
        let what =
            format!("hub repository `{}` has no {file}, {why}; it has {}", self.cached.id, self.listing());
        Error::Source { what }
    }

    pub(super) fn no_weights(&self) -> Error {
        let has = |extension: &str| self.names.iter().any(|name| name.ends_with(extension));
        let hint = if has(".bin") || has(".pt") {
            "only pickled weights: convert them to safetensors (https://huggingface.co/spaces/safetensors/convert)"
        } else if has(".gguf") {
            "only GGUF files: name the repository of the original model"
        } else {
            "no weights at all"
        };
        let what = format!(
            "hub model `{}` has no safetensors weights, {hint}; it has {}",
            self.cached.id,
            self.listing()
        );
        Error::Source { what }
    }

    fn listing(&self) -> String {
        match self.names.len() {
            0 => "no files".to_string(),
            1..=8 => self.names.join(", "),
            more => format!("{} and {} more", self.names[..6].join(", "), more - 6),
        }
    }

    /// Makes `files` stand in the snapshot.
    pub(super) fn fetch(&self, files: &[String]) -> Result<(), Error> {
        let wanted: Vec<&File> = self.files.iter().filter(|file| files.contains(&file.path)).collect();
        let pending = wanted.iter().filter(|file| !self.cached.blob(&file.blob).exists());
        let bar = progress_bar(&self.cached.id, pending.map(|file| file.size).sum());
        for file in wanted {
            self.fetch_file(file, &bar)?;
            self.cached.link(&file.path, &file.blob)?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Makes a file's blob stand whole in the cache, from the part of it that is there.
    fn fetch_file(&self, file: &File, bar: &ProgressBar) -> Result<(), Error> {
        let blob = self.cached.blob(&file.blob);
        if blob.exists() {
            return Ok(());
        }
        let _lock = self.cached.lock(&file.blob)?;
        if blob.exists() {
            return Ok(());
        }
        let partial = self.cached.blob(&format!("{}.incomplete", file.blob));
        self.append(file, &partial, bar)?;
        fs::rename(&partial, &blob).map_err(Error::io(&blob))
    }

    /// Adds what `partial` lacks of a file.
    fn append(&self, file: &File, partial: &Path, bar: &ProgressBar) -> Result<(), Error> {
        let mut at = fs::metadata(partial).map_or(0, |found| found.len());
        if at > file.size {
            fs::remove_file(partial).map_err(Error::io(partial))?;
            at = 0;
        }
        bar.inc(at);
        loop {
            let end = file.size.min(at + PART);
            let bytes = if at < end { self.part(file, at..end, bar)? } else { Vec::new() };
            make_parent(partial)
                .and_then(|()| fs::OpenOptions::new().create(true).append(true).open(partial))
                .and_then(|mut out| out.write_all(&bytes).and_then(|()| out.sync_all()))
                .map_err(Error::io(partial))?;
            at = end;
            if at == file.size {
                return Ok(());
            }
        }
    }

    /// Bytes `range` of a file.
    fn part(&self, file: &File, range: Range<u64>, bar: &ProgressBar) -> Result<Vec<u8>, Error> {
        let before = bar.position();
        let mut attempt = 1;
        let bytes = loop {
            match self.request(file, range.clone(), Bar { bar: bar.clone(), before }) {
                Ok(bytes) => break bytes,
                Err(error) if attempt < ATTEMPTS && failure::is_broken_connection(&error) => attempt += 1,
                Err(error) => {
                    return Err(failure::explain_file(&error, &file.path, &self.endpoint, &self.cached));
                }
            }
            bar.set_position(before);
        };
        let length = range.end - range.start;
        bar.set_position(before + length);
        match bytes.len() as u64 {
            found if found == length => Ok(bytes),
            // A server that does not know parts sends the whole file.
            found if found == file.size => Ok(bytes[range.start as usize..range.end as usize].to_vec()),
            found => {
                let what = format!(
                    "{}: sent {found} bytes of `{}` of `{}` where {length} were asked for; try again",
                    self.endpoint, file.path, self.cached.id
                );
                Err(Error::Source { what })
            }
        }
    }

    fn request(&self, file: &File, range: Range<u64>, bar: Bar) -> HFResult<Vec<u8>> {
        let (owner, name) = hf_hub::split_id(&self.cached.id);
        let path = file.path.as_str();
        let bytes = match self.cached.kind {
            Kind::Model => {
                let repository = self.client.model(owner, name);
                let request = repository.download_file_to_bytes().filename(path).revision(&*self.commit);
                request.range(range).progress(bar).send()
            }
            Kind::Dataset => {
                let repository = self.client.dataset(owner, name);
                let request = repository.download_file_to_bytes().filename(path).revision(&*self.commit);
                request.range(range).progress(bar).send()
            }
        }?;
        Ok(bytes.to_vec())
    }
}

fn connect(hub: &Hub) -> HFResult<HFClientSync> {
    let builder = HFClient::builder()
        .endpoint(&hub.endpoint)
        .cache_dir(&hub.cache)
        .user_agent(concat!("taper/", env!("CARGO_PKG_VERSION")));
    match &hub.token {
        Some(token) => builder.token(token).build_sync(),
        None => builder.build_sync(),
    }
}

fn commit(client: &HFClientSync, cached: &Cached) -> HFResult<String> {
    let (owner, name) = hf_hub::split_id(&cached.id);
    let revision = cached.revision.as_str();
    let sha = match cached.kind {
        Kind::Model => client.model(owner, name).info().revision(revision).send()?.sha,
        Kind::Dataset => client.dataset(owner, name).info().revision(revision).send()?.sha,
    };
    sha.ok_or_else(|| HFError::malformed_response("the repository's commit"))
}

fn list(client: &HFClientSync, cached: &Cached, commit: &str) -> HFResult<Vec<File>> {
    let (owner, name) = hf_hub::split_id(&cached.id);
    let entries = match cached.kind {
        Kind::Model => {
            client.repository(RepoTypeModel, owner, name).list_tree().revision(commit).recursive(true).send()
        }
        Kind::Dataset => client
            .repository(RepoTypeDataset, owner, name)
            .list_tree()
            .revision(commit)
            .recursive(true)
            .send(),
    }?;
    let file = |entry| match entry {
        RepoTreeEntry::File { path, size, oid, .. } => Some(File { path, size, blob: oid }),
        RepoTreeEntry::Directory { .. } => None,
    };
    Ok(entries.into_iter().filter_map(file).collect())
}

/// A bar on a terminal, nothing elsewhere.
fn progress_bar(id: &str, bytes: u64) -> ProgressBar {
    if bytes == 0 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes).with_style(style).with_message(id.to_string())
}

/// Moves the bar while a part comes in.
struct Bar {
    bar: ProgressBar,
    before: u64,
}

impl ProgressHandler for Bar {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Download(DownloadEvent::Progress { files }) = event {
            let bytes: u64 = files.iter().map(|file| file.bytes_completed).sum();
            self.bar.set_position(self.before + bytes);
        }
    }
}
