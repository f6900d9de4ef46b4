//! LoRA on a table of token vectors: row `v` becomes `W_v + s·(B A_v)`, `A` `(R, V)`, `B` `(D, R)`; with DoRA each column is
//! then scaled to the length `m`. `peft/tuners/lora/layer.py` `Embedding` and `dora.py` `DoraEmbeddingLayer`, 0.21.2.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor};
use taper_base::Embedding;
use taper_kernels::Weight;

use crate::lora::{Factors, PREFIX};
use crate::norms::{self, inverse};
use crate::source::{Source, Start};
use crate::variant::View;
use crate::{Error, Init, ops};

/// The low-rank factors of an embedding. Dropout does not apply to them, as in PEFT.
#[derive(Debug)]
pub(crate) struct EmbeddingLora {
    /// `(R, V)`.
    a: Tensor,
    /// `(D, R)`.
    b: Tensor,
    /// `s`.
    scaling: f64,
    dora: Option<Columns>,
}

/// DoRA's part: the magnitudes of the table's columns.
#[derive(Debug)]
struct Columns {
    /// `m` `(D,)`.
    magnitude: Tensor,
    table: Weight,
    /// `‖W‖²` by column.
    squares: Arc<OnceLock<Vec<f64>>>,
    /// `m / n`, kept where nothing can change it.
    gain: Option<OnceLock<Tensor>>,
}

impl EmbeddingLora {
    pub(crate) fn new(
        factors: &Factors,
        layer: &Embedding,
        source: &mut dyn Source,
    ) -> std::result::Result<Self, Error> {
        let (tokens, dim) = (layer.weight.rows(), layer.weight.cols());
        let path = format!("{PREFIX}{}", layer.path);
        let start_a = if factors.init == Init::Random { Start::Normal(1.0) } else { Start::Zeros };
        let a = source.tensor(&format!("{path}.lora_embedding_A"), &[factors.r, tokens], start_a)?;
        let b = source.tensor(&format!("{path}.lora_embedding_B"), &[dim, factors.r], Start::Normal(1.0))?;
        let scaling = factors.scaling;
        let mut dora = None;
        if factors.use_dora {
            let (table, squares) = (layer.weight.clone(), Arc::new(OnceLock::new()));
            let start =
                || Ok(lengths(&table, &squares, (&a, &b, scaling))?.iter().map(|n| *n as f32).collect());
            let key = format!("{path}.lora_magnitude_vector");
            let magnitude = source.tensor(&key, &[dim], Start::Values(&start))?;
            dora = Some(Columns { magnitude, table, squares, gain: None });
        }
        Ok(Self { a, b, scaling, dora })
    }

    /// Token ids to rows `(N, D)`: `g ⊙ (W[ids] + s·A[:, ids]ᵀ Bᵀ)`, `g = m/n` with DoRA and 1 without.
    pub(crate) fn forward(&self, layer: &Embedding, ids: &[u32]) -> Result<Tensor> {
        let index = Tensor::new(ids, &Device::Cpu)?;
        let picked = self.a.index_select(&index, 1)?.t()?; // (N, R)
        let term = (picked.matmul(&self.b.t()?)? * self.scaling)?;
        let y = ops::plus(&term, &layer.frozen(ids)?)?;
        match &self.dora {
            None => Ok(y),
            Some(columns) => taper_kernels::scale_columns(&y, &columns.gain(self.factors())?),
        }
    }

    /// Rows `rows` of `W` `(V, D)` into those of the table that replaces it.
    pub(crate) fn merge_rows(&self, rows: Range<usize>, table: &mut [f32]) -> Result<()> {
        let a = self.a.detach().narrow(1, rows.start, rows.len())?;
        let delta = a.t()?.matmul(&self.b.detach().t()?)?.flatten_all()?.to_vec1::<f32>()?;
        for (w, d) in table.iter_mut().zip(delta) {
            *w += self.scaling as f32 * d;
        }
        if let Some(columns) = &self.dora {
            let gain = columns.gain(self.factors())?.detach().to_vec1::<f32>()?;
            for row in table.chunks_exact_mut(gain.len().max(1)) {
                row.iter_mut().zip(&gain).for_each(|(w, g)| *w *= g);
            }
        }
        Ok(())
    }

    fn factors(&self) -> (&Tensor, &Tensor, f64) {
        (&self.a, &self.b, self.scaling)
    }

    /// D.
    pub(crate) fn width(&self) -> usize {
        self.b.dims().first().copied().unwrap_or_default()
    }

    /// R.
    pub(crate) fn rank(&self) -> usize {
        self.a.dims().first().copied().unwrap_or_default()
    }

    /// The same as `view` has it, sharing the values.
    pub(crate) fn seen(&self, view: View) -> Self {
        let seen = |columns: &Columns| Columns {
            magnitude: view.of(&columns.magnitude),
            table: columns.table.clone(),
            squares: columns.squares.clone(),
            gain: Some(OnceLock::new()),
        };
        let dora = self.dora.as_ref().map(seen);
        Self { a: view.of(&self.a), b: view.of(&self.b), scaling: self.scaling, dora }
    }
}

impl Columns {
    /// `m / n` `(D,)`.
    fn gain(&self, factors: (&Tensor, &Tensor, f64)) -> Result<Tensor> {
        let compute = || {
            let lengths = lengths(&self.table, &self.squares, factors)?;
            ops::times(&self.magnitude, lengths.into_iter().map(inverse).collect())
        };
        norms::kept(self.gain.as_ref(), compute)
    }
}

/// `‖Wᵀ + s·B·A‖` by row.
fn lengths(
    table: &Weight,
    squares: &OnceLock<Vec<f64>>,
    factors: (&Tensor, &Tensor, f64),
) -> Result<Vec<f64>> {
    let squares = squares.get_or_init(|| norms::column_squares(table));
    norms::column_lengths(table, squares, factors)
}
