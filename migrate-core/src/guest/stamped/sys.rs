//! The one place where a region becomes a view for the engine.

use std::sync::Arc;

use workload::region::Region;

use crate::guest::MemoryView;

pub(super) fn view(region: &Arc<Region>) -> MemoryView {
    // SAFETY: a region is page-aligned, mapped read-write for anonymous memory, and stays mapped
    // while the Arc that the view keeps is alive.
    let view = unsafe { MemoryView::new(region.as_ptr(), region.pages(), region.clone()) };
    view.backed_by(region.clone())
}
