//! What a stamped guest's memory is: its workload's region, and where a machine needs some of its own,
//! another.

use std::sync::Arc;

use verifier::manifest::Manifest;
use workload::region::{Region, RegionError};
use workload::spec::Workload;
use workload::units::Bytes;
use workload::work::{Cancelled, Watch};

use super::{MachineKind, sys};
use crate::guest::MemoryView;

/// A guest's memory.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) region: Arc<Region>,
    pub(super) system: Option<Arc<Region>>,
}

impl Memory {
    /// Bytes of each region.
    pub(super) fn sizes(kind: MachineKind, workload: &Workload) -> Vec<Bytes> {
        let mut sizes = vec![workload.spec().memory];
        sizes.extend(kind.system_bytes(workload));
        sizes
    }

    /// New memory, all of it zero.
    pub(super) fn new(
        kind: MachineKind,
        workload: &Workload,
        huge_pages: bool,
    ) -> Result<Self, RegionError> {
        let region = if huge_pages { Region::huge } else { Region::anonymous };
        let region = Arc::new(region(workload.spec().memory)?);
        let system = kind.system_bytes(workload).map(Region::anonymous).transpose()?;
        Ok(Self { region, system: system.map(Arc::new) })
    }

    fn regions(&self) -> impl Iterator<Item = &Arc<Region>> {
        std::iter::once(&self.region).chain(&self.system)
    }

    /// As the engine sees it.
    pub(super) fn view(&self) -> MemoryView {
        MemoryView::joined(self.regions().map(sys::view))
    }

    /// The SHA-256 root of each region at rest.
    pub(super) fn root(&self, watch: &dyn Watch) -> Result<String, Cancelled> {
        let roots = self.regions().map(|region| Ok(Manifest::of_watched(region, watch)?.root));
        Ok(roots.collect::<Result<Vec<_>, _>>()?.join("+"))
    }
}
