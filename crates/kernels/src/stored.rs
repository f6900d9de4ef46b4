//! How the values of a frozen matrix lie in its file.

/// How a weight's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names that ggml gives its types")]
pub enum Stored {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32: an f16 scale, 8 bits a value.
    Q8_0,
    /// Blocks of 32: an f16 scale, 4 bits a value.
    Q4_0,
    /// Blocks of 256: 8 groups, each with a scale and a minimum of 6 bits; 4 bits a value.
    Q4_K,
    /// As `Q4_K`, with 5 bits a value.
    Q5_K,
    /// Blocks of 256: 16 groups, each with a scale of 8 bits; 6 bits a value.
    Q6_K,
}

impl Stored {
    /// Values of a block: those that are stored together.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Bytes of one value, where each is stored by itself.
    pub fn size(self) -> Option<usize> {
        (self.block() == 1).then(|| self.block_bytes())
    }

    /// Bytes of `values` values; none where they are not whole blocks, or too many.
    pub fn bytes(self, values: usize) -> Option<usize> {
        let whole = values.is_multiple_of(self.block());
        if whole { (values / self.block()).checked_mul(self.block_bytes()) } else { None }
    }
}

/// In which order the rows of a matrix are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowOrder {
    /// One after the other.
    #[default]
    Plain,
    /// Every `head` rows are a head whose two halves are stored in turn: row `t` of the first half at `2t`, row `t` of the
    /// second at `2t + 1`. So llama.cpp stores what it rotates in adjacent pairs.
    Paired {
        /// Rows of a head, an even number.
        head: usize,
    },
}

impl RowOrder {
    /// Where row `row` is stored.
    #[inline]
    pub fn stored(self, row: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::Paired { head } => {
                let (start, at) = (row - row % head, row % head);
                start + 2 * (at % (head / 2)) + at / (head / 2)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_rows_are_those_of_llama_cpp() {
        // numpy: arange(16).reshape(2, 2, 4).swapaxes(1, 2).reshape(16), inverted.
        let order = RowOrder::Paired { head: 8 };
        let stored: Vec<usize> = (0..16).map(|row| order.stored(row)).collect();
        assert_eq!(stored, [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]);
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(Stored::Q4_K.bytes(512), Some(288));
        assert_eq!(Stored::Q4_K.bytes(500), None);
        assert_eq!(Stored::F32.bytes(usize::MAX), None);
    }
}
