//! The initramfs of a test VM: our static programs, `workload` as /init, and nothing else.
//!
//! The archive is cpio in the "newc" format (Documentation/driver-api/early-userspace/
//! buffer-format.rst of the kernel).

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CONSOLE: u32 = 0o020_600;

/// Writes an initramfs with the static programs of `programs`.
pub(crate) fn write(path: &Path, programs: &Path) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut archive = Archive { out: BufWriter::new(file), inode: 0, written: 0 };
    for directory in ["dev", "proc", "sys", "tmp"] {
        archive.entry(directory, DIRECTORY, (0, 0), &[])?;
    }
    // Before /dev is mounted, init's output goes to the console of the archive.
    archive.entry("dev/console", CONSOLE, (5, 1), &[])?;
    for (name, program) in [("init", "workload"), ("verifier", "verifier")] {
        let program = programs.join(program);
        let bytes = std::fs::read(&program).with_context(|| {
            format!("cannot read {}; build the static programs with ci/static", program.display())
        })?;
        archive.entry(name, PROGRAM, (0, 0), &bytes)?;
    }
    archive.entry("TRAILER!!!", 0, (0, 0), &[])?;
    archive.out.flush().with_context(|| format!("cannot write {}", path.display()))
}

struct Archive {
    out: BufWriter<File>,
    inode: u32,
    written: usize,
}

impl Archive {
    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        (major, minor): (u32, u32),
        content: &[u8],
    ) -> std::io::Result<()> {
        self.inode += 1;
        let links = 1;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            content.len() as u32,
            0,
            0,
            major,
            minor,
            name.len() as u32 + 1,
            0,
        ];
        let mut header = "070701".to_owned();
        fields.iter().for_each(|field| header.push_str(&format!("{field:08x}")));
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(content)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    fn align(&mut self) -> std::io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 4][..missing])
    }
}
