//! Writes where the base `tiny` starts into the folder given as the only argument: the corpus (`train.jsonl`,
//! `valid.jsonl`) and a model folder's files (tokenizer, configs, random weights).

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;

use taper_datasets::{model, tiny, tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: tiny FOLDER")?;
    let splits = tiny::Corpus::new()?.documents(tiny::SEED, tiny::BYTES)?;
    tiny::write(&splits, &folder)?;
    let tokenizer = tokenizer::train(&splits[0])?;
    tokenizer::write(&tokenizer, &folder)?;
    model::write(&folder, model::SEED)?;
    let density = tokenizer::characters_per_token(&tokenizer, &splits[1])?;
    let [train, valid] = splits.map(|documents| documents.len());
    writeln!(std::io::stderr(), "{train} + {valid} documents, {density:.2} characters a token")?;
    Ok(())
}
