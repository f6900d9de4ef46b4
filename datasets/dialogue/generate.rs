//! Writes the dialogue data set into the folder given as the only argument (default `datasets/dialogue`).

use std::error::Error;
use std::path::PathBuf;

use taper_datasets::dialogue;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(|| "datasets/dialogue".into(), PathBuf::from);
    dialogue::splits(dialogue::SEED)?.write(&folder)?;
    Ok(())
}
