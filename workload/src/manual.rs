//! Man pages and shell completions, made from what a program says of itself.

use std::io;
use std::path::PathBuf;

use clap::Command;
use clap_complete::Shell;

/// Where they go; what is not named is not made.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example:\n  PROGRAM manual --man /usr/local/share/man/man1 \\\n      \
    --bash /etc/bash_completion.d")]
pub struct Manual {
    /// Man pages, one for each command, in this folder
    #[arg(long, value_name = "DIR")]
    man: Option<PathBuf>,
    /// Completions for bash
    #[arg(long, value_name = "DIR")]
    bash: Option<PathBuf>,
    /// Completions for zsh
    #[arg(long, value_name = "DIR")]
    zsh: Option<PathBuf>,
    /// Completions for fish
    #[arg(long, value_name = "DIR")]
    fish: Option<PathBuf>,
}

impl Manual {
    /// Writes them.
    ///
    /// # Errors
    /// A folder cannot be written, or none was named.
    pub fn write(&self, mut command: Command) -> io::Result<()> {
        if let Some(folder) = &self.man {
            clap_mangen::generate_to(command.clone(), folder)?;
        }
        let name = command.get_name().to_owned();
        let shells =
            [(Shell::Bash, &self.bash), (Shell::Zsh, &self.zsh), (Shell::Fish, &self.fish)];
        for (shell, folder) in shells {
            let Some(folder) = folder else { continue };
            clap_complete::generate_to(shell, &mut command, &name, folder)?;
        }
        if self.man.is_none() && self.bash.is_none() && self.zsh.is_none() && self.fish.is_none() {
            return Err(io::Error::other("name a folder: --man, --bash, --zsh or --fish"));
        }
        Ok(())
    }
}
