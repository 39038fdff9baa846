//! A region file and its journal, as `workload run` leaves them, and a verifier to look at them.

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use workload::beat::said::{Kind, sealed, unsealed};
use workload::beat::session::{Entry, Line};
use workload::beat::writer::{JournalWriter, Thread};
use workload::fill::fill;
use workload::line::PageFormat;
use workload::region::Region;
use workload::run::RunId;
use workload::spec::WorkloadSpec;
use workload::units::Bytes;
use workload::writer::{Checkpoint, Pace, Vcpu, Watermarks, Writer};

/// Time between two beats.
pub(crate) const INTERVAL: Duration = Duration::from_millis(5);

struct Free;
impl Vcpu for Free {
    fn checkpoint(&mut self) -> Checkpoint {
        Checkpoint::Go { held: Duration::ZERO }
    }
}

/// A region file and its journal, as `workload run` leaves them.
pub(crate) struct Files {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) region: PathBuf,
    pub(crate) journal: PathBuf,
    pub(crate) spec: WorkloadSpec,
    /// Where its beats go on.
    pub(crate) thread: Thread,
}

#[allow(dead_code, reason = "not every test speaks")]
impl Files {
    /// What the guest said, as it goes over a link.
    pub(crate) fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.journal).unwrap();
        let line = |line: &str| match Line::read(unsealed(line.as_bytes())?)?.unwrap().entry {
            Entry::Heard(tag, said) => Some(sealed(&said.text(tag))),
            _ => None,
        };
        text.lines().filter_map(line).collect()
    }

    /// Says one more beat of each writer.
    pub(crate) fn go_on(&self, kind: Kind, epoch: u64, watermarks: [u64; 2]) {
        let mut log = JournalWriter::go_on(&self.journal, &self.spec, &self.thread).unwrap();
        log.beats(kind, epoch, &watermarks, 2);
    }
}

/// A document of that schema of docs.
#[allow(dead_code, reason = "not every test speaks JSON")]
#[track_caller]
pub(crate) fn valid(document: &str, schema: &str) {
    let path = format!("{}/../docs/schema/{schema}.schema.json", env!("CARGO_MANIFEST_DIR"));
    let schema = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let document = serde_json::from_str(document).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(&document).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

pub(crate) fn files() -> Files {
    files_of("stream", RunId(9), 200)
}

/// 1 MiB of seed 5 by two writers, each of which did so many operations.
pub(crate) fn files_of(name: &str, run: RunId, operations: u64) -> Files {
    let directory = tempfile::tempdir().unwrap();
    let (region, journal) = (directory.path().join("region"), directory.path().join("journal"));
    let spec = WorkloadSpec {
        format: PageFormat::V2 { run },
        seed: 5,
        memory: Bytes(1 << 20),
        writers: 2,
        workload: name.parse().unwrap(),
    };
    let workload = Arc::new(spec.resolve().unwrap());
    let memory = Arc::new(Region::create(&region, spec.memory).unwrap());
    fill(&memory, &workload, |_| {});
    let mut log = JournalWriter::create(&journal, &spec, INTERVAL).unwrap();
    let watermarks = Watermarks::new(&[0, 0]);
    log.beats(Kind::Running, 0, &watermarks.read(), 0);
    for index in 0..2 {
        Writer::new(workload.clone(), memory.clone(), watermarks.clone(), index).run(
            Pace::Unlimited,
            &mut Free,
            operations,
        );
    }
    log.beats(Kind::Ended, 0, &watermarks.read(), 1);
    let thread = log.thread();
    Files { directory, region, journal, spec, thread }
}

pub(crate) fn told(output: Output) -> (Option<i32>, String) {
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code(), text)
}
