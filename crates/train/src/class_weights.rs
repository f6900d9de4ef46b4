//! How much each label counts in the loss.

use taper_base::{Base, Labels};

use crate::prepare::Rows;
use crate::{ClassWeights, DataSet, Error, Learn, Recipe};

/// The weight of each label of the base's head; none where all count 1.
///
/// # Errors
/// [`Error::Recipe`] for a weight that is no number above 0, a name that is no label, or a task without labels.
pub(crate) fn class_weights(base: &Base, recipe: &Recipe, rows: &Rows) -> Result<Option<Vec<f32>>, Error> {
    let Some(given) = &recipe.class_weights else { return Ok(None) };
    let Some(labels @ Labels::Names(names)) = base.task.labels() else {
        return Err(Error::recipe("`class_weights` is set, but what is learned has no labels: leave it out"));
    };
    if *given == ClassWeights::Text("balanced".into()) {
        return Ok(Some(balanced(&rows.train, names.len())));
    }
    let mut weights = vec![1.0; names.len()];
    for (name, weight) in given.by_label()? {
        let id = labels.id(&name).ok_or_else(|| {
            let names = names.join(", ");
            Error::recipe(format!("`class_weights` names `{name}`, which is no label: there are {names}"))
        })?;
        if !(weight.is_finite() && weight > 0.0) {
            let what = format!("`class_weights` of `{name}` is {weight}: give a number above 0");
            return Err(Error::recipe(what));
        }
        weights[id as usize] = weight as f32;
    }
    Ok(Some(weights))
}

/// Labels / (classes × labels of the class), as scikit-learn's `class_weight="balanced"`.
fn balanced(set: &DataSet, classes: usize) -> Vec<f32> {
    let mut counts = vec![0usize; classes];
    for example in &set.examples {
        match &example.learn {
            Learn::Class(label) => counts[*label as usize] += 1,
            Learn::Tags(tags) => tags.iter().for_each(|(_, label)| counts[*label as usize] += 1),
            Learn::Tokens(_) | Learn::Number(_) => {}
        }
    }
    let all: usize = counts.iter().sum();
    counts.into_iter().map(|count| all as f32 / (classes * count.max(1)) as f32).collect()
}
