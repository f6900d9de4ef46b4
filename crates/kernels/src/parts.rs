//! How row-wise work is cut into tasks.

use crate::pool;

/// Runs `task(part)` for each of `parts` on the pool: for parts that are not runs of one slice.
pub(crate) fn for_each<T: Send>(parts: &mut [T], task: impl Fn(&mut T) + Sync) {
    pool::for_each_chunk(parts, 1, |_, part| part.iter_mut().for_each(&task));
}

/// Runs `task(i, a, b)` on the pool for run `i` of `sizes.0` values of `a` and run `i` of `sizes.1` values of `b`.
pub(crate) fn for_each_pair(
    a: &mut [f32],
    b: &mut [f32],
    sizes: (usize, usize),
    task: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let runs = a.chunks_mut(sizes.0).zip(b.chunks_mut(sizes.1)).enumerate();
    let mut parts: Vec<_> = runs.collect();
    for_each(&mut parts, |(i, (a, b))| task(*i, a, b));
}

/// Makes `values[i]` what `task(i, row)` gives for row `i` of `rows`, on the pool.
pub(crate) fn for_each_row(
    rows: &mut [f32],
    values: &mut [f32],
    task: impl Fn(usize, &mut [f32]) -> f32 + Sync,
) {
    let width = rows.len() / values.len().max(1);
    let count = rows_per_task(width);
    for_each_pair(rows, values, (count * width.max(1), count), |i, rows, values| {
        for (j, (row, value)) in rows.chunks_exact_mut(width).zip(values).enumerate() {
            *value = task(i * count + j, row);
        }
    });
}

/// Rows to a task, so that a task is worth its hand-over: about 16 thousand values.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (16 * 1024 / width.max(1)).max(1)
}

/// The sum over `tasks` of what `task(i, sums)` adds to `width` zeros, in order, so that threads do not change it.
pub(crate) fn column_sums(tasks: usize, width: usize, task: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut partial = vec![0.0; tasks * width];
    pool::for_each_chunk(&mut partial, width.max(1), task);
    let mut total = vec![0.0; width];
    for sums in partial.chunks_exact(width.max(1)) {
        for (t, s) in total.iter_mut().zip(sums) {
            *t += s;
        }
    }
    total
}
