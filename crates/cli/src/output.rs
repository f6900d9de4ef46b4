//! The product goes to stdout, the talk to stderr.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

/// Prints a line of talk to stderr. A closed stderr is no reason to stop.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a line of the product to stdout.
pub(crate) fn print(text: impl Display) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{text}").context("standard output")
}

/// Prints a piece of the product to stdout at once, without a line end.
pub(crate) fn print_piece(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}

/// Whether stderr is a terminal: only then are there progress bars.
pub(crate) fn on_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether the reader of stdout went away, which is how `taper … | head` ends.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|io| io.kind() == ErrorKind::BrokenPipe)
}

/// The error and its causes on one line, without those that the line already says.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A count with thousands separated: `1,234,567`.
pub(crate) fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in KiB, MiB or GiB.
pub(crate) fn bytes(n: u64) -> String {
    let kib = n as f64 / 1024.0;
    match kib {
        ..1023.5 => format!("{kib:.0} KiB"),
        ..1_048_064.0 => format!("{:.0} MiB", kib / 1024.0),
        _ => format!("{:.2} GiB", kib / 1_048_576.0),
    }
}

/// Lines up the columns of `rows`: the first to the left, the others to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| {
            if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A bar of bytes on a terminal, nothing elsewhere.
pub(crate) fn progress_bar() -> ProgressBar {
    if !on_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes}");
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

#[cfg(test)]
mod tests {
    #[test]
    fn counts_have_their_thousands_separated() {
        assert_eq!(super::count(0), "0");
        assert_eq!(super::count(999), "999");
        assert_eq!(super::count(1_234_567), "1,234,567");
    }

    #[test]
    fn sizes_have_the_unit_that_suits_them() {
        let sizes = [0, 900, 700_000, 1_048_575, 3 << 20, (1 << 30) - 1, 5 << 29];
        assert_eq!(
            sizes.map(super::bytes),
            ["0 KiB", "1 KiB", "684 KiB", "1 MiB", "3 MiB", "1.00 GiB", "2.50 GiB"]
        );
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), "22".to_owned()]];
        assert_eq!(super::table(&rows), "a      1\nlong  22");
    }
}
