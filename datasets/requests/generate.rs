//! Writes the requests data set into the folder given as the only argument (default `datasets/requests`).

use std::error::Error;
use std::path::PathBuf;

use taper_datasets::requests;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(|| "datasets/requests".into(), PathBuf::from);
    requests::splits(requests::SEED)?.write(&folder)?;
    Ok(())
}
