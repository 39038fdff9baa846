//! How the engine is told to go about it, by every command that migrates.

use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;
use migrate_core::codec::{Checks, Compress, Delta, Encoding};
use migrate_core::guest::stamped::MachineKind;
use migrate_core::guest::tracker::TrackerKind;
use migrate_core::link::LinkSettings;
use migrate_core::link::address::HostPort;
use migrate_core::memory::PAGE_BYTES;
use migrate_core::operator::Desk;
use migrate_core::policy::{PolicyKind, Settings, Tuning};
use migrate_core::proto::Epoch;
use migrate_core::source::{OverLimit, SourceSettings, Streams};
use workload::units::{Bytes, Rate, parse_duration};

use crate::args::StateArgs;

/// How the engine goes about it.
#[derive(ClapArgs, Clone, Debug)]
pub(crate) struct EngineArgs {
    /// Who decides: adaptive, vmotion, precopy, auto-converge or stop-and-copy; bench takes
    /// several, one after the other [default: adaptive, for bench vmotion]
    #[arg(long, value_delimiter = ',')]
    pub(crate) policy: Vec<PolicyKind>,
    /// SDPS holds the dirty rate at this share of the send rate [default: 0.9, for bench 0.914]
    #[arg(long, value_parser = parse_beta)]
    pub(crate) beta: Option<f64>,
    /// Most rounds of precopy
    #[arg(long, default_value_t = 30)]
    pub(crate) rounds: u32,
    /// Give up after this long
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub(crate) time_limit: Duration,
    /// Give up after so many bytes of pages were sent
    #[arg(long, value_name = "BYTES")]
    pub(crate) byte_limit: Option<Bytes>,
    /// A stun that takes longer than the goal is called off, and copying goes on
    #[arg(long)]
    pub(crate) abort_over_limit: bool,
    /// Data streams: auto (one for each core, up to 8) or a number up to 64
    #[arg(long, value_name = "auto|N", default_value = "auto")]
    pub(crate) streams: Streams,
    /// Pack pages: auto (where it gets them across sooner), off, lz4 or zstd
    /// [default: auto, for bench off]
    #[arg(long, value_name = "HOW")]
    pub(crate) compress: Option<Compress>,
    /// Of pages that come again send only the lines that changed: auto (where it pays), on or off
    /// [default: auto, for bench off]
    #[arg(long, value_name = "WHEN")]
    pub(crate) delta: Option<Delta>,
    /// Most memory to remember for that what was sent; an eighth of the guest's remembers all
    #[arg(long, value_name = "BYTES", default_value = "1GiB")]
    pub(crate) delta_cache: Bytes,
    /// Check every page on arrival: on or off
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub(crate) checks: Checks,
    /// What runs the guest: process (threads) or kvm (a virtual machine whose own code writes)
    #[arg(long, value_name = "process|kvm", default_value = "process")]
    pub(crate) guest: MachineKind,
    /// Dirty tracker: auto, uffd or mprotect
    #[arg(long, default_value = "auto")]
    pub(crate) tracker: TrackerKind,
    /// How long the guest runs at the destination before it is proven again
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub(crate) run_on: Duration,
    /// Compare the SHA-256 roots of both hosts' memory as well
    #[arg(long)]
    pub(crate) audit: bool,
}

impl EngineArgs {
    /// How a guest is migrated so: as often as it takes, at the rate that the link gives.
    pub(crate) fn source(
        &self,
        peer: HostPort,
        link: LinkSettings,
        policy: PolicyKind,
        goal: Duration,
        state: &StateArgs,
        desk: Arc<Desk>,
    ) -> SourceSettings {
        SourceSettings {
            peer,
            link,
            streams: self.streams,
            encoding: self.encoding(Encoding::default()),
            bandwidth: None,
            policy,
            limits: Settings {
                goal,
                beta: self.beta.unwrap_or(Settings::default().beta),
                rounds_max: self.rounds,
                time_max: self.time_limit,
                pages_max: self.pages_max(),
                tuning: Tuning::DEFAULT,
            },
            over_limit: self.over_limit(),
            epoch: Epoch(1),
            earlier: Vec::new(),
            state_directory: state.state_dir.clone(),
            resolve_timeout: state.resolve_timeout,
            give_up_after: state.give_up_after,
            operator: Some(desk),
        }
    }

    fn pages_max(&self) -> u64 {
        self.byte_limit.map_or(u64::MAX, |bytes| bytes.0.div_ceil(PAGE_BYTES))
    }

    fn over_limit(&self) -> OverLimit {
        match self.abort_over_limit {
            true => OverLimit::GoBack,
            false => OverLimit::Accept,
        }
    }

    /// A guest that cannot run here is refused at once.
    pub(crate) fn check_guest(&self) -> anyhow::Result<()> {
        match self.guest.missing() {
            Some(why) => anyhow::bail!("{why}"),
            None => Ok(()),
        }
    }

    /// Budgets that contradict each other are refused before a guest is started.
    pub(crate) fn check(&self, memory: Bytes, bandwidth: Option<Rate>) -> anyhow::Result<()> {
        if let Some(limit) = self.byte_limit.filter(|limit| *limit < memory) {
            anyhow::bail!("--byte-limit {limit} is less than the guest's memory of {memory}");
        }
        if let Some(rate) = bandwidth {
            let least = memory.0 as f64 / rate.0 as f64;
            anyhow::ensure!(
                least <= self.time_limit.as_secs_f64() || self.compress != Some(Compress::Off),
                "--bandwidth {rate} takes {least:.0} s for {memory}, --time-limit allows {:.0} s",
                self.time_limit.as_secs_f64()
            );
        }
        Ok(())
    }

    /// What is set, and for the rest what `base` says.
    pub(crate) fn encoding(&self, base: Encoding) -> Encoding {
        Encoding {
            compress: self.compress.unwrap_or(base.compress),
            delta: self.delta.unwrap_or(base.delta),
            delta_cache_bytes: self.delta_cache.0,
            checks: self.checks,
        }
    }
}

fn parse_beta(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(beta) if beta > 0.0 && beta < 1.0 => Ok(beta),
        _ => Err("beta is a share above 0 and below 1, for example 0.9".to_owned()),
    }
}
