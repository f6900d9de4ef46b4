//! English forms: verbs, plurals, pronouns, and the last polish of a text. Regular rules, plus a table of irregular verbs.

/// Irregular verbs as `base past participle`, separated by commas and line breaks.
const IRREGULAR: &str = include_str!("../words/irregular.txt");
/// Irregular plurals.
const PLURALS: [(&str, &str); 17] = [
    ("man", "men"),
    ("woman", "women"),
    ("child", "children"),
    ("mouse", "mice"),
    ("foot", "feet"),
    ("tooth", "teeth"),
    ("goose", "geese"),
    ("sheep", "sheep"),
    ("deer", "deer"),
    ("scarf", "scarves"),
    ("fisherman", "fishermen"),
    ("fish", "fish"),
    ("leaf", "leaves"),
    ("loaf", "loaves"),
    ("knife", "knives"),
    ("wolf", "wolves"),
    ("shelf", "shelves"),
];

/// Who a sentence is about, for pronouns and agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Person {
    /// The speaker.
    I,
    /// The one spoken to.
    You,
    /// The speaker and others.
    We,
    /// Several.
    They,
    /// A woman or girl.
    She,
    /// A man or boy.
    He,
    /// A thing or an animal.
    It,
}

impl Person {
    /// The pronoun or auxiliary of `form` (`he`, `him`, `his`, `himself`, `is`, `was`, `has`, `does`), or none for another form.
    pub fn form(self, form: &str) -> Option<&'static str> {
        let column =
            ["he", "him", "his", "himself", "is", "was", "has", "does"].iter().position(|f| *f == form)?;
        let row = match self {
            Self::I => ["I", "me", "my", "myself", "am", "was", "have", "do"],
            Self::You => ["you", "you", "your", "yourself", "are", "were", "have", "do"],
            Self::We => ["we", "us", "our", "ourselves", "are", "were", "have", "do"],
            Self::They => ["they", "them", "their", "themselves", "are", "were", "have", "do"],
            Self::She => ["she", "her", "her", "herself", "is", "was", "has", "does"],
            Self::He => ["he", "him", "his", "himself", "is", "was", "has", "does"],
            Self::It => ["it", "it", "its", "itself", "is", "was", "has", "does"],
        };
        Some(row[column])
    }

    /// Whether verbs take an `s` in the present.
    pub fn is_singular(self) -> bool {
        matches!(self, Self::She | Self::He | Self::It)
    }
}

/// The past of a verb phrase: its first word changes.
pub fn past(phrase: &str, subject: Person) -> String {
    with_first(phrase, |verb| match verb {
        "be" => subject.form("was").unwrap_or_default().to_owned(),
        _ => irregular(verb).map_or_else(|| regular_past(verb), |forms| forms[1].to_owned()),
    })
}

/// The past participle of a verb phrase.
pub fn participle(phrase: &str) -> String {
    with_first(phrase, |verb| irregular(verb).map_or_else(|| regular_past(verb), |forms| forms[2].to_owned()))
}

/// The present of a verb phrase, agreeing with its subject.
pub fn present(phrase: &str, subject: Person) -> String {
    with_first(phrase, |verb| match verb {
        "be" => subject.form("is").unwrap_or_default().to_owned(),
        "have" => subject.form("has").unwrap_or_default().to_owned(),
        _ if !subject.is_singular() => verb.to_owned(),
        "do" | "go" => format!("{verb}es"),
        _ => plural_ending(verb),
    })
}

/// The `-ing` form of a verb phrase.
pub fn gerund(phrase: &str) -> String {
    with_first(phrase, |verb| match verb {
        "be" | "see" => format!("{verb}ing"),
        "lie" => "lying".to_owned(),
        "begin" | "forget" => format!("{verb}{}ing", &verb[verb.len() - 1..]),
        _ if doubles(verb) => format!("{verb}{}ing", &verb[verb.len() - 1..]),
        _ if verb.ends_with('e') && !verb.ends_with("ee") => format!("{}ing", &verb[..verb.len() - 1]),
        _ => format!("{verb}ing"),
    })
}

/// The plural of a noun phrase: its last word changes, or the one before ` of `.
pub fn plural(phrase: &str) -> String {
    if let Some((head, rest)) = phrase.split_once(" of ") {
        return format!("{} of {rest}", plural(head));
    }
    let (front, noun) = phrase.rsplit_once(' ').map_or(("", phrase), |(front, noun)| (front, noun));
    let many = PLURALS
        .iter()
        .find(|(one, _)| *one == noun)
        .map_or_else(|| plural_ending(noun), |(_, many)| (*many).to_owned());
    if front.is_empty() { many } else { format!("{front} {many}") }
}

/// The text with its first letter made a capital.
pub fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn with_first(phrase: &str, inflect: impl Fn(&str) -> String) -> String {
    match phrase.split_once(' ') {
        Some((verb, rest)) => format!("{} {rest}", inflect(verb)),
        None => inflect(phrase),
    }
}

fn irregular(verb: &str) -> Option<Vec<&'static str>> {
    let forms = |entry: &'static str| entry.split_whitespace().collect::<Vec<_>>();
    IRREGULAR.split([',', '\n']).map(forms).find(|forms| forms.first() == Some(&verb))
}

