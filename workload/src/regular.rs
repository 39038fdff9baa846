//! Files that are files: a pipe would keep its reader waiting for the other end, a device for ever.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a regular file for reading; it, and its size.
///
/// # Errors
/// It cannot be opened, or is a directory, a pipe, a device or a socket, which the error says.
pub fn open(path: &Path) -> Result<(File, u64)> {
    // Opening a pipe would wait as well.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok((file, metadata.len())),
        false => Err(Error::new(ErrorKind::InvalidInput, "it is no regular file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        for path in [dir.path(), &pipe, Path::new("/dev/zero")] {
            assert_eq!(open(path).unwrap_err().to_string(), "it is no regular file");
        }
        let file = dir.path().join("file");
        std::fs::write(&file, "four").unwrap();
        assert_eq!(open(&file).unwrap().1, 4);
    }
}
