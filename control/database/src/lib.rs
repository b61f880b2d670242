//! Gantry's configuration database: what an administrator has set up, and what has been run.
//!
//! In: records of the product's types ([`model`]). Out: the same, as they were kept, durable when a
//! call returns. Invariant: knows nothing of vSphere, movers or HTTP; decides nothing about jobs;
//! secrets leave it only to who asks for one by its [`model::SecretSlot`].

pub mod model;
mod error;
mod store;

pub use error::DatabaseError;
pub use store::{
    Database, Ending, Entity, Export, Imported, Page, SessionFilter, Stored, Transition,
};
