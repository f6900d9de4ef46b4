//! The blocks under test, and each in the fine-grained operations.

use candle_core::Device;

use super::*;
use crate::testing::values;
use crate::{
    Columns, activate, add_bias, attention, columns, gated, layer_norm, linear, rms_norm, rope, scale_columns,
};

pub(super) const HIDDEN: usize = 24;
pub(super) const INNER: usize = 40;
pub(super) const EPS: f64 = 1e-5;

/// One of the blocks under test.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "what varies from case to case")]
pub(super) struct Case {
    pub(super) sides: Sides,
    /// Whether gates open anything. Where they do not, norms are layer norms.
    pub(super) gated: bool,
    pub(super) joined: Joined,
    /// Whether weights are stored `(in, out)`.
    pub(super) conv1d: bool,
    pub(super) causal: bool,
    pub(super) head_norms: bool,
    pub(super) biases: bool,
    pub(super) rotates: bool,
    pub(super) window: Option<usize>,
    pub(super) dropout: f32,
    /// Bit `i`: projection `i` has a low-rank term.
    pub(super) adapted: u8,
    /// Bit `i`: and a gain.
    pub(super) gained: u8,
    pub(super) track_x: bool,
    pub(super) compute: Compute,
}

/// Where norms are.
#[derive(Clone, Copy)]
pub(super) enum Sides {
    Before,
    After,
    Around,
    Parallel,
}

pub(super) const PLAIN: Case = Case {
    sides: Sides::Before,
    gated: true,
    joined: Joined { qkv: None, gate_up: false },
    conv1d: false,
    causal: true,
    head_norms: false,
    biases: false,
    rotates: true,
    window: None,
    dropout: 0.0,
    adapted: 0x7f,
    gained: 0,
    track_x: true,
    compute: Compute::F32,
};

/// Two projections that make q, k, v and gate, up.
pub(super) const JOINED: Case =
    Case { joined: Joined { qkv: Some(Order::Whole), gate_up: true }, adapted: 0xf, ..PLAIN };

/// As in GPT-2.
pub(super) const GPT: Case = Case {
    gated: false,
    joined: Joined { qkv: Some(Order::Whole), gate_up: false },
    conv1d: true,
    biases: true,
    rotates: false,
    adapted: 0xf,
    ..PLAIN
};

/// As in GPT-NeoX.
pub(super) const NEOX: Case = Case {
    sides: Sides::Parallel,
    joined: Joined { qkv: Some(Order::ByHead), gate_up: false },
    conv1d: false,
    rotates: true,
    ..GPT
};

/// As in BERT.
pub(super) const ENCODER: Case = Case {
    sides: Sides::After,
    gated: false,
    causal: false,
    biases: true,
    rotates: false,
    adapted: 0x3f,
    ..PLAIN
};

pub(super) fn make(case: Case) -> Arc<Block> {
    let shape = AttentionShape {
        heads: 6,
        kv_heads: if case.joined.qkv == Some(Order::ByHead) { 6 } else { 2 },
        head_dim: 8,
        scale: 0.35,
        causal: case.causal,
        window: case.window,
        cap: None,
        compute: case.compute,
    };
    let (q, k) = (shape.query_width(), shape.key_width());
    let qkv = if case.joined.qkv.is_some() { vec![q + 2 * k] } else { vec![q, k, k] };
    let gate = if case.joined.gate_up { 2 * INNER } else { INNER };
    let mut sizes: Vec<_> = qkv.into_iter().map(|width| (width, HIDDEN)).collect();
    sizes.extend([(HIDDEN, q), (gate, HIDDEN), (HIDDEN, INNER)]);
    sizes.extend((case.gated && !case.joined.gate_up).then_some((INNER, HIDDEN)));
    let projection = |i: usize| {
        let (outputs, inputs) = sizes[i];
        let small = values(20 + i as u64, outputs * inputs).iter().map(|w| w * 0.4).collect();
        let weight = if case.conv1d {
            Weight::dense(small, inputs, outputs).unwrap().transposed()
        } else {
            Weight::dense(small, outputs, inputs).unwrap()
        };
        Projection {
            weight: weight.with_compute(case.compute),
            bias: case.biases.then(|| values(40 + i as u64, outputs)),
        }
    };
    let norm = |seed, size| match (values(seed, size), case.gated) {
        (gain, true) => Norm::Rms { gain, eps: EPS as f32 },
        (gain, false) => Norm::Layer { gain, bias: values(seed + 4, size), eps: EPS as f32 },
    };
    let norms = [norm(51, HIDDEN), norm(52, HIDDEN)];
    Arc::new(Block {
        projections: (0..sizes.len()).map(projection).collect(),
        joined: case.joined,
        norms: match case.sides {
            Sides::Before => Norms::Before(norms),
            Sides::After => Norms::After(norms),
            Sides::Parallel => Norms::Parallel(norms),
            Sides::Around => Norms::Around(norms, [norm(57, HIDDEN), norm(58, HIDDEN)]),
        },
        head_norms: case
            .head_norms
            .then(|| [53, 54].map(|seed| Norm::Rms { gain: values(seed, 8), eps: EPS as f32 })),
        activation: if case.gated { Activation::Silu } else { Activation::Gelu },
        shape,
        rotates: case.rotates,
    })
}

