//! The `precompiled_charsmap` of a `tokenizer.json`: whether the crate can use it without a panic. What it means is left to the
//! crate.

use std::str;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

/// Checks every map in `normalizer`, at any depth.
pub(super) fn check(normalizer: &Value) -> Result<(), String> {
    match normalizer {
        Value::Array(list) => list.iter().try_for_each(check),
        Value::Object(fields) => {
            if fields.get("type").is_some_and(|name| name == "Precompiled") {
                let text = fields.get("precompiled_charsmap").and_then(Value::as_str);
                let text = text.ok_or("a Precompiled normalizer has no `precompiled_charsmap` of text")?;
                sound(text).map_err(|what| format!("`precompiled_charsmap` of its normalizer {what}"))?;
            }
            fields.values().try_for_each(check)
        }
        _ => Ok(()),
    }
}

/// Follows all that a text can reach. The map is a number of bytes, that many of a double-array trie from UTF-8 to places, and the
/// texts at those places (`spm_precompiled` 0.1.4, which looks up whatever it reads).
fn sound(text: &str) -> Result<(), String> {
    let map = BASE64_STANDARD.decode(text).map_err(|source| format!("is not base64 ({source})"))?;
    let (size, rest) = map.split_first_chunk().ok_or("is cut off")?;
    let size = u32::from_le_bytes(*size) as usize / 4 * 4;
    let (units, texts) = rest
        .split_at_checked(size)
        .ok_or_else(|| format!("is cut off: its trie has {size} bytes, and {} are there", rest.len()))?;
    let texts =
        str::from_utf8(texts).map_err(|source| format!("holds texts that are not UTF-8 ({source})"))?;
    let trie: Vec<Unit> = units.as_chunks().0.iter().map(|unit| Unit(u32::from_le_bytes(*unit))).collect();
    let mut seen = vec![false; trie.len()];
    let mut open = vec![trie.first().ok_or("has an empty trie")?.offset()];
    while let Some(node) = open.pop() {
        // Any byte may come next.
        if node | 0xff >= trie.len() {
            return Err("is damaged: its trie leads out of itself".into());
        }
        if std::mem::replace(&mut seen[node], true) {
            continue;
        }
        for byte in 1..=255 {
            let at = node ^ byte;
            if trie[at].label() != byte {
                continue;
            }
            let next = at ^ trie[at].offset();
            open.push(next);
            let place = trie.get(next).filter(|_| trie[at].has_value()).map(Unit::value);
            if place.is_some_and(|place| !texts.is_char_boundary(place)) {
                return Err("is damaged: its trie leads to no text".into());
            }
        }
    }
    Ok(())
}

/// A unit of a double array, as darts-clone packs it.
struct Unit(u32);

impl Unit {
    fn has_value(&self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    fn value(&self) -> usize {
        (self.0 & 0x7fff_ffff) as usize
    }

    /// A byte; more of what is a value itself.
    fn label(&self) -> usize {
        (self.0 & 0x8000_00ff) as usize
    }

    fn offset(&self) -> usize {
        ((self.0 >> 10) as usize) << ((self.0 >> 6) & 8)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tokenizer::tests::opened;

    /// `a` becomes `text`: the root's block is the first, that of `a` the second, where its value stands.
    fn map(value: u32, offset: u32, texts: &[u8]) -> Vec<u8> {
        let mut units = [0u32; 512];
        (units[0], units[usize::from(b'a')]) = (0, offset << 10 | 1 << 8 | u32::from(b'a'));
        units[usize::from(b'a') ^ 256] = 1 << 31 | value;
        let units = units.iter().flat_map(|unit| unit.to_le_bytes());
        2048u32.to_le_bytes().into_iter().chain(units).chain(texts.iter().copied()).collect()
    }

    fn refused(map: &[u8]) -> String {
        let file = |map: &Value| {
            let normalizer = json!({"type": "Precompiled", "precompiled_charsmap": map});
            let nested = json!({"type": "Sequence", "normalizers": [normalizer]});
            json!({"normalizer": nested, "model": {"type": "WordLevel", "unk_token": "b", "vocab": {"b": 0, "c": 1}}})
        };
        let missing = opened(&file(&Value::Null), &[]).err().unwrap().to_string();
        assert!(missing.contains("has no `precompiled_charsmap` of text"), "{missing}");
        match opened(&file(&BASE64_STANDARD.encode(map).into()), &[]) {
            Err(error) => error.to_string(),
            Ok(tokenizer) => {
                assert_eq!(tokenizer.encode("a").unwrap(), [1]);
                assert_eq!(tokenizer.encode("b\u{301}\u{10ffff}ÿ").unwrap(), [0]);
                String::new()
            }
        }
    }

    #[test]
    fn a_damaged_map_is_refused_without_a_panic() {
        let whole = map(1, 256, "é".repeat(3).replacen('é', "\0c\0", 1).as_bytes());
        assert_eq!(refused(&whole), "");
        for end in (0..2052).step_by(27).chain([3, 4, 2051]) {
            let error = refused(&whole[..end]);
            assert!(
                error.contains("tokenizer.json: not a tokenizer that taper can read (`precompiled_charsmap`")
            );
            assert!(error.contains("is cut off"), "{end}: {error}");
        }
        for (broken, what) in [
            (map(9, 256, b"\0c\0"), "leads to no text"),
            (map(1, 256, "é".as_bytes()), "leads to no text"),
            (map(1, 512, b"\0c\0"), "leads out of itself"),
            (map(1, 256, b"\xff"), "not UTF-8"),
            (vec![0; 8], "an empty trie"),
        ] {
            let error = refused(&broken);
            assert!(error.contains(what), "{what}: {error}");
        }
        assert!(sound("?").unwrap_err().contains("is not base64"));
    }
}
