//! One migration as an experiment: a guest that proves itself writes, is migrated, runs on, and what
//! was proven about it is reported.

mod cost;

use std::time::{Duration, Instant};

use verifier::case::Case;
use verifier::evidence::gaps;
use verifier::verdict::Verdict;
use workload::heartbeat::End;
use workload::provenance::Provenance;
use workload::stats::Stats;

use crate::guest::stamped::gauge::Timeline;
use crate::guest::stamped::proof::{self, Proof, Scanned, Testimony};
use crate::guest::stamped::{GuestSettings, StampedGuest};
use crate::guest::tracker::TrackerKind;
use crate::guest::{Guest, GuestError};
use crate::memory::{PAGE_BYTES, all, each};
use crate::predict::bound::Optimality;
use crate::proto::EARLIER_MAX;
use crate::proto::hello::MigrationId;
use crate::report::{
    GuestCost, LinkReport, MigrationReport, RunReport, RunVerdict, SCHEMA, Status, StatusKind,
    Witnesses,
};
use crate::source::{self, Migrated, Notes, SourceSettings, Withdrawal};

/// The guest writes for this long before the migration begins, so that it is in full swing.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long a retry waits for a new receiver to listen.
const RETRY_WAIT: Duration = Duration::from_secs(30);
/// Time between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// How long the destination may take for its proof, beyond the run-on time.
const TESTIMONY_TIMEOUT: Duration = Duration::from_secs(120);
/// It has a second more for so many bytes of the guest.
const TESTIMONY_BYTES_PER_S: u64 = 64 << 20;
/// What the clocks of two hosts in one room are worth.
const CLOCKS_WORTH: Duration = Duration::from_millis(5);
/// How often a wait looks up.
const TICK: Duration = Duration::from_millis(20);

/// What is to be tried.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The guest.
    pub guest: GuestSettings,
    /// What finds dirty pages.
    pub tracker: TrackerKind,
    /// How it is migrated; earlier attempts are filled in.
    pub source: SourceSettings,
    /// How long a receiver that is not there yet is waited for before the first attempt counts.
    pub wait: Duration,
    /// How often it is tried again after an attempt that failed.
    pub retry: u32,
    /// How long the guest runs on here after the last failure.
    pub linger: Duration,
}

/// What a user may want to hear beside the progress of an attempt.
#[derive(Debug)]
pub enum Step<'a> {
    /// An attempt failed; the guest runs on here, and it is tried again.
    TriesAgain {
        /// Why it failed.
        why: &'a str,
    },
    /// No more attempts: the guest runs on here for a while, or until the next interrupt.
    RunsOnHere {
        /// For how long.
        linger: Duration,
    },
    /// The destination's proof cannot be had.
    NoTestimony {
        /// Why.
        why: String,
    },
}

/// Who watches a trial.
pub trait Observer: source::Observer {
    /// Something happened beside an attempt.
    fn step(&mut self, step: Step<'_>) {
        let _ = step;
    }
}

/// What came of all attempts together.
struct Attempts {
    reports: Vec<MigrationReport>,
    /// To the destination, if the last one succeeded and its connection still stands.
    control: Option<Notes>,
    status: Status,
    /// Of failed attempts; what goes on in the background while the guest runs here.
    _withdrawals: Vec<Withdrawal>,
    /// The writers' watermarks when the last attempt began, and when that was.
    began: Vec<u64>,
    began_at: Instant,
    timeline: Timeline,
}

impl Trial {
    /// Starts the guest, migrates it, and gathers what was proven.
    ///
    /// # Errors
    /// The guest cannot be started here, or cannot be asked how it fares. That a migration fails is
    /// no error but a report.
    pub fn run(&self, observer: &mut dyn Observer) -> Result<RunReport, GuestError> {
        let guest = StampedGuest::start_new(&self.guest)?;
        std::thread::sleep(WARM_UP);
        let (mut report, stayed) = self.pass_on(guest, observer)?;
        if let Some(guest) = stayed {
            let ended = guest.stop(End::ByOwner);
            report.object(ended.trouble.iter().map(ToString::to_string));
        }
        self.hold_against_journal(&mut report);
        Ok(judged(report))
    }

