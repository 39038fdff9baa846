//! Options that several commands share.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use migrate_core::link::tls::{Identity, Side};
use migrate_core::link::{Exposure, LinkSettings, TIMEOUT_RANGE};
use workload::say;
use workload::units::{format_duration, parse_duration};

/// A certificate that ends sooner should be on somebody's mind.
const EXPIRY_WORTH_A_WORD: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Protection and timeouts of the link.
#[derive(Args, Clone, Debug)]
pub(crate) struct LinkArgs {
    /// Mutual TLS with ca-cert.pem, client-cert.pem, client-key.pem, server-cert.pem and
    /// server-key.pem in this directory
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// Send guest memory unprotected beyond loopback
    #[arg(long, conflicts_with = "tls_dir")]
    insecure: bool,
    /// Longest silence or stall before the link counts as lost
    #[arg(long, value_name = "TIME", default_value = "4s", value_parser = parse_duration)]
    link_timeout: Duration,
}

impl LinkArgs {
    /// Checks what can be checked before anything is started.
    pub(crate) fn resolve(&self, side: Side) -> anyhow::Result<LinkSettings> {
        anyhow::ensure!(
            TIMEOUT_RANGE.contains(&self.link_timeout),
            "--link-timeout must be from {} to {}",
            format_duration(*TIMEOUT_RANGE.start()),
            format_duration(*TIMEOUT_RANGE.end())
        );
        let identity = self.tls_dir.as_deref().map(Identity::in_directory);
        if let Some(identity) = &identity {
            for expiry in identity.check(side, SystemTime::now())? {
                if expiry.rest < EXPIRY_WORTH_A_WORD {
                    say!("vmigrate: {expiry}");
                }
            }
        }
        let exposure = match self.insecure {
            true => Exposure::Insecure,
            false => Exposure::LoopbackOnly,
        };
        Ok(LinkSettings {
            identity,
            exposure,
            timeout: self.link_timeout,
            ..LinkSettings::default()
        })
    }
}

/// Where handovers are recorded.
#[derive(Args, Clone, Debug)]
pub(crate) struct StateArgs {
    /// Where handover records are kept while a handover is under way
    #[arg(long, value_name = "DIR", default_value_os_t = default_state_dir())]
    pub(crate) state_dir: PathBuf,
    /// How long a guest stays stopped, waiting for an unresolved handover to be resolved
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = parse_duration)]
    pub(crate) resolve_timeout: Duration,
}

fn default_state_dir() -> PathBuf {
    std::env::temp_dir().join("vmigrate")
}
