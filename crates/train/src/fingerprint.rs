//! FNV-1a, 64 bits: a number for bytes, the same on every machine and in every version.

/// The fingerprint of what was added so far.
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// That of `bytes` alone.
    pub(crate) fn of(bytes: impl IntoIterator<Item = u8>) -> u64 {
        let mut print = Self::new();
        print.add(bytes);
        print.0
    }

    pub(crate) fn add(&mut self, bytes: impl IntoIterator<Item = u8>) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(crate) fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_definition() {
        // Fowler, Noll and Vo's own test vectors.
        for (text, print) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            assert_eq!(Fingerprint::of(text.bytes()), print);
        }
    }
}
