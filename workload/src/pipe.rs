//! Named pipes that commands come in by.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;

/// Opens a pipe, made for this user alone if nothing is there: both ways, so that it is not at its end
/// when one writer leaves.
///
/// # Errors
/// It cannot be made or opened.
pub fn open(path: &Path) -> io::Result<File> {
    match mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    File::options().read(true).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_pipe_is_made_once_and_outlives_its_writers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("commands");
        let mut reader = open(&path).unwrap();
        for word in ["pause\n", "scan\n"] {
            File::options().write(true).open(&path).unwrap().write_all(word.as_bytes()).unwrap();
            let mut line = vec![0; word.len()];
            reader.read_exact(&mut line).unwrap();
            assert_eq!(line, word.as_bytes());
        }
        assert!(open(&path).is_ok(), "one that is there is taken");
        assert!(open(Path::new("/nonexistent/commands")).is_err());
    }
}
