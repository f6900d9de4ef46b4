//! The loss of a head that is more than a frozen weight with factors: its logits in chunks of rows, none of them kept.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, Var, bail};
use taper_kernels::{Labelled, Scoring};

/// Logits held at once, in values.
const CHUNK: usize = 1 << 24;

/// A head: what it computes and what it trains.
pub(crate) struct TrainedHead<'a> {
    /// Hidden rows to logits `(n, V)`; the number of the chunk goes with them.
    pub(crate) logits: &'a dyn Fn(&Tensor, u64) -> Result<Tensor>,
    /// Parameters in it.
    pub(crate) tensors: Vec<&'a Tensor>,
    /// V.
    pub(crate) outputs: usize,
}

impl TrainedHead<'_> {
    /// Summed cross-entropy in nats of the labelled rows of `hidden` `(N, D)`, scored as `scoring` says.
    ///
    /// Each chunk's gradients are formed with its loss, so that nothing but sums of gradients waits for backward.
    pub(crate) fn cross_entropy(
        &self,
        hidden: &Tensor,
        labelled: &Labelled,
        scoring: Scoring<'_>,
    ) -> Result<Tensor> {
        let tracked: Vec<&Tensor> =
            self.tensors.iter().copied().filter(|tensor| tensor.is_variable()).collect();
        let mut sums = Sums::new(hidden, tracked, scoring)?;
        for (i, (rows, labels)) in self.chunks(labelled)?.enumerate() {
            sums.add(self, hidden, (i as u64, rows, labels))?;
        }
        sums.into_loss(hidden)
    }

    /// The loss of each labelled row in nats.
    pub(crate) fn nll(&self, hidden: &Tensor, labelled: &Labelled) -> Result<Vec<f32>> {
        let mut losses = Vec::with_capacity(labelled.rows.len());
        for (i, (rows, labels)) in self.chunks(labelled)?.enumerate() {
            let x = gather(hidden, rows)?;
            let logits: Vec<Vec<f32>> = (self.logits)(&x, i as u64)?.detach().to_vec2()?;
            for (logits, label) in logits.iter().zip(labels) {
                let Some(logit) = logits.get(*label as usize) else {
                    bail!("label {label} of {} outputs", logits.len())
                };
                losses.push(log_sum_exp(logits) - logit);
            }
        }
        Ok(losses)
    }

    fn chunks<'l>(&self, labelled: &'l Labelled) -> Result<impl Iterator<Item = (&'l [u32], &'l [u32])>> {
        if labelled.rows.len() != labelled.labels.len() {
            bail!("{} labelled rows with {} labels", labelled.rows.len(), labelled.labels.len());
        }
        let size = (CHUNK / self.outputs.max(1)).clamp(1, 1024);
        Ok(labelled.rows.chunks(size).zip(labelled.labels.chunks(size)))
    }
}

fn gather(hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
    hidden.detach().index_select(&Tensor::new(rows, hidden.device())?, 0)
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    largest + (logits.iter().map(|x| f64::from(x - largest).exp()).sum::<f64>()).ln() as f32
}

/// Loss and gradients so far.
struct Sums<'a> {
    scoring: Scoring<'a>,
    loss: f64,
    /// `(N, D)`; none where nobody wants it.
    hidden: Option<Vec<f32>>,
    tracked: Vec<&'a Tensor>,
    gradients: Vec<Option<Tensor>>,
}

impl<'a> Sums<'a> {
    fn new(hidden: &Tensor, tracked: Vec<&'a Tensor>, scoring: Scoring<'a>) -> Result<Self> {
        hidden.dims2()?;
        let rows = hidden.track_op().then(|| vec![0.0; hidden.elem_count()]);
        let gradients = vec![None; tracked.len()];
        Ok(Self { scoring, loss: 0.0, hidden: rows, tracked, gradients })
    }

    fn add(
        &mut self,
        head: &TrainedHead<'_>,
        hidden: &Tensor,
        (i, rows, labels): (u64, &[u32], &[u32]),
    ) -> Result<()> {
        let mut x = gather(hidden, rows)?;
        if self.hidden.is_some() {
            x = Var::from_tensor(&x)?.into_inner();
        }
        let loss = taper_kernels::cross_entropy(&(head.logits)(&x, i)?, labels, self.scoring)?;
        self.loss += f64::from(loss.to_scalar::<f32>()?);
        if !loss.track_op() {
            return Ok(());
        }
        let gradients = loss.backward()?;
        for (sum, tensor) in self.gradients.iter_mut().zip(&self.tracked) {
            if let Some(gradient) = gradients.get(tensor) {
                *sum = Some(match sum.take() {
                    None => gradient.clone(),
                    Some(sum) => (sum + gradient)?,
                });
            }
        }
        if let (Some(sums), Some(gradient)) = (&mut self.hidden, gradients.get(&x)) {
            let gradient: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
            let width = gradient.len() / rows.len();
            for (row, gradient) in rows.iter().zip(gradient.chunks_exact(width)) {
                let sum = &mut sums[*row as usize * width..][..width];
                sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
            }
        }
        Ok(())
    }

    /// The loss, with the gradients waiting behind it.
    fn into_loss(self, hidden: &Tensor) -> Result<Tensor> {
        let mut known = Vec::new();
        if let Some(sums) = self.hidden {
            known.push((hidden, Tensor::from_vec(sums, hidden.shape(), hidden.device())?));
        }
        let gradients = self.tracked.into_iter().zip(self.gradients);
        known.extend(gradients.filter_map(|(tensor, gradient)| Some((tensor, gradient?))));
        let loss = self.loss as f32;
        let mut sum: Option<Tensor> = None;
        for (tensor, gradient) in known {
            sum = Some(match sum {
                None => tensor.apply_op1(Known { value: loss, gradient })?,
                Some(sum) => (sum + tensor.apply_op1(Known { value: 0.0, gradient })?)?,
            });
        }
        sum.map_or_else(|| Tensor::new(loss, hidden.device()), Ok)
    }
}

/// A number, with a gradient known beforehand.
struct Known {
    value: f32,
    gradient: Tensor,
}

impl CustomOp1 for Known {
    fn name(&self) -> &'static str {
        "known_gradient"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some((&self.gradient * f64::from(g.to_scalar::<f32>()?))?))
    }
}
