//! Who writes a session holds a lock on one byte of its file, by the session's name: a session without
//! an end that nobody holds was cut off.

use std::fs::File;

use super::session::SessionId;

/// Takes the lock of a session, for as long as `file` is open. Where a file system has no locks the
/// session is taken for cut off until it ends.
pub fn hold(file: &File, session: SessionId) {
    let _ = sys::lock(file, u64::from(session.0));
}

/// Whether somebody holds the lock of a session.
pub fn is_held(file: &File, session: SessionId) -> bool {
    sys::is_locked(file, u64::from(session.0))
}

mod sys {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    fn byte(kind: libc::c_int, at: u64) -> libc::flock {
        // SAFETY: plain numbers, of which zero is one.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        lock.l_start = at as libc::off_t;
        lock.l_len = 1;
        lock
    }

    pub(super) fn lock(file: &File, at: u64) -> std::io::Result<()> {
        let lock = byte(libc::F_WRLCK, at);
        // SAFETY: an open file and a lock that lives through the call.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    pub(super) fn is_locked(file: &File, at: u64) -> bool {
        let mut lock = byte(libc::F_RDLCK, at);
        // SAFETY: an open file and a lock that lives through the call.
        let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
        asked == 0 && lock.l_type != libc::F_UNLCK as libc::c_short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_holder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let holder = File::options().append(true).open(file.path()).unwrap();
        let (one, other) = (SessionId(u32::MAX), SessionId(0));
        hold(&holder, one);
        let looked = File::open(file.path()).unwrap();
        assert_eq!((is_held(&looked, one), is_held(&looked, other)), (true, false));
        drop(holder);
        assert!(!is_held(&looked, one));
    }
}
