//! What went wrong on the way to the hub, in words that say what to do.

use std::error::Error as _;

use hf_hub::HFError;

use super::cache::Cached;
use super::{Hub, Kind};
use crate::Error;

/// Whether asking again may help.
pub(super) fn is_broken_connection(error: &HFError) -> bool {
    matches!(error, HFError::Request { .. })
}

/// Nothing usable in the cache, and the network is not to be asked.
pub(super) fn offline(cached: &Cached) -> Error {
    let what = format!(
        "{} is not in the cache, and HF_HUB_OFFLINE is set: run once without it, or give a folder",
        name(cached)
    );
    Error::Source { what }
}

/// An error about the repository.
pub(super) fn explain(error: &HFError, hub: &Hub, cached: &Cached) -> Error {
    explain_at(error, &hub.endpoint, cached)
}

/// An error about one file of the repository.
pub(super) fn explain_file(error: &HFError, file: &str, endpoint: &str, cached: &Cached) -> Error {
    match explain_at(error, endpoint, cached) {
        Error::Source { what } => Error::Source { what: format!("{file}: {what}") },
        other => other,
    }
}

fn explain_at(error: &HFError, endpoint: &str, cached: &Cached) -> Error {
    if let Some(what) = unreachable(error, endpoint, cached) {
        return Error::Unreachable { what };
    }
    let repository = name(cached);
    let page = format!("{}/{}{}", endpoint.trim_end_matches('/'), prefix(cached), cached.id);
    let code = error_code(error).unwrap_or_default();
    let what = match error {
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } if code == "GatedRepo" => format!(
            "{repository} is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account"
        ),
        HFError::AuthRequired { .. } => format!(
            "{repository} does not exist or is private (401): check its name; for a private one set HF_TOKEN to a token \
             that may read it"
        ),
        HFError::Forbidden { .. } => format!(
            "{repository} may not be read with this token (403): set HF_TOKEN to one that may, or accept its terms at {page}"
        ),
        HFError::RevisionNotFound { .. } if code == "RevisionNotFound" => {
            format!("{repository} does not exist: the repository has no such revision (404); see {page}")
        }
        HFError::RevisionNotFound { .. } | HFError::RepoNotFound { .. } => {
            format!(
                "{repository} does not exist at {endpoint} (404), and no folder has that name: check the spelling"
            )
        }
        HFError::EntryNotFound { path, .. } => format!("{repository} has no `{path}` (404); see {page}"),
        HFError::Io(source) => return Error::Io { path: cached.blob(""), source: copy(source) },
        other => format!("{repository}: {other}"),
    };
    Error::Source { what }
}

/// What to say where the hub could not be reached or is out of order, rather than refusing.
fn unreachable(error: &HFError, endpoint: &str, cached: &Cached) -> Option<String> {
    let repository = name(cached);
    Some(match error {
        HFError::RateLimited { retry_after, .. } => {
            let wait = retry_after.map_or(String::new(), |wait| format!(" in {} s", wait.as_secs()));
            format!(
                "cannot reach the hub at {endpoint}: too many requests (429); try again{wait}, or set HF_TOKEN"
            )
        }
        HFError::Request { .. } => format!(
            "cannot reach the hub at {endpoint} for {repository}: {}; check the network and HF_ENDPOINT, or give a folder",
            causes(error)
        ),
        HFError::Http { context } if context.status.is_server_error() => format!(
            "cannot reach the hub at {endpoint} for {repository}: it answers {}; try again later",
            context.status
        ),
        _ => return None,
    })
}

/// The repository as a message names it.
fn name(cached: &Cached) -> String {
    let kind = if cached.kind == Kind::Model { "model" } else { "data set" };
    match cached.revision.as_str() {
        "main" => format!("hub {kind} `{}`", cached.id),
        revision => format!("hub {kind} `{}` at `{revision}`", cached.id),
    }
}

fn prefix(cached: &Cached) -> &'static str {
    if cached.kind == Kind::Model { "" } else { "datasets/" }
}

/// The hub's own word for the failure (`X-Error-Code`).
fn error_code(error: &HFError) -> Option<&str> {
    let context = match error {
        HFError::AuthRequired { context } | HFError::Forbidden { context } => context,
        HFError::RevisionNotFound { context, .. } | HFError::RepoNotFound { context, .. } => {
            context.as_ref()?
        }
        _ => return None,
    };
    context.error_code.as_deref()
}

/// The innermost cause says what happened ("Connection refused"); the outer ones only that something did.
fn causes(error: &HFError) -> String {
    let mut cause = error.source();
    let mut last = error.to_string();
    while let Some(inner) = cause {
        last = inner.to_string();
        cause = inner.source();
    }
    last
}

fn copy(source: &std::io::Error) -> std::io::Error {
    std::io::Error::new(source.kind(), source.to_string())
}
