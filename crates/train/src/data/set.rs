//! A data set ready to train on: rows read, encoded, cut to length and counted.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use taper_base::{Labels, Tokenizer};

use super::example::Encoder;
use super::format::{self, Format};
use super::rows::{Row, Rows};
use super::{Example, labels, nearest};
use crate::{Error, Task};

/// Rows that are encoded at a time: bounds the memory that unread text takes.
const CHUNK: usize = 512;

/// How rows are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataOptions {
    /// `--format`: the name of a format of [`FORMATS`](super::FORMATS); detected from the first row if none.
    pub format: Option<String>,
    /// The task, as `--task` names it: only formats for it are detected. Any if none.
    pub task: Option<&'static str>,
    /// What labels mean; those of the files themselves if none.
    pub labels: Option<Labels>,
    /// Columns under other names: from the format's key to the file's, `prompt` to `question`.
    pub columns: BTreeMap<String, String>,
    /// `--max-length`: rows keep this many tokens of their head.
    pub max_length: Option<usize>,
    /// The token that begins what is written from a prompt, where the base is an encoder-decoder
    /// ([`Network::decoder_start`](taper_base::Network::decoder_start)). Source and text keep `max_length` tokens each.
    pub decoder_start: Option<u32>,
    /// Whether rows with one label keep their texts ([`Example::texts`]).
    pub texts: bool,
    /// Threads that encode; 0 counts as 1. The result does not depend on it.
    pub threads: usize,
}

/// What was read, and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DataStats {
    /// Rows read.
    pub rows: usize,
    /// Rows that were cut at `--max-length`, those dropped for it included.
    pub truncated: usize,
    /// Rows dropped because the cut left them no label.
    pub dropped_cut: usize,
    /// Rows dropped because they had no label to begin with: an empty text, a conversation without an answer.
    pub dropped_empty: usize,
    /// Tokens of the rows that are kept.
    pub tokens: usize,
    /// Labels of the rows that are kept.
    pub labels: usize,
    /// Tokens of the longest row that is kept.
    pub longest: usize,
}

impl DataStats {
    /// Rows that are kept.
    pub fn kept(&self) -> usize {
        self.rows - self.dropped_cut - self.dropped_empty
    }
}

/// Examples with what is known about them.
#[derive(Clone, Debug)]
pub struct DataSet {
    /// The examples in the order of the files; each has a label.
    pub examples: Vec<Example>,
    /// Counts.
    pub stats: DataStats,
    /// What the rows were read as.
    pub format: &'static Format,
    /// What their labels mean, where they have any.
    pub labels: Option<Labels>,
}

impl DataSet {
    /// Reads `files`, one after another, as one data set.
    ///
    /// # Errors
    /// The first file or row that cannot be used, by its line: what was found, what was expected, what to do. A data set
    /// without rows, or with no label left in any row.
    pub fn load(files: &[PathBuf], tokenizer: &Tokenizer, options: &DataOptions) -> Result<Self, Error> {
        let mut source = Source::open(files, tokenizer, options)?;
        let mut set = Self {
            examples: Vec::new(),
            stats: DataStats::default(),
            format: source.builder.format,
            labels: source.builder.encoder.labels.as_deref().cloned(),
        };
        loop {
            let rows = source.chunk(CHUNK)?;
            if rows.is_empty() {
                break;
            }
            for example in source.builder.build_all(&rows, options.threads)? {
                set.add(example, options.max_length);
            }
        }
        set.examples.shrink_to_fit();
        if set.examples.is_empty() {
            return Err(Error::data(set.nothing_left(files, options.max_length)));
        }
        Ok(set)
    }

    /// About how much memory the examples take.
    pub(crate) fn bytes(&self) -> usize {
        self.examples.iter().map(Example::bytes).sum()
    }

