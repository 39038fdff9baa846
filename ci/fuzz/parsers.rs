//! Every parser of what somebody else may have written, by name: none may panic, hang, or take memory
//! that its input does not stand for. Fuzzed in ci/fuzz, and replayed over the corpus by ci/tests.

use std::path::{Path, PathBuf};

use verifier::image::Image;
use verifier::law::{self, Demand, Limits};
use verifier::manifest::Manifest;
use verifier::map::Map;
use workload::beat::books::Books;
use workload::beat::said::{Said, sealed};
use workload::beat::session::Line;
use workload::journal::Journal;
use workload::profile::Profile;
use workload::spec::WorkloadSpec;
use workload::trace::Trace;

/// A parser takes any bytes.
pub type Parser = fn(&[u8]);

pub const ALL: [(&str, Parser); 8] = [
    ("journal", journal),
    ("line", line),
    ("old_journal", old_journal),
    ("manifest", manifest),
    ("map", map),
    ("trace", trace),
    ("workload", workload),
    ("image", image),
];

/// A journal; with a first byte of 0 its lines lack their sums, which no fuzzer finds.
pub fn journal(bytes: &[u8]) {
    let text = match bytes.split_first() {
        Some((0, rest)) => String::from_utf8_lossy(rest).lines().map(sealed).collect::<String>(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    };
    let mut books = Books::default();
    if books.take(Path::new("fuzzed"), 1, text.as_bytes()).is_err() || books.settle().is_err() {
        return;
    }
    for ruling in law::judge(&books, &Demand::default(), &Limits::DEFAULT) {
        let _ = (Journal::of(&books, ruling.tag), ruling.of_memory(&[0]));
    }
}

/// One line, before its sum.
pub fn line(bytes: &[u8]) {
    if let Some(Ok(line)) = Line::read(bytes) {
        assert_eq!(Line::read(line.text().as_bytes()), Some(Ok(line)), "it reads back");
    }
    if let Ok((tag, said)) = Said::read(bytes) {
        assert_eq!(Said::read(said.text(tag).as_bytes()), Ok((tag, said)), "it reads back");
    }
}

/// A journal of format 1.
pub fn old_journal(bytes: &[u8]) {
    let _ = with_file(bytes, |path| Journal::read_old(path).map(|journal| journal.beats.len()));
}

pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) {
        let _ = manifest.check();
    }
}

pub fn map(bytes: &[u8]) {
    let _ = Map::parse(bytes);
}

pub fn trace(bytes: &[u8]) {
    let _ = with_file(bytes, |path| Trace::read(path).map(|trace| trace.pages));
}

/// A workload by its name and settings, as TOML, and inside a spec.
pub fn workload(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(profile) = text.parse::<Profile>() {
        let again = profile.to_string();
        assert_eq!(again.parse::<Profile>().ok(), Some(profile), "{again}");
    }
    let _ = Profile::from_toml(text);
    let _ = serde_json::from_slice::<WorkloadSpec>(bytes);
}

/// The head of an image, and where it says its memory lies.
pub fn image(bytes: &[u8]) {
    let _ = with_file(bytes, |path| Image::open(path).map(|image| image.pages()));
}

fn with_file<T>(bytes: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    let path = PathBuf::from(format!("/dev/shm/vmigrate-fuzz-{}", std::process::id()));
    let _ = std::fs::write(&path, bytes);
    let read = read(&path);
    let _ = std::fs::remove_file(&path);
    read
}
