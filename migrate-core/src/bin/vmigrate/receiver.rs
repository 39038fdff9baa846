//! A receiver of this program's own, for commands that migrate on one host.

use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use crate::args::StateArgs;

/// A handover of such a migration that is unresolved for so long is given up: nobody comes to decide.
pub(crate) const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// A `vmigrate receive` that ends with this value.
pub(crate) struct Receiver {
    child: Child,
    pub(crate) address: std::net::SocketAddr,
    /// The journal that it goes on with.
    pub(crate) journal: std::path::PathBuf,
    _directory: TempDir,
}

impl Receiver {
    pub(crate) fn start(state: &StateArgs) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let directory = tempfile::tempdir().context("cannot make a folder for the journal")?;
        let journal = directory.path().join("journal");
        let mut child = Command::new(program)
            .args([
                "receive",
                "--listen",
                "127.0.0.1:0",
                "--announce",
                "--json",
                "--once",
                "--wait",
                "60s",
            ])
            .arg("--journal")
            .arg(&journal)
            .arg("--state-dir")
            .arg(&state.state_dir)
            .arg("--give-up-after")
            .arg(format!("{}s", GIVE_UP_AFTER.as_secs()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the receiver")?;
        let mut first = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout);
            stdout.read_line(&mut first).context("the receiver does not answer")?;
            // The rest is drained so that the receiver never waits for us to read it.
            std::thread::spawn(move || io::copy(&mut stdout, &mut io::sink()));
        }
        match first.trim().parse() {
            Ok(address) => Ok(Self { child, address, journal, _directory: directory }),
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                anyhow::bail!("the receiver did not start listening")
            }
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // It ends by itself after its report; if it does not, it has nothing left to do.
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