    fn add(&mut self, mut example: Example, max_length: Option<usize>) {
        let stats = &mut self.stats;
        stats.rows += 1;
        if example.labels() == 0 {
            stats.dropped_empty += 1;
            return;
        }
        if let Some(length) = max_length {
            example.cut(length);
        }
        if example.cut > 0 {
            stats.truncated += 1;
            if example.labels() == 0 {
                stats.dropped_cut += 1;
                return;
            }
        }
        stats.tokens += example.run_length();
        stats.labels += example.labels();
        stats.longest = stats.longest.max(example.run_length());
        self.examples.push(example);
    }

    /// Why no example is left.
    fn nothing_left(&self, files: &[PathBuf], max_length: Option<usize>) -> String {
        let DataStats { rows, dropped_cut, dropped_empty, .. } = self.stats;
        let mut reasons = Vec::new();
        if let (true, Some(length)) = (dropped_cut > 0, max_length) {
            reasons.push(format!(
                "{dropped_cut} have nothing to learn within their first {length} tokens (raise --max-length, or shorten \
                 what comes before the answers)"
            ));
        }
        if dropped_empty > 0 {
            reasons.push(format!(
                "{dropped_empty} hold nothing to learn (an empty text, a conversation without an assistant's message)"
            ));
        }
        let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        format!("{}: none of the {rows} rows is left to learn from: {}", names.join(", "), reasons.join("; "))
    }
}

/// The task that the rows of `files` are for, by their format.
///
/// # Errors
/// As [`DataSet::load`], for the first row.
pub fn task_of(files: &[PathBuf], options: &DataOptions) -> Result<Task, Error> {
    let format = format_of(files, options)?;
    let all = [Task::CausalLm, Task::Classify, Task::Tag, Task::Seq2seq, Task::Preference];
    Ok(all.into_iter().find(|task| task.name() == format.task).unwrap_or_default())
}

/// What the rows of `files` are read as.
pub(super) fn format_of(files: &[PathBuf], options: &DataOptions) -> Result<&'static Format, Error> {
    Ok(begin(files, options)?.format)
}

/// Files of which the first row was read.
struct Begun {
    format: &'static Format,
    rows: Rows,
    first: Option<Row>,
}

fn begin(files: &[PathBuf], options: &DataOptions) -> Result<Begun, Error> {
    let path = files.first().ok_or_else(|| Error::data("no data file was given"))?;
    let mut rows = Rows::open(path, 0)?;
    let first = rows.next().transpose()?;
    if let Some(row) = &first {
        row.has_columns(&options.columns).map_err(|what| Error::row(path, row.line, what))?;
    }
    let first = first.map(|row| row.renamed(&options.columns));
    let fields = first.as_ref().map(|row| (row.line, &row.fields));
    let format = match (&options.format, fields) {
        (Some(name), _) => format::by_name(name)?,
        (None, Some((line, fields))) => format::detect(fields, options.task)
            .ok_or_else(|| Error::row(path, line, nearest::unfit(fields, options.task)))?,
        (None, None) => return Err(Error::file(path, "holds no row")),
    };
    format.usable().map_err(|what| Error::file(path, what))?;
    if options.decoder_start.is_some() {
        format.writable().map_err(|what| Error::file(path, what))?;
    }
    if let Some(task) = options.task.filter(|task| *task != format.task) {
        let (name, own) = (format.name, format.task);
        let what = format!("--format {name} is for --task {own}, and the task is {task}");
        return Err(Error::file(path, what));
    }
    Ok(Begun { format, rows, first })
}

/// Rows of several files, and what makes examples of them.
pub(super) struct Source<'a> {
    pub(super) builder: Builder<'a>,
    columns: &'a BTreeMap<String, String>,
    /// The file being read.
    file: usize,
    rows: Rows,
    /// The row that the format was detected from.
    first: Option<Row>,
}

