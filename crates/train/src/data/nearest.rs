//! What to say about a row whose keys fit no format, or not the one that it is read as.

use super::format::{FORMATS, Fields, Format, detect};

/// Key names seen in the wild, and the key they stand for.
const SYNONYMS: &[(&str, &str)] = &[
    ("answer", "completion"),
    ("answer", "output"),
    ("assistant", "completion"),
    ("body", "text"),
    ("chat", "messages"),
    ("class", "label"),
    ("code", "text"),
    ("content", "text"),
    ("context", "input"),
    ("conversation", "conversations"),
    ("conversation", "messages"),
    ("dialog", "messages"),
    ("dialogue", "messages"),
    ("generation", "completion"),
    ("input", "prompt"),
    ("ner_tags", "tags"),
    ("output", "completion"),
    ("passage", "text"),
    ("premise", "text_a"),
    ("hypothesis", "text_b"),
    ("query", "prompt"),
    ("question", "prompt"),
    ("question", "instruction"),
    ("reply", "completion"),
    ("response", "completion"),
    ("response", "output"),
    ("sentence", "text"),
    ("source", "prompt"),
    ("summary", "completion"),
    ("target", "completion"),
    ("words", "tokens"),
];

/// How each key of a format would be had from a row: the format's key and the row's.
type Renames = Vec<(&'static str, String)>;

/// About a row that has the keys of no format.
pub(super) fn unknown(fields: &Fields) -> String {
    let shapes: Vec<_> = FORMATS.iter().map(|format| format!("{} {}", format.name, format.shape)).collect();
    match near(fields) {
        Some((format, renames)) => {
            format!(
                "has {}, which is no row format. The nearest is {} {}: {}",
                keys(fields),
                format.name,
                format.shape,
                rename(&renames)
            )
        }
        None => format!(
            "has {}, which is no row format. Rename them, or map them with --column OURS=THEIRS, to one of: {}",
            keys(fields),
            shapes.join("; ")
        ),
    }
}

/// About a row that lacks keys of the format that it is read as.
pub(super) fn missing(format: &Format, fields: &Fields) -> String {
    let absent = |keys: &&[&'static str]| keys.iter().filter(|key| !fields.contains_key(**key)).count();
    let wanted = format.keys.iter().copied().min_by_key(absent).unwrap_or_default();
    let lacking: Vec<_> =
        wanted.iter().filter(|key| !fields.contains_key(**key)).map(|key| format!("`{key}`")).collect();
    let hint = renames(wanted, fields).filter(|renames| !renames.is_empty());
    let hint = hint.map(|renames| format!(": {}", rename(&renames))).unwrap_or_default();
    let verb = if lacking.len() > 1 { "are" } else { "is" };
    format!("{} {verb} missing, the row has {}{hint}", lacking.join(" and "), keys(fields))
}

/// About a row that fits no format for `task`.
pub(super) fn unfit(fields: &Fields, task: Option<&str>) -> String {
    let mut formats = FORMATS.iter().filter(|format| task == Some(format.task));
    match (formats.next(), formats.next()) {
        (Some(format), None) => format!("read as {}: {}", format.name, missing(format, fields)),
        _ => unknown(fields),
    }
}

/// `what` is wrong with a row of `format`, and which other format it fits.
pub(super) fn read_as(format: &Format, fields: &Fields, what: &str) -> String {
    let other = detect(fields, None).filter(|other| other.name != format.name);
    let hint = other.map(|other| {
        format!(". The row looks like {} {}: all rows of a data set have one format", other.name, other.shape)
    });
    format!("read as {}: {what}{}", format.name, hint.unwrap_or_default())
}

fn rename(renames: &Renames) -> String {
    let pairs: Vec<_> = renames.iter().map(|(ours, theirs)| format!("`{theirs}` to `{ours}`")).collect();
    let flags: Vec<_> = renames.iter().map(|(ours, theirs)| format!("--column {ours}={theirs}")).collect();
    format!("did you mean to rename {} ({})?", pairs.join(" and "), flags.join(" "))
}

fn keys(fields: &Fields) -> String {
    let mut keys: Vec<_> = fields.keys().take(12).map(|key| format!("`{key}`")).collect();
    if fields.len() > keys.len() {
        keys.push("…".to_owned());
    }
    match keys.as_slice() {
        [] => "no key".to_owned(),
        [key] => format!("the key {key}"),
        keys => format!("the keys {}", keys.join(", ")),
    }
}

/// The format whose every key the row has under some name: of a task that is built, with the most keys, fewest of them
/// renamed, the plainest.
fn near(fields: &Fields) -> Option<(&'static Format, Renames)> {
    FORMATS
        .iter()
        .rev()
        .flat_map(|format| format.keys.iter().map(move |keys| (format, *keys)))
        .filter_map(|(format, keys)| Some((format, keys.len(), renames(keys, fields)?)))
        .min_by_key(|(format, keys, renames)| {
            (format.usable().is_err(), std::cmp::Reverse(*keys), renames.len())
        })
        .map(|(format, _, renames)| (format, renames))
}

/// The keys of `wanted` that the row has under another name; none if it lacks one altogether.
fn renames(wanted: &[&'static str], fields: &Fields) -> Option<Renames> {
    let mut found = Renames::new();
    for key in wanted.iter().filter(|key| !fields.contains_key(**key)) {
        let free = |theirs: &&String| {
            !wanted.contains(&theirs.as_str()) && found.iter().all(|(_, taken)| taken != *theirs)
        };
        let theirs = fields.keys().filter(free).find(|theirs| alike(key, theirs))?.clone();
        found.push((key, theirs));
    }
    Some(found)
}

fn alike(ours: &str, theirs: &str) -> bool {
    let theirs = theirs.trim().to_lowercase();
    SYNONYMS.contains(&(theirs.as_str(), ours)) || distance(ours, &theirs) <= ours.len().min(theirs.len()) / 3
}

/// The one of `names` that differs least from `name`, if it is near.
pub(crate) fn closest<'a>(name: &str, names: &[&'a str]) -> Option<&'a str> {
    let near = names.iter().map(|known| (distance(name, known), *known)).min()?;
    (near.0 <= name.len().max(near.1.len()) / 2).then_some(near.1)
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(keys: &[&str]) -> Fields {
        keys.iter().map(|key| ((*key).to_owned(), "x".into())).collect()
    }

    #[test]
    fn gsm8k_is_told_to_map_question_and_answer() {
        let text = unknown(&fields(&["question", "answer"]));
        assert!(text.contains("the keys `question`, `answer`"), "{text}");
        assert!(text.contains("prompt-completion"), "{text}");
        assert!(text.contains("--column prompt=question --column completion=answer"), "{text}");
    }

    #[test]
    fn misspelt_and_capital_keys_are_recognised() {
        assert!(unknown(&fields(&["Text"])).contains("`Text` to `text`"));
        assert!(unknown(&fields(&["promt", "completion"])).contains("`promt` to `prompt`"));
        assert!(unknown(&fields(&["instruction", "response"])).contains("`response` to `output`"));
        let far = unknown(&fields(&["foo"]));
        assert!(far.contains("the key `foo`") && far.contains("sharegpt"), "{far}");
        assert!(unknown(&fields(&[])).contains("has no key"));
    }

    #[test]
    fn distances_are_levenshteins() {
        assert_eq!([distance("kitten", "sitting"), distance("", "abc"), distance("a", "a")], [3, 3, 0]);
        assert_eq!(closest("sharegtp", &["text", "sharegpt"]), Some("sharegpt"));
        assert_eq!(closest("xyz", &["text", "sharegpt"]), None);
    }
}
