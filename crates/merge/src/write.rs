//! Writing the planned files: blocks of rows are merged, everything else is copied by the kernel, each at its final offset.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use taper_base::Checkpoint;
use taper_kernels::pool;

use crate::merge::{Progress, Weighted};
use crate::plan::{OutFile, Plan, Target};
use crate::{Error, values};

/// Values of a block of rows: with the low-rank term beside it, it stays in a core's cache.
const BLOCK: usize = 1 << 16;
/// Bytes copied in one piece.
const PIECE: u64 = 8 << 20;
/// Bytes of a file after which the disk is set to work on them, while more are being made.
const SYNC: u64 = 32 << 20;

/// Something that one thread does by itself.
enum Task<'a> {
    Copy { file: usize, range: Range<u64> },
    Merge { target: &'a Target, rows: Range<usize> },
}

/// What a thread works in; kept from block to block.
#[derive(Default)]
struct Buffers {
    merged: Vec<f32>,
    before: Vec<f32>,
    bytes: Vec<u8>,
}

/// Writes every file of the plan into `dir`.
pub(crate) struct Writer<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) adapters: &'a [Weighted<'a>],
    /// Which of them change a parameter, by their places.
    pub(crate) changes: &'a BTreeMap<String, Vec<usize>>,
    pub(crate) dir: &'a Path,
}

/// What the tasks share.
struct State<'a> {
    files: &'a [(PathBuf, File)],
    buffers: Mutex<Vec<Buffers>>,
    outcome: Mutex<Outcome<'a>>,
}

struct Outcome<'a> {
    progress: Progress,
    /// Bytes of each file that nobody has told the disk of.
    unsynced: Vec<u64>,
    to_sync: Sender<usize>,
    on_progress: &'a mut (dyn FnMut(Progress) -> ControlFlow<()> + Send),
    error: Option<Error>,
}

