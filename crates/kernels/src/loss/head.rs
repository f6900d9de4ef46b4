//! The head's product and the loss in one operation, chunk by chunk.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Device, Layout, Result, Shape, Tensor};

use super::scoring::Targets;
use super::{Labelled, Scoring, scale};
use crate::low_rank::Term;
use crate::operand::{Held, output, values};
use crate::product::{Direction, Prepared, Rest};
use crate::{Compute, LowRank, Weight, buffers, parts, vector};

const OP: &str = "linear_cross_entropy";

/// Rows of a chunk at most: enough that the head is read from memory seldom, and no more logits than caches hold.
const ROWS: usize = 128;

/// Values of a chunk's logits at most (48 MiB).
const LOGITS: usize = 12 << 20;

/// A frozen head: logits `c·tanh((x Wᵀ + b)/c)`, a low-rank term inside the bracket; without a cap `x Wᵀ + b`.
#[derive(Clone, Copy, Debug)]
pub struct HeadWeight<'a> {
    /// `W` `(V, D)`.
    pub weight: &'a Weight,
    /// `b` `(V,)`.
    pub bias: Option<&'a Tensor>,
    /// `c`, positive.
    pub cap: Option<f32>,
}

impl<'a> From<&'a Weight> for HeadWeight<'a> {
    fn from(weight: &'a Weight) -> Self {
        Self { weight, bias: None, cap: None }
    }
}

/// [`cross_entropy`](crate::cross_entropy) of the head's output on the labelled rows of `hidden` `(N, D)`, a scalar sum
/// in nats, scored as `scoring` says.
///
/// Runs over chunks of rows; each chunk's logits are turned into their gradient in place, so that at most one chunk of
/// `(rows, V)` values exists. Gradients reach `hidden` and the low-rank factors; a tracked `bias` is refused. The mask of
/// the term's dropout counts the labelled rows, not the batch's.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    head: HeadWeight<'_>,
    low_rank: Option<LowRank<'_>>,
    labelled: &Labelled,
    scoring: Scoring<'_>,
) -> Result<Tensor> {
    if head.bias.is_some_and(Tensor::track_op) {
        candle_core::bail!(
            "{OP}: gives a bias no gradient: use linear and cross_entropy for one that is trained"
        );
    }
    let frozen = Frozen::new(hidden, head, labelled, scoring)?;
    let wanted = |tensor: Option<&Tensor>| tensor.is_some_and(Tensor::track_op);
    let factors = (low_rank.map(|f| f.a), low_rank.map(|f| f.b));
    let wanted = Wanted { hidden: wanted(Some(hidden)), a: wanted(factors.0), b: wanted(factors.1) };
    let op = LinearLoss { frozen, term: None, wanted, found: OnceLock::new() };
    match low_rank {
        None => hidden.apply_op1(op),
        Some(factors) => {
            let term = Some(Term::new(OP, &factors, head.weight)?);
            hidden.apply_op3(factors.a, factors.b, LinearLoss { term, ..op })
        }
    }
}

/// The loss of every labelled row by itself, in nats, without gradients.
pub fn linear_nll(
    hidden: &Tensor,
    head: HeadWeight<'_>,
    low_rank: Option<LowRank<'_>>,
    labelled: &Labelled,
) -> Result<Vec<f32>> {
    let frozen = Frozen::new(hidden, head, labelled, Scoring::default())?;
    let hidden = Held::new(OP, hidden)?;
    let mut losses = Vec::new();
    let mut take = |_: &Input<'_>, chunk: Chunk<'_>| losses.extend(chunk.losses());
    match low_rank {
        None => frozen.for_each_chunk(hidden.values(), None, &mut take)?,
        Some(factors) => {
            let term = Term::new(OP, &factors, head.weight)?;
            let (a, b) = (Held::new(OP, factors.a)?, Held::new(OP, factors.b)?);
            let factors = Factors { term: &term, a: a.values(), b: b.values() };
            frozen.for_each_chunk(hidden.values(), Some(factors), &mut take)?;
        }
    }
    Ok(losses)
}

/// The head, and what its output is scored against.
struct Frozen {
    head: Weight,
    bias: Option<Tensor>,
    cap: Option<f32>,
    labelled: Labelled,
    targets: Targets,
}

/// A low-rank term's values.
#[derive(Clone, Copy)]
struct Factors<'a> {
    term: &'a Term,
    a: &'a [f32],
    b: &'a [f32],
}

/// Some labelled rows, and what the low-rank term makes of them on the way.
struct Input<'a> {
    /// Among the labelled rows, the first.
    first: usize,
    rows: &'a [u32],
    /// What the term reads, `dropout(x)` `(rows, D)`, and `u` `(rows, R)`.
    dropped: &'a Prepared<'a>,
    u: Vec<f32>,
}

