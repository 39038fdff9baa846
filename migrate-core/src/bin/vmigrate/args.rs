//! Options that several commands share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use migrate_core::link::tls::{Expiry, Identity, Side, in_days};
use migrate_core::link::{Exposure, LinkSettings, TIMEOUT_RANGE};
use migrate_core::operator::{Desk, StateDirectory};
use workload::say;
use workload::units::{format_duration, parse_duration};

use crate::show::Detail;

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
            for Expiry { file, rest } in identity.check(side, SystemTime::now())? {
                if rest < EXPIRY_WORTH_A_WORD {
                    say!("vmigrate: certificate {} expires in {}", file.display(), in_days(rest));
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

/// What is told, and to whom.
#[derive(Args, Clone, Debug)]
pub(crate) struct TellArgs {
    /// Print the report as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Tell rounds, pages, decisions and the optimum as well
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Keep JSON and page in this folder, named by date and time; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

impl TellArgs {
    pub(crate) fn detail(&self) -> Detail {
        Detail::of(self.verbose)
    }
}

/// Where handovers are recorded, and how long they may be undecided.
#[derive(Args, Clone, Debug)]
pub(crate) struct StateArgs {
    /// Where handover records and this program's socket are kept; it must be yours alone
    #[arg(long, value_name = "DIR", default_value_os_t = StateDirectory::default_path())]
    pub(crate) state_dir: PathBuf,
    /// After this long an unresolved handover is said again each minute; the guest stays stopped
    /// until the other side, or `vmigrate resolve`, speaks
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = parse_duration)]
    pub(crate) resolve_timeout: Duration,
    /// Give an unresolved guest up after this long: for tests, where nobody comes to decide
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) give_up_after: Option<Duration>,
}

impl StateArgs {
    /// Opens the directory, and in it the socket of this program.
    pub(crate) fn desk(&self) -> anyhow::Result<Arc<Desk>> {
        let directory = StateDirectory::open(&self.state_dir)?;
        Ok(Arc::new(Desk::open(&directory)?))
    }
}
