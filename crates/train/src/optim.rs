//! `AdamW` as torch has it, and gradient clipping.
//!
//! State is f32 whatever the base's dtype, is saved by parameter name, and so survives a stop.

mod state;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Var};
use taper_kernels::pool;

use crate::Error;
use crate::recipe::NoDecay;

/// Trainable parameters by their PEFT key.
pub type Params = BTreeMap<String, Var>;

/// A gradient for each parameter, row-major, in the parameters' order.
pub type Grads = BTreeMap<String, Vec<f32>>;

/// Settings of [`AdamW`].
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the second moment's root.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Kinds of parameter without decay.
    pub no_decay: Vec<NoDecay>,
    /// Rate of B, and of what has one dimension, over that of the rest (`LoRA+`).
    pub lora_plus_ratio: f64,
}

impl Default for AdamWConfig {
    /// torch's.
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            no_decay: Vec::new(),
            lora_plus_ratio: 1.0,
        }
    }
}

/// `torch.optim.AdamW` (torch 2.15, `torch/optim/adamw.py`; arXiv:1711.05101).
///
/// `θ ← θ − lr·λ·θ`, `m ← m + (1−β₁)(g−m)`, `v ← β₂v + (1−β₂)g²`,
/// `θ ← θ − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)`.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    step: usize,
    slots: BTreeMap<String, Slot>,
}

/// A parameter, its gradient and what the optimiser keeps of it.
type Job<'a> = (&'a Var, &'a [f32], &'a mut Slot);

/// What the optimiser keeps of one parameter.
#[derive(Debug)]
struct Slot {
    first: Vec<f32>,
    second: Vec<f32>,
    decay: f64,
    lr_ratio: f64,
}

impl AdamW {
    /// An optimiser that has made no step.
    pub fn new(params: &Params, config: AdamWConfig) -> Self {
        let slot = |(name, var): (&String, &Var)| {
            let len = var.elem_count();
            let kept = config.no_decay.iter().any(|kind| is_kind(name, var, *kind));
            let lr_ratio = if is_b(name, var) { config.lora_plus_ratio } else { 1.0 };
            let decay = if kept { 0.0 } else { config.weight_decay };
            (name.clone(), Slot { first: vec![0.0; len], second: vec![0.0; len], decay, lr_ratio })
        };
        let slots = params.iter().map(slot).collect();
        Self { config, step: 0, slots }
    }

    /// Number of steps made.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// One update of every parameter, in place.
    pub fn step(&mut self, params: &Params, grads: &Grads, lr: f64) -> Result<(), Error> {
        self.step += 1;
        let (config, t) = (self.config.clone(), self.step);
        let updates: Vec<(&Var, Update<'_>)> = (self.jobs(params, grads)?.into_iter())
            .map(|(var, grad, slot)| {
                let numbers = Numbers::new(&config, t, (lr * slot.lr_ratio, slot.decay));
                (var, Update { grad, numbers, moments: Mutex::new((&mut slot.first, &mut slot.second)) })
            })
            .collect();
        let failures = Mutex::new(Vec::new());
        pool::for_each(updates.len(), |i| {
            let (var, update) = &updates[i];
            if let Err(error) = var.inplace_op1(update) {
                failures.lock().unwrap_or_else(PoisonError::into_inner).push(error);
            }
        });
        match failures.into_inner().unwrap_or_else(PoisonError::into_inner).pop() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// Each parameter with its gradient and its slot.
    fn jobs<'a>(&'a mut self, params: &'a Params, grads: &'a Grads) -> Result<Vec<Job<'a>>, Error> {
        let find = |(name, slot): (&'a String, &'a mut Slot)| {
            let missing =
                || Error::training(format!("{name}: no parameter or gradient for the optimiser's state"));
            let (var, grad) = params.get(name).zip(grads.get(name)).ok_or_else(missing)?;
            Ok((var, grad.as_slice(), slot))
        };
        self.slots.iter_mut().map(find).collect()
    }
}

/// Whether `LoRA+` gives a parameter the rate of B: the factors B, and as in PEFT's `loraplus.py` whatever has one dimension.
fn is_b(name: &str, var: &Var) -> bool {
    name.contains("lora_B") || name.contains("lora_embedding_B") || var.rank() == 1
}