impl<'a> Source<'a> {
    pub(super) fn open(
        files: &'a [PathBuf],
        tokenizer: &'a Tokenizer,
        options: &'a DataOptions,
    ) -> Result<Self, Error> {
        let Begun { format, rows, first } = begin(files, options)?;
        let labels = match (&options.labels, format.task) {
            (Some(labels), _) => Some(Cow::Borrowed(labels)),
            (None, task @ ("classify" | "tag")) => {
                let options = DataOptions { task: Some(task), ..options.clone() };
                Some(Cow::Owned(labels(files, &options, None)?))
            }
            (None, _) => None,
        };
        let mut encoder = Encoder::new(tokenizer)?.writing_from(options.decoder_start);
        (encoder.labels, encoder.max_length, encoder.texts) = (labels, options.max_length, options.texts);
        let builder = Builder { encoder, format, files };
        Ok(Self { builder, columns: &options.columns, file: 0, rows, first })
    }

    /// The next row of any file, with its columns renamed.
    pub(super) fn next(&mut self) -> Result<Option<Row>, Error> {
        if let Some(row) = self.first.take() {
            return Ok(Some(row));
        }
        loop {
            if let Some(row) = self.rows.next() {
                return Ok(Some(row?.renamed(self.columns)));
            }
            let Some(path) = self.builder.files.get(self.file + 1) else {
                return Ok(None);
            };
            self.file += 1;
            self.rows = Rows::open(path, self.file)?;
        }
    }

    fn chunk(&mut self, size: usize) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::with_capacity(size);
        while rows.len() < size {
            match self.next()? {
                Some(row) => rows.push(row),
                None => break,
            }
        }
        Ok(rows)
    }
}

/// Rows to examples.
pub(super) struct Builder<'a> {
    encoder: Encoder<'a>,
    pub(super) format: &'static Format,
    pub(super) files: &'a [PathBuf],
}

