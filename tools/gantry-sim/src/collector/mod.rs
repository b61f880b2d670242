//! The PropertyCollector: which objects and properties a client asked for, and what of them changed.
//!
//! In: filter specifications, the model. Out: object contents, updates. Pure: nothing here waits or
//! writes to a network.

pub mod select;
pub mod filter;

pub use filter::{Collector, Filter};
pub use select::Selection;
