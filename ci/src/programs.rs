//! The programs under test, which are built beside this one.

use std::path::PathBuf;

/// The program of that name.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(
        program.exists(),
        "{} is not built; run `cargo build --release --workspace` first",
        program.display()
    );
    Ok(program)
}
