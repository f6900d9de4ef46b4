//! What can be wrong with the bytes or shapes handed to a kernel.

use crate::Stored;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A weight's bytes do not hold `rows x cols` values of its dtype.
    #[error(
        "weight of {rows} x {cols} values needs {expected} bytes at offset {offset}, the file has {found} there"
    )]
    WeightBytes {
        /// Rows of the weight.
        rows: usize,
        /// Columns of the weight.
        cols: usize,
        /// Byte offset of the weight in the mapped file.
        offset: usize,
        /// Bytes that the weight needs.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },

    /// Values of a weight held in memory are not `rows x cols`.
    #[error("weight of {rows} x {cols} values was given {found} values")]
    WeightValues {
        /// Rows of the weight.
        rows: usize,
        /// Columns of the weight.
        cols: usize,
        /// Values given.
        found: usize,
    },

    /// Rows of a quantised weight are not whole blocks.
    #[error(
        "weight of {rows} x {cols} values cannot be {stored:?}: its rows are not whole blocks of {block}"
    )]
    WeightBlocks {
        /// Rows of the weight.
        rows: usize,
        /// Columns of the weight.
        cols: usize,
        /// The type.
        stored: Stored,
        /// Values of a block.
        block: usize,
    },

    /// Rows that are stored in pairs are not whole heads of an even size.
    #[error("weight of {rows} rows cannot be of heads of {head} rows each, stored in pairs")]
    WeightHeads {
        /// Rows of the weight.
        rows: usize,
        /// Rows of a head.
        head: usize,
    },
}
