//! What people are told about the patterns: what each is, when to choose it, its settings.

use crate::units::Bytes;

/// What people are told about a pattern.
#[derive(Debug)]
pub struct Info {
    /// Its name.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// What it is like, and when to choose it.
    pub choose: &'static str,
    /// Record where none is given.
    pub record: Bytes,
    /// Settings beside `record`, `content`, `on` and `off`: name, default, meaning.
    pub settings: &'static [(&'static str, &'static str, &'static str)],
}

/// Every pattern.
pub const PATTERNS: [Info; 11] = [
    Info {
        name: "stream",
        summary: "a ring of records, one after the other (streaming data)",
        choose: "Real-time records filling memory: no page repeats before the ring is round, so\n\
                 every page sent is sent again once per turn. The workload of the white paper.",
        record: Bytes(4096),
        settings: &[],
    },
    Info {
        name: "stream-index",
        summary: "a ring, and a hot header page written after every few records",
        choose: "A log or queue with its head pointer: a stream, and one page per writer that is\n\
                 dirty at every look.",
        record: Bytes(4096),
        settings: &[("every", "8", "records between two header writes")],
    },
    Info {
        name: "uniform",
        summary: "every slot once per epoch, in a fresh random order",
        choose: "The hardest case for guesses about locality: nothing repeats until all was\n\
                 written, and the order never repeats. Proves in closed form at any size.",
        record: Bytes(4096),
        settings: &[],
    },
    Info {
        name: "iid",
        summary: "any slot at any time: uniform draws with replacement",
        choose: "The textbook model behind most pre-copy formulas: U(t) = N(1 - exp(-rt/N)).",
        record: Bytes(4096),
        settings: &[],
    },
    Info {
        name: "zipf",
        summary: "few slots often, many rarely, by Zipf's law",
        choose: "Caches and key-value stores. Hot pages are dirty at every look; what leaves them\n\
                 for the stun wins much here.",
        record: Bytes(4096),
        settings: &[("theta", "0.99", "exponent of the law, above 0 and up to 5")],
    },
    Info {
        name: "hotset",
        summary: "a share p of the writes to a share f of the slots",
        choose: "The writable working set of a busy server: small, hot, and stable.",
        record: Bytes(4096),
        settings: &[
            ("p", "0.9", "share of the writes that go to the hot set"),
            ("f", "0.1", "share of the slots that are hot"),
        ],
    },
    Info {
        name: "touch",
        summary: "one line in each page: the most dirty pages per byte",
        choose: "The worst case for trackers: each 64 bytes written dirty another 4 KiB. Rates are\n\
                 best given in pages/s.",
        record: Bytes(64),
        settings: &[],
    },
    Info {
        name: "fileio",
        summary: "files in a page cache: long runs inside randomly chosen files",
        choose: "A file server or a database: sequential inside a file, random between files.",
        record: Bytes(4096),
        settings: &[
            ("file", "16MiB", "size of a file (a share smaller than that is one file)"),
            ("run", "1MiB", "bytes written before another file is taken"),
        ],
    },
    Info {
        name: "iometer",
        summary: "random 8 KiB records, 67 % of the operations read and check",
        choose: "The classic storage mix. Reads are compared with what the record must hold, so a\n\
                 guest notices corruption by itself, as an application would.",
        record: Bytes(8192),
        settings: &[("reads", "0.67", "share of the operations that read")],
    },
    Info {
        name: "phases",
        summary: "one pattern after the other, by operation count",
        choose: "Behaviour that changes during a migration, which a policy must notice.\n\
                 of=PATTERN[:setting=value]*OPERATIONS+...",
        record: Bytes(4096),
        settings: &[("of", "stream*20000+hotset:p=0.9:f=0.1*60000", "the phases, in order")],
    },
    Info {
        name: "trace",
        summary: "replay of recorded dirty bitmaps",
        choose: "Your own VM's behaviour: record with `workload run --record-trace FILE`, or\n\
                 convert a hypervisor's dirty bitmaps with `workload trace`. The region must have\n\
                 the trace's number of pages.",
        record: Bytes(4096),
        settings: &[("file", "", "the trace file (needed)")],
    },
];

/// What is told about the pattern of that name.
pub fn info(name: &str) -> Option<&'static Info> {
    PATTERNS.iter().find(|info| info.name == name)
}
