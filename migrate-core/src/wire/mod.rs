//! Between groups of pages and the frames of data connections: what a stream of the source sends
//! ([`shards`], [`sender`]), and what one of the destination makes of it ([`receiver`]).

pub(crate) mod receiver;
pub(crate) mod sender;
pub(crate) mod shards;
