//! What programs print, where it may be that nobody takes it: a terminal that went away, a full
//! disk, a pipe whose reader has what it wanted.
//!
//! Neither a guest nor a verdict depends on that. The macros of the standard library panic there,
//! so programs print by this module alone.

use std::fmt;
use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};

/// Columns of a line that changes in place: a terminal's, less one for the cursor.
const STATUS_COLUMNS: usize = 79;

/// Standard output while a report or a document is written to it.
pub type Out = BufWriter<StdoutLock<'static>>;

/// Says a line on standard error, formatted as by [`format!`]; if it cannot be written it is lost.
#[macro_export]
macro_rules! say {
    ($($text:tt)+) => { $crate::say::line(format_args!($($text)+)) };
}

/// What [`say!`](crate::say!) calls.
pub fn line(text: fmt::Arguments<'_>) {
    // In one piece: what other processes say must not stand in the middle of it.
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Replaces the line of a terminal on standard error; an empty text clears it.
pub fn status(text: &str) {
    let end = if text.is_empty() { "\r" } else { "" };
    let line = format!("\r{text:<STATUS_COLUMNS$.STATUS_COLUMNS$}{end}");
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Whether there may still be somebody who reads standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// As far as can be known.
    There,
    /// The pipe is closed, or the disk full.
    Gone,
}

/// Prints a report on standard output. What it reports is true whether or not it can be printed,
/// so a failure is said on standard error, in the name of `program`, and is no error; who closes a
/// pipe knows that, and nothing is said.
pub fn report(program: &str, write: impl FnOnce(&mut Out) -> io::Result<()>) -> Reader {
    match print(write) {
        Ok(()) => Reader::There,
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Reader::Gone,
        Err(e) => {
            say!("{program}: cannot print the report: {e}; the exit code holds");
            Reader::Gone
        }
    }
}

/// Prints what a command is there to print: a list, a schema, a manifest.
///
/// # Errors
/// It cannot be printed. Who closes a pipe has what they wanted: that is none.
pub fn document(write: impl FnOnce(&mut Out) -> io::Result<()>) -> io::Result<()> {
    match print(write) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(io::Error::new(e.kind(), format!("cannot print: {e}")))
        }
        _ => Ok(()),
    }
}

fn print(write: impl FnOnce(&mut Out) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let result = write(&mut out).and_then(|()| out.flush());
    // What could not be written is not tried again when it is dropped.
    let _ = out.into_parts();
    result
}
