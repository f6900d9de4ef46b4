//! Writes the sentiment data set into the folder given as the only argument (default `datasets/sentiment`).

use std::error::Error;
use std::path::PathBuf;

use taper_datasets::sentiment;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(|| "datasets/sentiment".into(), PathBuf::from);
    sentiment::splits(sentiment::SEED)?.write(&folder)?;
    Ok(())
}
