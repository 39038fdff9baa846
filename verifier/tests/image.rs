//! `verifier image`: a guest proven by its physical memory alone, whatever order its pages are in.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore, SeedableRng};
use support::{Files, files, files_of, told};
use workload::run::RunId;

const PAGE: usize = 4096;

/// Physical memory: the region's pages at random places among other pages.
struct Memory {
    files: Files,
    bytes: Vec<u8>,
    /// Place by page of the region.
    places: HashMap<usize, usize>,
}

fn memory(files: Files, seed: u64) -> Memory {
    let random = &mut SmallRng::seed_from_u64(seed);
    let region = std::fs::read(&files.region).unwrap();
    let mut owners: Vec<Option<usize>> = (0..region.len() / PAGE).map(Some).collect();
    owners.extend([None; 300]);
    owners.shuffle(random);
    let mut bytes = vec![0; owners.len() * PAGE];
    let mut places = HashMap::new();
    for (place, owner) in owners.iter().enumerate() {
        let page = &mut bytes[place * PAGE..][..PAGE];
        match owner {
            Some(owner) => {
                page.copy_from_slice(&region[owner * PAGE..][..PAGE]);
                places.insert(*owner, place);
            }
            None if random.random() => random.fill_bytes(page),
            None => {}
        }
    }
    Memory { files, bytes, places }
}

