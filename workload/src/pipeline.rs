//! What pipelines read of an outcome: JUnit XML, OpenMetrics text, a summary in Markdown.
//!
//! A file that cannot be written is said on standard error and changes no exit code: what was found
//! holds whether or not it can be told.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use crate::say;

/// Where a pipeline's files go.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Pipeline {
    /// Write the outcome as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write the figures as OpenMetrics text, for a textfile collector
    #[arg(long, value_name = "FILE")]
    openmetrics: Option<PathBuf>,
    /// Append a summary in Markdown [default: the file that $GITHUB_STEP_SUMMARY names, if any]
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
}

/// How one case of an outcome ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Passed,
    /// Not as it should.
    Failed {
        /// In a word.
        kind: String,
        /// In words.
        why: String,
    },
    /// It could not be tried, or its end is nobody's fault.
    Skipped {
        /// Why.
        why: String,
    },
}

/// What a figure counts: OpenMetrics names it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// Bytes per second.
    BytesPerSecond,
    /// A number of its own.
    Number,
}

/// A figure of a case.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What it is called: letters, digits, underscores.
    pub name: String,
    /// What it is, in words.
    pub about: String,
    /// What it counts.
    pub counts: Counts,
    /// How much it is.
    pub value: f64,
}

/// One case: a migration, a scan.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is called.
    pub name: String,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub end: End,
    /// The one answer about it: PROVEN, say.
    pub verdict: String,
    /// Names and values by which it is told from others.
    pub labels: Vec<(String, String)>,
    /// Its figures.
    pub figures: Vec<Figure>,
}

/// GitHub takes a summary of one megabyte for each step, and nothing of a larger one.
const SUMMARY_BYTES_MAX: u64 = 1 << 20;

impl Pipeline {
    /// Tells what came of `command`, as was asked for.
    pub fn tell(&self, program: &str, command: &str, cases: &[Case]) {
        let failed = |what: &str, path: &Path, error: &dyn std::fmt::Display| {
            say!("{program}: cannot write the {what} to {}: {error}", path.display());
        };
        if let Some(path) = &self.junit
            && let Err(error) = write_whole(path, junit(program, command, cases).as_bytes())
        {
            failed("JUnit XML", path, &error);
        }
        if let Some(path) = &self.openmetrics
            && let Err(error) = write_whole(path, openmetrics(program, cases).as_bytes())
        {
            failed("OpenMetrics text", path, &error);
        }
        let named = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty());
        let path = self.summary.clone().or_else(|| named.map(PathBuf::from));
        if let Some(path) = path
            && let Err(error) = append(&path, &markdown(program, command, cases))
        {
            failed("summary", &path, &error);
        }
    }
}

/// A file that others read while it is written anew is whole at any time.
fn write_whole(path: &Path, text: &[u8]) -> std::io::Result<()> {
    // A pipe or a device is nothing that could be replaced.
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return std::fs::write(path, text);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn append(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::options().append(true).create(true).open(path)?;
    let room = SUMMARY_BYTES_MAX.saturating_sub(file.metadata()?.len()) as usize;
    const CUT: &str = "\nThe rest did not fit into this summary.\n";
    if text.len() <= room {
        return file.write_all(text.as_bytes());
    }
    // Whole lines of it, and that there was more.
    let most = room.saturating_sub(CUT.len());
    let kept = text[..text.floor_char_boundary(most)].rfind('\n').map_or(0, |end| end + 1);
    if room < CUT.len() {
        return Ok(());
    }
    file.write_all(&text.as_bytes()[..kept])?;
    file.write_all(CUT.as_bytes())
}

fn junit(program: &str, command: &str, cases: &[Case]) -> String {
    let mut report = Report::new(program);
    let mut suite = TestSuite::new(format!("{program} {command}"));
    for case in cases {
        let status = match &case.end {
            End::Passed => TestCaseStatus::success(),
            End::Failed { kind, why } => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_type(kind.as_str()).set_message(why.as_str());
                status
            }
            End::Skipped { why } => {
                let mut status = TestCaseStatus::skipped();
                status.set_message(why.as_str());
                status
            }
        };
        let mut test = TestCase::new(case.name.as_str(), status);
        test.set_classname(format!("{program}.{command}")).set_time(case.took);
        let figures = case.figures.iter().map(|f| (f.name.clone(), f.value.to_string()));
        let verdict = [("verdict".to_owned(), case.verdict.clone())];
        for (name, value) in verdict.into_iter().chain(case.labels.clone()).chain(figures) {
            test.add_property((name.as_str(), value.as_str()));
        }
        suite.add_test_case(test);
    }
    report.add_test_suite(suite);
    report.to_string().unwrap_or_else(|error| format!("<!-- {error} -->\n"))
}

/// One family of values.
struct Family<'a> {
    name: String,
    about: &'a str,
    unit: &'static str,
    samples: Vec<(&'a Case, f64)>,
}

