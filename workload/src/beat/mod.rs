//! What a guest says of itself, in lines of text: journal format 2.
//!
//! A guest says lines ([`said`]); whoever hears them keeps them in the lines of a session
//! ([`session`]), and reads sessions back, in any order, from any number of files ([`books`]).
//! What they prove is the verifier's business. docs/verification.md has the format exactly.

pub mod books;
pub mod collector;
pub mod ledger;
pub mod lock;
pub mod said;
pub mod session;
pub mod writer;
