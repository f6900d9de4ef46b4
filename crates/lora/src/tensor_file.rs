//! Writing `adapter_model.safetensors` as PEFT does: F32, metadata `{"format":"pt"}`, tensors by name.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use crate::Error;

/// File name in an adapter folder.
pub(crate) const TENSOR_FILE: &str = "adapter_model.safetensors";

/// Writes `path` whole under a temporary name beside it, syncs it and renames it.
pub(crate) fn write(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As for any new file; the umask takes away what it always does.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let file = builder.tempfile_in(dir).map_err(io)?;
    let mut buffered = std::io::BufWriter::new(file);
    content(&mut buffered).map_err(io)?;
    let file = buffered.into_inner().map_err(|error| io(error.into_error()))?;
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|error| io(error.error))?;
    // The rename is on disk only with the folder's entry; some file systems cannot sync a folder.
    let _ = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
    Ok(())
}

/// The bytes of a safetensors file.
pub(crate) fn write_tensors(tensors: &BTreeMap<String, Tensor>, out: &mut dyn Write) -> std::io::Result<()> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for (name, tensor) in tensors {
        let start = end;
        end += tensor.elem_count() * size_of::<f32>();
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": tensor.dims(), "data_offsets": [start, end]}),
        );
    }
    let mut header = Value::Object(header).to_string();
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for tensor in tensors.values() {
        let values: Vec<f32> =
            tensor.detach().flatten_all().and_then(|flat| flat.to_vec1()).map_err(std::io::Error::other)?;
        for value in values {
            out.write_all(&value.to_le_bytes())?;
        }
    }
    Ok(())
}
