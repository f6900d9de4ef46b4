//! Writing `adapter_model.safetensors` as PEFT does: F32, metadata `{"format":"pt"}`, tensors by name.

use std::collections::BTreeMap;
use std::io::Write;

use candle_core::Tensor;
use serde_json::{Map, Value, json};

/// File name in an adapter folder.
pub(crate) const TENSOR_FILE: &str = "adapter_model.safetensors";

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
