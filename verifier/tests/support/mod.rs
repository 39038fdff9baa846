//! A region file and its journal, as `workload run` leaves them, and a verifier to look at them.

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use workload::fill::fill;
use workload::heartbeat::beat;
use workload::journal::{JournalWriter, Motion};
use workload::line::PageFormat;
use workload::region::Region;
use workload::run::RunId;
use workload::spec::WorkloadSpec;
use workload::units::Bytes;
use workload::writer::{Checkpoint, Pace, Vcpu, Watermarks, Writer};

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
    let mut log = JournalWriter::create(&journal, run, &spec).unwrap();
    let watermarks = Watermarks::new(&[0, 0]);
    beat(&watermarks, 0, Motion::Running, &mut log);
    for index in 0..2 {
        Writer::new(workload.clone(), memory.clone(), watermarks.clone(), index).run(
            Pace::Unlimited,
            &mut Free,
            operations,
        );
    }
    beat(&watermarks, 0, Motion::AtRest, &mut log);
    Files { directory, region, journal }
}

pub(crate) fn told(output: Output) -> (Option<i32>, String) {
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code(), text)
}