fn is_kind(name: &str, var: &Var, kind: NoDecay) -> bool {
    match kind {
        NoDecay::Bias => name.ends_with("bias"),
        NoDecay::Norm => name.ends_with(".weight") && var.rank() == 1,
    }
}

/// The update's numbers for one parameter, rounded to f32 as torch rounds them.
#[derive(Clone, Copy, Debug)]
struct Numbers {
    shrink: f32,
    beta2: f32,
    blend1: f32,
    blend2: f32,
    size: f32,
    root: f32,
    eps: f32,
}

impl Numbers {
    /// For update number `t`, from 1.
    fn new(config: &AdamWConfig, t: usize, (lr, decay): (f64, f64)) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(t as f64);
        Self {
            shrink: (1.0 - lr * decay) as f32,
            beta2: config.beta2 as f32,
            blend1: (1.0 - config.beta1) as f32,
            blend2: (1.0 - config.beta2) as f32,
            size: (lr / correction(config.beta1)) as f32,
            root: correction(config.beta2).sqrt() as f32,
            eps: config.eps as f32,
        }
    }
}

/// One parameter's update, in one pass over parameter, gradient and moments.
struct Update<'a> {
    grad: &'a [f32],
    numbers: Numbers,
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(values) = storage else { candle_core::bail!("a parameter is not f32") };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a parameter is not contiguous")
        };
        let values = &mut values[start..end];
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, second) = &mut *moments;
        if values.len() != self.grad.len() || values.len() != first.len() {
            candle_core::bail!("a gradient has {} values, its parameter {}", self.grad.len(), values.len());
        }
        let n = self.numbers;
        for (((value, &g), m), v) in
            values.iter_mut().zip(self.grad).zip(first.iter_mut()).zip(second.iter_mut())
        {
            *m += n.blend1 * (g - *m);
            *v = n.beta2 * *v + n.blend2 * g * g;
            *value = n.shrink * *value - n.size * *m / (v.sqrt() / n.root + n.eps);
        }
        Ok(())
    }
}

