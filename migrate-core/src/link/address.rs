//! Addresses as people write them: names with all that they stand for, IPv6 with its scope.
//!
//! A name may have several addresses, of which some lead nowhere: whoever connects tries each in
//! turn. What goes over the connection then is not known here.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// HOST:PORT as it was written, and every address that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    text: String,
    /// In the order in which they are tried; at least one, none of them twice.
    addresses: Vec<SocketAddr>,
}

/// The port where none is said.
pub const DEFAULT_PORT: u16 = 7400;

impl HostPort {
    /// The host as it was written: a name, or an address without its brackets.
    pub fn host(&self) -> &str {
        split(&self.text).map_or(self.text.as_str(), |(host, _)| host)
    }

    /// The name that the host's certificate must be of; none for an address of IPv6, which may have a
    /// scope that no certificate has.
    pub fn certified_name(&self) -> Option<String> {
        Some(self.host().to_owned()).filter(|host| !host.contains(':'))
    }

    /// Every address, in the order in which they are tried; at least one.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What `try_one` makes of the first address that it succeeds with.
    ///
    /// # Errors
    /// Each address and why it did not do, in the order in which they were tried.
    pub fn first<T, E>(
        &self,
        mut try_one: impl FnMut(SocketAddr) -> Result<T, E>,
    ) -> Result<T, Vec<(SocketAddr, E)>> {
        let mut failures = Vec::new();
        for address in &self.addresses {
            match try_one(*address) {
                Ok(done) => return Ok(done),
                Err(error) => failures.push((*address, error)),
            }
        }
        Err(failures)
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { text: address.to_string(), addresses: vec![address] }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl FromStr for HostPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut addresses = Vec::new();
        for address in look_up(text)
            .map_err(|why| format!("{why}; use HOST:PORT, or HOST for port {DEFAULT_PORT}"))?
        {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        match addresses.is_empty() {
            true => Err(format!("'{text}' has no address")),
            false => Ok(Self { text: text.to_owned(), addresses }),
        }
    }
}

/// The system is asked for the host without its brackets, because it knows a scope by its name
/// (`fe80::1%eth0`) where the standard library knows but its number.
fn look_up(text: &str) -> Result<impl Iterator<Item = SocketAddr>, String> {
    let (bare, port) = split(text)?;
    let found: io::Result<_> = (bare, port).to_socket_addrs();
    found.map_err(|e| format!("'{text}' is no address ({e})"))
}

/// The host without its brackets, and the port.
fn split(text: &str) -> Result<(&str, u16), String> {
    let bare =
        |host: &'_ str| -> usize { usize::from(host.starts_with('[') && host.ends_with(']')) };
    let (host, port) = match text.rsplit_once(':') {
        // An address of IPv6 in its brackets, or a name.
        _ if bare(text) == 1 => (text, DEFAULT_PORT),
        None if text.bytes().all(|b| b.is_ascii_digit()) => {
            return Err(format!("'{text}' has no host"));
        }
        None => (text, DEFAULT_PORT),
        Some((host, port)) => {
            (host, port.parse().map_err(|_| format!("'{port}' in '{text}' is no port"))?)
        }
    };
    let edge = bare(host);
    Ok((&host[edge..host.len() - edge], port))
}

/// Whether what is sent there stays on this machine.
pub(super) fn is_loopback(ip: IpAddr) -> bool {
    // An IPv4 address may be written as an IPv6 one, and is what a socket for both is called by.
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Result<Vec<String>, String> {
        let endpoint: HostPort = text.parse()?;
        Ok(endpoint.addresses().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_spelling_is_read() {
        for (text, wanted) in [
            ("127.0.0.1:7400", "127.0.0.1:7400"),
            ("[::1]:7400", "[::1]:7400"),
            ("::1:7400", "[::1]:7400"),
            ("[fe80::1%1]:7400", "[fe80::1%1]:7400"),
            ("[fe80::1%lo]:7400", "[fe80::1%1]:7400"),
            ("[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:1"),
            ("127.0.0.1", "127.0.0.1:7400"),
            ("[::1]", "[::1]:7400"),
        ] {
            assert_eq!(addresses(text), Ok(vec![wanted.to_owned()]), "{text}");
        }
        assert!(addresses("localhost:7400").unwrap().contains(&"127.0.0.1:7400".to_owned()));
        for (text, why) in [
            ("7400", "no host"),
            ("", "no host"),
            ("host:", "no port"),
            ("host:99999", "no port"),
            ("[fe80::1%nosuch]:1", "no address"),
        ] {
            let error = addresses(text).unwrap_err();
            assert!(error.contains(why) && error.contains("use HOST:PORT"), "{text}: {error}");
        }
    }

    #[test]
    fn a_host_is_what_was_typed() {
        for (text, host) in
            [("localhost:1", "localhost"), ("localhost", "localhost"), ("[::1]:1", "::1")]
        {
            assert_eq!(text.parse::<HostPort>().unwrap().host(), host);
        }
    }

    #[test]
    fn ipv4_written_as_ipv6_is_what_it_is() {
        for (ip, loopback) in [
            ("127.0.0.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("::ffff:10.0.0.1", false),
            ("fe80::1", false),
        ] {
            assert_eq!(is_loopback(ip.parse().unwrap()), loopback, "{ip}");
        }
    }

    #[test]
    fn the_first_that_works_is_taken() {
        let two = [1, 2].map(|last| SocketAddr::from(([127, 0, 0, last], 1)));
        let endpoint = HostPort { text: "two:1".to_owned(), addresses: two.to_vec() };
        let second = |address| if address == two[1] { Ok(address) } else { Err("closed") };
        assert_eq!(endpoint.first(second), Ok(two[1]));
        let none: Result<(), _> = endpoint.first(|_| Err("closed"));
        assert_eq!(none, Err(vec![(two[0], "closed"), (two[1], "closed")]));
    }
}
