//! What fuzzing found worth keeping (ci/fuzz), through every parser once more.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::{Duration, Instant};

#[path = "../fuzz/parsers.rs"]
#[allow(unreachable_pub, reason = "the fuzzer's targets use it as well")]
mod parsers;

#[test]
fn no_parser_stumbles_over_the_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, parse) in parsers::ALL {
        let files = std::fs::read_dir(corpus.join(name)).unwrap();
        let mut inputs = 0;
        for file in files {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            let begin = Instant::now();
            parse(&bytes);
            // Each cut of it as well, where that is quick.
            (0..bytes.len().min(200)).for_each(|end| parse(&bytes[..end]));
            assert!(begin.elapsed() < Duration::from_secs(30), "{name}: it takes too long");
            inputs += 1;
        }
        assert!(inputs > 2, "{name}: {inputs} inputs");
        println!("{name}: {inputs} inputs");
    }
}
