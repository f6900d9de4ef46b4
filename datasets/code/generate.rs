//! Writes the code data set into the folder given as the only argument (default `datasets/code`).

use std::error::Error;
use std::path::PathBuf;

use taper_datasets::code;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(|| "datasets/code".into(), PathBuf::from);
    code::splits(code::SEED)?.write(&folder)?;
    Ok(())
}