fn regular_past(verb: &str) -> String {
    let stem = &verb[..verb.len().saturating_sub(1)];
    match verb {
        _ if verb.ends_with('e') => format!("{verb}d"),
        _ if ends_in_consonant_y(verb) => format!("{stem}ied"),
        _ if doubles(verb) => format!("{verb}{}ed", &verb[verb.len() - 1..]),
        _ => format!("{verb}ed"),
    }
}

fn plural_ending(word: &str) -> String {
    if ends_in_consonant_y(word) {
        return format!("{}ies", &word[..word.len() - 1]);
    }
    let hisses = ["s", "x", "ch", "sh", "z"].iter().any(|end| word.ends_with(end));
    let in_o = ["potato", "tomato", "hero", "echo"].contains(&word);
    if hisses || in_o { format!("{word}es") } else { format!("{word}s") }
}

fn is_vowel(letter: char) -> bool {
    "aeiou".contains(letter)
}

fn ends_in_consonant_y(word: &str) -> bool {
    let mut back = word.chars().rev();
    back.next() == Some('y') && back.next().is_some_and(|letter| !is_vowel(letter))
}

/// Whether a verb of one syllable ends consonant, vowel, consonant: stop, plan, hug.
fn doubles(verb: &str) -> bool {
    let letters: Vec<char> = verb.chars().collect();
    let [.., before, vowel, last] = letters.as_slice() else { return false };
    let vowels = letters.iter().filter(|letter| is_vowel(**letter)).count();
    vowels == 1 && !is_vowel(*before) && is_vowel(*vowel) && !is_vowel(*last) && !"wxy".contains(*last)
}

/// Turns an expanded template into a clean text: `\n` becomes a line break, `a` before a vowel becomes `an`, `«»` become braces,
/// and, where `prose`, sentences get a capital.
pub fn polish(text: &str, prose: bool) -> String {
    let with_articles = articles(&text.replace("\\n", "\n"));
    let cased = if prose { sentence_case(&with_articles) } else { with_articles.replace('~', "") };
    cased.replace('«', "{").replace('»', "}")
}

/// `a` to `an` where the next word asks for it; double spaces, which empty choices leave, to one.
fn articles(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut words = text.split(' ').filter(|word| !word.is_empty()).peekable();
    while let Some(word) = words.next() {
        out.push_str(word);
        let line = word.rsplit('\n').next().unwrap_or_default();
        let bare = line.trim_start_matches(|c: char| !c.is_alphabetic());
        if let Some(next) = words.peek() {
            if matches!(bare, "a" | "A") && starts_with_vowel_sound(next) {
                out.push('n');
            }
            out.push(' ');
        }
    }
    out
}

fn starts_with_vowel_sound(word: &str) -> bool {
    let word = word.trim_start_matches('~').to_lowercase();
    let silent_h = word.starts_with("hour") || word.starts_with("honest");
    let like_you = ["uni", "use", "usu", "one"].iter().any(|start| word.starts_with(start));
    silent_h || (word.starts_with(is_vowel) && !like_you) || word == "8" || word == "11" || word == "18"
}

fn sentence_case(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // `ended`: a full stop was seen and only a quote may stand between it and the space that starts a sentence.
    let (mut starts, mut ended) = (true, false);
    for letter in text.chars() {
        match letter {
            '~' => starts = false,
            '"' => {
                starts = starts || out.ends_with(", ") || out.ends_with("\" ");
                ended = ended && out.ends_with('.');
            }
            '\n' => starts = true,
            ' ' => starts = starts || ended,
            _ => {
                if starts && letter.is_alphabetic() {
                    out.extend(letter.to_uppercase());
                    (starts, ended) = (false, false);
                    continue;
                }
                ended = matches!(letter, '.' | '!' | '?');
                starts = false;
            }
        }
        if letter != '~' {
            out.push(letter);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs() {
        for (base, ed, ing) in [
            ("walk home", "walked home", "walking home"),
            ("stop", "stopped", "stopping"),
            ("visit", "visited", "visiting"),
            ("carry it", "carried it", "carrying it"),
            ("make tea", "made tea", "making tea"),
            ("play", "played", "playing"),
            ("see", "saw", "seeing"),
            ("be", "was", "being"),
        ] {
            assert_eq!((past(base, Person::She).as_str(), gerund(base).as_str()), (ed, ing));
        }
        assert_eq!(present("watch birds", Person::He), "watches birds");
        assert_eq!(present("be late", Person::They), "are late");
        assert_eq!(participle("eat"), "eaten");
    }

    #[test]
    fn plurals() {
        for (one, many) in [
            ("box", "boxes"),
            ("old city", "old cities"),
            ("cup of tea", "cups of tea"),
            ("child", "children"),
            ("day", "days"),
        ] {
            assert_eq!(plural(one), many);
        }
    }

    #[test]
    fn a_polished_text() {
        assert_eq!(
            polish("she ate a  apple. a hour later he said, \"go!\" ~ok", true),
            "She ate an apple. An hour later he said, \"Go!\" ok"
        );
        assert_eq!(polish("\"no.\" the dog", true), "\"No.\" The dog");
        assert_eq!(polish("a egg «\"x\":1»", false), "an egg {\"x\":1}");
    }
}
