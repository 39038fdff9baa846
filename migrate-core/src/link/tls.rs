//! Mutual TLS with the certificate files that libvirt and Cloud Hypervisor name:
//! `ca-cert.pem`, `client-cert.pem` and `client-key.pem` on the source, `server-cert.pem` and
//! `server-key.pem` on the destination. Both sides must be signed by the one CA.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, InconsistentKeys, RootCertStore, ServerConfig, ServerConnection,
};

use crate::Error;

const CA: &str = "ca-cert.pem";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A directory of certificates and keys.
#[derive(Clone, Debug)]
pub struct Identity {
    directory: PathBuf,
}

/// Which end of a connection, and so which certificate and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connects: the source.
    Client,
    /// Who listens: the destination.
    Server,
}

impl Side {
    fn certificate(self) -> &'static str {
        match self {
            Self::Client => "client-cert.pem",
            Self::Server => "server-cert.pem",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Client => "client-key.pem",
            Self::Server => "server-key.pem",
        }
    }
}

/// How long a certificate is still valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The file that holds it.
    pub file: PathBuf,
    /// From now to its end.
    pub rest: Duration,
}

impl Identity {
    /// Certificates in `directory`; they are read when a connection is made.
    pub fn in_directory(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Reads everything that this side needs and sees whether it can work at `now`, so that mistakes
    /// show before a guest is started or a peer calls; how long each certificate remains valid.
    ///
    /// # Errors
    /// Which file is missing, cannot be used, does not belong to the other, or is out of date.
    pub fn check(&self, side: Side, now: SystemTime) -> Result<Vec<Expiry>, Error> {
        match side {
            Side::Client => self.client_config().map(drop)?,
            Side::Server => self.server_config().map(drop)?,
        }
        // TLS itself takes a certification authority for ever.
        let mut authorities = self.expiries(CA, now);
        // Of a bundle that is being changed over, one that is in date will do.
        if authorities.iter().any(Result::is_ok) {
            authorities.retain(Result::is_ok);
        }
        authorities.into_iter().chain(self.expiries(side.certificate(), now)).collect()
    }

    /// A connection to a peer, whose certificate must be of this name or, without one, of its address.
    pub(super) fn connect(
        &self,
        peer: SocketAddr,
        name: Option<&str>,
    ) -> Result<rustls::Connection, Error> {
        let name = match name {
            Some(name) => ServerName::try_from(name.to_owned()).map_err(|_| {
                Error::Tls(format!("'{name}' is no name that a certificate can have"))
            })?,
            None => ServerName::from(peer.ip()),
        };
        let config = Arc::new(self.client_config()?);
        Ok(ClientConnection::new(config, name).map_err(tls)?.into())
    }

    pub(super) fn accept(&self) -> Result<rustls::Connection, Error> {
        let config = Arc::new(self.server_config()?);
        Ok(ServerConnection::new(config).map_err(tls)?.into())
    }

    fn client_config(&self) -> Result<ClientConfig, Error> {
        Ok(ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_root_certificates(self.roots()?)
            .with_client_cert_resolver(Arc::new(self.pair(Side::Client)?)))
    }

    fn server_config(&self) -> Result<ServerConfig, Error> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
                .build()
                .map_err(|e| Error::Tls(e.to_string()))?;
        Ok(ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(self.pair(Side::Server)?)))
    }

    fn roots(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(CA)? {
            roots.add(certificate).map_err(|e| self.unusable("certificate", CA, &e))?;
        }
        Ok(roots)
    }

    /// A side's certificate and the key that belongs to it.
    fn pair(&self, side: Side) -> Result<SingleCertAndKey, Error> {
        let (certificate, key) = (side.certificate(), side.key());
        let certificates = self.certificates(certificate)?;
        match CertifiedKey::from_der(certificates, self.key(key)?, &provider()) {
            Ok(pair) => Ok(pair.into()),
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                let other = self.directory.join(certificate);
                let why = format!("it does not belong to certificate {}", other.display());
                Err(self.unusable("key", key, &why))
            }
            Err(e) => Err(self.unusable("key", key, &e)),
        }
    }

    fn key(&self, file: &str) -> Result<PrivateKeyDer<'static>, Error> {
        let bad = |e: &dyn std::fmt::Display| self.unusable("key", file, e);
        let pem = std::fs::read(self.directory.join(file)).map_err(|e| bad(&e))?;
        let text = String::from_utf8_lossy(&pem);
        // As PKCS #8 and as OpenSSL before it mark what needs a password.
        if text.contains("BEGIN ENCRYPTED") || text.contains("4,ENCRYPTED") {
            return Err(bad(&"it is encrypted, and nobody is asked for its password here; \
                             `openssl pkey -in FILE -out FILE` decrypts it"));
        }
        PrivateKeyDer::from_pem_slice(&pem).map_err(|e| bad(&e))
    }

    fn certificates(&self, file: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
        let bad = |e: &dyn std::fmt::Display| self.unusable("certificate", file, e);
        let certificates = CertificateDer::pem_file_iter(self.directory.join(file))
            .map_err(|e| bad(&e))?
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| bad(&e))?;
        if certificates.is_empty() {
            return Err(bad(&"it holds none"));
        }
        Ok(certificates)
    }

    /// How long each certificate of a file is valid, or why it is not.
    fn expiries(&self, file: &str, now: SystemTime) -> Vec<Result<Expiry, Error>> {
        let now_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let seconds = |distance_s: i64| Duration::from_secs(distance_s.unsigned_abs());
        let judge = |certificate: CertificateDer<'_>| {
            // What cannot be read here TLS has judged already.
            let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).ok()?;
            let validity = certificate.validity();
            let (begin_s, end_s) =
                (validity.not_before.timestamp(), validity.not_after.timestamp());
            Some(if end_s < now_s {
                let why = format!("it expired {} ago", in_days(seconds(now_s - end_s)));
                Err(self.unusable("certificate", file, &why))
            } else if begin_s > now_s {
                let why =
                    format!("it is not valid for another {}", in_days(seconds(begin_s - now_s)));
                Err(self.unusable("certificate", file, &why))
            } else {
                Ok(Expiry { file: self.directory.join(file), rest: seconds(end_s - now_s) })
            })
        };
        match self.certificates(file) {
            Ok(certificates) => certificates.into_iter().filter_map(judge).collect(),
            Err(error) => vec![Err(error)],
        }
    }

    fn unusable(&self, what: &str, file: &str, why: &dyn std::fmt::Display) -> Error {
        let path = self.directory.join(file);
        Error::Tls(format!("cannot use {what} {}: {why}", path.display()))
    }
}

/// A time in days, as one speaks of certificates.
pub fn in_days(time: Duration) -> String {
    match time.as_secs() / DAY.as_secs() {
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn tls(error: rustls::Error) -> Error {
    Error::Tls(error.to_string())
}
