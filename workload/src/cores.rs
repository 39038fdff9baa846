//! All cores at work, or as many threads as this user may start: down to the caller's own.
//!
//! rayon's own pool is all or nothing: where one of its threads cannot be made it panics, and a
//! second attempt is not allowed. So the threads are started here, one by one until the system
//! says no, and the pool is built of those that came.

use std::sync::{OnceLock, mpsc};

use rayon::prelude::*;

/// Who works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crew {
    /// rayon's global pool.
    Pool,
    /// Nobody but the caller.
    Alone,
}

/// `f` of each number below `count`, in order; computed on all cores.
pub fn map<T: Send>(count: u64, f: impl Fn(u64) -> T + Sync + Send) -> Vec<T> {
    match crew() {
        Crew::Pool => (0..count).into_par_iter().map(f).collect(),
        Crew::Alone => (0..count).map(f).collect(),
    }
}

/// How many threads [`map`] works with.
pub fn threads() -> usize {
    match crew() {
        Crew::Pool => rayon::current_num_threads(),
        Crew::Alone => 1,
    }
}

fn crew() -> Crew {
    static CREW: OnceLock<Crew> = OnceLock::new();
    // Whoever runs inside a pool of their own choice stays there.
    match rayon::current_thread_index() {
        Some(_) => Crew::Pool,
        None => {
            *CREW.get_or_init(|| hire(std::thread::available_parallelism().map_or(1, Into::into)))
        }
    }
}

/// Starts up to `wanted` threads and makes them rayon's global pool.
fn hire(wanted: usize) -> Crew {
    let hire = |number| {
        let (hand_over, job) = mpsc::channel::<rayon::ThreadBuilder>();
        let wait = move || job.recv().map_or((), rayon::ThreadBuilder::run);
        let thread = std::thread::Builder::new().name(format!("core-{number}")).spawn(wait);
        thread.ok().map(|_| hand_over)
    };
    let mut crew: Vec<_> = (0..wanted).map_while(hire).collect();
    if crew.is_empty() {
        return Crew::Alone;
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(crew.len()).spawn_handler(|thread| {
        let gone = || std::io::Error::from(std::io::ErrorKind::WouldBlock);
        crew.pop().ok_or_else(gone)?.send(thread).map_err(|_| gone())
    });
    // The one other reason to fail is that the program has built its pool before: then that is it.
    let _ = pool.build_global();
    Crew::Pool
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_kept() {
        assert_eq!(map(1000, |i| i * i), (0..1000).map(|i| i * i).collect::<Vec<_>>());
        assert!(threads() >= 1);
        assert_eq!(hire(0), Crew::Alone);
    }
}