impl Writer<'_> {
    pub(crate) fn run(
        &self,
        on_progress: &mut (dyn FnMut(Progress) -> ControlFlow<()> + Send),
    ) -> Result<(), Error> {
        let files = (0..self.plan.files.len()).map(|i| self.create(i)).collect::<Result<Vec<_>, _>>()?;
        let (to_sync, syncing) = channel();
        std::thread::scope(|scope| {
            let files = files.as_slice();
            let synced = scope.spawn(move || sync(files, &syncing));
            let written = self.write(files, to_sync, on_progress);
            let synced = synced.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            written.and(synced)
        })
    }

    /// Runs every task.
    fn write(
        &self,
        files: &[(PathBuf, File)],
        to_sync: Sender<usize>,
        on_progress: &mut (dyn FnMut(Progress) -> ControlFlow<()> + Send),
    ) -> Result<(), Error> {
        let total = self.plan.files.iter().map(OutFile::len).sum();
        let done =
            self.plan.files.iter().flat_map(|file| &file.new_header).map(|header| header.len() as u64).sum();
        let progress = Progress { done, total };
        let outcome = Outcome { progress, unsynced: vec![0; files.len()], to_sync, on_progress, error: None };
        let state = State { files, buffers: Mutex::default(), outcome: Mutex::new(outcome) };
        let tasks = self.tasks();
        pool::for_each(tasks.len(), |i| {
            if lock(&state.outcome).error.is_none() {
                let done = self.task(&tasks[i], &state);
                lock(&state.outcome).take(tasks[i].file(), done);
            }
        });
        state.outcome.into_inner().unwrap_or_else(PoisonError::into_inner).error.map_or(Ok(()), Err)
    }

    /// An output file of its final length, its new header written if it has one.
    fn create(&self, index: usize) -> Result<(PathBuf, File), Error> {
        let plan = &self.plan.files[index];
        let path = self.dir.join(plan.source.file_name().unwrap_or_default());
        let create = || {
            let mut file = File::create_new(&path)?;
            file.set_len(plan.len())?;
            if let Some(header) = &plan.new_header {
                file.write_all(header)?;
            }
            Ok(file)
        };
        let file = create().map_err(Error::io(&path))?;
        Ok((path, file))
    }

    fn tasks(&self) -> Vec<Task<'_>> {
        let mut tasks = Vec::new();
        for target in &self.plan.targets {
            let whole = self.adapters.iter().any(|a| a.adapter.merges_whole(&target.parameter));
            let step = if whole { target.rows } else { BLOCK / target.cols.max(1) }.max(1);
            let blocks = (0..target.rows).step_by(step).map(|row| row..(row + step).min(target.rows));
            tasks.extend(blocks.map(|rows| Task::Merge { target, rows }));
        }
        for file in 0..self.plan.files.len() {
            for range in self.plan.copied(file) {
                let pieces = (range.start..range.end).step_by(PIECE as usize);
                let end = range.end;
                tasks.extend(pieces.map(|at| Task::Copy { file, range: at..(at + PIECE).min(end) }));
            }
        }
        // In the order of the bytes, which a disk likes.
        tasks.sort_by_key(|task| match task {
            Task::Copy { file, range } => (*file, self.plan.files[*file].place(range.start), 0),
            Task::Merge { target, rows } => (target.file, target.offset, rows.start),
        });
        tasks
    }

    /// Bytes written.
    fn task(&self, task: &Task<'_>, state: &State<'_>) -> Result<u64, Error> {
        match task {
            Task::Copy { file, range } => self.copy(*file, range, &state.files[*file].0),
            Task::Merge { target, rows } => {
                let mut buffers = lock(&state.buffers).pop().unwrap_or_default();
                self.merge(target, rows.clone(), &mut buffers)?;
                let (path, file) = &state.files[target.file];
                let at = target.offset
                    + (rows.start * target.cols * values::size(target.dtype).unwrap_or(1)) as u64;
                write_at(file, &buffers.bytes, at).map_err(Error::io(path))?;
                let written = buffers.bytes.len() as u64;
                lock(&state.buffers).push(buffers);
                Ok(written)
            }
        }
    }

    /// Copies a range of the base's file to its place: within the kernel, where it can.
    fn copy(&self, file: usize, range: &Range<u64>, path: &Path) -> Result<u64, Error> {
        let plan = &self.plan.files[file];
        let mut from = File::open(&plan.source).map_err(Error::io(&plan.source))?;
        from.seek(SeekFrom::Start(range.start)).map_err(Error::io(&plan.source))?;
        let mut to = OpenOptions::new().write(true).open(path).map_err(Error::io(path))?;
        to.seek(SeekFrom::Start(plan.place(range.start))).map_err(Error::io(path))?;
        let bytes = range.end - range.start;
        let copied = io::copy(&mut io::Read::take(from, bytes), &mut to).map_err(Error::io(path))?;
        if copied < bytes {
            return Err(Error::file(&plan.source, "became shorter while it was being merged"));
        }
        Ok(copied)
    }

    /// Leaves rows of the merged tensor, as they are stored, in `buffers.bytes`.
    fn merge(&self, target: &Target, rows: Range<usize>, buffers: &mut Buffers) -> Result<(), Error> {
        let Buffers { merged, before, bytes } = buffers;
        let count = rows.len() * target.cols;
        let size = values::size(target.dtype).unwrap_or(1);
        merged.resize(count, 0.0);
        bytes.resize(count * size, 0);
        match &target.from {
            Some(from) => {
                let stored = self.checkpoint.bytes(from).unwrap_or_default();
                let start = rows.start * target.cols * size;
                values::widen(&stored[start..start + count * size], target.dtype, merged);
            }
            None => merged.fill(0.0),
        }
        for weighted in self.adapters_of(&target.parameter) {
            weighted.merge_rows(&target.parameter, rows.clone(), merged, before)?;
        }
        if values::round(merged, target.dtype, bytes) {
            return Ok(());
        }
        Err(self.not_finite(target, &rows, buffers))
    }

    fn adapters_of(&self, parameter: &str) -> Vec<Weighted<'_>> {
        self.changes.get(parameter).into_iter().flatten().map(|&i| self.adapters[i]).collect()
    }

    /// What to say of the first row that has a value which is not finite.
    fn not_finite(&self, target: &Target, rows: &Range<usize>, buffers: &mut Buffers) -> Error {
        let size = values::size(target.dtype).unwrap_or(1);
        let cols = target.cols.max(1);
        let lines = buffers.merged.chunks(cols).zip(buffers.bytes.chunks_mut(cols * size));
        let row =
            lines.take_while(|(line, out)| values::round(line, target.dtype, &mut out.to_vec())).count();
        let merged = &buffers.merged[(row * cols).min(buffers.merged.len() - cols)..][..cols];
        let what = match merged.iter().find(|value| !value.is_finite()) {
            Some(value) => format!("the merged value is {value}: the adapter, or the base, is broken"),
            None => format!("a merged value is too large for {:?}", target.dtype),
        };
        let path = self.plan.files[target.file].source.clone();
        Error::NotFinite { path, tensor: target.name.clone(), row: rows.start + row, what }
    }
}

impl Task<'_> {
    fn file(&self) -> usize {
        match self {
            Self::Copy { file, .. } => *file,
            Self::Merge { target, .. } => target.file,
        }
    }
}

impl Outcome<'_> {
    /// Counts what a task has written to `file`, or keeps the first error.
    fn take(&mut self, file: usize, done: Result<u64, Error>) {
        match done {
            Ok(bytes) => {
                self.progress.done += bytes;
                self.unsynced[file] += bytes;
                if self.unsynced[file] >= SYNC {
                    self.unsynced[file] = 0;
                    // Whoever listened has failed, and will say so.
                    let _ = self.to_sync.send(file);
                }
                if (self.on_progress)(self.progress).is_break() {
                    self.error.get_or_insert(Error::Stopped);
                }
            }
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
    }
}

/// Brings the named files to the disk, as they come, then every file whole.
fn sync(files: &[(PathBuf, File)], named: &Receiver<usize>) -> Result<(), Error> {
    let bring = |(path, file): &(PathBuf, File)| file.sync_all().map_err(Error::io(path));
    while let Ok(first) = named.recv() {
        let mut waiting: Vec<usize> = named.try_iter().chain([first]).collect();
        waiting.sort_unstable();
        waiting.dedup();
        waiting.into_iter().try_for_each(|i| bring(&files[i]))?;
    }
    files.iter().try_for_each(bring)
}

/// A panic elsewhere is carried to the caller by the pool; what the lock guards is still whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
        (bytes, at) = (&bytes[written..], at + written as u64);
    }
    Ok(())
}
