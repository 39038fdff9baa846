//! Mutual TLS with the certificate files that libvirt and Cloud Hypervisor name:
//! `ca-cert.pem`, `client-cert.pem` and `client-key.pem` on the source, `server-cert.pem` and
//! `server-key.pem` on the destination. Both sides must be signed by the one CA.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use crate::Error;

/// A directory of certificates and keys.
#[derive(Clone, Debug)]
pub struct Identity {
    directory: PathBuf,
}

impl Identity {
    /// Certificates in `directory`; they are read when a connection is made.
    pub fn in_directory(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Reads everything that `role` (`client` or `server`) needs, so that mistakes show early.
    ///
    /// # Errors
    /// Which file is missing or wrong.
    pub fn check(&self, role: &str) -> Result<(), Error> {
        self.roots()?;
        self.pair(role).map(|_| ())
    }

    pub(super) fn connect(&self, peer: SocketAddr) -> Result<rustls::Connection, Error> {
        let (certificates, key) = self.pair("client")?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(certificates, key)
            .map_err(tls)?;
        let name = ServerName::from(peer.ip());
        Ok(ClientConnection::new(Arc::new(config), name).map_err(tls)?.into())
    }

    pub(super) fn accept(&self) -> Result<rustls::Connection, Error> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
                .build()
                .map_err(|e| Error::Tls(e.to_string()))?;
        let (certificates, key) = self.pair("server")?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates, key)
            .map_err(tls)?;
        Ok(ServerConnection::new(Arc::new(config)).map_err(tls)?.into())
    }

    fn roots(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates("ca-cert.pem")? {
            roots.add(certificate).map_err(tls)?;
        }
        Ok(roots)
    }

    fn pair(
        &self,
        role: &str,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let certificates = self.certificates(&format!("{role}-cert.pem"))?;
        let path = self.directory.join(format!("{role}-key.pem"));
        let key = PrivateKeyDer::from_pem_file(&path)
            .map_err(|e| Error::Tls(format!("cannot read key {}: {e}", path.display())))?;
        Ok((certificates, key))
    }

    fn certificates(&self, file: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
        let path = self.directory.join(file);
        let bad = |e: &dyn std::fmt::Display| {
            Error::Tls(format!("cannot read certificate {}: {e}", path.display()))
        };
        let certificates = CertificateDer::pem_file_iter(&path)
            .map_err(|e| bad(&e))?
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| bad(&e))?;
        if certificates.is_empty() {
            return Err(bad(&"it holds none"));
        }
        Ok(certificates)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn tls(error: rustls::Error) -> Error {
    Error::Tls(error.to_string())
}
