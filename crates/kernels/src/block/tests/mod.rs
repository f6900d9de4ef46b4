//! Against the fine-grained operations.

mod chain;
mod other_ways;

use candle_core::{Device, Var};

use super::*;
use crate::testing::{WeightedSum, assert_close, flat, mapped, tensor, values};
use crate::{CacheDtype, CacheRows, Compute, Dropout, Stored, add_bias, attention, decode, encode, linear};
use crate::{activate, gated, layer_norm, rms_norm, rope, scale_columns};

const HIDDEN: usize = 24;
const INNER: usize = 40;
const EPS: f64 = 1e-5;

/// One of the blocks under test.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "what varies from case to case")]
struct Case {
    /// Layer norms that come after, gates that open nothing: as in BERT.
    encoder: bool,
    causal: bool,
    head_norms: bool,
    biases: bool,
    rotates: bool,
    window: Option<usize>,
    dropout: f32,
    /// Bit `i`: projection `i` has a low-rank term.
    adapted: u8,
    /// Bit `i`: and a gain.
    gained: u8,
    track_x: bool,
    compute: Compute,
}

const PLAIN: Case = Case {
    encoder: false,
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

const ENCODER: Case =
    Case { encoder: true, causal: false, biases: true, rotates: false, adapted: 0x3f, ..PLAIN };

fn make(case: Case) -> Arc<Block> {
    let shape = AttentionShape {
        heads: 6,
        kv_heads: 2,
        head_dim: 8,
        scale: 0.35,
        causal: case.causal,
        window: case.window,
        cap: None,
    };
    let (q, k) = (shape.query_width(), shape.key_width());
    let sizes = [(q, HIDDEN), (k, HIDDEN), (k, HIDDEN), (HIDDEN, q)];
    let sizes = [&sizes[..], &[(INNER, HIDDEN), (HIDDEN, INNER), (INNER, HIDDEN)]].concat();
    let projection = |i: usize| {
        let (outputs, inputs) = sizes[i];
        let values_of = values(20 + i as u64, outputs * inputs).iter().map(|w| w * 0.4).collect();
        Projection {
            weight: Weight::dense(values_of, outputs, inputs).unwrap().with_compute(case.compute),
            bias: case.biases.then(|| values(40 + i as u64, outputs)),
        }
    };
    let norm = |seed, size| match (values(seed, size), case.encoder) {
        (gain, false) => Norm::Rms { gain, eps: EPS as f32 },
        (gain, true) => Norm::Layer { gain, bias: values(seed + 4, size), eps: EPS as f32 },
    };
    let norms = [norm(51, HIDDEN), norm(52, HIDDEN)];
    Arc::new(Block {
        projections: (0..if case.encoder { 6 } else { 7 }).map(projection).collect(),
        norms: if case.encoder { Norms::After(norms) } else { Norms::Before(norms) },
        head_norms: case
            .head_norms
            .then(|| [53, 54].map(|seed| Norm::Rms { gain: values(seed, 8), eps: EPS as f32 })),
        activation: if case.encoder { Activation::Gelu } else { Activation::Silu },
        shape,
        rotates: case.rotates,
    })
}

fn pass(lengths: &[usize], recompute: bool) -> BlockPass {
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

/// The block as an operation of its own.
fn block(x: &Tensor, block: &Block, pass: &BlockPass, adapted: &[Option<Adapted<'_>>; 7]) -> Result<Tensor> {
    blocks(x, &[link(block, pass, adapted)])
}

fn link<'a>(block: &Block, pass: &BlockPass, adapted: &[Option<Adapted<'a>>; 7]) -> Link<'a> {
    Link { block: Arc::new(block.clone()), pass: pass.clone(), adapted: adapted.clone() }
}