    /// Migrates a guest that runs here, and gathers what was proven; with the guest itself if it runs
    /// here still, looked at once more.
    ///
    /// # Errors
    /// It cannot be asked how it fares. That a migration fails is no error but a report.
    pub fn pass_on(
        &self,
        mut guest: StampedGuest,
        observer: &mut dyn Observer,
    ) -> Result<(RunReport, Option<StampedGuest>), GuestError> {
        let provenance = Provenance::here("vmigrate");
        let interrupts = observer.interrupts();
        // What a record takes when nobody migrates.
        let before = guest.lap()?;
        let mut attempts = self.attempts(&mut guest, observer)?;
        let migrated = attempts.status.kind == StatusKind::Done;
        let mut report = self.report(&mut attempts, migrated);
        report.provenance = Some(provenance);
        if !migrated && attempts.status.kind != StatusKind::Unresolved {
            let elapsed = attempts.began_at.elapsed().as_secs_f64();
            report.rate_achieved = self.rate_since(&attempts.began, &guest, elapsed);
            let (memory, scan) = self.run_on_here(&mut guest, observer)?;
            (report.memory, report.source_scan) = (memory, Some(scan));
            return Ok((judged(report), Some(guest)));
        }
        if migrated {
            let written = Self::written_s(&report);
            report.rate_achieved = self.rate_since(&attempts.began, &guest, written);
            let cancelled = |observer: &dyn Observer| observer.interrupts() > interrupts;
            let proof = self.await_testimony(&guest, &mut attempts, observer, &cancelled);
            report.memory = proof.verdict;
            report.proof = Some(proof);
            report.optimality =
                report.last().and_then(|last| optimality(&guest, last, &attempts.timeline));
        }
        // Of a guest that went on elsewhere, or may have, the end is not ours to say.
        let ended = guest.stop(End::Otherwise);
        report.object(ended.trouble.iter().map(ToString::to_string));
        if migrated {
            let stats = (&before, &ended.stats);
            report.guest = report.last().map(|last| self.cost(last, stats, &attempts.timeline));
            report.witnesses = Some(Witnesses::of(&report));
        }
        Ok((judged(report), None))
    }

