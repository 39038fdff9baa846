//! One kernel interface: which pages of our own memory were written since we looked last.
//!
//! userfaultfd write protection in asynchronous mode, with the PAGEMAP_SCAN ioctl. The kernel
//! itself resolves a write fault by marking the page written, so a writer pays one short fault per
//! page and harvest, and no handler thread exists. PAGEMAP_SCAN with WP_MATCHING reports written
//! pages and protects them again, atomically per page. Needs Linux 6.7 and no privilege.
//! Sources: Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst.
//!
//! A leaf crate, because both the guest side (which calibrates its rate against the kernel's own
//! count) and the host side (which tracks a guest's writes) need it, and neither may use the other.

mod sys;

pub use sys::WriteTracker;

/// Bytes in a page, as this interface counts them.
pub const PAGE_BYTES: u64 = 4096;
