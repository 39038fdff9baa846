//! Guests that a receiver passes on: chains, and to and fro between two hosts.

use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use migrate_core::guest::stamped::{Description, GuestSettings, ProofSettings, StampedGuest};
use migrate_core::guest::tracker::TrackerKind;
use migrate_core::link::LinkSettings;
use migrate_core::link::address::HostPort;
use migrate_core::operator::Desk;
use migrate_core::policy::{PolicyKind, Settings};
use migrate_core::proto::Epoch;
use migrate_core::source::SourceSettings;
use migrate_core::trial::Trial;
use std::sync::Arc;
use workload::units::{Rate, parse_duration};

use crate::args::StateArgs;

/// The next receiver may be busy with the proof of the guest that it passed on last.
const NEXT_HOST: Duration = Duration::from_secs(60);
/// A link that breaks is tried again so often; the guest runs on here meanwhile.
const RETRIES: u32 = 10_000;

/// Where guests go on to, and for how long.
#[derive(ClapArgs, Clone, Debug)]
#[command(next_help_heading = "Passing guests on")]
pub(crate) struct PassArgs {
    /// Pass each guest on to this receiver, once it is proven here
    #[arg(long, value_name = "HOST[:PORT]")]
    on_to: Option<HostPort>,
    /// Until a guest has been moved so often; then it ends, and so does this
    #[arg(long, value_name = "N", requires = "on_to", value_parser = clap::value_parser!(u64).range(1..))]
    hops: Option<u64>,
    /// Until so much time has passed; then the guest that is here ends, and so does this
    #[arg(long = "for", value_name = "TIME", requires = "on_to", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Who decides how they go on
    #[arg(long, default_value = "adaptive", requires = "on_to")]
    policy: PolicyKind,
    /// Most downtime when they go on
    #[arg(long, value_name = "TIME", default_value = "300ms", requires = "on_to",
          value_parser = parse_duration)]
    downtime: Duration,
    /// Most bytes per second when they go on
    #[arg(long, value_name = "RATE", requires = "on_to")]
    bandwidth: Option<Rate>,
}

impl PassArgs {
    pub(crate) fn is_wanted(&self) -> bool {
        self.on_to.is_some()
    }
}

/// How guests are passed on.
pub(crate) struct Passing {
    args: PassArgs,
    next: HostPort,
    link: LinkSettings,
    state: StateArgs,
    desk: Arc<Desk>,
    began: Instant,
}

impl Passing {
    /// Nothing where guests stay.
    pub(crate) fn of(
        args: &PassArgs,
        link: &LinkSettings,
        state: &StateArgs,
        desk: &Arc<Desk>,
    ) -> anyhow::Result<Option<Self>> {
        let Some(next) = args.on_to.clone() else { return Ok(None) };
        for address in next.addresses() {
            link.allow(*address)?;
        }
        let link = LinkSettings { peer_name: next.certified_name(), ..link.clone() };
        let (args, state, desk) = (args.clone(), state.clone(), desk.clone());
        Ok(Some(Self { args, next, link, state, desk, began: Instant::now() }))
    }

    /// Whether a guest that has left so many hosts is at its last one.
    pub(crate) fn is_over(&self, epoch: u64) -> bool {
        self.args.hops.is_some_and(|hops| epoch >= hops) || self.rest() == Some(Duration::ZERO)
    }

    /// The time that is left, if there is an end to it.
    pub(crate) fn rest(&self) -> Option<Duration> {
        self.args.duration.map(|most| most.saturating_sub(self.began.elapsed()))
    }

    pub(crate) fn next(&self) -> &HostPort {
        &self.next
    }

    /// How this guest goes on.
    pub(crate) fn trial(&self, guest: &StampedGuest) -> Trial {
        let Description { machine, spec, rate, epoch, run_on_ms, audit, .. } =
            guest.describe().clone();
        Trial {
            guest: GuestSettings {
                machine,
                rate,
                proof: ProofSettings { run_on: Duration::from_millis(run_on_ms), audit },
                ..GuestSettings::of(spec)
            },
            tracker: TrackerKind::Auto,
            source: SourceSettings {
                link: self.link.clone(),
                bandwidth: self.args.bandwidth.map(|rate| rate.0 as f64),
                policy: self.args.policy,
                limits: Settings { goal: self.args.downtime, ..Settings::default() },
                epoch: Epoch(epoch + 1),
                state_directory: self.state.state_dir.clone(),
                resolve_timeout: self.state.resolve_timeout,
                give_up_after: self.state.give_up_after,
                operator: Some(self.desk.clone()),
                ..SourceSettings::to(self.next.clone())
            },
            wait: NEXT_HOST,
            retry: RETRIES,
            linger: Duration::from_millis(300),
        }
    }
}
