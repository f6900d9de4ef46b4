//! Rows of one head among those of all: where they lie, or side by side.

use std::ops::Range;

use crate::CacheRows;

/// Rows of `width` values that begin `stride` values apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
    pub(super) width: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn side_by_side(data: &'a [f32], width: usize) -> Self {
        Self { data, stride: width, width }
    }

    pub(super) fn row(self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..self.width]
    }

    /// The rows of `range` side by side: where they lie, if they do, or else copied to `buffer`.
    pub(super) fn slice<'b>(self, range: Range<usize>, buffer: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        if self.stride == self.width {
            return &self.data[range.start * self.width..range.end * self.width];
        }
        self.gather(range, buffer);
        buffer
    }

    /// Puts the rows of `range` side by side into `to`.
    pub(super) fn gather(self, range: Range<usize>, to: &mut Vec<f32>) {
        to.clear();
        to.reserve(range.len() * self.width);
        for i in range {
            to.extend_from_slice(self.row(i));
        }
    }
}

/// Where the keys or values of one head are.
#[derive(Clone, Copy)]
pub(super) enum Head<'a> {
    Rows(Rows<'a>),
    /// Of that number in a cache.
    Cached(&'a CacheRows, usize),
}

impl<'a> Head<'a> {
    /// [`Rows::slice`].
    pub(super) fn slice<'b>(self, range: Range<usize>, buffer: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::Rows(rows) => rows.slice(range, buffer),
            Self::Cached(rows, head) => rows.head(head, range, buffer),
        }
    }
}