/// By hand: the libraries for it are for programs that are asked over and over, and the one that is
/// known best lets a quote in a label's value end it.
fn openmetrics(program: &str, cases: &[Case]) -> String {
    let passed = |case: &'_ Case| f64::from(u8::from(case.end == End::Passed));
    let mut families = vec![Family {
        name: format!("{program}_passed"),
        about: "whether the case ended as it should",
        unit: "",
        samples: cases.iter().map(|case| (case, passed(case))).collect(),
    }];
    for (case, figure) in cases.iter().flat_map(|case| case.figures.iter().map(move |f| (case, f)))
    {
        let unit = match figure.counts {
            Counts::Seconds => "seconds",
            Counts::Bytes => "bytes",
            Counts::BytesPerSecond => "bytes_per_second",
            Counts::Number => "",
        };
        let name = match unit {
            "" => format!("{program}_{}", figure.name),
            unit => format!("{program}_{}_{unit}", figure.name),
        };
        let known = families.iter().position(|family| family.name == name);
        let index = known.unwrap_or_else(|| {
            families.push(Family { name, about: &figure.about, unit, samples: Vec::new() });
            families.len() - 1
        });
        families[index].samples.push((case, figure.value));
    }
    let mut text = String::new();
    for Family { name, about, unit, samples } in &families {
        text += &format!("# TYPE {name} gauge\n");
        if !unit.is_empty() {
            text += &format!("# UNIT {name} {unit}\n");
        }
        text += &format!("# HELP {name} {}\n", escaped(about));
        for (case, value) in samples {
            let own = ("case".to_owned(), case.name.clone());
            let labels: Vec<String> = std::iter::once(&own)
                .chain(&case.labels)
                .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
                .collect();
            text += &format!("{name}{{{}}} {value}\n", labels.join(","));
        }
    }
    text + "# EOF\n"
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Most cases that have a line of their own.
const LINES: usize = 200;

fn markdown(program: &str, command: &str, cases: &[Case]) -> String {
    let good = cases.iter().filter(|case| case.end == End::Passed).count();
    let skipped = cases.iter().filter(|case| matches!(case.end, End::Skipped { .. })).count();
    let mut text = format!("### {program} {command}: {good} of {} as they should be", cases.len());
    if skipped > 0 {
        text += &format!(", {skipped} skipped");
    }
    text += "\n\n";
    let mut names: Vec<&str> = Vec::new();
    for figure in cases.iter().flat_map(|case| &case.figures) {
        if !names.contains(&figure.name.as_str()) {
            names.push(&figure.name);
        }
    }
    names.truncate(5);
    text += &format!("| | case | verdict | {} |\n", names.join(" | "));
    text += &format!("|---|---|---|{}\n", "---:|".repeat(names.len()));
    for case in cases.iter().take(LINES) {
        let (mark, why) = match &case.end {
            End::Passed => ("✅", String::new()),
            End::Failed { why, .. } => ("❌", format!(" {}", cell(why))),
            End::Skipped { why } => ("⏭", format!(" {}", cell(why))),
        };
        text += &format!("| {mark} | {} | {}{why} |", cell(&case.name), case.verdict);
        for name in &names {
            let figure = case.figures.iter().find(|figure| figure.name == *name);
            text += &format!(" {} |", figure.map_or("-".to_owned(), shown));
        }
        text.push('\n');
    }
    if cases.len() > LINES {
        text += &format!("\nand {} more\n", cases.len() - LINES);
    }
    text.push('\n');
    text
}

/// What stands in a cell must not end it.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

fn shown(figure: &Figure) -> String {
    let value = figure.value;
    match figure.counts {
        Counts::Seconds if value < 1.0 => format!("{:.1} ms", value * 1e3),
        Counts::Seconds => format!("{value:.2} s"),
        Counts::Bytes => format!("{:.1} MB", value / 1e6),
        Counts::BytesPerSecond => format!("{:.1} MB/s", value / 1e6),
        Counts::Number => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases() -> Vec<Case> {
        let case = |name: &str, end| Case {
            name: name.to_owned(),
            took: Duration::from_millis(1500),
            end,
            verdict: "PROVEN".to_owned(),
            labels: vec![("policy".to_owned(), "ada\"ptive".to_owned())],
            figures: vec![Figure {
                name: "downtime".to_owned(),
                about: "how long it stood still".to_owned(),
                counts: Counts::Seconds,
                value: 0.025,
            }],
        };
        let why = "page <7> & more | \u{1b}[1m\nlost".to_owned();
        vec![
            case("good", End::Passed),
            case("bad", End::Failed { kind: "wrong".to_owned(), why: why.clone() }),
            case("neither", End::Skipped { why }),
        ]
    }

    #[test]
    fn junit_counts_what_failed_and_is_well_formed() {
        let text = junit("vmigrate", "sweep", &cases());
        let report = Report::deserialize_from_str(&text);
        let report = report.unwrap_or_else(|error| panic!("{error}: {text}"));
        let suite = &report.test_suites[0];
        assert_eq!((suite.tests, suite.failures, suite.disabled), (3, 1, 1), "{text}");
        assert!(text.contains("page &lt;7&gt; &amp; more") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn openmetrics_has_units_and_escapes() {
        let text = openmetrics("vmigrate", &cases());
        for line in [
            "# UNIT vmigrate_downtime_seconds seconds",
            "vmigrate_downtime_seconds{case=\"good\",policy=\"ada\\\"ptive\"} 0.025",
            "vmigrate_passed{case=\"bad\",policy=\"ada\\\"ptive\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
        let parsed = openmetrics_parser::openmetrics::parse_openmetrics(&text);
        let parsed = parsed.unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(parsed.families.len(), 2, "{text}");
    }

    #[test]
    fn a_summary_is_a_table_that_fits() {
        let text = markdown("vmigrate", "sweep", &cases());
        assert!(text.contains("1 of 3 as they should be, 1 skipped"), "{text}");
        assert!(text.contains("| ✅ | good | PROVEN | 25.0 ms |"), "{text}");
        assert!(text.contains("more \\| "), "{text}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary");
        let line = "| a line of a table |\n";
        for _ in 0..3 {
            append(&path, &line.repeat(20_000)).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written.len() as u64 <= SUMMARY_BYTES_MAX, "{}", written.len());
        assert!(written.ends_with("The rest did not fit into this summary.\n"));
        assert!(written.lines().all(|l| l == line.trim() || l.is_empty() || l.starts_with("The")));
    }
}
