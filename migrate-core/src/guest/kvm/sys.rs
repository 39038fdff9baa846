//! What has to be unsafe: memory that a machine writes, an ioctl, a signal, and code as bytes.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};

use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1,
    kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use workload::region::Region;

/// `_IOWR(KVMIO, 0xc0, struct kvm_clear_dirty_log)`.
const KVM_CLEAR_DIRTY_LOG: libc::c_ulong = 0xC018_AEC0;

/// Whether KVM notes which pages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logging {
    On,
    Off,
}

/// Memory of the machine: a region, and where the guest finds it.
#[derive(Clone, Debug)]
pub(super) struct MemorySlot {
    pub(super) number: u32,
    pub(super) address: u64,
    pub(super) region: Arc<Region>,
}

/// Makes the slot's region memory of the machine, or changes how it is logged.
pub(super) fn map_memory(vm: &VmFd, slot: &MemorySlot, logging: Logging) -> io::Result<()> {
    let slot = kvm_userspace_memory_region {
        slot: slot.number,
        flags: if logging == Logging::On { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
        guest_phys_addr: slot.address,
        memory_size: slot.region.bytes(),
        userspace_addr: slot.region.as_ptr() as u64,
    };
    // SAFETY: the region is mapped for reading and writing, and whoever holds the machine holds the
    // region too. The guest's stores are no Rust memory accesses; the host looks through atomics.
    unsafe { vm.set_user_memory_region(slot) }.map_err(Into::into)
}

/// Clears the pages of `bitmap` from the slot's log, bit 0 being page `first` (a multiple of 64): their
/// next write is noted again.
pub(super) fn clear_log(
    vm: &VmFd,
    slot: u32,
    first: u64,
    pages: u32,
    bitmap: &[u64],
) -> io::Result<()> {
    assert!(bitmap.len() as u64 * 64 >= u64::from(pages), "a bit for every page");
    let mut request = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page: first,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bitmap.as_ptr().cast_mut().cast(),
        },
    };
    loop {
        // SAFETY: the request is the struct that this ioctl takes, its bitmap is as long as it says
        // and is only read.
        let result = unsafe {
            libc::ioctl(vm.as_raw_fd(), KVM_CLEAR_DIRTY_LOG, std::ptr::from_mut(&mut request))
        };
        match result {
            0 => return Ok(()),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}

/// Restores the FPU and vector state of a vCPU.
pub(super) fn set_xsave(vcpu: &VcpuFd, state: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: our vCPUs enable no feature whose state is larger than this struct: that would take a
    // permission (arch_prctl) that this process never asks for.
    unsafe { vcpu.set_xsave(state) }
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn on_kick(_: libc::c_int) {
    // That it came is all: KVM_RUN returns.
}

/// Lets a signal of ours do nothing but end a system call.
pub(super) fn install_kick() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            // SAFETY: all-zero is a valid sigaction; the field that matters is set below. Without
            // SA_RESTART the system call that it interrupts ends.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = on_kick as *const () as usize;
            // SAFETY: the handler does nothing.
            match unsafe { libc::sigaction(kick_signal(), &action, std::ptr::null_mut()) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
            }
        })
        .map_err(io::Error::from_raw_os_error)
}

/// Brings a vCPU's thread, which must not have been joined, out of guest mode.
pub(super) fn kick(thread: libc::pthread_t) {
    // SAFETY: a thread that was not joined has a valid handle, even after its end.
    unsafe { libc::pthread_kill(thread, kick_signal()) };
}

/// The payload's bytes.
pub(super) fn payload() -> &'static [u8] {
    unsafe extern "C" {
        static vmigrate_payload_start: u8;
        static vmigrate_payload_end: u8;
    }
    let (start, end) = (&raw const vmigrate_payload_start, &raw const vmigrate_payload_end);
    // SAFETY: both labels stand in one read-only section, the second behind the first.
    unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
}
