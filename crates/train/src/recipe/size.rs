//! An amount of memory as people write it: `2GiB`, `800 MiB`, `1.5GB`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Units and their bytes, in the order in which they are tried for writing.
const UNITS: [(&str, u64); 7] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// An amount of memory in bytes, written with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no amount of memory: write it as 2GiB or 800MiB");
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, unit) = text.split_at(end);
        let known = |(name, _): &&(&str, u64)| name.eq_ignore_ascii_case(unit.trim());
        let (_, bytes) = UNITS.iter().find(known).ok_or_else(wrong)?;
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let size = (number * *bytes as f64) as u64;
        if size == 0 { Err(wrong()) } else { Ok(Self(size)) }
    }
}

impl fmt::Display for Size {
    /// In the first unit of which it is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, bytes)| self.0.is_multiple_of(*bytes));
        let (unit, bytes) = whole.unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, written) in [
            ("2GiB", 2 << 30, "2GiB"),
            ("1.5 gib", 3 << 29, "1536MiB"),
            ("2gb", 2_000_000_000, "2GB"),
            ("7B", 7, "7B"),
        ] {
            let size = Size::try_from(text.to_owned()).unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, written));
        }
        for text in ["", "2", "GiB", "2 apples", "-1GiB", "0GiB", "1.2.3MiB"] {
            let error = Size::try_from(text.to_owned()).unwrap_err();
            assert!(error.contains("write it as 2GiB"), "{error}");
        }
    }
}
