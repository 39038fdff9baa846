//! The state directory: private to its user, because whoever can write in it decides where guests
//! run.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::Error;

/// Bits of a mode that let somebody else write.
const OTHERS_WRITE: u32 = 0o022;

/// A directory of which it was seen that it is this user's alone.
#[derive(Clone, Debug)]
pub struct StateDirectory {
    path: PathBuf,
}

impl StateDirectory {
    /// Where it is if nobody says otherwise: /var/lib/vmigrate for root, else `vmigrate` in the XDG
    /// state directory.
    pub fn default_path() -> PathBuf {
        let home = |name, rest: &str| {
            let value = std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute())?;
            Some(value.join(rest))
        };
        if rustix::process::geteuid().is_root() {
            return PathBuf::from("/var/lib/vmigrate");
        }
        home("XDG_STATE_HOME", "vmigrate")
            .or_else(|| home("HOME", ".local/state/vmigrate"))
            .unwrap_or_else(|| {
                let user = rustix::process::geteuid().as_raw();
                std::env::temp_dir().join(format!("vmigrate-{user}"))
            })
    }

    /// Makes the directory if it is missing, and looks at whose it is.
    ///
    /// # Errors
    /// It cannot be made or written, is another user's, or others can write in it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |why: String| Error::StateDirectory { path: path.to_owned(), why };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| failed(e.to_string()))?;
        let meta = std::fs::symlink_metadata(path).map_err(|e| failed(e.to_string()))?;
        if !meta.is_dir() {
            return Err(failed("it is no directory, or a link to one".to_owned()));
        }
        let user = rustix::process::geteuid().as_raw();
        if meta.uid() != user {
            return Err(failed(format!("it belongs to user {}, not to {user}", meta.uid())));
        }
        if meta.mode() & OTHERS_WRITE != 0 {
            return Err(failed(format!(
                "others can write in it (mode {:o}); `chmod 700` it if its contents are yours",
                meta.mode() & 0o7777
            )));
        }
        let writable = rustix::fs::access(path, rustix::fs::Access::WRITE_OK);
        writable.map_err(|e| failed(format!("it cannot be written in: {e}")))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes what was made or removed in it durable.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("state");
        let made = StateDirectory::open(&path).expect("a new one is ours");
        let mode = std::fs::metadata(made.path()).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        for mode in [0o777, 0o770, 0o702] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("ours");
            let refused = StateDirectory::open(&path).expect_err("others can write");
            assert!(refused.to_string().contains("others can write"), "{refused}");
        }
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(StateDirectory::open(&link).is_err());
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        let parent = tempfile::tempdir().expect("a directory");
        // Root gives one away; others have one of root's.
        let (theirs, owner) = match rustix::process::geteuid().is_root() {
            true => (parent.path(), 12345),
            false => (std::path::Path::new("/usr"), 0),
        };
        if owner != 0 {
            std::os::unix::fs::chown(theirs, Some(owner), None).expect("root may");
        }
        let refused = StateDirectory::open(theirs).expect_err("it is not ours");
        assert!(refused.to_string().contains(&format!("user {owner}")), "{refused}");
    }
}