pub(super) fn pass(lengths: &[usize], recompute: bool) -> BlockPass {
    let rows: usize = lengths.iter().sum();
    let mut end = 0;
    let segments = lengths.iter().map(|length| {
        end += length;
        end - length..end
    });
    let segments = segments.collect();
    let angles: Vec<f32> = values(60, rows * 3).iter().map(|a| 3.0 * a).collect();
    let table = |f: fn(f32) -> f32| angles.iter().map(|&a| f(a)).collect();
    let rope = Arc::new(RopeTable { cos: table(f32::cos), sin: table(f32::sin), half: 3 });
    BlockPass { segments, rope, recompute, gradients: Some(Gradients::default()) }
}

/// A block in single operations.
struct InParts<'a> {
    block: &'a Block,
    adapted: &'a [Option<Adapted<'a>>; 7],
}

impl InParts<'_> {
    fn norm(norm: &Norm, x: &Tensor) -> Result<Tensor> {
        match norm {
            Norm::Rms { gain, .. } => rms_norm(x, &vector(gain)?, EPS),
            Norm::Layer { gain, bias, .. } => layer_norm(x, &vector(gain)?, Some(&vector(bias)?), EPS),
        }
    }

    fn before(&self, i: usize, x: &Tensor) -> Result<Tensor> {
        match &self.block.norms {
            Norms::Before(norms) | Norms::Around(norms, _) | Norms::Parallel(norms) => {
                Self::norm(&norms[i], x)
            }
            Norms::After(_) => Ok(x.clone()),
        }
    }

    fn after(&self, i: usize, x: &Tensor, made: Tensor) -> Result<Tensor> {
        match &self.block.norms {
            Norms::Before(_) | Norms::Parallel(_) => x + made,
            Norms::After(norms) => Self::norm(&norms[i], &(x + made)?),
            Norms::Around(_, norms) => x + Self::norm(&norms[i], &made)?,
        }
    }

    fn project(&self, i: usize, x: &Tensor) -> Result<Tensor> {
        let Projection { weight, bias } = &self.block.projections[i];
        let bias = bias.as_deref().map(vector).transpose()?;
        let low_rank = self.adapted[i].as_ref().map(|adapted| adapted.low_rank);
        let Some(gain) = self.adapted[i].as_ref().and_then(|adapted| adapted.gain.as_ref()) else {
            return linear(x, weight, bias.as_ref(), low_rank);
        };
        let y = scale_columns(&linear(x, weight, None, low_rank)?, gain)?;
        bias.map_or_else(|| Ok(y.clone()), |bias| add_bias(&y, &bias))
    }

    fn heads(&self, read: &Tensor, pass: &BlockPass) -> Result<[Tensor; 3]> {
        let block = self.block;
        let [mut q, mut k, v] = match block.joined.qkv {
            Some(order) => split(&self.project(0, read)?, block.runs(order))?,
            None => [self.project(0, read)?, self.project(1, read)?, self.project(2, read)?],
        };
        if let Some([q_norm, k_norm]) = &block.head_norms {
            (q, k) = (Self::norm(q_norm, &q)?, Self::norm(k_norm, &k)?);
        }
        if block.rotates {
            let size = block.shape.head_dim;
            (q, k) = (rope(&q, &pass.rope, size)?, rope(&k, &pass.rope, size)?);
        }
        Ok([q, k, v])
    }

    fn inner(&self, read: &Tensor) -> Result<Tensor> {
        let block = self.block;
        let gate = self.project(block.gate(), read)?;
        if block.joined.gate_up {
            let [gate, up] = split(&gate, [INNER; 2])?;
            return gated(&gate, &up, block.activation);
        }
        if block.is_gated() {
            return gated(&gate, &self.project(block.up(), read)?, block.activation);
        }
        activate(&gate, block.activation)
    }
}

pub(super) fn in_parts(
    x: &Tensor,
    block: &Block,
    pass: &BlockPass,
    adapted: &[Option<Adapted<'_>>; 7],
) -> Result<Tensor> {
    let parts = InParts { block, adapted };
    let [q, k, v] = parts.heads(&parts.before(0, x)?, pass)?;
    let attended = attention(&q, &k, &v, &pass.segments, block.shape)?;
    let middle = parts.after(0, x, parts.project(block.o(), &attended)?)?;
    let fed = if matches!(block.norms, Norms::Parallel(_)) { x } else { &middle };
    let inner = parts.inner(&parts.before(1, fed)?)?;
    parts.after(1, &middle, parts.project(block.down(), &inner)?)
}

fn vector(values: &[f32]) -> Result<Tensor> {
    Tensor::new(values, &Device::Cpu)
}

fn split<const P: usize>(all: &Tensor, widths: [usize; P]) -> Result<[Tensor; P]> {
    let stride = widths.iter().sum();
    let part = |i: usize| {
        let start = widths[..i].iter().sum();
        columns(all, Columns { start, width: widths[i], stride })
    };
    let parts: Vec<Tensor> = (0..P).map(part).collect::<Result<_>>()?;
    Ok(std::array::from_fn(|i| parts[i].clone()))
}
