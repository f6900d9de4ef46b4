//! Writes the style data set into the folder given as the only argument (default `datasets/style`).

use std::error::Error;
use std::path::PathBuf;

use taper_datasets::style;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(|| "datasets/style".into(), PathBuf::from);
    style::splits(style::SEED)?.write(&folder)?;
    Ok(())
}
