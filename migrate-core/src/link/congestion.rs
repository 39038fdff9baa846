//! Which of the kernel's congestion controls is asked for.
//!
//! A control that paces, such as BBR, lets a timer release packet after packet. Where a timer costs
//! a microsecond or more, as in most virtual machines, a fast link is then idle half of the time
//! while both processors set timers; so by default a control that does not pace is asked for,
//! whatever the system's is.

use std::str::FromStr;

use socket2::{Domain, Socket, Type};

/// Controls that do not pace, in order of preference.
const UNPACED: [&str; 2] = ["cubic", "reno"];
/// Longest name that the kernel takes.
const NAME_BYTES_MAX: usize = 15;

/// The congestion control of the connections that this side opens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// One that does not pace, if the kernel has it and lets us; otherwise the system's.
    #[default]
    Auto,
    /// The system's.
    System,
    /// This one, as the kernel calls it.
    Named(String),
}

impl FromStr for Congestion {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        match text {
            "auto" => Ok(Self::Auto),
            "system" => Ok(Self::System),
            name if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(of_a_name) => {
                Ok(Self::Named(name.to_owned()))
            }
            _ => Err("auto, system, or a name such as cubic or bbr".to_owned()),
        }
    }
}

/// The control in force, as the kernel calls it.
pub(super) fn in_force(socket: &Socket) -> std::io::Result<String> {
    let name = socket.tcp_congestion()?;
    Ok(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned())
}

impl Congestion {
    /// Whether this system has it and lets us use it.
    ///
    /// # Errors
    /// It does not; the message names what it has.
    pub fn check(&self) -> std::io::Result<()> {
        self.set(&Socket::new(Domain::IPV4, Type::STREAM, None)?)
    }

    /// Asks for it; of a socket that is not connected yet, because what has once begun to pace goes
    /// on pacing.
    pub(super) fn set(&self, socket: &Socket) -> std::io::Result<()> {
        match self {
            Self::System => Ok(()),
            Self::Auto => {
                UNPACED.iter().any(|name| socket.set_tcp_congestion(name.as_bytes()).is_ok());
                Ok(())
            }
            Self::Named(name) => socket.set_tcp_congestion(name.as_bytes()).map_err(|e| {
                let known = "/proc/sys/net/ipv4/tcp_available_congestion_control";
                let known = std::fs::read_to_string(known).unwrap_or_default();
                let why = format!("no congestion control '{name}' ({e}); here are: {known}");
                std::io::Error::new(e.kind(), why.trim_end().to_owned())
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_gets_what_was_asked_for() {
        let set = |congestion: Congestion| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let result = congestion.set(&socket);
            result.and_then(|()| in_force(&socket))
        };
        let system = set(Congestion::System).unwrap();
        // What the kernel does not allow is not an error of the default.
        let default = set(Congestion::Auto).unwrap();
        assert!(default == system || UNPACED.contains(&&*default), "{default}");
        assert_eq!(set("reno".parse().unwrap()).unwrap(), "reno");
        let error = set("nosuch".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("'nosuch'") && error.contains("reno"), "{error}");
        for name in ["", "a name of more bytes", "two words"] {
            assert!(name.parse::<Congestion>().is_err(), "{name}");
        }
    }
}