/// Their logits `(rows, V)`, and what those are scored against.
struct Chunk<'a> {
    logits: &'a mut [f32],
    labels: &'a [u32],
    cap: Option<f32>,
    targets: &'a Targets,
}

impl Frozen {
    fn new(hidden: &Tensor, head: HeadWeight<'_>, labelled: &Labelled, scoring: Scoring<'_>) -> Result<Self> {
        let HeadWeight { weight: head, bias, cap } = head;
        let (rows, width) = hidden.dims2()?;
        if width != head.cols() || head.rows() == 0 {
            candle_core::bail!(
                "{OP}: rows of {width} values against a head of {} x {}",
                head.rows(),
                head.cols()
            );
        }
        if let Some(bias) = bias
            && bias.dims() != [head.rows()]
        {
            candle_core::bail!("{OP}: bias {:?} against a head of {} rows", bias.shape(), head.rows());
        }
        labelled.check(OP, rows, head.rows())?;
        let targets = Targets::new(OP, scoring, head.rows())?;
        let bias = bias.map(Tensor::detach);
        Ok(Self { head: head.clone(), bias, cap, labelled: labelled.clone(), targets })
    }

    /// Runs `task` on one chunk after the other.
    fn for_each_chunk(
        &self,
        hidden: &[f32],
        factors: Option<Factors<'_>>,
        task: &mut dyn FnMut(&Input<'_>, Chunk<'_>),
    ) -> Result<()> {
        let classes = self.head.rows();
        let rows = ROWS.min(LOGITS / classes).clamp(1, self.labelled.rows.len().max(1));
        let bias = self.bias.as_ref().map(|bias| Held::new(OP, bias)).transpose()?;
        let mut buffer = buffers::zeros(rows * classes);
        let chunks = self.labelled.rows.chunks(rows).zip(self.labelled.labels.chunks(rows));
        for (i, (rows_of, labels)) in chunks.enumerate() {
            let x = self.gather(hidden, rows_of);
            let logits = &mut buffer[..rows_of.len() * classes];
            let first = i * rows;
            let x = Prepared::new(self.head.compute(), x, self.head.cols());
            let dropped = factors.and_then(|factors| factors.term.dropped(&x, first));
            let dropped = dropped.as_ref().unwrap_or(&x);
            let u = factors.map(|factors| factors.term.down(dropped, factors.a)).unwrap_or_default();
            let rest = Rest {
                term: factors.map(|factors| factors.term.up(&u, factors.b)),
                bias: bias.as_ref().map(Held::values),
                ..Rest::default()
            };
            x.finished_into(self.head.right(Direction::Forward), logits, &rest);
            let (cap, targets) = (self.cap, &self.targets);
            task(&Input { first, rows: rows_of, dropped, u }, Chunk { logits, labels, cap, targets });
        }
        Ok(())
    }

    fn gather(&self, hidden: &[f32], rows: &[u32]) -> Vec<f32> {
        let width = self.head.cols();
        rows.iter().flat_map(|row| &hidden[*row as usize * width..][..width]).copied().collect()
    }
}

impl<'a> Chunk<'a> {
    /// The loss of each row.
    fn losses(self) -> Vec<f32> {
        let Self { logits, labels, cap, targets } = self;
        let mut losses = vec![0.0; labels.len()];
        parts::for_each_row(logits, &mut losses, |i, row| {
            if let Some(cap) = cap {
                vector::soft_cap(row, cap);
            }
            targets.loss(row, labels[i] as usize).0
        });
        losses
    }

    /// The loss of each row, and the gradient of the logits, `Σt·softmax - t`, times `1 - (logit/c)²` under a cap, in their
    /// place.
    fn gradient(self, compute: Compute) -> (Vec<f32>, Prepared<'a>) {
        let Self { logits, labels, cap, targets } = self;
        let mut losses = vec![0.0; labels.len()];
        let g = Prepared::within(compute, logits, &mut losses, |i, row| {
            let label = labels[i] as usize;
            let capped = cap.map(|cap| {
                vector::soft_cap(row, cap);
                (row.to_vec(), 1.0 / cap)
            });
            let (loss, sum) = targets.loss(row, label);
            scale(row, targets.mass(label) / sum);
            targets.take_from(row, label);
            if let Some((capped, inverse)) = capped {
                vector::wide(
                    #[inline(always)]
                    || row.iter_mut().zip(&capped).for_each(|(g, y)| *g *= 1.0 - (y * inverse).powi(2)),
                );
            }
            loss
        });
        (losses, g)
    }
}

/// Which arguments get a gradient.
#[derive(Clone, Copy)]
struct Wanted {
    hidden: bool,
    a: bool,
    b: bool,
}