/// The same block in single operations.
fn in_parts(
    x: &Tensor,
    block: &Block,
    pass: &BlockPass,
    adapted: &[Option<Adapted<'_>>; 7],
) -> Result<Tensor> {
    let vector = |values: &[f32]| Tensor::new(values, &Device::Cpu);
    let norm = |x: &Tensor, norm: &Norm| match norm {
        Norm::Rms { gain, .. } => rms_norm(x, &vector(gain)?, EPS),
        Norm::Layer { gain, bias, .. } => layer_norm(x, &vector(gain)?, Some(&vector(bias)?), EPS),
    };
    let before = |i: usize, x: &Tensor| match &block.norms {
        Norms::Before(norms) => norm(x, &norms[i]),
        Norms::After(_) => Ok(x.clone()),
    };
    let after = |i: usize, sum: Tensor| match &block.norms {
        Norms::Before(_) => Ok(sum),
        Norms::After(norms) => norm(&sum, &norms[i]),
    };
    let project = |i: usize, x: &Tensor| {
        let Projection { weight, bias } = &block.projections[i];
        let bias = bias.as_deref().map(vector).transpose()?;
        let low_rank = adapted[i].as_ref().map(|adapted| adapted.low_rank);
        let Some(gain) = adapted[i].as_ref().and_then(|adapted| adapted.gain.as_ref()) else {
            return linear(x, weight, bias.as_ref(), low_rank);
        };
        let y = scale_columns(&linear(x, weight, None, low_rank)?, gain)?;
        bias.map_or_else(|| Ok(y.clone()), |bias| add_bias(&y, &bias))
    };
    let read = before(0, x)?;
    let (mut q, mut k, v) = (project(0, &read)?, project(1, &read)?, project(2, &read)?);
    if let Some([q_norm, k_norm]) = &block.head_norms {
        (q, k) = (norm(&q, q_norm)?, norm(&k, k_norm)?);
    }
    if block.rotates {
        let size = block.shape.head_dim;
        (q, k) = (rope(&q, &pass.rope, size)?, rope(&k, &pass.rope, size)?);
    }
    let middle = after(0, (x + project(O, &attention(&q, &k, &v, &pass.segments, block.shape)?)?)?)?;
    let read = before(1, &middle)?;
    let gate = project(GATE, &read)?;
    let inner = if block.is_gated() {
        gated(&gate, &project(UP, &read)?, block.activation)?
    } else {
        activate(&gate, block.activation)?
    };
    after(1, (&middle + project(DOWN, &inner)?)?)
}

/// The value, and the gradients of x, of the factors and of the gains, where there are any.
fn run(
    case: Case,
    pass: &BlockPass,
    run: impl Fn(&Tensor, &Block, &[Option<Adapted<'_>>; 7]) -> Result<Tensor>,
) -> Vec<Vec<f32>> {
    let block = make(case);
    let rows = pass.segments.last().map_or(0, |segment| segment.end);
    let x = Var::from_tensor(&tensor(1, &[rows, HIDDEN])).unwrap();
    let parameters: Vec<[Var; 3]> = (0..7)
        .map(|i| {
            let Projection { weight, .. } = block.projections.get(i).unwrap_or(&block.projections[GATE]);
            let (rank, seed) = (2 + i % 3, 70 + 3 * i as u64);
            let shapes: [&[usize]; 3] = [&[rank, weight.cols()], &[weight.rows(), rank], &[weight.rows()]];
            [0, 1, 2].map(|j| Var::from_tensor(&tensor(seed + j as u64, shapes[j])).unwrap())
        })
        .collect();
    let adapted = std::array::from_fn(|i| {
        let dropout = (case.dropout > 0.0).then_some(Dropout { p: case.dropout, seed: i as u64 });
        let gained = case.gained >> i & 1 == 1;
        let (dropout, scaling) = (dropout.filter(|_| !gained), 0.3 + i as f64 / 10.0);
        let [a, b, gain] = parameters[i].each_ref().map(Var::as_tensor);
        let low_rank = LowRank { a, b, scaling, dropout };
        (case.adapted >> i & 1 == 1).then(|| Adapted { low_rank, gain: gained.then(|| gain.clone()) })
    });
    let argument = if case.track_x { x.as_tensor().clone() } else { x.as_detached_tensor() };
    let y = run(&argument, &block, &adapted).unwrap();
    let mut found = vec![flat(&y)];
    let loss = y.apply_op1(WeightedSum(values(99, y.elem_count()))).unwrap();
    assert_eq!(loss.track_op(), case.track_x || case.adapted != 0);
    if loss.track_op() {
        let gradients = loss.backward().unwrap();
        for var in std::iter::once(&x).chain(parameters.iter().flatten()) {
            let sum = pass.gradients.as_ref().and_then(|sums| sums.take(var));
            found.push(gradients.get(var).map(flat).or(sum).unwrap_or_default());
        }
    }
    found
}

fn check(case: Case, lengths: &[usize], tolerance: f64) {
    let expected = pass(lengths, false);
    let expected = run(case, &expected, |x, block, adapted| in_parts(x, block, &expected, adapted));
    for recompute in [false, true] {
        let pass = pass(lengths, recompute);
        let found = run(case, &pass, |x, of, adapted| block(x, of, &pass, adapted));
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let expected: Vec<f64> = expected.iter().map(|&e| f64::from(e)).collect();
            assert_close(&format!("result {i}, recompute {recompute}"), found, &expected, tolerance);
        }
    }
}

const LENGTHS: &[usize] = &[5, 1, 17, 9];

#[test]
fn value_and_gradients_are_those_of_the_single_operations() {
    for case in [
        PLAIN,
        Case { rotates: false, ..PLAIN },
        Case { head_norms: true, ..PLAIN },
        Case { biases: true, window: Some(4), ..PLAIN },
        Case { dropout: 0.3, ..PLAIN },
        Case { head_norms: true, biases: true, window: Some(3), dropout: 0.5, ..PLAIN },
        ENCODER,
        Case { dropout: 0.3, biases: false, ..ENCODER },
        Case { head_norms: true, rotates: true, ..ENCODER },
    ] {
        check(case, LENGTHS, 1e-5);
    }
}

#[test]
fn any_part_may_be_frozen() {
    for adapted in [0, 0b101, 0b111, 0b1000, 0b11_0000, 0b100_0000, 0b101_1010] {
        for track_x in [true, false] {
            check(Case { adapted, track_x, dropout: 0.2, ..PLAIN }, LENGTHS, 1e-5);
            check(Case { adapted: adapted & 0x3f, track_x, dropout: 0.2, ..ENCODER }, LENGTHS, 1e-5);
        }
    }
}

#[test]
fn gains_scale_all_but_bias_and_residual() {
    let all = Case { gained: 0x7f, ..PLAIN };
    for case in [
        all,
        Case { biases: true, rotates: false, ..all },
        Case { head_norms: true, biases: true, window: Some(3), ..all },
        Case { gained: 0b010_1001, biases: true, dropout: 0.3, ..all },
        Case { gained: 0b101_0110, adapted: 0b101_0111, track_x: false, ..all },
        Case { gained: 0x3f, ..ENCODER },
    ] {
        check(case, LENGTHS, 1e-5);
    }
    check(Case { compute: Compute::Bf16, ..all }, LENGTHS, 1e-2);
}

#[test]
fn a_gain_that_does_not_fit_is_refused() {
    let (good, x) = (make(PLAIN), tensor(1, &[32, HIDDEN]));
    let (a, b) = (tensor(2, &[2, HIDDEN]), tensor(3, &[48, 2]));
    let refused = |gain: &[f32], dropout| {
        let low_rank = LowRank { a: &a, b: &b, scaling: 1.0, dropout };
        let mut adapted = [const { None }; 7];
        adapted[0] = Some(Adapted { low_rank, gain: Some(Tensor::new(gain, &Device::Cpu).unwrap()) });
        block(&x, &good, &pass(LENGTHS, false), &adapted).unwrap_err().to_string()
    };
    assert!(refused(&[1.0; 47], None).contains("gain [47]"));
    assert!(refused(&[1.0; 48], Some(Dropout { p: 0.1, seed: 0 })).contains("with dropout"));
    let mut one_zero = [1.0; 48];
    one_zero[7] = 0.0;
    assert!(refused(&one_zero, None).contains("a gain of 0"));
}

#[test]
fn products_in_bf16_are_the_same_ones() {
    let case = Case { compute: Compute::Bf16, ..PLAIN };
    check(case, LENGTHS, 1e-2);
    check(Case { head_norms: true, dropout: 0.1, ..case }, &[300, 20], 1e-2);
}

#[test]
fn a_batch_without_rows_has_gradients_of_nothing() {
    let pass = pass(&[], false);
    let found = run(PLAIN, &pass, |x, of, adapted| block(x, of, &pass, adapted));
    assert!(found[0].is_empty());
    assert!(found.iter().flatten().all(|value| value.abs() < f32::MIN_POSITIVE));
}

#[test]
fn gradients_of_factors_are_summed_over_passes_and_need_a_place() {
    let pass = pass(LENGTHS, false);
    let plain = make(PLAIN);
    let [a, b] = [[2, HIDDEN], [48, 2]].map(|shape| Var::from_tensor(&tensor(3, &shape)).unwrap());
    let mut adapted = [const { None }; 7];
    adapted[0] =
        Some(Adapted { low_rank: LowRank { a: &a, b: &b, scaling: 0.7, dropout: None }, gain: None });
    let x = tensor(1, &[32, HIDDEN]);
    let backward = || {
        let y = block(&x, &plain, &pass, &adapted).unwrap();
        y.apply_op1(WeightedSum(values(99, y.elem_count()))).unwrap().backward().unwrap();
    };
    let take = || pass.gradients.as_ref().and_then(|sums| sums.take(&b));
    backward();
    let twice: Vec<f64> = take().unwrap().iter().map(|&g| 2.0 * f64::from(g)).collect();
    backward();
    backward();
    assert_close("twice", &take().unwrap(), &twice, 1e-6);
    assert!(take().is_none());

    let nowhere = BlockPass { gradients: None, ..pass.clone() };
    let refused = block(&x, &plain, &nowhere, &adapted).unwrap_err().to_string();
    assert!(refused.contains("nowhere to go"), "{refused}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = make(PLAIN);
    let refused = |of: Block, width: usize, lengths: &[usize]| {
        let x = tensor(1, &[32, width]);
        block(&x, &of, &pass(lengths, false), &[const { None }; 7]).unwrap_err().to_string()
    };
    assert!(refused((*good).clone(), HIDDEN + 1, LENGTHS).contains("projection 0"));
    assert!(refused((*good).clone(), HIDDEN, &[5, 1]).contains("angles"));
    let mut other = (*good).clone();
    other.projections[2].weight = other.projections[2].weight.clone().with_compute(Compute::Bf16);
    assert!(refused(other, HIDDEN, LENGTHS).contains("projection 2"));
    let mut few = (*good).clone();
    few.projections.truncate(5);
    assert!(refused(few, HIDDEN, LENGTHS).contains("5 projections"));
    let norm = |size| Norm::Layer { gain: values(1, HIDDEN), bias: values(1, size), eps: 0.0 };
    let norms = Norms::After([norm(HIDDEN), norm(3)]);
    assert!(refused(Block { norms, ..(*good).clone() }, HIDDEN, LENGTHS).contains("norms"));
    let head_norms = Some([8, 7].map(|size| Norm::Rms { gain: values(1, size), eps: 0.0 }));
    assert!(refused(Block { head_norms, ..(*good).clone() }, HIDDEN, LENGTHS).contains("norms"));
}
