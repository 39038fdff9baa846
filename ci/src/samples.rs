//! Workloads that the lab tries: every pattern that needs no file, with settings that suit a few
//! megabytes, and every content.

/// Patterns; records and contents are added.
pub(crate) const PATTERNS: [&str; 10] = [
    "stream",
    "stream-index,every=3",
    "uniform",
    "iid",
    "zipf,theta=0.9",
    "hotset",
    "touch",
    "fileio,file=256KiB,run=64KiB",
    "iometer,reads=0.4",
    "phases,of=stream*500+zipf*300",
];

/// Contents; `delta` asks for records of whole pages.
pub(crate) const CONTENTS: [&str; 6] =
    ["random", "text", "sparse", "zero-flip", "delta:5", "random*2+zero-flip*1+text*1"];
