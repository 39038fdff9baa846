//! The seam between the engine and a hypervisor: three small traits.
//!
//! [`Guest`] is the running VM at the source, [`Shadow`] the VM that will run at the destination,
//! [`DirtyTracker`] tells which pages were written; [`tracker`] has those of this process's own writes.
//! With the feature `builtin` the module `stamped` is a guest whose memory proves itself, run by threads
//! or by KVM. Nothing here knows a policy or a socket.
//!
//! # To embed
//!
//! 1. *Memory* is a [`MemoryView`]: page-aligned, mapped for as long as the view lives, at one place. A
//!    VMM with several slots makes a view of each and [joins](MemoryView::joined) them; pages are numbered
//!    across all of them in that order, at both ends alike.
//! 2. *At the source* implement [`Guest`], open a tracker ([`tracker::open`], or one of your own over KVM's
//!    log), and call [`crate::source::migrate`]. When it returns `Ok` the guest runs at the destination:
//!    what is here stands still for good; drop it, and with it its memory, once the notes are done. On an
//!    error it runs on here, unless that is [`Error::Unresolved`](crate::Error::Unresolved).
//! 3. *At the destination* implement [`Shadow`] and a [`ShadowFactory`], bind an
//!    [`Endpoint`](crate::link::endpoint::Endpoint), and call [`crate::destination::receive`]. It returns
//!    when the guest runs; the shadow is then the VM.
//! 4. *The next hop.* A shadow that arrived is no `Guest` until you make it one: one type may be both, as
//!    in `examples/embed.rs`. Give the next migration an epoch of one more than the one that arrived
//!    ([`SourceSettings::epoch`](crate::source::SourceSettings::epoch)), and say
//!    [`gone_on`](crate::source::Notes::gone_on) once it is over, so that a source that asks late hears the truth.
//!
//! Calls come one at a time, from the thread that called `migrate` or `receive`, but for
//! [`ShadowFactory::create`], [`Shadow::load_state`], [`Shadow::inspect`] and [`Shadow::prepare`], which run
//! beside it, so that signs of life go out meanwhile. In the order of a migration: `vcpus`, `memory`,
//! `description`; tracker `start`; tracker `harvest`, `written` and `throttle` again and again; then
//! `pause`, one more harvest, `save_state`, and `resume` if it does not come to a handover.
//!
//! ```
//! use std::sync::Arc;
//! use migrate_core::guest::MemoryView;
//! use migrate_core::memory::PageNumber;
//!
//! #[repr(align(4096))]
//! struct Pages([u8; 3 * 4096]);
//!
//! // Two slots of a VM: three pages, and behind a hole three more.
//! let slot = || {
//!     let memory = Arc::new(Pages([0; 3 * 4096]));
//!     // SAFETY: aligned, as long as it says, kept by the view, and written by nobody else here.
//!     unsafe { MemoryView::new(memory.0.as_ptr().cast_mut(), 3, memory.clone()) }
//! };
//! let memory = MemoryView::joined([slot(), slot()]);
//! assert_eq!((memory.pages(), memory.regions()), (6, vec![3, 3]));
//! assert!(memory.is_zero(PageNumber(5)), "the last page of the second slot");
//! ```

#[cfg(all(feature = "builtin", target_arch = "x86_64"))]
mod kvm;
#[cfg(feature = "builtin")]
mod machine;
#[cfg(feature = "builtin")]
mod process;
#[cfg(feature = "builtin")]
pub mod stamped;
pub(crate) mod sys;
mod threads;
pub mod tracker;
mod work;

use crate::memory::{Bitmap, PageRange};

pub use sys::view::{MemoryView, Stretch};
pub use work::Work;

/// Why a guest, a shadow or a tracker could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {why}")]
pub struct GuestError {
    /// What was asked.
    pub doing: &'static str,
    /// What prevented it, and what to do.
    pub why: String,
}

impl GuestError {
    /// A failure of `doing`, because of `why`.
    pub fn new(doing: &'static str, why: impl std::fmt::Display) -> Self {
        Self { doing, why: why.to_string() }
    }
}

/// A running VM at the source.
pub trait Guest: Send {
    /// The guest's memory, all regions of it; stays valid and in place while the guest exists.
    fn memory(&self) -> MemoryView;

    /// What the destination needs to build a shadow of this guest. Opaque to the engine; at most
    /// [`crate::proto::DESCRIPTION_BYTES_MAX`].
    fn description(&self) -> Vec<u8>;

