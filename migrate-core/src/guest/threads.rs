//! Threads that this user may not have: an error with what to do, or the caller's own in their place.

use std::thread::Builder;

#[cfg(feature = "builtin")]
use super::GuestError;

/// Starts a thread.
///
/// # Errors
/// The system or this user's limits allow no more.
#[cfg(feature = "builtin")]
pub(super) fn start<T: Send + 'static>(
    name: String,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<std::thread::JoinHandle<T>, GuestError> {
    Builder::new().name(name.clone()).spawn(run).map_err(|e| refused(&name, &e))
}

/// What it means that a thread could not be had.
#[cfg(feature = "builtin")]
pub(super) fn refused(name: &str, error: &std::io::Error) -> GuestError {
    let why = match error.kind() {
        std::io::ErrorKind::WouldBlock => {
            format!("no thread is left for {name}: raise `ulimit -u` (or pids.max) for this user")
        }
        _ => format!("{name}: {error}"),
    };
    GuestError::new("start a thread", why)
}

/// `f` of each part, in order, at the same time; the first on this thread, and those for which no
/// other can be had too.
pub(super) fn map<P: Clone + Send, T: Send>(parts: Vec<P>, f: impl Fn(P) -> T + Sync) -> Vec<T> {
    let f = &f;
    let mut parts = parts.into_iter();
    let Some(first) = parts.next() else { return Vec::new() };
    std::thread::scope(|scope| {
        let start = |part: P| {
            let own = part.clone();
            Builder::new().spawn_scoped(scope, move || f(own)).map_err(|_| part)
        };
        let others: Vec<_> = parts.map(start).collect();
        let first = std::iter::once(f(first));
        let others = others.into_iter().map(|started| match started {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(part) => f(part),
        });
        first.chain(others).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_kept() {
        assert_eq!(map((0..20).collect(), |i| i * i), (0..20).map(|i| i * i).collect::<Vec<_>>());
        assert!(map(Vec::<u8>::new(), |i| i).is_empty());
    }
}