impl Memory {
    fn page(&mut self, page: usize) -> &mut [u8] {
        &mut self.bytes[self.places[&page] * PAGE..][..PAGE]
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.files.directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn judge(&self, more: &[&str]) -> (Option<i32>, String) {
        let image = self.write("image", &self.bytes);
        judge(&image, &self.files.journal, more)
    }
}

fn judge(image: &Path, journal: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_verifier"));
    told(command.arg("image").arg(image).arg("--journal").arg(journal).args(more).output().unwrap())
}

#[test]
fn shuffled_memory_is_proven_page_by_page() {
    let memory = memory(files(), 1);
    let (code, text) = memory.judge(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("PROVEN: 256 of 256 pages"), "{text}");
}

#[test]
fn what_is_lost_aged_or_torn_is_named_with_its_place() {
    let older = std::fs::read(&files_of("stream", RunId(9), 60).region).unwrap();
    let physical = |memory: &Memory, page: usize| format!("{:#x}", memory.places[&page] * PAGE);

    let mut dropped = memory(files(), 2);
    dropped.page(77).fill(0xEE);
    let (code, text) = dropped.judge(&[]);
    assert_eq!(
        (code, text.contains("page 77 (region 0x4d000): MISSING")),
        (Some(1), true),
        "{text}"
    );

    let mut aged = memory(files(), 3);
    aged.page(130).copy_from_slice(&older[130 * PAGE..][..PAGE]);
    let (code, text) = aged.judge(&[]);
    let place = physical(&aged, 130);
    assert_eq!(code, Some(1));
    assert!(text.contains("STALE (1 behind)") && text.contains(&place), "{place}: {text}");

    let mut torn = memory(files(), 4);
    torn.page(5)[..PAGE / 2].copy_from_slice(&older[5 * PAGE..][..PAGE / 2]);
    let (code, text) = torn.judge(&[]);
    assert_eq!((code, text.contains("TORN")), (Some(1), true), "{text}");

    let mut flipped = memory(files(), 5);
    flipped.page(9)[100] ^= 4;
    let (code, text) = flipped.judge(&["--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, Some(1));
    assert_eq!(report["faults"]["extents"][0]["first_wrong_byte"], 9 * PAGE + 100);
    assert_eq!(report["faults"]["extents"][0]["class"], "bit-flip");
}

/// Where a page should be its neighbours say, or a map; what stands there instead is said.
#[test]
fn what_stands_in_place_of_a_missing_page_is_named() {
    let (ours, theirs) = (files(), files_of("stream", RunId(10), 60));
    let mut bytes = std::fs::read(&ours.region).unwrap();
    let other = std::fs::read(&theirs.region).unwrap();
    let put = |bytes: &mut Vec<u8>, page: usize, what: &[u8]| {
        bytes[page * PAGE..][..PAGE].copy_from_slice(what);
    };
    put(&mut bytes, 40, &[0; PAGE]);
    put(&mut bytes, 80, &other[10 * PAGE..][..PAGE]);
    put(&mut bytes, 81, &other[11 * PAGE..][..PAGE]);
    put(&mut bytes, 120, &[0xEE; PAGE]);
    let own = bytes[5 * PAGE..][..PAGE].to_vec();
    put(&mut bytes, 160, &own);
    bytes.truncate(255 * PAGE);
    let image = ours.directory.path().join("image");
    std::fs::write(&image, bytes).unwrap();
    let (code, text) =
        judge(&image, &ours.journal, &["--journal", theirs.journal.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{text}");
    for said in [
        "page 40 (region 0x28000): MISSING; guest-physical 0x28000 holds zeros",
        "pages 80 to 81 (region 0x50000): MISSING; guest-physical 0x50000 holds page 10 of run \
         000000000000000a and those that follow",
        "page 120 (region 0x78000): MISSING; guest-physical 0x78000 holds bytes that are no line",
        "page 160 (region 0xa0000): MISSING; guest-physical 0xa0000 holds page 5",
        "page 255 (region 0xff000): MISSING; guest-physical 0xff000 holds nothing: the image has no",
        "missing pages have in common: all start and end at multiples of 4096 bytes",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    // Whose page it is only their journal says.
    let (_, text) = judge(&image, &ours.journal, &["--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["missing"][1]["holds"]["what"], "other-run");
    assert_eq!(report["missing"][1]["holds"]["run"], serde_json::Value::Null);
}

/// In a shuffled image a swap is one more shuffle, unless the places are known.
#[test]
fn swapped_pages_are_named_against_a_map() {
    let mut memory = memory(files(), 6);
    let map = memory.files.directory.path().join("map").to_str().unwrap().to_owned();
    assert_eq!(memory.judge(&["--write-map", &map]).0, Some(0));
    assert_eq!(memory.judge(&["--map", &map]).0, Some(0));
    let (a, b) = (memory.page(20).to_vec(), memory.page(200).to_vec());
    memory.page(20).copy_from_slice(&b);
    memory.page(200).copy_from_slice(&a);
    let (code, text) = memory.judge(&["--map", &map]);
    assert_eq!(code, Some(1), "{text}");
    for page in [20, 200] {
        let was = memory.places[&page] * PAGE;
        let named = text.lines().any(|line| {
            line.starts_with(&format!("page {page} "))
                && line.contains("MISPLACED")
                && line.contains(&format!("was at {was:#x}"))
        });
        assert!(named, "{text}");
    }
    std::fs::write(&map, "{}").unwrap();
    assert_eq!(memory.judge(&["--map", &map]).0, Some(2));
}

#[test]
fn in_an_ordered_image_a_page_out_of_order_stands_out() {
    let files = files();
    let mut bytes = std::fs::read(&files.region).unwrap();
    let page = bytes[50 * PAGE..][..PAGE].to_vec();
    bytes.copy_within(150 * PAGE..151 * PAGE, 50 * PAGE);
    bytes[150 * PAGE..][..PAGE].copy_from_slice(&page);
    let image = files.directory.path().join("image");
    std::fs::write(&image, bytes).unwrap();
    let (code, text) = judge(&image, &files.journal, &[]);
    assert!(text.contains("page 50 ") && text.contains("page 150 "), "{text}");
    assert_eq!((code, text.contains("lie at each other's places")), (Some(4), true), "{text}");
    // Who says that they were there before knows it.
    let map = files.directory.path().join("map").to_str().unwrap().to_owned();
    judge(&image, &files.journal, &["--write-map", &map]);
    let (code, text) = judge(&image, &files.journal, &["--map", &map]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn older_copies_in_freed_memory_are_no_fault_and_a_second_run_is_bad_input() {
    let older = std::fs::read(&files_of("stream", RunId(9), 60).region).unwrap();
    let mut memory = memory(files(), 7);
    memory.bytes.extend(&older[30 * PAGE..40 * PAGE]);
    let (code, text) = memory.judge(&[]);
    assert_eq!((code, text.contains("10 older copies")), (Some(0), true), "{text}");
    // C19: of an earlier, longer life of the guest, with the same seed.
    let life = std::fs::read(&files_of("stream", RunId(8), 400).region).unwrap();
    memory.bytes.extend(&life[30 * PAGE..40 * PAGE]);
    let (code, text) = memory.judge(&[]);
    assert_eq!((code, text.contains("10 older copies")), (Some(0), true), "{text}");
    memory.bytes.extend(&older);
    let (code, text) = memory.judge(&[]);
    assert_eq!((code, text.contains("two runs of the same seed")), (Some(2), true), "{text}");
}

#[test]
fn elf_cores_are_read_by_their_program_headers() {
    let memory = memory(files(), 8);
    // Two segments, the second of which starts at 4 GiB, and neither at a page of the file.
    let half = memory.bytes.len() / PAGE / 2 * PAGE;
    let start = 64 + 2 * 56 + 13;
    let mut elf = vec![0; start];
    elf[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &4u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    let segments = [(start, 0u64, half), (start + half, 4 << 30, memory.bytes.len() - half)];
    for (i, (offset, physical, length)) in segments.into_iter().enumerate() {
        let at = 64 + i * 56;
        put(at, &1u32.to_le_bytes());
        put(at + 8, &(offset as u64).to_le_bytes());
        put(at + 24, &physical.to_le_bytes());
        put(at + 32, &(length as u64).to_le_bytes());
        put(at + 40, &(length as u64).to_le_bytes());
    }
    elf.extend(&memory.bytes);
    let image = memory.write("core", &elf);
    let map = memory.files.directory.path().join("map").to_str().unwrap().to_owned();
    let (code, text) = judge(&image, &memory.files.journal, &["--write-map", &map]);
    assert_eq!(code, Some(0), "{text}");
    let map: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&map).unwrap()).unwrap();
    for (page, place) in &memory.places {
        let offset = place * PAGE;
        let physical = if offset < half { offset } else { offset - half + (4 << 30) };
        assert_eq!(map["places"][*page], physical);
    }
    let image = memory.write("cut", &elf[..elf.len() - PAGE]);
    let (code, text) = judge(&image, &memory.files.journal, &[]);
    assert_eq!((code, text.contains("is cut")), (Some(2), true), "{text}");
}

#[test]
fn what_is_no_image_of_this_guest_is_refused() {
    let memory = memory(files(), 9);
    let refused = |bytes: &[u8], says: &str| {
        let image = memory.write("bad", bytes);
        let (code, text) = judge(&image, &memory.files.journal, &[]);
        assert_eq!((code, text.contains(says)), (Some(2), true), "{text}");
    };
    refused(&memory.bytes[..5000], "not of whole pages");
    refused(b"", "not of whole pages");
    refused(b"KDUMP   rest", "without -z");
    refused(b"\x7fELF", "damaged");
    refused(b"QEVM\0\0\0\x03", "dump-guest-memory");
    refused(b"LibvirtQemudSave", "virsh dump --memory-only");
    refused(b"EMiL\x01\0\0\0", "format=raw");
    refused(&[0x1f, 0x8b, 8, 0], "gunzip");
    refused(&[0x28, 0xb5, 0x2f, 0xfd], "unzstd");
    refused(b"\x7fELF\x01\x01\x01", "32-bit");
    assert_eq!(judge(Path::new("/nonexistent"), &memory.files.journal, &[]).0, Some(2));
    // B47: a pipe, or a directory, is no image, and nobody waits for it.
    let pipe = memory.files.directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [&pipe, memory.files.directory.path()] {
        let (code, text) = judge(path, &memory.files.journal, &[]);
        assert_eq!((code, text.contains("no regular file")), (Some(2), true), "{text}");
    }
}

/// B50: memory without a page of the run proves nothing, unless a map says where they were.
#[test]
fn an_image_without_a_page_of_the_run_is_inconclusive_or_wrong() {
    let memory = memory(files(), 10);
    let map = memory.files.directory.path().join("map");
    let (code, text) = memory.judge(&["--write-map", map.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    let zero = memory.write("zero", &vec![0; 1 << 21]);
    let (code, text) = judge(&zero, &memory.files.journal, &[]);
    assert_eq!((code, text.contains("memory of another guest?")), (Some(4), true), "{text}");
    let (code, text) = judge(&zero, &memory.files.journal, &["--map", map.to_str().unwrap()]);
    assert_eq!((code, text.contains("MISSING")), (Some(1), true), "{text}");
}

/// C17: holes are not looked at, and so are not filled.
#[test]
fn a_sparse_image_stays_sparse() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let memory = memory(files(), 11);
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = shm.path().join("ram");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(8 << 30).unwrap();
    // Between holes, and at an address that is a multiple of nothing but a page.
    file.write_all_at(&memory.bytes, (5 << 30) + 4096).unwrap();
    let before = file.metadata().unwrap().blocks();
    let start = std::time::Instant::now();
    let (code, text) = judge(&path, &memory.files.journal, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("in an image of 8 GiB"), "{text}");
    assert_eq!(file.metadata().unwrap().blocks(), before, "in {:?}", start.elapsed());
}

/// C26: a dump of virtual memory holds pages twice, as they are mapped twice.
#[test]
fn equal_copies_are_judged_once() {
    let memory = memory(files(), 12);
    let twice = memory.write("twice", &[&memory.bytes[..], &memory.bytes[..]].concat());
    let (code, text) = judge(&twice, &memory.files.journal, &[]);
    assert_eq!(code, Some(0), "{text}");
}

/// C27: a file that somebody cuts while it is looked at is told, and no death by a signal.
#[test]
fn a_file_that_is_cut_while_it_is_looked_at_is_told() {
    let memory = memory(files(), 13);
    let many = memory.bytes.repeat(150);
    for delay_ms in [50, 30, 20, 14, 10, 7, 5, 3] {
        let image = memory.write("large", &many);
        let mut command = Command::new(env!("CARGO_BIN_EXE_verifier"));
        command.arg("image").arg(&image).arg("--journal").arg(&memory.files.journal);
        let child = command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        std::fs::File::options().write(true).open(&image).unwrap().set_len(0).unwrap();
        let (code, text) = told(child.wait_with_output().unwrap());
        assert!(code.is_some(), "it died of a signal: {text}");
        if text.contains("was cut by somebody else") {
            assert_eq!(code, Some(2), "{text}");
            return;
        }
    }
    panic!("it was always sooner done than the file was cut");
}
