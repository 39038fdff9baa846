//! What can go wrong with a migration, and what to do about it.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::guest::GuestError;
use crate::policy::GiveUp;
use crate::proto::ProtoError;

/// Why a migration did not happen, or not finish.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answered.
    #[error("cannot connect to {peer}: {source}; is `vmigrate receive` running there?")]
    Connect {
        /// Where to: an address, or a name of several.
        peer: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nobody came.
    #[error("no migration arrived within {0:?}")]
    NobodyCame(Duration),
    /// The connection broke or stalled.
    #[error("link lost while {doing}: {source}")]
    Link {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The peer said nothing for too long.
    #[error("no word from the peer for {0:?} while {1}")]
    PeerSilent(Duration, &'static str),
    /// The peer does not follow the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtoError),
    /// Pages did not pass their check when everything had arrived.
    #[error(
        "{pages} pages were damaged on the way, the first of them page {first}; \
         check the network cards and cables, or use --tls-dir"
    )]
    Damaged {
        /// How many.
        pages: u64,
        /// The first of them.
        first: u64,
    },
    /// The peer failed and said why.
    #[error("the peer gave up: {0}")]
    Peer(String),
    /// The guest could not do what was asked of it.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The policy judged that going on is of no use.
    #[error("{0}")]
    GaveUp(GiveUp),
    /// The user asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// What is asked for cannot be done.
    #[error("{0}")]
    Settings(String),
    /// Certificates or keys are missing or wrong.
    #[error("TLS: {0}")]
    Tls(String),
    /// A non-loopback address without TLS.
    #[error(
        "{0} is not loopback: protect the guest's memory with --tls-dir DIR, or say --insecure"
    )]
    Insecure(SocketAddr),
    /// The decision to hand over could not be made durable, so it was not made.
    #[error("cannot write the handover record {path}: {source}")]
    Record {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The directory for records and the operator's socket cannot be used.
    #[error("the state directory {} cannot be used: {why}; name another with --state-dir", path.display())]
    StateDirectory {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        why: String,
    },
    /// What the session says; see [`crate::session::Failure`].
    #[error("{0}")]
    Session(crate::session::Failure),
    /// The one ambiguous moment: the guest is stopped here and may run there.
    #[error(
        "handover of migration {id} is unresolved and was given up here: the guest stays stopped, and is \
         the destination's. If it stands prepared there, `vmigrate resolve {id} --destination-runs \
         --source-is-gone` on that host lets it run, once this one has ended for good"
    )]
    Unresolved {
        /// Which migration.
        id: String,
    },
}

/// What an I/O error on a link means, given what was being done.
pub(crate) fn lost(doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Link { doing, source }
}

/// A named thread that ends by itself.
pub(crate) fn spawn(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|e| GuestError::new("start a thread", e).into())
}