impl Wanted {
    fn any(self) -> bool {
        self.hidden || self.a || self.b
    }
}

/// Gradients of the loss; those not wanted are empty.
struct Found {
    hidden: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
}

struct LinearLoss {
    frozen: Frozen,
    term: Option<Term>,
    wanted: Wanted,
    /// Found in forward: `hidden`, `A`, `B`.
    found: OnceLock<[Option<Tensor>; 3]>,
}

impl LinearLoss {
    fn forward(&self, hidden: &[f32], factors: Option<Factors<'_>>) -> Result<(CpuStorage, Shape)> {
        let zeros = |wanted: bool, len: usize| buffers::zeros(if wanted { len } else { 0 });
        let mut found = Found {
            hidden: zeros(self.wanted.hidden, hidden.len()),
            a: zeros(self.wanted.a, factors.map_or(0, |f| f.a.len())),
            b: zeros(self.wanted.b, factors.map_or(0, |f| f.b.len())),
        };
        let mut loss = 0.0;
        self.frozen.for_each_chunk(hidden, factors, &mut |input, chunk| {
            let losses = if self.wanted.any() {
                let (losses, g) = chunk.gradient(self.frozen.head.compute());
                self.add(input, &g, factors, &mut found);
                losses
            } else {
                chunk.losses()
            };
            loss += losses.into_iter().map(f64::from).sum::<f64>();
        })?;
        let rank = self.term.map_or(0, |term| term.rank);
        let (rows, width) = (self.frozen.head.rows(), self.frozen.head.cols());
        let keep = |wanted: bool, values: Vec<f32>, shape: (usize, usize)| {
            wanted.then(|| Tensor::from_vec(values, shape, &Device::Cpu)).transpose()
        };
        // Each call of `linear_cross_entropy` makes its own operation, so that nothing is there yet.
        let _ = self.found.set([
            keep(self.wanted.hidden, found.hidden, (hidden.len() / width, width))?,
            keep(self.wanted.a, found.a, (rank, width))?,
            keep(self.wanted.b, found.b, (rows, rank))?,
        ]);
        Ok(output(vec![loss as f32], ()))
    }

    /// Adds what the gradient `g` of a chunk's logits gives to the gradients.
    fn add(&self, input: &Input<'_>, g: &Prepared<'_>, factors: Option<Factors<'_>>, found: &mut Found) {
        let width = self.frozen.head.cols();
        let head = &self.frozen.head;
        let v = match factors {
            Some(Factors { term, b, .. }) if self.wanted.hidden || self.wanted.a => term.pull(g, b),
            _ => Vec::new(),
        };
        if self.wanted.hidden {
            let dx = match factors {
                Some(Factors { term, a, .. }) => term.input_gradient((head, g), (&v, a), None, input.first),
                None => head.transposed_finished(g, &Rest::default()),
            };
            for (row, dx) in input.rows.iter().zip(dx.chunks_exact(width)) {
                vector::axpy(1.0, dx, &mut found.hidden[*row as usize * width..][..width]);
            }
        }
        if factors.is_some() {
            if self.wanted.a {
                Term::add_a_gradient(&v, input.dropped, &mut found.a);
            }
            if self.wanted.b {
                Term::add_b_gradient(g, &input.u, &mut found.b);
            }
        }
    }

    /// The kept gradients times the upstream gradient `g`, a scalar.
    fn scaled(&self, g: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let g = g.to_scalar::<f32>()?;
        let found = self
            .found
            .get()
            .ok_or_else(|| candle_core::Error::msg(format!("{OP}: backward before forward")))?;
        let [hidden, a, b] = found;
        Ok([times(hidden.as_ref(), g)?, times(a.as_ref(), g)?, times(b.as_ref(), g)?])
    }
}

#[expect(clippy::float_cmp, reason = "exactly 1 changes nothing")]
fn times(tensor: Option<&Tensor>, factor: f32) -> Result<Option<Tensor>> {
    match tensor {
        Some(tensor) if factor != 1.0 => {
            let mut values = Held::new(OP, tensor)?.values().to_vec();
            scale(&mut values, factor);
            Tensor::from_vec(values, tensor.shape(), &Device::Cpu).map(Some)
        }
        same => Ok(same.cloned()),
    }
}

impl CustomOp1 for LinearLoss {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(values(OP, storage, layout)?, None)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let [hidden, _, _] = self.scaled(g)?;
        Ok(hidden)
    }
}

impl CustomOp3 for LinearLoss {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (values(OP, s2, l2)?, values(OP, s3, l3)?);
        let factors = self.term.as_ref().map(|term| Factors { term, a, b });
        self.forward(values(OP, s1, l1)?, factors)
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [hidden, a, b] = self.scaled(g)?;
        Ok((hidden, a, b))
    }
}