impl Builder<'_> {
    /// The whole row as an example, not cut.
    pub(super) fn build(&self, row: &Row) -> Result<Example, Error> {
        let error = |what: String| {
            Error::row(&self.files[row.file], row.line, nearest::read_as(self.format, &row.fields, &what))
        };
        let mut example = self.format.build(&row.fields, &self.encoder).map_err(error)?;
        example.line = row.line;
        Ok(example)
    }

    /// All of `rows`, in order, on `threads` threads.
    fn build_all(&self, rows: &[Row], threads: usize) -> Result<Vec<Example>, Error> {
        let build = |rows: &[Row]| rows.iter().map(|row| self.build(row)).collect::<Result<Vec<_>, _>>();
        if threads < 2 || rows.len() < 2 {
            return build(rows);
        }
        let parts: Vec<_> = std::thread::scope(|scope| {
            let share = rows.len().div_ceil(threads);
            let running: Vec<_> = rows.chunks(share).map(|part| scope.spawn(move || build(part))).collect();
            running.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let mut examples = Vec::with_capacity(rows.len());
        for part in parts {
            examples.extend(part.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(examples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample;

    fn load(content: &str, options: &DataOptions) -> Result<DataSet, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, content).unwrap();
        let place = format!("{}/", folder.path().display());
        DataSet::load(&[path], &sample::plain(), options)
            .map_err(|error| error.to_string().replace(&place, ""))
    }

    fn error(content: &str) -> String {
        load(content, &DataOptions::default()).unwrap_err()
    }

    #[test]
    fn rows_are_cut_counted_and_dropped() {
        let rows = "{\"prompt\":\"abcd\",\"completion\":\"e\"}\n{\"prompt\":\"ab\",\"completion\":\"cdef\"}\n\
                    {\"prompt\":\"a\",\"completion\":\"b\"}\n";
        let set = load(rows, &DataOptions { max_length: Some(4), ..DataOptions::default() }).unwrap();
        let DataStats { rows, truncated, dropped_cut, dropped_empty, tokens, labels, longest } = set.stats;
        assert_eq!((rows, truncated, dropped_cut, dropped_empty), (3, 2, 1, 0));
        assert_eq!((tokens, labels, longest, set.stats.kept()), (7, 4, 4, 2));
        assert_eq!(
            set.examples.iter().map(|row| (row.line, row.spans()[0].clone())).collect::<Vec<_>>(),
            [(2, 2..4), (3, 1..3)]
        );
        assert_eq!(set.format.name, "prompt-completion");
    }

    #[test]
    fn t13_a_set_with_nothing_left_to_learn_is_refused_with_the_reasons() {
        let rows = "{\"prompt\":\"abcd\",\"completion\":\"e\"}\n";
        let cut = load(rows, &DataOptions { max_length: Some(4), ..DataOptions::default() }).unwrap_err();
        assert!(cut.contains("none of the 1 rows is left") && cut.contains("raise --max-length"), "{cut}");
        assert!(cut.contains("within their first 4 tokens"), "{cut}");
        let empty = error("{\"text\":\"\"}\n{\"text\":\"a\"}\n");
        assert!(empty.contains("none of the 2 rows") && empty.contains("2 hold nothing to learn"), "{empty}");
    }

    #[test]
    fn a_row_that_does_not_fit_is_named_with_what_it_looks_like() {
        let other = error("{\"text\":\"ab\"}\n\n{\"messages\":[]}\n");
        assert!(
            other.starts_with("x.jsonl:3: read as text: `text` is missing, the row has the key `messages`"),
            "{other}"
        );
        assert!(other.contains("The row looks like messages"), "{other}");
        let unknown = error("\n{\"question\":\"ab\",\"answer\":\"c\"}\n");
        assert!(unknown.starts_with("x.jsonl:2: has the keys `question`, `answer`"), "{unknown}");
        let planned = error("{\"prompt\":\"ab\",\"chosen\":1,\"rejected\":2}\n");
        assert!(planned.contains("--task preference") && planned.contains("not built yet"), "{planned}");
    }

    #[test]
    fn formats_can_be_forced_and_columns_mapped() {
        let forced = DataOptions { format: Some("text".to_owned()), ..DataOptions::default() };
        assert_eq!(load("{\"text\":\"ab\",\"label\":1}\n", &forced).unwrap().format.name, "text");
        let pairs = [("prompt", "question"), ("completion", "answer")];
        let columns = pairs.map(|(ours, theirs)| (ours.to_owned(), theirs.to_owned())).into();
        let mapped = DataOptions { columns, ..DataOptions::default() };
        let set = load("{\"question\":\"ab\",\"answer\":\"c\"}\n", &mapped).unwrap();
        assert_eq!((set.format.name, set.examples[0].spans()[0].clone()), ("prompt-completion", 2..4));
    }

    #[test]
    fn threads_change_nothing() {
        let row = |at| format!("{{\"text\":\"row {at}\"}}");
        let rows = (0..1500).map(row).collect::<Vec<_>>().join("\n");
        let on = |threads| load(&rows, &DataOptions { threads, ..DataOptions::default() }).unwrap();
        assert_eq!(on(1).examples, on(3).examples);
        let bad = rows.replace("\"row 700\"", "7").replace("\"row 900\"", "9");
        for threads in [1, 2, 3] {
            let error = load(&bad, &DataOptions { threads, ..DataOptions::default() }).unwrap_err();
            assert!(error.starts_with("x.jsonl:701: read as text: `text` is a number"), "{error}");
        }
    }

    #[test]
    fn several_files_are_one_set() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a.jsonl", "b.csv"].map(|name| folder.path().join(name));
        std::fs::write(&paths[0], "{\"text\":\"ab\"}\n").unwrap();
        std::fs::write(&paths[1], "text\ncd\nef\n").unwrap();
        let tokenizer = sample::plain();
        let set = DataSet::load(&paths, &tokenizer, &DataOptions::default()).unwrap();
        assert_eq!(set.examples.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 3]);
        std::fs::write(&paths[1], "text\n").unwrap();
        let empty = DataSet::load(&paths, &tokenizer, &DataOptions::default()).unwrap_err().to_string();
        assert!(empty.contains("b.csv: holds no row"), "{empty}");
    }
}
