//! The optimiser's state as a file.

use std::borrow::Cow;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, View};

use super::AdamW;
use crate::Error;

impl AdamW {
    /// The state as a safetensors file: `NAME.first` and `NAME.second` for each parameter, and the step in the metadata.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let moments = self.slots.iter().flat_map(|(name, slot)| {
            [
                (format!("{name}.first"), Moment::new(&slot.first)),
                (format!("{name}.second"), Moment::new(&slot.second)),
            ]
        });
        let metadata = [("step".to_owned(), self.step.to_string())].into();
        safetensors::serialize(moments, Some(metadata))
            .map_err(|error| Error::training(format!("optimiser state: {error}")))
    }

    /// Takes the state of a file that [`AdamW::to_bytes`] wrote; `path` is for errors.
    pub fn restore(&mut self, bytes: &[u8], path: &Path) -> Result<(), Error> {
        let wrong = |what: String| Error::file(path, what);
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| wrong(error.to_string()))?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| wrong(error.to_string()))?;
        let step = header.metadata().as_ref().and_then(|metadata| metadata.get("step")?.parse().ok());
        self.step = step.ok_or_else(|| wrong("has no step in its metadata".into()))?;
        if tensors.len() != 2 * self.slots.len() {
            return Err(wrong(format!("holds {} tensors, expected {}", tensors.len(), 2 * self.slots.len())));
        }
        for (name, slot) in &mut self.slots {
            for (kind, values) in [("first", &mut slot.first), ("second", &mut slot.second)] {
                let view =
                    tensors.tensor(&format!("{name}.{kind}")).map_err(|error| wrong(error.to_string()))?;
                if view.data().len() != 4 * values.len() {
                    return Err(wrong(format!("{name}.{kind} does not have {} values", values.len())));
                }
                for (value, bytes) in values.iter_mut().zip(view.data().as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
        }
        Ok(())
    }
}

/// A moment as a tensor of a file, turned into bytes when it is its turn.
struct Moment<'a> {
    values: &'a [f32],
    shape: [usize; 1],
}

impl<'a> Moment<'a> {
    fn new(values: &'a [f32]) -> Self {
        Self { values, shape: [values.len()] }
    }
}

impl View for Moment<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}