    /// Stops every vCPU; none writes memory from the return until [`Guest::resume`]. Idempotent.
    ///
    /// # Errors
    /// A vCPU could not be stopped; then none is.
    fn pause(&mut self) -> Result<(), GuestError>;

    /// Lets the vCPUs go on where they stopped. Idempotent.
    ///
    /// # Errors
    /// The guest is lost.
    fn resume(&mut self) -> Result<(), GuestError>;

    /// Number of vCPUs, at least 1.
    fn vcpus(&self) -> usize;

    /// How much each vCPU has written since it began, in any unit that is the same for all: by this
    /// the throttle tells writers from readers. Empty where that is not known; all vCPUs are then
    /// held alike.
    fn written(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Holds each vCPU for its share of time, from 0 (free) to below 1.
    fn throttle(&mut self, held_shares: &[f64]);

    /// State other than memory, of a paused guest; at most [`crate::proto::STATE_BYTES_MAX`].
    ///
    /// The last dirty pages have been harvested by then. So from the return of [`Guest::pause`] to
    /// [`Guest::resume`] devices, too, leave memory alone, and so does saving their state: what must
    /// go through memory first (rings, buffers in flight) is done inside `pause`.
    ///
    /// # Errors
    /// A device would not give its state, or a vCPU does not stand still.
    fn save_state(&mut self) -> Result<Vec<u8>, GuestError>;
}

/// The VM that will run at the destination: exists, with all its memory populated, before the
/// first page is sent.
///
/// ```text
///              pages                                    source says Run
/// created --> load_state --> inspect --> prepare ======================> start
///                 ^                         |
///                 +-- more pages, state ----+ the stun was called off
/// ```
///
/// Up to the double line every error makes the source resume: nothing was handed over. Behind it
/// nothing may fail, for the guest is nowhere else any more; so all that can fail is done before.
pub trait Shadow: Send {
    /// The shadow's memory, all of it zero at first. The engine writes it; nobody else may until
    /// [`Shadow::start`].
    fn memory(&self) -> MemoryView;

    /// Takes the state that [`Guest::save_state`] gave. All memory has arrived. Comes again, with
    /// other memory and state, after a stun that was called off: what was prepared is then undone.
    ///
    /// # Errors
    /// The state is not one of this guest; the source resumes.
    fn load_state(&mut self, state: &[u8]) -> Result<(), GuestError>;

    /// A look at the complete guest before it may run; its time is reported apart from downtime.
    /// Says through `work` how far it is, and gives up soon after it was called off.
    ///
    /// # Errors
    /// The guest must not run, or the look was called off.
    fn inspect(&mut self, work: &Work) -> Result<(), GuestError> {
        let _ = work;
        Ok(())
    }

    /// Does everything that can fail: state is in the vCPUs, their threads wait at a closed gate,
    /// files are open. Nothing writes memory yet, and the engine may still do so before the next
    /// [`Shadow::load_state`].
    ///
    /// # Errors
    /// The guest cannot run here; the source resumes.
    fn prepare(&mut self) -> Result<(), GuestError>;

    /// Opens the gate of a guest that was prepared. Whether its vCPUs then run is a finding about
    /// the guest, and no part of the handover.
    fn start(&mut self);
}

/// Builds shadows from descriptions.
pub trait ShadowFactory: Send {
    /// The shadow type.
    type Shadow: Shadow;

    /// A shadow of the guest that `description` describes, with regions of so many pages, all of them
    /// populated. Says through `work` how far it is, and gives up soon after it was called off.
    ///
    /// # Errors
    /// The description is not understood, or the machine cannot hold the guest.
    fn create(
        &mut self,
        description: &[u8],
        regions: &[u64],
        work: &Work,
    ) -> Result<Self::Shadow, GuestError>;
}

/// Knows which pages were written. Dropping it stops tracking.
pub trait DirtyTracker: Send {
    /// Name for reports.
    fn name(&self) -> &'static str;

    /// Starts tracking: all pages count as clean from here on.
    ///
    /// # Errors
    /// The kernel refused.
    fn start(&mut self) -> Result<(), GuestError>;

    /// Adds to `into` every page of `range` written since it was last harvested, and re-arms it:
    /// a write after this call is seen by the next. Returns how many pages were written. Where the
    /// system protects several pages at a time (huge ones), all of them count as written, also those
    /// outside of `range`.
    ///
    /// # Errors
    /// The kernel refused; nothing may be assumed clean.
    fn harvest(&mut self, range: PageRange, into: &mut Bitmap) -> Result<u64, GuestError>;
}
