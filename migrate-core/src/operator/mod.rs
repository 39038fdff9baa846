//! What an operator says and what is on disk: the state directory, the records of handovers in it,
//! and the socket through which a running program is asked and told.

pub mod desk;
pub mod directory;
pub mod record;

pub use desk::{Attendant, Desk, Registration, Request, Setting, Status};
pub use directory::StateDirectory;
