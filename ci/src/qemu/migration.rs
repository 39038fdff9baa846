//! QEMU's own ways to migrate, driven over QMP, and what QEMU says of them afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::qmp::Qmp;

/// How long the last pages may take to arrive after they were sent.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long QEMU may take to call a migration off.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);
/// How often QEMU is asked how far it is.
const POLL: Duration = Duration::from_millis(20);

/// One way to migrate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    capabilities: &'static [&'static str],
    channels: Option<u32>,
    compression: Option<&'static str>,
    pub(crate) encrypted: bool,
    /// Switched to post-copy while it goes on.
    pub(crate) postcopy: bool,
}

const PLAIN: Mode = Mode {
    name: "plain",
    capabilities: &[],
    channels: None,
    compression: None,
    encrypted: false,
    postcopy: false,
};

/// All of them.
pub(crate) const MODES: [Mode; 11] = [
    PLAIN,
    Mode { name: "auto-converge", capabilities: &["auto-converge"], ..PLAIN },
    Mode { name: "multifd2", capabilities: &["multifd"], channels: Some(2), ..PLAIN },
    Mode { name: "multifd4", capabilities: &["multifd"], channels: Some(4), ..PLAIN },
    Mode {
        name: "multifd-zstd",
        capabilities: &["multifd"],
        channels: Some(2),
        compression: Some("zstd"),
        ..PLAIN
    },
    Mode { name: "xbzrle", capabilities: &["xbzrle"], ..PLAIN },
    Mode { name: "postcopy", capabilities: &["postcopy-ram"], postcopy: true, ..PLAIN },
    Mode {
        name: "postcopy-preempt",
        capabilities: &["postcopy-ram", "postcopy-preempt"],
        postcopy: true,
        ..PLAIN
    },
    Mode { name: "tls", encrypted: true, ..PLAIN },
    Mode {
        name: "multifd-tls",
        capabilities: &["multifd"],
        channels: Some(2),
        encrypted: true,
        ..PLAIN
    },
    Mode {
        name: "postcopy-tls",
        capabilities: &["postcopy-ram"],
        encrypted: true,
        postcopy: true,
        ..PLAIN
    },
];

impl Mode {
    /// The mode of that name.
    pub(crate) fn named(name: &str) -> anyhow::Result<Self> {
        MODES.into_iter().find(|mode| mode.name == name).with_context(|| {
            let names = MODES.map(|mode| mode.name).join(", ");
            format!("QEMU has no mode '{name}' here; there are: {names}, all")
        })
    }

    fn parameters(&self) -> Value {
        let mut parameters = json!({});
        if let Some(channels) = self.channels {
            parameters["multifd-channels"] = channels.into();
        }
        if let Some(compression) = self.compression {
            parameters["multifd-compression"] = compression.into();
        }
        parameters
    }
}

/// What a migration is to keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Most bytes per second that QEMU sends.
    pub(crate) bytes_per_s: u64,
    pub(crate) downtime: Duration,
    /// It is called off after this long.
    pub(crate) time: Duration,
}

/// What QEMU says of a migration.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub(crate) struct Claim {
    /// `completed`, `failed` or `cancelled`.
    pub(crate) status: String,
    /// Why it failed.
    pub(crate) error: String,
    pub(crate) total_ms: f64,
    pub(crate) downtime_ms: f64,
    /// Bytes on the wire.
    pub(crate) bytes: u64,
    /// Passes over memory.
    pub(crate) rounds: u64,
}

impl Claim {
    fn read(answer: &Value) -> Self {
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        Self {
            status: answer["status"].as_str().unwrap_or("none").to_owned(),
            error: answer["error-desc"].as_str().unwrap_or_default().to_owned(),
            total_ms: number(&answer["total-time"]),
            downtime_ms: number(&answer["downtime"]),
            bytes: answer["ram"]["transferred"].as_u64().unwrap_or(0),
            rounds: answer["ram"]["dirty-sync-count"].as_u64().unwrap_or(0),
        }
    }

    /// Whether it is over, one way or the other.
    fn ended(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "cancelled")
    }
}

