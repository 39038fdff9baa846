//! `vmigrate tls-init`: certificates for a first try, and for a lab.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args as ClapArgs;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::ServerName;
use workload::{exit, say};

/// A clock that is slow does not take them for certificates of the future.
const BEFORE: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    vmigrate tls-init tls --host there,10.0.0.2\n  \
    scp -r tls there:/etc/vmigrate/                  (both sides may have the same folder)\n  \
    there$ vmigrate receive --listen 0.0.0.0:7400 --tls-dir /etc/vmigrate/tls\n  \
    here$  vmigrate send --to there:7400 --tls-dir tls\n\n\
    A certification authority of its own and a pair for each side, under the names that libvirt and\n\
    Cloud Hypervisor use as well. Whoever has ca-key.pem can make more: keep it, or delete it.")]
pub(crate) struct Args {
    /// Folder to write them to; made if it is not there. Nothing in it is overwritten
    directory: PathBuf,
    /// Names and addresses by which the destination is called
    #[arg(
        long,
        value_name = "NAME,ADDR",
        value_delimiter = ',',
        default_value = "localhost,127.0.0.1"
    )]
    host: Vec<String>,
    /// For so long they are valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    for host in &args.host {
        if ServerName::try_from(host.as_str()).is_err() {
            anyhow::bail!("--host: '{host}' is neither a name nor an address");
        }
    }
    let days = Duration::from_secs(24 * 60 * 60) * args.days;
    let now = SystemTime::now();
    let certificate = |name: &str, names: Vec<String>| {
        let mut parameters = CertificateParams::new(names)?;
        parameters.not_before = (now - BEFORE).into();
        parameters.not_after = (now + days).into();
        parameters.distinguished_name.push(DnType::CommonName, name);
        Ok::<_, rcgen::Error>(parameters)
    };
    let mut files = Vec::new();
    let ca_key = KeyPair::generate()?;
    let mut ca = certificate("vmigrate authority", vec![])?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    files.push(("ca-cert.pem".to_owned(), ca.self_signed(&ca_key)?.pem()));
    files.push(("ca-key.pem".to_owned(), ca_key.serialize_pem()));
    let issuer = Issuer::new(ca, ca_key);
    for side in ["server", "client"] {
        let (purpose, names) = match side {
            "server" => (ExtendedKeyUsagePurpose::ServerAuth, args.host.clone()),
            _ => (ExtendedKeyUsagePurpose::ClientAuth, vec![]),
        };
        let mut parameters = certificate(&format!("vmigrate {side}"), names)?;
        parameters.extended_key_usages = vec![purpose];
        let key = KeyPair::generate()?;
        files.push((format!("{side}-cert.pem"), parameters.signed_by(&key, &issuer)?.pem()));
        files.push((format!("{side}-key.pem"), key.serialize_pem()));
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.directory)
        .with_context(|| format!("cannot make {}", args.directory.display()))?;
    if let Some((there, _)) = files.iter().find(|(name, _)| args.directory.join(name).exists()) {
        anyhow::bail!(
            "{} is there already, and is not overwritten: name another folder, or move it away",
            args.directory.join(there).display()
        );
    }
    for (name, text) in &files {
        write(&args.directory.join(name), text)?;
    }
    say!(
        "vmigrate: made {} files in {} for {}, valid for {} days; both sides take the folder by --tls-dir",
        files.len(),
        args.directory.display(),
        args.host.join(", "),
        args.days
    );
    Ok(exit::PROVEN)
}

/// Keys are for their owner alone.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let mode = if path.to_string_lossy().ends_with("-key.pem") { 0o600 } else { 0o644 };
    let file = File::options().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}
