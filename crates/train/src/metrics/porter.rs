//! Words cut to their stems: Porter's algorithm (1980) with the changes of NLTK's `PorterStemmer`, which `rouge-score`
//! uses.

/// Words whose stem is no rule's.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// Endings and what takes their place where the rest has a measure above 0.
const STEP2: [(&str, &str); 21] = [
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
];

/// As [`STEP2`], one step later.
const STEP3: [(&str, &str); 7] = [
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
];

/// Endings that go where the rest has a measure above 1.
const STEP4: [&str; 19] = [
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism",
    "ate", "iti", "ous", "ive", "ize",
];

/// The stem of a word of lower-case ASCII letters and digits.
pub(super) fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_owned();
    }
    if word.len() <= 2 {
        return word.to_owned();
    }
    let word = past_and_progressive(&plural(word));
    let word = match word.strip_suffix('y') {
        Some(rest) if rest.len() > 1 && is_consonant(rest, rest.len() - 1) => format!("{rest}i"),
        _ => word,
    };
    let word = double_suffix(word);
    let word = replaced(&word, &STEP3).unwrap_or(word);
    let word = last_suffix(&word);
    final_letter(word)
}

/// Whether the letter at `at` is none of a, e, i, o, u, nor a y after a consonant.
fn is_consonant(word: &str, at: usize) -> bool {
    consonants(word).nth(at).unwrap_or(false)
}

fn consonants(word: &str) -> impl Iterator<Item = bool> {
    word.bytes().scan(None, |before: &mut Option<bool>, letter| {
        let consonant = match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !before.unwrap_or(false),
            _ => true,
        };
        *before = Some(consonant);
        Some(consonant)
    })
}

/// Times that a vowel is followed by a consonant.
fn measure(word: &str) -> usize {
    consonants(word).zip(consonants(word).skip(1)).filter(|&(a, b)| !a && b).count()
}

fn has_vowel(word: &str) -> bool {
    consonants(word).any(|consonant| !consonant)
}

fn ends_in_double_consonant(word: &str) -> bool {
    let letters = word.as_bytes();
    letters.len() >= 2
        && letters[letters.len() - 1] == letters[letters.len() - 2]
        && is_consonant(word, letters.len() - 1)
}

/// Whether the word ends consonant, vowel, consonant other than w, x and y; or is a vowel and a consonant.
fn ends_short(word: &str) -> bool {
    let kinds: Vec<bool> = consonants(word).collect();
    match kinds[..] {
        [false, true] => true,
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        _ => false,
    }
}

/// Step 1a.
fn plural(word: &str) -> String {
    match word {
        _ if word.ends_with("ies") => word[..word.len() - if word.len() == 4 { 1 } else { 2 }].to_owned(),
        _ if word.ends_with("sses") => word[..word.len() - 2].to_owned(),
        _ if word.ends_with("ss") => word.to_owned(),
        _ => word.strip_suffix('s').unwrap_or(word).to_owned(),
    }
}

/// Step 1b.
fn past_and_progressive(word: &str) -> String {
    if word.ends_with("ied") {
        return word[..word.len() - if word.len() == 4 { 1 } else { 2 }].to_owned();
    }
    if let Some(rest) = word.strip_suffix("eed") {
        return if measure(rest) > 0 { format!("{rest}ee") } else { word.to_owned() };
    }
    let ending =
        ["ed", "ing"].iter().filter_map(|ending| word.strip_suffix(ending)).find(|rest| has_vowel(rest));
    let Some(rest) = ending else { return word.to_owned() };
    if ["at", "bl", "iz"].iter().any(|ending| rest.ends_with(ending)) {
        format!("{rest}e")
    } else if ends_in_double_consonant(rest) {
        let keep = rest.ends_with(['l', 's', 'z']);
        rest[..rest.len() - usize::from(!keep)].to_owned()
    } else if measure(rest) == 1 && ends_short(rest) {
        format!("{rest}e")
    } else {
        rest.to_owned()
    }
}

/// Step 2.
fn double_suffix(word: String) -> String {
    if let Some(rest) = word.strip_suffix("alli").filter(|rest| measure(rest) > 0) {
        return double_suffix(format!("{rest}al"));
    }
    if let Some(rest) = word.strip_suffix("logi") {
        // The measure is that of the part with its l.
        return if measure(&word[..word.len() - 3]) > 0 { format!("{rest}log") } else { word };
    }
    replaced(&word, &STEP2).unwrap_or(word)
}

/// The word with the first ending that it has replaced, if what is left has a measure above 0.
fn replaced(word: &str, rules: &[(&str, &str)]) -> Option<String> {
    let rest = |(ending, new): &(&str, &str)| {
        word.strip_suffix(ending).map(|rest| (rest.to_owned(), (*new).to_owned()))
    };
    let (rest, new) = rules.iter().find_map(rest)?;
    (measure(&rest) > 0).then(|| rest + &new)
}

/// Step 4.
fn last_suffix(word: &str) -> String {
    let Some((ending, rest)) = STEP4.iter().find_map(|ending| Some((*ending, word.strip_suffix(ending)?)))
    else {
        return word.to_owned();
    };
    let goes = measure(rest) > 1 && (ending != "ion" || rest.ends_with(['s', 't']));
    if goes { rest.to_owned() } else { word.to_owned() }
}

/// Step 5.
fn final_letter(word: String) -> String {
    let word = match word.strip_suffix('e') {
        Some(rest) if measure(rest) > 1 || measure(rest) == 1 && !ends_short(rest) => rest.to_owned(),
        _ => word,
    };
    let one_less = &word[..word.len().saturating_sub(1)];
    if word.ends_with("ll") && measure(one_less) > 1 { one_less.to_owned() } else { word }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::cases;

    #[test]
    fn as_nltk() {
        for case in cases("porter") {
            let (word, expected) = (case[0].as_str().unwrap(), case[1].as_str().unwrap());
            assert_eq!(stem(word), expected, "{word}");
        }
    }
}
