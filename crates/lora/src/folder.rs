//! A PEFT folder, read and written. Reading is strict both ways and reports everything that is wrong at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use taper_base::files::write_whole;
use taper_base::{Checkpoint, Module};

use crate::config_json::CONFIG_FILE;
use crate::lora::PREFIX;
use crate::plan::{BaseModules, Origin, Plan};
use crate::problems::Problems;
use crate::source::{Source, Start};
use crate::tensor_file::{TENSOR_FILE, write_tensors};
use crate::{Error, LoraAdapter, LoraConfig};

impl LoraAdapter {
    /// Loads a PEFT folder for inference: nothing is tracked.
    ///
    /// # Errors
    /// [`Error::File`] with every missing, left-over, mis-shaped or non-finite tensor, or what the configuration asks for
    /// and cannot be honoured; [`Error::Target`] where it selects nothing in this base.
    pub fn load<'a>(dir: &Path, base: impl Into<BaseModules<'a>>) -> Result<Self, Error> {
        Self::read(dir, &base.into(), false)
    }

    /// Loads a PEFT folder to train it further.
    ///
    /// # Errors
    /// As [`LoraAdapter::load`].
    pub fn load_trainable<'a>(dir: &Path, base: impl Into<BaseModules<'a>>) -> Result<Self, Error> {
        Self::read(dir, &base.into(), true)
    }

    fn read(dir: &Path, base: &BaseModules<'_>, trainable: bool) -> Result<Self, Error> {
        let (config, mut warnings) = LoraConfig::read(dir)?;
        let mut folder = Folder::open(dir, trainable)?;
        let plan = Plan::new(config, base, Origin::Folder)?;
        let tied = plan.tied;
        let mut adapter = Self::build(plan, base, &mut folder)?;
        if let Some((head, embedding)) = tied {
            folder.skip_copy(&format!("{head}.weight"), &format!("{embedding}.weight"))?;
        }
        folder.skip_base_copies(base, &mut warnings)?;
        folder.skip_inner_names();
        adapter.params = folder.finish(&adapter)?;
        adapter.warnings.splice(0..0, warnings);
        Ok(if trainable { adapter } else { adapter.frozen() })
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` into `dir`, which is made if need be. The same adapter
    /// gives the same bytes. Each file is written under another name, synced and renamed.
    ///
    /// # Errors
    /// [`Error::Io`] with the file that cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let mut tensors = self.tensors.clone();
        if let Some(embedding) = self.head.base.as_ref().filter(|_| self.head.follows) {
            // PEFT writes the tied head as well.
            let weight = self.tensors.get(&format!("{PREFIX}{embedding}.weight")).cloned();
            tensors.extend(weight.map(|weight| (format!("{PREFIX}{}.weight", self.head.head), weight)));
        }
        let [tensor_file, config_file] = [TENSOR_FILE, CONFIG_FILE].map(|name| dir.join(name));
        write_whole(&tensor_file, |out| write_tensors(&tensors, out)).map_err(Error::io(&tensor_file))?;
        write_whole(&config_file, |out| out.write_all(self.config.to_json().as_bytes()))
            .map_err(Error::io(&config_file))
    }
}

/// The tensors of a folder that are not taken yet, and what is wrong with those that were.
struct Folder {
    path: PathBuf,
    file: Checkpoint,
    /// Keys without PEFT's prefix, and the names they have in the file.
    names: BTreeMap<String, String>,
    left: BTreeSet<String>,
    trainable: bool,
    vars: BTreeMap<String, Var>,
    problems: Problems,
}

impl Folder {
    fn open(dir: &Path, trainable: bool) -> Result<Self, Error> {
        let path = dir.join(TENSOR_FILE);
        if !path.is_file() {
            let what = if dir.join("adapter_model.bin").is_file() {
                "holds only adapter_model.bin, a pickle, which taper does not read since loading one runs code: load it in \
                 PEFT and save it again with safe_serialization=True"
                    .to_owned()
            } else {
                format!("holds no {TENSOR_FILE}")
            };
            return Err(Error::file(dir, what));
        }
        let file = Checkpoint::open_files(std::slice::from_ref(&path))?;
        let mut names = BTreeMap::new();
        for name in file.names() {
            if let Some(other) = names.insert(plain(name), name.to_owned()) {
                return Err(Error::file(path, format!("`{name}` and `{other}` are the same tensor")));
            }
        }
        let left = names.keys().cloned().collect();
        Ok(Self { path, file, names, left, trainable, vars: BTreeMap::new(), problems: Problems::default() })
    }

    /// The key under which the file has the tensor: a bias may bear the name that older PEFT gave it.
    fn find(&self, key: &str) -> Option<String> {
        let plain = key.strip_prefix(PREFIX).unwrap_or(key);
        let older = plain.replace(".base_layer.", ".");
        [plain.to_owned(), older].into_iter().find(|name| self.left.contains(name))
    }

    fn values(&self, plain: &str) -> Result<Vec<f32>, Error> {
        let shape = self.shape(plain);
        Ok(self.file.tensor(&self.names[plain], &shape)?.flatten_all()?.to_vec1()?)
    }

    fn shape(&self, plain: &str) -> Vec<usize> {
        let info = self.names.get(plain).and_then(|name| self.file.info(name));
        info.map(|info| info.shape.clone()).unwrap_or_default()
    }

    /// Passes over the copy of a saved embedding that PEFT writes for the head tied to it.
    fn skip_copy(&mut self, copy: &str, original: &str) -> Result<(), Error> {
        if self.left.contains(copy)
            && self.names.contains_key(original)
            && self.values(copy)? == self.values(original)?
        {
            self.left.remove(copy);
        }
        Ok(())
    }

    /// Passes over whole base weights that PEFT writes beside an adapter of the embedding or the head, where they are this
    /// base's.
    fn skip_base_copies(&mut self, base: &BaseModules<'_>, warnings: &mut Vec<String>) -> Result<(), Error> {
        for key in self.left.clone() {
            let name = key.replace(".base_layer.", ".");
            let named = |module: &&Module<'_>| name.strip_suffix(".weight") == Some(module.path());
            let weight = match base.modules.iter().find(named) {
                Some(Module::Linear(layer)) => &layer.weight,
                Some(Module::Embedding(layer)) => &layer.weight,
                _ => continue,
            };
            if self.shape(&key) != [weight.rows(), weight.cols()] {
                continue;
            }
            match difference(&self.values(&key)?, &weight.to_f32()) {
                Difference::None => {}
                Difference::Rounding => warnings.push(format!(
                    "{TENSOR_FILE}: `{key}` is the base's `{name}` up to rounding: the base's is used"
                )),
                Difference::Values => continue,
            }
            self.left.remove(&key);
        }
        Ok(())
    }

    /// Passes over what PEFT writes of a module in `modules_to_save` under the names that its parts have inside the wrapper,
    /// as it does of biases under `bias: all`. PEFT reads the plain name, and computes nothing with the others.
    fn skip_inner_names(&mut self) {
        let names = &self.names;
        self.left.retain(|key| {
            !["modules_to_save.default", "modules_to_save", "original_module"].iter().any(|inner| {
                let plain = key.replace(&format!(".{inner}."), ".");
                plain != *key && names.contains_key(&plain)
            })
        });
    }

    /// The trainable parameters, unless something is wrong.
    fn finish(mut self, adapter: &LoraAdapter) -> Result<BTreeMap<String, Var>, Error> {
        for key in &self.left {
            let name = &self.names[key];
            let meant =
                without_adapter_name(key).map(|(plain, adapter)| (format!("{PREFIX}{plain}"), adapter));
            match meant {
                Some((meant, adapter)) if self.problems.lacks(&meant) => {
                    self.problems.named(name, adapter, &meant);
                }
                _ => self.problems.unexpected(name),
            }
        }
        match self.problems.report(adapter.config.base_model_name_or_path.as_deref()) {
            None => Ok(self.vars),
            Some(what) => Err(Error::file(self.path, what)),
        }
    }
}

impl Source for Folder {
    /// Takes the tensor out of the file; in its place, zeros where something is wrong, which [`Folder::finish`] reports. They are
    /// one value seen everywhere: the shape is what the configuration claims, and may be of any size.
    fn tensor(&mut self, key: &str, shape: &[usize], _: Start<'_>) -> Result<Tensor, Error> {
        let placeholder =
            || Ok(Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu)?.broadcast_as(shape)?);
        let Some(found) = self.find(key) else {
            self.problems.missing.push(format!("`{key}`"));
            return placeholder();
        };
        self.left.remove(&found);
        let stored = self.shape(&found);
        if stored != shape {
            self.problems.misshaped(key, &stored, shape);
            return placeholder();
        }
        let values = self.values(&found)?;
        if !values.iter().all(|value| value.is_finite()) {
            self.problems.not_finite.push(format!("`{key}`"));
        }
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
        if !self.trainable {
            return Ok(tensor);
        }
        let var = Var::from_tensor(&tensor)?;
        self.vars.insert(key.to_owned(), var.clone());
        Ok(var.into_inner())
    }
}

/// A key without the prefixes of PEFT's wrapper and of `torch.compile`, by the name that `save_pretrained` gives it: PEFT reads that
/// of its own `state_dict` as well, where its adapter is called `default`.
fn plain(name: &str) -> String {
    let name = name.replace("_orig_mod.", "");
    let name = name.strip_prefix(PREFIX).map(str::to_owned).unwrap_or(name);
    match without_adapter_name(&name) {
        Some((plain, "default")) => plain,
        _ => name.strip_suffix(".lora_magnitude_vector.weight").map(magnitude).unwrap_or(name),
    }
}

fn magnitude(module: &str) -> String {
    format!("{module}.lora_magnitude_vector")
}

/// A key of the `state_dict` of a PEFT model, as `save_pretrained` would write it, and the adapter's name that stood in it.
fn without_adapter_name(name: &str) -> Option<(String, &str)> {
    let (module, end) = name.rsplit_once(".lora_")?;
    let mut parts = end.split('.');
    let (kind, adapter, rest) = (parts.next()?, parts.next()?, parts.next());
    let plain = match (kind, rest) {
        ("A" | "B", Some("weight")) | ("B", Some("bias")) => format!("{module}.lora_{kind}.{}", rest?),
        ("magnitude_vector", Some("weight")) => magnitude(module),
        ("embedding_A" | "embedding_B", None) => format!("{module}.lora_{kind}"),
        _ => return None,
    };
    parts.next().is_none().then_some((plain, adapter))
}

enum Difference {
    None,
    /// At most what rounding to bfloat16 or half precision does.
    Rounding,
    Values,
}

fn difference(found: &[f32], base: &[f32]) -> Difference {
    if found == base {
        return Difference::None;
    }
    let rounding = found
        .iter()
        .zip(base)
        .all(|(f, b)| (f - b).abs() <= b.abs() / 256.0 + f32::from(half::f16::MIN_POSITIVE));
    if rounding { Difference::Rounding } else { Difference::Values }
}