/// Norm of all gradients together; above `max_norm` (unless that is 0) they are all scaled by `max_norm / (norm + 1e-6)`:
/// `torch.nn.utils.clip_grad_norm_`.
///
/// # Errors
/// [`Error::Training`] names the first parameter whose gradient is not finite.
pub fn clip_grad_norm(grads: &mut Grads, max_norm: f64) -> Result<f64, Error> {
    let mut total = 0f64;
    for (name, grad) in grads.iter() {
        let square: f64 = grad.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        if !square.is_finite() {
            return Err(Error::training(format!(
                "the gradient of {name} is not finite: try a lower `lr` or `max_grad_norm`, and look at the rows"
            )));
        }
        total += square;
    }
    let norm = total.sqrt();
    let scale = (max_norm / (norm + 1e-6)) as f32;
    if max_norm > 0.0 && scale < 1.0 {
        for g in grads.values_mut().flatten() {
            *g *= scale;
        }
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{Device, Tensor};

    use super::*;

    const W: &str = "base_model.model.q_proj.lora_A.weight";
    const B: &str = "base_model.model.q_proj.lora_B.bias";

    fn var(values: &[f32], shape: &[usize]) -> Var {
        Var::from_tensor(&Tensor::from_slice(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    fn values(var: &Var) -> Vec<f32> {
        var.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn start() -> (Params, AdamW) {
        let params: Params =
            [(W.into(), var(&[0.5, -1.25, 2.0], &[1, 3])), (B.into(), var(&[0.1, -0.2], &[2]))].into();
        let config = AdamWConfig {
            weight_decay: 0.1,
            no_decay: vec![NoDecay::Bias],
            lora_plus_ratio: 4.0,
            ..AdamWConfig::default()
        };
        let optim = AdamW::new(&params, config);
        (params, optim)
    }

    fn grads(step: usize) -> Grads {
        let g = [[0.3, -0.01, 2e-4], [-0.7, 0.02, 0.0], [0.1, 5.0, -3e-4]][step];
        [(W.into(), g.to_vec()), (B.into(), vec![g[0], 10.0 * g[1]])].into()
    }

    /// ```python
    /// import torch
    /// w = torch.nn.Parameter(torch.tensor([0.5, -1.25, 2.0])); b = torch.nn.Parameter(torch.tensor([0.1, -0.2]))
    /// o = torch.optim.AdamW([dict(params=[w], weight_decay=0.1, lr=0.01), dict(params=[b], weight_decay=0.0, lr=0.04)])
    /// for g in [[0.3, -0.01, 2e-4], [-0.7, 0.02, 0.0], [0.1, 5.0, -3e-4]]:
    ///     w.grad = torch.tensor(g); b.grad = torch.tensor([g[0], 10 * g[1]]); o.step()
    ///     print(w.data.tolist(), b.data.tolist())
    /// ```
    #[test]
    fn updates_are_torchs_with_groups_for_decay_and_rate() {
        let expected = [
            ([0.489_5, -1.238_75, 1.988_000_5], [0.06, -0.16]),
            ([0.493_212_37, -1.241_172_3, 1.979_312_4], [0.076_807_424, -0.174_644_14]),
            ([0.495_107_4, -1.246_331_8, 1.979_778_9], [0.086_360_36, -0.200_247_02]),
        ];
        let (params, mut optim) = start();
        for (step, (w, b)) in expected.into_iter().enumerate() {
            optim.step(&params, &grads(step), 0.01).unwrap();
            for (got, want) in values(&params[W]).iter().zip(w).chain(values(&params[B]).iter().zip(b)) {
                assert!((got - want).abs() <= 2e-7 * want.abs().max(1.0), "step {step}: {got} {want}");
            }
        }
    }

    #[test]
    fn a_restored_optimiser_goes_on_with_the_same_bits() {
        let (params, mut optim) = start();
        optim.step(&params, &grads(0), 0.01).unwrap();
        let bytes = optim.to_bytes().unwrap();
        let (others, mut other) = start();
        for (name, var) in &others {
            var.set(&params[name]).unwrap();
        }
        other.restore(&bytes, Path::new("x")).unwrap();
        for step in 1..3 {
            optim.step(&params, &grads(step), 0.01).unwrap();
            other.step(&others, &grads(step), 0.01).unwrap();
        }
        assert_eq!(optim.to_bytes().unwrap(), other.to_bytes().unwrap());
        assert_eq!(values(&params[W]), values(&others[W]));
    }

    #[test]
    fn a_state_of_other_parameters_is_refused() {
        let (params, optim) = start();
        let only: Params = [(W.to_owned(), params[W].clone())].into();
        let mut other = AdamW::new(&only, AdamWConfig::default());
        let error = other.restore(&optim.to_bytes().unwrap(), Path::new("o.safetensors")).unwrap_err();
        assert_eq!(error.to_string(), "o.safetensors: holds 4 tensors, expected 2");
    }

    /// ```python
    /// x, y = (torch.nn.Parameter(torch.zeros(n)) for n in (2, 1))
    /// x.grad, y.grad = torch.tensor([3., 4.]), torch.tensor([12.])
    /// print(torch.nn.utils.clip_grad_norm_([x, y], 6.5), x.grad, y.grad)   # 13, [1.5, 2.0], [6.0]
    /// ```
    #[test]
    fn clipping_is_torchs() {
        let mut grads: Grads = [("x".into(), vec![3.0, 4.0]), ("y".into(), vec![12.0])].into();
        assert!((clip_grad_norm(&mut grads, 0.0).unwrap() - 13.0).abs() < 1e-12);
        assert_eq!(grads["y"], [12.0]);
        assert!((clip_grad_norm(&mut grads, 6.5).unwrap() - 13.0).abs() < 1e-12);
        for (got, want) in grads["x"].iter().chain(&grads["y"]).zip([1.499_999_9, 1.999_999_9, 5.999_999_5]) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_named() {
        let mut grads: Grads = [("x".into(), vec![1.0]), ("y".into(), vec![f32::NAN])].into();
        assert!(clip_grad_norm(&mut grads, 1.0).unwrap_err().to_string().contains("gradient of y"));
    }
}
