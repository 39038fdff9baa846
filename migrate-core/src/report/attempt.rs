//! One attempt to migrate.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Status, StatusKind};
use crate::policy::{PolicyKind, Stun};

/// One round of pre-copy.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RoundReport {
    /// From 1.
    pub round: u32,
    /// When it began, after the first page.
    pub start_ms: f64,
    /// How long it took.
    pub elapsed_ms: f64,
    /// Pages sent with contents.
    pub sent_pages: u64,
    /// Pages that were zero and sent as such.
    pub zero_pages: u64,
    /// Pages owed at its end: after a round those written meanwhile, after a sweep also those that
    /// it passed over.
    pub owed_pages: u64,
    /// Page data sent per second.
    pub send_rate: f64,
    /// Page data dirtied per second, harvest by harvest.
    pub dirty_rate: f64,
    /// Throttle in force, averaged over the round and the vCPUs: share of time they were held.
    pub held_share: f64,
}

/// The downtime and its parts, in the order in which they happen.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Downtime {
    /// From before the pause to the guest running at the destination, without `proof_ms`.
    pub total_ms: f64,
    /// Until every vCPU stood still.
    pub pause_ms: f64,
    /// Final look for written pages.
    pub harvest_ms: f64,
    /// Sending the last pages.
    pub send_ms: f64,
    /// Saving, sending and loading device state, until the destination said Ready.
    pub state_ms: f64,
    /// Making the decision durable, Run, and the first instruction there.
    pub resume_ms: f64,
    /// The destination's look at the complete memory before it may run: the proof's, not the
    /// migration's, and not in `total_ms`.
    pub proof_ms: f64,
    /// Pages sent during the stun.
    pub pages: u64,
}

/// What a policy changed, and why.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    /// When, after the first page.
    pub at_ms: f64,
    /// What and why, in words.
    pub what: String,
}

/// A stun that took longer than it may: the guest ran on at the source.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Overrun {
    /// When the guest was paused, after the first page.
    pub at_ms: f64,
    /// How long it stood still.
    pub took_ms: f64,
    /// Pages that were owed when it ran on.
    pub pages: u64,
}

/// In which form pages were sent; each page counts every time it was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Contents {
    /// Pages sent as they are.
    pub whole_pages: u64,
    /// Pages that were zero, sent as a count.
    pub zero_pages: u64,
    /// Pages that were written but hold what the destination has already: not sent.
    pub unchanged_pages: u64,
    /// Pages sent packed.
    pub packed_pages: u64,
    /// Bytes that they took.
    pub packed_bytes: u64,
    /// Pages of which only changed lines were sent.
    pub delta_pages: u64,
    /// Bytes that they took.
    pub delta_bytes: u64,
    /// Bytes of all frames on data streams.
    pub wire_bytes: u64,
}

impl Contents {
    /// Pages that were not zero, in whatever form.
    pub fn content_pages(&self) -> u64 {
        self.whole_pages + self.unchanged_pages + self.packed_pages + self.delta_pages
    }
}

/// One attempt to migrate, complete or not.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MigrationReport {
    /// Version of this format.
    pub schema: u32,
    /// The migration's id, 32 hexadecimal digits.
    pub id: String,
    /// Hosts the guest has left, this one included once it is done.
    pub epoch: u64,
    /// Which policy decided.
    pub policy: PolicyKind,
    /// Which tracker found dirty pages.
    pub tracker: String,
    /// Data streams.
    pub streams: u32,
    /// The congestion control of their connections, as the kernel calls it.
    pub congestion: String,
    /// Guest memory in pages of 4096 bytes.
    pub memory_pages: u64,
    /// Pages of it that were never touched before the first page was sent: not even looked at.
    pub untouched_pages: u64,
    /// Pages that the source looked at while the destination made its shadow: found zero, or their
    /// checks made, before the first page was sent.
    pub looked_at_pages: u64,
    /// Connecting, the destination building and populating its shadow, and the source's first look
    /// meanwhile.
    pub setup_ms: f64,
    /// From the first page to the guest running at the destination, without the proof.
    pub migration_ms: f64,
    /// `setup_ms` and `migration_ms` together.
    pub total_ms: f64,
    /// Page data that was brought across, in bytes: 4096 for each page that was not zero, in
    /// whatever form it went.
    pub page_bytes: u64,
    /// Everything sent on data streams, headers included, in bytes.
    pub wire_bytes: u64,
    /// In which form pages went.
    pub contents: Contents,
    /// The rounds.
    pub rounds: Vec<RoundReport>,
    /// What the policy changed on the way, and why.
    pub decisions: Vec<Decision>,
    /// Stuns that took longer than they may, where that was not accepted.
    pub overruns: Vec<Overrun>,
    /// The policy's decision to stun.
    pub stun: Option<Stun>,
    /// The downtime; zero if there was none.
    pub downtime: Downtime,
    /// Most downtime wanted.
    pub downtime_goal_ms: f64,
    /// Whether `downtime.total_ms` was more than wanted.
    pub over_goal: bool,
    /// CPU time of the process at the source from its first look at memory to the guest running at
    /// the destination, in milliseconds; a guest made of threads is part of it.
    pub cpu_ms: f64,
    /// How it ended.
    pub status: Status,
}

