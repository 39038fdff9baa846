//! `verifier manifest` and `verifier compare`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use verifier::manifest::Manifest;
use verifier::report::{CompareReport, SCHEMA};
use verifier::verdict::Verdict;
use workload::provenance::Provenance;
use workload::region::Region;
use workload::regular;
use workload::say;
use workload::say::Out;
use workload::units::Bytes;

#[derive(Args)]
#[command(after_help = "Example:\n  verifier manifest region --output region.sha256.json")]
pub(crate) struct ManifestArgs {
    /// Region file, of whole pages
    region: PathBuf,
    /// Write the manifest here instead of to standard output
    #[arg(long)]
    output: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "Example:\n  verifier compare region-at-source.json region-at-destination")]
pub(crate) struct CompareArgs {
    /// Region file or manifest
    left: PathBuf,
    /// Region file or manifest
    right: PathBuf,
    /// Print the differing ranges as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn manifest(args: &ManifestArgs) -> anyhow::Result<Verdict> {
    let manifest = hash(&args.region)?;
    let json = serde_json::to_string_pretty(&manifest)?;
    match &args.output {
        Some(path) => std::fs::write(path, json + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?,
        None => say::document(|out| writeln!(out, "{json}"))?,
    }
    Ok(Verdict::Proven)
}

pub(crate) fn compare(args: &CompareArgs) -> anyhow::Result<Verdict> {
    let (left, right) = (load(&args.left)?, load(&args.right)?);
    let differences = left.differences(&right);
    say::report("verifier", |out| print(args, &left, &right, &differences, out));
    Ok(if differences.is_empty() { Verdict::Proven } else { Verdict::Wrong })
}

fn print(
    args: &CompareArgs,
    left: &Manifest,
    right: &Manifest,
    differences: &[(u64, u64)],
    out: &mut Out,
) -> std::io::Result<()> {
    if args.json {
        let report = CompareReport {
            schema: SCHEMA,
            provenance: Provenance::here("verifier"),
            equal: differences.is_empty(),
            left_root: left.root.clone(),
            right_root: right.root.clone(),
            differences: differences.to_vec(),
        };
        serde_json::to_writer(&mut *out, &report)?;
        writeln!(out)?;
    } else if differences.is_empty() {
        writeln!(
            out,
            "equal: {} in {} leaves, root {}",
            Bytes(left.bytes),
            left.leaves.len(),
            left.root
        )?;
    } else {
        for (start, end) in differences {
            writeln!(out, "different: bytes {start:#x} to {end:#x}")?;
        }
    }
    Ok(())
}

/// A manifest is JSON and starts with a brace; a stamped region practically never does.
fn load(path: &Path) -> anyhow::Result<Manifest> {
    let opening = || format!("cannot open {}", path.display());
    let reading = || format!("cannot read {}", path.display());
    let (mut file, _) = regular::open(path).with_context(opening)?;
    let mut first = [0];
    if file.read(&mut first).with_context(reading)? == 0 || first != *b"{" {
        return hash(path);
    }
    let text = std::fs::read(path).with_context(reading)?;
    match serde_json::from_slice::<Manifest>(&text) {
        Ok(manifest) => {
            let refused = || format!("manifest {} cannot be trusted", path.display());
            manifest.check().with_context(refused)?;
            Ok(manifest)
        }
        // A region may begin with any byte, but hardly be text.
        Err(_) if std::str::from_utf8(&text).is_err() => hash(path),
        Err(error) => Err(error).with_context(|| format!("{} is not a manifest", path.display())),
    }
}

fn hash(path: &Path) -> anyhow::Result<Manifest> {
    let (_, size) =
        regular::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    anyhow::ensure!(
        size > 0 && size % workload::PAGE_BYTES == 0,
        "{} holds {size} bytes, which is not a whole number of 4 KiB pages",
        path.display()
    );
    Ok(Manifest::of(&Region::open(path, Bytes(size))?))
}
