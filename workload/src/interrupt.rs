//! Signals: Ctrl-C, SIGTERM and SIGHUP as a count that long-running loops look at, and the limit on
//! file size as an error of the write.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Counts SIGINT, SIGTERM and SIGHUP from now on instead of dying of them. One that was ignored
/// when the program began stays so: `nohup`, and shells without job control, mean it.
///
/// # Errors
/// The system refused.
pub fn install() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        if !sys::is_ignored(signal)? {
            sys::handle(signal)?;
        }
    }
    Ok(())
}

/// Makes a file that grows beyond the limit (`ulimit -f`) an error of the write that would be named,
/// and not the end of the program. For the first line of `main`.
pub fn outlive_file_size_limit() {
    sys::ignore(libc::SIGXFSZ);
}

/// Makes the end of a file that is being looked at, cut off meanwhile by somebody else, the end of this
/// program with a sentence and the exit code for bad input, and not a SIGBUS without a word. For programs
/// that own no guest.
pub fn explain_cut_files() {
    sys::explain_bus_errors();
}

/// How many times the user asked us to stop.
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// Dispositions of signals.
mod sys {
    use std::io;
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::atomic::Ordering;

    use super::COUNT;

    pub(super) fn is_ignored(signal: libc::c_int) -> io::Result<bool> {
        let mut old = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: nothing is changed; the call fills `old`, and only where it succeeds is it read.
        match unsafe { libc::sigaction(signal, ptr::null(), old.as_mut_ptr()) } {
            // SAFETY: filled by the call above.
            0 => Ok(unsafe { old.assume_init() }.sa_sigaction == libc::SIG_IGN),
            _ => Err(io::Error::last_os_error()),
        }
    }

    extern "C" fn counted(_: libc::c_int) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn handle(signal: libc::c_int) -> io::Result<()> {
        let handler: extern "C" fn(libc::c_int) = counted;
        // SAFETY: all-zero is a valid sigaction: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as libc::sighandler_t;
        // Calls that wait go on waiting: loops look at the count by themselves.
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the handler is of the kind without SA_SIGINFO, and does nothing but add to an
        // atomic, which may be done at any moment.
        match unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    extern "C" fn cut(_: libc::c_int) {
        const TEXT: &[u8] =
            b"a file that is being looked at was cut by somebody else: nothing can be said \
of it; look again when it is at rest\n";
        // SAFETY: both calls may be made in a handler; the text is constant.
        unsafe {
            libc::write(libc::STDERR_FILENO, TEXT.as_ptr().cast(), TEXT.len());
            libc::_exit(crate::exit::USAGE.into());
        }
    }

    pub(super) fn explain_bus_errors() {
        let handler: extern "C" fn(libc::c_int) = cut;
        // SAFETY: the handler is of the kind without SA_SIGINFO, makes two calls that may be made at any
        // moment, and does not return to the instruction that failed.
        unsafe { libc::signal(libc::SIGBUS, handler as libc::sighandler_t) };
    }

    pub(super) fn ignore(signal: libc::c_int) {
        // SAFETY: no handler is installed.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
