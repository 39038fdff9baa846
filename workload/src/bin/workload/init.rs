//! `workload` as PID 1: the only process of a test VM.
//!
//! Mounts what it needs, takes its settings from the kernel command line (`workload.memory=50%`
//! stands for `--memory 50%`, `workload.lock` for `--lock`), talks over the first serial port
//! unless told otherwise, and powers the machine off at the end, whatever the end is.

use std::io::Write;
use std::time::Duration;

use clap::Parser;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use workload::exit;

use crate::run;

const PREFIX: &str = "workload.";
const SERIAL: &str = "serial:/dev/ttyS0";

#[derive(Parser)]
#[command(name = "workload", no_binary_name = true)]
struct Settings {
    #[command(flatten)]
    args: run::Args,
}

/// Runs the VM to its end.
pub(crate) fn run() -> ! {
    let outcome = std::panic::catch_unwind(live);
    say(&match outcome {
        Ok(Ok(code)) => format!("workload: done, exit code {code}"),
        Ok(Err(e)) => format!("workload: {}", exit::one_line(e.as_ref())),
        Err(_) => "workload: died".to_owned(),
    });
    power_off()
}

fn live() -> anyhow::Result<u8> {
    for (kind, target) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")]
    {
        std::fs::create_dir_all(target)?;
        // The kernel may have mounted /dev already.
        match mount(kind, target, kind, MountFlags::empty(), None) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(e) => anyhow::bail!("cannot mount {kind} on {target}: {e}"),
        }
    }
    console()?;
    // Before anything can block.
    say(&format!("workload {} is init here", env!("CARGO_PKG_VERSION")));
    let command_line = std::fs::read_to_string("/proc/cmdline")?;
    if ["udp:", "workload.heartbeat=udp"].iter().any(|udp| command_line.contains(udp))
        && !has_network()
    {
        say(
            "no network device is up: nobody loads a driver or sets an address here; take a kernel \
             with both built in (ip= on its command line), or a serial port, or vsock with its driver built in",
        );
    }
    let settings = Settings::try_parse_from(arguments(&command_line))
        .map_err(|e| anyhow::anyhow!("kernel command line: {e}"))?;
    run::run(&settings.args)
}

fn say(text: &str) {
    workload::say::report("workload", |out| writeln!(out, "# {text}"));
}

/// An archive of one file has no /dev/console that the kernel could give to init; now there is one.
fn console() -> anyhow::Result<()> {
    let open = std::fs::metadata("/proc/self/fd/1").is_ok();
    if open {
        return Ok(());
    }
    let console = std::fs::File::options().read(true).write(true).open("/dev/console")?;
    rustix::stdio::dup2_stdin(&console)?;
    rustix::stdio::dup2_stdout(&console)?;
    rustix::stdio::dup2_stderr(&console)?;
    Ok(())
}

/// Whether there is a device beside the loopback that has been brought up.
fn has_network() -> bool {
    let devices = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let up = |device: &std::fs::DirEntry| {
        let state = std::fs::read_to_string(device.path().join("operstate"));
        device.file_name() != "lo" && state.is_ok_and(|state| state.trim() == "up")
    };
    let mut devices = devices;
    devices.any(|device| up(&device))
}

/// The kernel command line's settings as arguments, with serial port where nothing else is said.
fn arguments(command_line: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    let words = command_line.split_whitespace().filter_map(|word| word.strip_prefix(PREFIX));
    for word in words {
        match word.split_once('=') {
            Some((key, value)) => arguments.extend([format!("--{key}"), value.to_owned()]),
            None => arguments.push(format!("--{word}")),
        }
    }
    for (option, alias) in [("--heartbeat", "--journal"), ("--control", "--control")] {
        if !arguments.iter().any(|a| a == option || a == alias) {
            arguments.extend([option.to_owned(), SERIAL.to_owned()]);
        }
    }
    arguments
}

/// The end of a machine of which this is PID 1.
fn power_off() -> ! {
    rustix::fs::sync();
    let _ = reboot(RebootCommand::PowerOff);
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_command_line_is_a_command_line() {
        let line = "console=ttyS0 workload.memory=50% workload.rate=5MB/s workload.lock quiet";
        let wanted = [
            "--memory",
            "50%",
            "--rate",
            "5MB/s",
            "--lock",
            "--heartbeat",
            SERIAL,
            "--control",
            SERIAL,
        ];
        assert_eq!(arguments(line), wanted);
        assert!(Settings::try_parse_from(arguments(line)).is_ok());
        let own = "workload.heartbeat=udp:10.0.0.1:9 workload.control=stdin";
        assert_eq!(arguments(own), ["--heartbeat", "udp:10.0.0.1:9", "--control", "stdin"]);
    }
}
