//! Certificates for a migration between two hosts: one authority, a server's and a client's.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

/// Writes ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem and client-key.pem, the
/// server's good for `addresses`.
pub(crate) fn write(directory: &Path, addresses: &[&str]) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let put = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "vmigrate lab authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    put("ca-cert.pem", &authority.pem())?;
    for (name, usage) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, format!("vmigrate lab {name}"));
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![usage];
        for address in addresses {
            parameters.subject_alt_names.push(SanType::IpAddress(address.parse::<IpAddr>()?));
        }
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &authority)?;
        put(&format!("{name}-cert.pem"), &certificate.pem())?;
        put(&format!("{name}-key.pem"), &key.serialize_pem())?;
    }
    Ok(())
}