impl MigrationReport {
    /// Whether the guest runs at the destination.
    pub fn is_done(&self) -> bool {
        self.status.kind == StatusKind::Done
    }

    /// Page data per second while pages were sent in rounds; 0 without rounds.
    pub fn send_rate(&self) -> f64 {
        let pages: u64 = self.rounds.iter().map(|r| r.sent_pages).sum();
        ratio(pages * crate::memory::PAGE_BYTES, self.rounds.iter().map(|r| r.elapsed_ms).sum())
    }

    /// The most page data per second that any round, or the stun, carried: what the link gives. Of
    /// rounds too short to be measured, nothing is believed.
    pub fn bandwidth(&self) -> f64 {
        const LONG_ENOUGH_MS: f64 = 20.0;
        let rounds = self.rounds.iter().filter(|r| r.elapsed_ms >= LONG_ENOUGH_MS);
        let most = rounds.map(|r| r.send_rate).fold(0.0, f64::max);
        match most > 0.0 {
            true => most,
            false => ratio(self.page_bytes, self.migration_ms),
        }
    }

    /// Page data dirtied per second in rounds without throttle; 0 if there was none.
    pub fn free_dirty_rate(&self) -> f64 {
        let free = || self.rounds.iter().filter(|r| r.held_share == 0.0);
        let bytes: f64 = free().map(|r| r.dirty_rate * r.elapsed_ms).sum();
        let time: f64 = free().map(|r| r.elapsed_ms).sum();
        if time > 0.0 { bytes / time } else { 0.0 }
    }

    /// Pages dirtied over pages sent, summed over throttled rounds: the beta that SDPS achieved.
    pub fn measured_beta(&self) -> Option<f64> {
        let held = || self.rounds.iter().filter(|r| r.held_share > 0.0);
        if self.policy == PolicyKind::Adaptive {
            // A sweep leaves what it passed over as well; what was written is in its rate.
            let sum = |rate: fn(&RoundReport) -> f64| -> f64 {
                held().map(|r| rate(r) * r.elapsed_ms).sum()
            };
            let sent = sum(|r| r.send_rate);
            return (sent > 0.0).then(|| sum(|r| r.dirty_rate) / sent);
        }
        let sent: u64 = held().map(|r| r.sent_pages).sum();
        let owed: u64 = held().map(|r| r.owed_pages).sum();
        (sent > 0).then(|| owed as f64 / sent as f64)
    }

    /// Time that a vCPU was kept from running, on average, in milliseconds: held by the throttle,
    /// and stopped at stuns.
    pub fn guest_lost_ms(&self) -> f64 {
        let held: f64 = self.rounds.iter().map(|r| r.held_share * r.elapsed_ms).sum();
        let overruns: f64 = self.overruns.iter().map(|o| o.took_ms).sum();
        held + overruns + self.downtime.total_ms
    }
}

fn ratio(bytes: u64, milliseconds: f64) -> f64 {
    if milliseconds > 0.0 { bytes as f64 * 1e3 / milliseconds } else { 0.0 }
}