/// Tells both sides how, and the destination where to listen.
pub(crate) fn prepare(
    source: &mut Qmp,
    destination: &mut Qmp,
    mode: &Mode,
    limits: &Limits,
    listen: &str,
    tls: Option<&Path>,
) -> anyhow::Result<()> {
    for (qmp, endpoint) in [(&mut *source, "client"), (&mut *destination, "server")] {
        let on = |name: &&str| json!({ "capability": name, "state": true });
        let capabilities: Vec<_> = mode.capabilities.iter().map(on).collect();
        if !capabilities.is_empty() {
            qmp.run("migrate-set-capabilities", json!({ "capabilities": capabilities }))?;
        }
        if let (true, Some(directory)) = (mode.encrypted, tls) {
            qmp.run(
                "object-add",
                json!({
                    "qom-type": "tls-creds-x509",
                    "id": format!("tls-{endpoint}"),
                    "dir": directory.display().to_string(),
                    "endpoint": endpoint,
                    "verify-peer": true,
                }),
            )?;
        }
        let mut parameters = mode.parameters();
        if mode.encrypted {
            parameters["tls-creds"] = format!("tls-{endpoint}").into();
        }
        if parameters != json!({}) {
            qmp.run("migrate-set-parameters", parameters)?;
        }
    }
    let limits = json!({
        "max-bandwidth": limits.bytes_per_s,
        "downtime-limit": limits.downtime.as_millis() as u64,
    });
    source.run("migrate-set-parameters", limits)?;
    destination.run("migrate-incoming", json!({ "uri": format!("tcp:{listen}") }))?;
    Ok(())
}

/// Starts migrating to where the destination listens.
pub(crate) fn begin(source: &mut Qmp, to: &str) -> anyhow::Result<()> {
    source.run("migrate", json!({ "uri": format!("tcp:{to}") })).map(drop)
}

/// How far it is, as QEMU says.
pub(crate) fn progress(qmp: &mut Qmp) -> anyhow::Result<Claim> {
    Ok(Claim::read(&qmp.run("query-migrate", json!({}))?))
}

/// Waits for the end, and switches to post-copy on the way where that is the mode. It is called off,
/// and said so, when it takes longer than it may.
///
/// # Errors
/// It did not end in time, or never switched to post-copy although it was to.
pub(crate) fn finish(source: &mut Qmp, mode: &Mode, limits: &Limits) -> anyhow::Result<Claim> {
    let deadline = Instant::now() + limits.time;
    let mut switched = false;
    loop {
        crate::interrupted()?;
        let claim = progress(source)?;
        // QEMU says `completed` a moment before it knows how long that took.
        if claim.ended() && !(claim.status == "completed" && claim.total_ms == 0.0) {
            anyhow::ensure!(
                switched || !mode.postcopy || claim.status != "completed",
                "it was over before it could switch to post-copy: use a slower link or more memory"
            );
            return Ok(claim);
        }
        if Instant::now() > deadline {
            // Post-copy cannot be called off: the guest is in two places.
            if !switched {
                cancel(source)?;
            }
            anyhow::bail!("not over after {:?}, in pass {}: called off", limits.time, claim.rounds);
        }
        if mode.postcopy && !switched && claim.status == "active" {
            source.run("migrate-start-postcopy", json!({}))?;
            switched = true;
        }
        std::thread::sleep(POLL);
    }
}

/// Waits until everything has arrived at a destination.
pub(crate) fn await_arrival(destination: &mut Qmp) -> anyhow::Result<()> {
    let deadline = Instant::now() + ARRIVAL_TIMEOUT;
    loop {
        let claim = progress(destination)?;
        match claim.status.as_str() {
            "completed" => return Ok(()),
            "failed" => anyhow::bail!("the destination failed: {}", claim.error),
            _ => {}
        }
        crate::interrupted()?;
        anyhow::ensure!(Instant::now() < deadline, "the destination is still '{}'", claim.status);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Calls a migration off; what QEMU says of it then.
pub(crate) fn cancel(source: &mut Qmp) -> anyhow::Result<Claim> {
    source.run("migrate_cancel", json!({}))?;
    let deadline = Instant::now() + CANCEL_TIMEOUT;
    loop {
        let claim = progress(source)?;
        if claim.ended() {
            return Ok(claim);
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "QEMU does not call off a migration that is '{}'",
            claim.status
        );
        std::thread::sleep(POLL);
    }
}
