//! `rank_pattern` and `alpha_pattern` made safe: the first key that matches wins, but PEFT sorts the keys when it saves.

use crate::Error;
use crate::matching::pattern_matches;

/// Keys and values, in order.
type Entries<T> = Vec<(String, T)>;

/// Entries that give every module the value it has now in any order, and a complaint about each key that matches none.
///
/// Sorted keys are kept where sorting changes nothing; otherwise every module whose value is not the default is named by
/// its whole path.
pub(crate) fn settle<T: Copy + PartialEq>(
    field: &str,
    entries: &[(String, T)],
    modules: &[(&str, T)],
    default: T,
) -> Result<(Entries<T>, Vec<String>), Error> {
    let mut sorted = entries.to_vec();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut unused: Vec<&str> = sorted.iter().map(|(key, _)| key.as_str()).collect();
    let mut same = true;
    for (path, value) in modules {
        let mut first = None;
        for (key, entry) in &sorted {
            if pattern_matches(field, key, path)? {
                unused.retain(|name| name != key);
                first = first.or(Some(*entry));
            }
        }
        same &= first.unwrap_or(default) == *value;
    }
    let complain = |key: &&str| format!("`{field}` `{key}` matches no module with factors");
    let unused = unused.iter().map(complain).collect();
    Ok((if same { sorted } else { expand(modules, default) }, unused))
}

fn expand<T: Copy + PartialEq>(modules: &[(&str, T)], default: T) -> Entries<T> {
    // A key matches longer paths that end in it, too, unless it is anchored.
    let is_an_end =
        |path: &str| modules.iter().any(|(other, _)| other.len() > path.len() && other.ends_with(path));
    let key = |path: &str| if is_an_end(path) { format!("^{path}") } else { path.to_owned() };
    let mut entries: Vec<_> = modules
        .iter()
        .filter(|(_, value)| *value != default)
        .map(|(path, value)| (key(path), *value))
        .collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULES: [(&str, usize); 3] =
        [("l.0.self_attn.q_proj", 4), ("l.0.cross.q_proj", 16), ("l.0.k_proj", 8)];

    fn entries(keys: &[(&str, usize)]) -> Vec<(String, usize)> {
        keys.iter().map(|(key, r)| ((*key).to_owned(), *r)).collect()
    }

    #[test]
    fn keys_that_sorting_leaves_alone_are_kept() {
        let given = entries(&[("self_attn.q_proj", 4), ("cross.*", 16)]);
        let (settled, unused) = settle("rank_pattern", &given, &MODULES, 8).unwrap();
        assert_eq!(settled, entries(&[("cross.*", 16), ("self_attn.q_proj", 4)]));
        assert!(unused.is_empty());
    }

    #[test]
    fn keys_whose_order_matters_are_written_as_paths() {
        // Sorted, `q_proj` would come first and win for both: PEFT then cannot load its own file.
        let given = entries(&[("self_attn.q_proj", 4), ("q_proj", 16)]);
        let (settled, _) = settle("rank_pattern", &given, &MODULES, 8).unwrap();
        assert_eq!(settled, entries(&[("l.0.cross.q_proj", 16), ("l.0.self_attn.q_proj", 4)]));
    }

    #[test]
    fn a_key_that_matches_nothing_is_reported() {
        let (_, unused) = settle("rank_pattern", &entries(&[("oj", 4)]), &[("l.q_proj", 8)], 8).unwrap();
        assert_eq!(unused, ["`rank_pattern` `oj` matches no module with factors"]);
    }
}