    /// Tries until it is done, or of no use, or was tried often enough.
    fn attempts(
        &self,
        guest: &mut StampedGuest,
        observer: &mut dyn Observer,
    ) -> Result<Attempts, GuestError> {
        let (mut reports, mut withdrawals) = (Vec::new(), Vec::new());
        let mut earlier: Vec<MigrationId> = Vec::new();
        let mut lost = 0;
        let waiting_since = Instant::now();
        loop {
            let (began, began_at) = (guest.watermarks(), Instant::now());
            // Of earlier attempts nothing is kept.
            guest.lap()?;
            let gauge = guest.gauge()?;
            let mut tracker = guest.tracker(self.tracker)?;
            let settings = SourceSettings { earlier: earlier.clone(), ..self.source.clone() };
            let tried = source::migrate(guest, &mut *tracker, &settings, observer);
            let (report, control) = match tried {
                Ok(Migrated { report, control }) => (report, control),
                Err(failed) => {
                    // While the guest runs here, what a failed attempt left there is withdrawn.
                    withdrawals.extend(failed.withdrawal);
                    (failed.report, None)
                }
            };
            let status = report.status.clone();
            // A receiver that is not there yet costs no retry while we may wait for one.
            let patience = if lost == 0 { self.wait } else { RETRY_WAIT * (lost + 1) };
            let absent = status.kind == StatusKind::Connect;
            let patient = absent && waiting_since.elapsed() < patience;
            if !status.retryable || (!patient && lost >= self.retry) {
                reports.push(report);
                let timeline = gauge.finish();
                let _withdrawals = withdrawals;
                return Ok(Attempts {
                    reports,
                    control,
                    status,
                    _withdrawals,
                    began,
                    began_at,
                    timeline,
                });
            }
            if let Ok(id) = report.id.parse() {
                earlier.push(id);
                earlier.drain(..earlier.len().saturating_sub(EARLIER_MAX));
            }
            if !patient {
                lost += 1;
                observer.step(Step::TriesAgain { why: &status.text });
                reports.push(report);
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    fn report(&self, attempts: &mut Attempts, migrated: bool) -> RunReport {
        RunReport {
            schema: SCHEMA,
            provenance: None,
            link: Some(self.link()),
            workload: self.guest.spec.clone(),
            rate_wanted: self.guest.rate.map(|rate| rate.0),
            rate_achieved: 0.0,
            migrated,
            memory: Verdict::Inconclusive,
            reasons: Vec::new(),
            verdict: RunVerdict::NotMigrated,
            status: attempts.status.clone(),
            exit_code: 0,
            attempts: std::mem::take(&mut attempts.reports),
            proof: None,
            source_scan: None,
            witnesses: None,
            guest: None,
            optimality: None,
        }
    }

    fn link(&self) -> LinkReport {
        let SourceSettings { peer, link, bandwidth, .. } = &self.source;
        LinkReport {
            to: peer.to_string(),
            protection: link.protection(peer.addresses()).to_owned(),
            bandwidth: bandwidth.map(|most| most as u64),
        }
    }

    /// How long the guest wrote in the last attempt, in seconds.
    fn written_s(report: &RunReport) -> f64 {
        report.last().map_or(0.0, |m| (m.total_ms - m.downtime.total_ms) / 1e3)
    }

    /// Bytes of records per second since these watermarks.
    fn rate_since(&self, began: &[u64], guest: &StampedGuest, seconds: f64) -> f64 {
        let operations = guest.watermarks().iter().sum::<u64>() - began.iter().sum::<u64>();
        operations as f64 * self.guest.spec.workload.record.0 as f64 / seconds
    }

    /// Waits for the destination's testimony and judges it.
    fn await_testimony(
        &self,
        guest: &StampedGuest,
        attempts: &mut Attempts,
        observer: &mut dyn Observer,
        cancelled: &dyn Fn(&dyn Observer) -> bool,
    ) -> Proof {
        let stunned = guest.watermarks();
        let root = self.guest.proof.audit.then(|| guest.root());
        let reading = Duration::from_secs(guest.region().bytes() / TESTIMONY_BYTES_PER_S);
        let patience = TESTIMONY_TIMEOUT + reading + self.guest.proof.run_on;
        let note = attempts.control.as_mut().map(|notes| {
            let watching = &*observer;
            notes.receive(patience, &|| cancelled(watching))
        });
        let testimony: Option<Testimony> = match note {
            Some(Ok(bytes)) => serde_json::from_slice(&bytes)
                .map_err(|error| {
                    let why = format!("the destination's testimony cannot be read: {error}");
                    observer.step(Step::NoTestimony { why });
                })
                .ok(),
            Some(Err(error)) => {
                let why = format!("the destination's testimony did not arrive: {error}");
                observer.step(Step::NoTestimony { why });
                None
            }
            None => None,
        };
        // Until it is heard that the guest runs takes longer than until it does.
        let stun = attempts.reports.last().map(|last| &last.downtime);
        let most = stun.map(|stun| Duration::from_secs_f64((stun.total_ms + stun.proof_ms) / 1e3));
        let testimony = testimony.map(|testimony| match most {
            Some(most) => testimony.with_clocks_held_against(most + CLOCKS_WORTH),
            None => testimony,
        });
        proof::judge(guest.workload().lines(), attempts.began.clone(), stunned, root, testimony)
    }

    /// After a failure: the guest goes on here for a while, and is then checked.
    fn run_on_here(
        &self,
        guest: &mut StampedGuest,
        observer: &mut dyn Observer,
    ) -> Result<(Verdict, Scanned), GuestError> {
        let resumed = guest.watermarks();
        let interrupts = observer.interrupts();
        observer.step(Step::RunsOnHere { linger: self.linger });
        let start = Instant::now();
        while start.elapsed() < self.linger && observer.interrupts() == interrupts {
            std::thread::sleep(TICK);
        }
        let scan = guest.scan()?;
        let advanced = scan.watermarks.iter().zip(&resumed).all(|(now, then)| now > then);
        let verdict = match (scan.first_fault(), advanced) {
            (Some(_), _) => Verdict::Wrong,
            (None, true) => Verdict::Proven,
            (None, false) => Verdict::Inconclusive,
        };
        Ok((verdict, scan))
    }

    fn cost(
        &self,
        last: &MigrationReport,
        stats: (&Stats, &Stats),
        timeline: &Timeline,
    ) -> GuestCost {
        let record = self.guest.spec.workload.record.0 as f64;
        let per_s = self.guest.rate.map(|rate| rate.0 as f64 / record);
        let writers = self.guest.spec.writers as usize;
        GuestCost::of(last, stats, timeline, per_s, writers, record)
    }

    /// What the journal says beside: how long it was silent, and whether it contradicts itself.
    fn hold_against_journal(&self, report: &mut RunReport) {
        match self.guest.journal.as_deref().map(Case::read) {
            Some(Ok(case)) => {
                let evidence = case.evidence();
                if let Some(witnesses) = &mut report.witnesses {
                    let proof_ms = report.attempts.last().map_or(0.0, |m| m.downtime.proof_ms);
                    witnesses.see(&gaps(&case.journal, Duration::ZERO), proof_ms);
                }
                for wrong in evidence.wrong() {
                    report.memory = Verdict::Wrong;
                    report.reasons.push(wrong);
                }
            }
            Some(Err(error)) => {
                report.memory = report.memory.and(Verdict::Inconclusive);
                report.reasons.push(error.to_string());
            }
            None => {}
        }
    }
}

impl RunReport {
    /// What speaks against a proof.
    fn object(&mut self, reasons: impl Iterator<Item = String>) {
        self.reasons.extend(reasons);
        if !self.reasons.is_empty() {
            self.memory = self.memory.and(Verdict::Inconclusive);
        }
    }
}

/// Draws the conclusions from what was shown about memory.
fn judged(mut report: RunReport) -> RunReport {
    report.verdict = RunVerdict::of(report.migrated, report.memory);
    if report.migrated {
        let of_proof = report.proof.iter().flat_map(|proof| &proof.reasons);
        let reasons: Vec<_> = of_proof.chain(&report.reasons).cloned().collect();
        report.status = Status::of_memory(report.memory, reasons.join("; "));
    } else if report.memory == Verdict::Wrong {
        report.status.kind = StatusKind::MemoryWrong;
    }
    report.exit_code = exit_code(report.memory, report.status.kind, report.migrated);
    report
}

/// The exit code of a run, from what was shown about memory and whether the guest moved.
fn exit_code(memory: Verdict, kind: StatusKind, migrated: bool) -> u8 {
    use workload::exit;
    match (memory, kind, migrated) {
        (Verdict::Wrong, ..) => exit::WRONG,
        (_, StatusKind::Unresolved, _) => exit::UNRESOLVED,
        (_, _, false) => exit::FAILED,
        (memory, _, true) => memory.exit_code(),
    }
}

/// What this migration was beside what was possible; `None` if it sent too little to know the
/// bandwidth.
fn optimality(
    guest: &StampedGuest,
    report: &MigrationReport,
    timeline: &Timeline,
) -> Option<Optimality> {
    let bandwidth = report.bandwidth();
    if bandwidth <= 0.0 {
        return None;
    }
    let memory = guest.memory();
    let pages = each(all(memory.pages())).filter(|page| !memory.is_zero(*page)).count() as u64;
    let done = (report.page_bytes, report.migration_ms, report.downtime.total_ms);
    // Older writes cannot matter: all of memory could have been sent since.
    let horizon = (memory.pages() * PAGE_BYTES) as f64 / bandwidth;
    let ages = timeline.ages(guest.workload(), horizon);
    Some(Optimality::of(done, bandwidth, pages, ages))
}
