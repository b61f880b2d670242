//! Stage 7 of 7: blocks in, restore points out. The repository.
//!
//! In: [`gantry_common::session::store_port::StoreCommand`]s. Out: reports, pack files, manifests.
//! Invariant: nothing is reported durable that a crash could take. Every file operation goes
//! through [`storage::Storage`], so that a simulated disk can stand under the store.
//! Must not: know of networks or sessions' connections.

pub mod error;
pub mod storage;
pub mod layout;
mod fields;
pub mod superblock;
pub mod record;
pub mod footer;
pub mod pack_scan;
pub mod index;
pub mod map_node;
pub mod inquiries;
pub mod repo;
pub mod lost;
pub mod reconcile;
pub mod journal;
pub mod staging;
pub mod map_tree;
pub mod manifest;
pub mod retention;
pub mod points;
pub mod pack;
pub mod task;
pub mod live_map;
pub mod ballast;
pub mod engine;
pub mod checker;
pub mod reader;
pub mod verify;
pub mod repair;
pub mod service;
pub mod stat;
pub mod admin;
