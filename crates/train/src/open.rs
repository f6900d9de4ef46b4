//! The base of a recipe, opened for what the recipe's rows teach.

use taper_base::{Base, Labels, ModelDir, ModelSource};

use crate::reading::before_base;
use crate::recipe::ProblemType;
use crate::{DataFiles, Error, Recipe, Split, Task, labels, task_of};

/// Opens the recipe's base with the head of its task: the recipe's, or the one that the format of its rows is for.
///
/// The labels are those of `init_adapter`, else of the training rows. Where the base's own head has the same, they are in
/// its order and the head serves; else the head is fresh.
///
/// # Errors
/// As [`Base::open_for`]; [`Error::Data`] for rows whose labels cannot be read, or are all the same.
pub fn open_base(recipe: &Recipe) -> Result<Base, Error> {
    let dir = ModelDir::resolve(&ModelSource::parse(&recipe.model)?)?;
    let files = DataFiles::named(&recipe.data)?;
    let files = files.first(&[Split::Train])?;
    let task = recipe.task.map_or_else(|| task_of(files, &before_base(recipe, None)), Ok)?;
    Recipe { task: Some(task), ..recipe.clone() }.check()?;
    let config = dir.json("config.json")?;
    let labels = || {
        if let Some(adapter) = &recipe.init_adapter {
            let dir = ModelDir::resolve_adapter(&ModelSource::parse_adapter(adapter)?)?;
            return Ok(taper_lora::labels(&dir, &config)?);
        }
        let number = recipe.problem_type.map(|problem| problem == ProblemType::Regression);
        let found = labels(files, &before_base(recipe, Some(task)), number)?;
        Ok::<_, Error>(as_the_base_has_them(found, Labels::of(&config).as_ref()))
    };
    let task = match task {
        Task::Classify => taper_base::Task::Classify(labels()?),
        Task::Tag => taper_base::Task::Tag(labels()?),
        Task::CausalLm | Task::Seq2seq | Task::Preference => taper_base::Task::CausalLm,
    };
    Ok(Base::open_for(dir, recipe.dtype.into(), task)?)
}

/// `found` in the base's order, where its labels are the same, or are numbers where the base has no names.
fn as_the_base_has_them(found: Labels, own: Option<&Labels>) -> Labels {
    let (Labels::Names(names), Some(own @ Labels::Names(known))) = (&found, own) else { return found };
    let same = names.len() == known.len() && names.iter().all(|name| own.id(name).is_some());
    let numbered = *own == Labels::numbered(known.len())
        && names.len() <= known.len()
        && names.iter().all(|name| own.id(&format!("LABEL_{name}")).is_some());
    if same || numbered { own.clone() } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_the_base_keep_their_order() {
        let names = |names: &[&str]| Labels::Names(names.iter().map(|name| (*name).to_owned()).collect());
        let found = names(&["negative", "positive"]);
        let own = names(&["positive", "negative"]);
        assert_eq!(as_the_base_has_them(found.clone(), Some(&own)), own);
        assert_eq!(as_the_base_has_them(found.clone(), Some(&Labels::numbered(2))), found);
        assert_eq!(as_the_base_has_them(found.clone(), None), found);
        assert_eq!(as_the_base_has_them(names(&["0", "1"]), Some(&Labels::numbered(3))), Labels::numbered(3));
        assert_eq!(as_the_base_has_them(names(&["0", "3"]), Some(&Labels::numbered(3))), names(&["0", "3"]));
        assert_eq!(as_the_base_has_them(Labels::Number, Some(&own)), Labels::Number);
    }
}
