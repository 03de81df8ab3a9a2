//! Encrypted repositories of backups: the same objects in one place or several.
//!
//! An object has a name and never changes. It is compressed and sealed before it leaves the
//! machine, so a place (a directory, a bucket) sees names and sizes and nothing else. What is put
//! goes to every place; what is damaged or gone in one is healed from another. Everything here
//! blocks: callers in asynchronous code give it a thread.

pub mod backup;
pub mod copies;
mod error;
mod key;
mod level;
pub mod log;
mod place;
mod repository;
mod seal;

pub use error::RepositoryError;
pub use key::{Kit, Password};
pub use log::Log;
pub use place::{Existing, Object, Place, PlaceConfig};
pub use repository::{Identity, Put, Rekey, Rekeyed, Repository, Sealed};
