//! `taper inspect`: what an adapter or model folder holds, and what is wrong with it.

use anyhow::bail;
use clap::Args;
use taper_base::{Base, ModelDir, ModelSource};
use taper_kernels::Compute;
use taper_merge::{Inspection, Kind};

use crate::output::{bytes, count, print, table};

/// Tensors listed without --all.
const SHOWN: usize = 12;

/// Show what an adapter or model holds, and what is wrong with it; the exit status is 1 where anything is.
#[derive(Args)]
pub(crate) struct InspectArgs {
    /// An adapter or model: a folder, a .gguf file, a hub id, or `tiny`
    path: String,
    /// The base to check an adapter against
    #[arg(long)]
    model: Option<String>,
    /// List every tensor
    #[arg(long)]
    all: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let dir = match ModelSource::parse(&args.path)? {
        ModelSource::Folder(path) => path,
        ModelSource::Tiny => ModelDir::resolve(&ModelSource::Tiny)?.path,
        source @ ModelSource::Hub { .. } => {
            ModelDir::resolve_adapter(&source).or_else(|_| ModelDir::resolve(&source).map(|dir| dir.path))?
        }
    };
    let open = |model: &String| {
        let base = ModelDir::resolve(&ModelSource::parse(model)?)?;
        // A folder that does not say its task is looked at on the base as it is.
        let task = taper_lora::task(&dir, &base.json("config.json")?).ok();
        let opened = match task {
            Some(task) => Base::open_for(base, Compute::F32, task)?,
            None => Base::open_dir(base, Compute::F32)?,
        };
        Ok::<_, anyhow::Error>(opened)
    };
    let base = args.model.as_ref().map(open).transpose()?;
    let found = taper_merge::inspect(&dir, base.as_ref())?;
    if args.json {
        print(serde_json::to_string(&found)?)?;
    } else {
        print(describe(&found, args.all))?;
    }
    match found.problems.len() {
        0 => Ok(()),
        1 => bail!("{}: a problem was found", found.path),
        several => bail!("{}: {several} problems were found", found.path),
    }
}

fn describe(found: &Inspection, all: bool) -> String {
    let mut parts = vec![heading(found)];
    if !found.modules.is_empty() {
        parts.push(modules(found, all));
    }
    parts.push(tensors(found, all));
    let list = |name: &str, lines: &[String]| format!("{name}:\n  - {}", lines.join("\n  - "));
    if !found.notes.is_empty() {
        parts.push(list("notes", &found.notes));
    }
    parts.push(match found.problems.as_slice() {
        [] => "no problems found".to_owned(),
        problems => list("problems", problems),
    });
    parts.join("\n\n")
}

fn heading(found: &Inspection) -> String {
    let kind = match found.kind {
        Kind::Adapter => "adapter",
        Kind::Model => "model",
    };
    let mut lines = vec![format!("{}: {kind}", found.path)];
    let field = |name: &str| found.config.get(name).filter(|value| !value.is_null()).map(ToString::to_string);
    for name in [
        "base_model_name_or_path",
        "r",
        "lora_alpha",
        "target_modules",
        "modules_to_save",
        "use_dora",
        "use_rslora",
    ] {
        if let (Kind::Adapter, Some(value)) = (found.kind, field(name)) {
            lines.push(format!("  {name}: {value}"));
        }
    }
    if let Some(model) = &found.model {
        lines.push(format!("  {} ({})", model.model_type, model.architecture));
        lines.push(format!("  head tied to the embedding: {}", yes(model.tied)));
        lines.push(format!(
            "  tokenizer: {}, chat template: {}",
            yes(model.tokenizer),
            yes(model.chat_template)
        ));
    }
    for (what, values) in found.parameters.iter().filter(|(_, values)| **values > 0) {
        lines.push(format!("  {} values {what}", count(*values as usize)));
    }
    for file in &found.files {
        lines.push(format!("  {}, {}", file.name, bytes(file.bytes)));
    }
    lines.join("\n")
}

fn modules(found: &Inspection, all: bool) -> String {
    let mut rows =
        vec![["module", "rank", "alpha", "scaling", "norm A", "norm B"].map(ToOwned::to_owned).to_vec()];
    let shown = if all { found.modules.len() } else { SHOWN };
    rows.extend(found.modules.iter().take(shown).map(|module| {
        vec![
            module.path.clone(),
            module.rank.to_string(),
            module.alpha.to_string(),
            format!("{:.4}", module.scaling),
            format!("{:.4}", module.norm_a),
            format!("{:.4}", module.norm_b),
        ]
    }));
    table(&rows) + &more(found.modules.len(), shown)
}

fn tensors(found: &Inspection, all: bool) -> String {
    let mut rows = vec![["tensor", "shape", "dtype"].map(ToOwned::to_owned).to_vec()];
    let shown = if all { found.tensors.len() } else { SHOWN };
    rows.extend(
        found
            .tensors
            .iter()
            .take(shown)
            .map(|tensor| vec![tensor.name.clone(), format!("{:?}", tensor.shape), tensor.dtype.clone()]),
    );
    table(&rows) + &more(found.tensors.len(), shown)
}

fn more(all: usize, shown: usize) -> String {
    if all > shown {
        format!("\n… and {} more; --all lists them", count(all - shown))
    } else {
        String::new()
    }
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}
