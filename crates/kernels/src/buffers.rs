//! New buffers, written by all threads: one that zeroes or copies some megabytes alone has the others wait, and fall asleep.

#![expect(unsafe_code, reason = "says that a buffer is written once the pool has written it")]

use std::mem::MaybeUninit;

use crate::{parts, pool};

/// Values to a task; up to so many, the caller writes them itself.
const TASK: usize = 64 * 1024;

/// `vec![T::default(); len]`.
pub(crate) fn zeros<T: Copy + Default + Send + Sync>(len: usize) -> Vec<T> {
    written(len, |_, part| part.fill(MaybeUninit::new(T::default())))
}

/// Hands each `chunk` of new zeros to `write`, with its number.
pub(crate) fn by_chunk(len: usize, chunk: usize, write: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let fill = |room: &mut [MaybeUninit<f32>]| {
        pool::for_each_chunk(room, chunk, |i, part| {
            part.fill(MaybeUninit::new(0.0));
            // SAFETY: just zeroed.
            write(i, unsafe { part.assume_init_mut() });
        });
    };
    // SAFETY: all of it is zeroed.
    unsafe { made(len, fill) }
}

/// `count` buffers of `m` rows of `k` values, of which `write(i, rows)` makes row `i` of each; what the rows held is not to
/// be read.
pub(crate) fn rows(
    (count, m, k): (usize, usize, usize),
    write: impl Fn(usize, &mut [&mut [f32]]) + Sync,
) -> Vec<Vec<f32>> {
    if k == 0 {
        return vec![Vec::new(); count];
    }
    let rows = parts::rows_per_task(k);
    let fill = |i: usize, parts: &mut [&mut [MaybeUninit<f32>]]| {
        let mut buffer = vec![0.0; count * k];
        let mut made: Vec<_> = buffer.chunks_exact_mut(k).collect();
        for row in 0..parts[0].len() / k {
            write(i * rows + row, &mut made);
            for (values, part) in made.iter().zip(parts.iter_mut()) {
                part[row * k..][..k].write_copy_of_slice(values);
            }
        }
    };
    // SAFETY: every row is written.
    unsafe { made_by_chunks((count, m * k), rows * k, fill) }
}

/// `count` buffers, the same chunk of which `write` fills together.
///
/// # Safety
/// It must write every value of each chunk.
pub(crate) unsafe fn made_by_chunks<T: Copy + Send>(
    (count, len): (usize, usize),
    chunk: usize,
    write: impl Fn(usize, &mut [&mut [MaybeUninit<T>]]) + Sync,
) -> Vec<Vec<T>> {
    let chunk = chunk.max(1);
    let mut all: Vec<Vec<T>> = (0..count).map(|_| Vec::with_capacity(len)).collect();
    let mut parts: Vec<_> = (0..len.div_ceil(chunk)).map(|i| (i, Vec::with_capacity(count))).collect();
    for values in &mut all {
        let chunks = values.spare_capacity_mut()[..len].chunks_mut(chunk);
        parts.iter_mut().zip(chunks).for_each(|((_, parts), part)| parts.push(part));
    }
    parts::for_each(&mut parts, |(i, parts)| write(*i, parts));
    // SAFETY: there is room for so many in each, and all have been written.
    all.iter_mut().for_each(|values| unsafe { values.set_len(len) });
    all
}

/// `values.to_vec()`.
pub(crate) fn copied(values: &[f32]) -> Vec<f32> {
    written(values.len(), |start, part| {
        part.write_copy_of_slice(&values[start..start + part.len()]);
    })
}

/// `write(start, part)` must write all of `part`, which is values `start..` of the buffer.
fn written<T: Copy + Send>(len: usize, write: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync) -> Vec<T> {
    let fill = |room: &mut [MaybeUninit<T>]| {
        if len <= TASK {
            write(0, room);
        } else {
            pool::for_each_chunk(room, TASK, |i, part| write(i * TASK, part));
        }
    };
    // SAFETY: the callers above write each part.
    unsafe { made(len, fill) }
}

/// A buffer that `write` fills.
///
/// # Safety
/// It must write every value.
pub(crate) unsafe fn made<T: Copy>(len: usize, write: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    write(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: there is room for so many, and each has been written.
    unsafe { values.set_len(len) };
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_written() {
        for len in [0, 1, TASK, TASK + 1, 3 * TASK - 7] {
            assert!(zeros::<u32>(len) == vec![0; len]);
            let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
            assert!(copied(&values) == values);
            assert!(by_chunk(len, 1000, |i, part| part[0] = i as f32).iter().sum::<f32>() > -1.0);
        }
    }
}
