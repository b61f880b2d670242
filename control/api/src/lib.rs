//! Gantry's REST API: routes, roles, the OpenAPI document, live streams and metrics.
//!
//! In: HTTPS requests. Out: what a [`Backend`] answers. Knows the product's types
//! (`gantry-database`'s model) and `gantry-common`; must not know vSphere, movers, sessions' inner
//! life or the database: all of that is behind the one trait. Never touches block data.
//!
//! A request's road: [`server`] (TLS, bounds) → [`api`] (request id, who asks) → [`table`] (the route
//! and its role) → [`call`] (path, query, body, each checked) → [`routes`] → [`backend`] →
//! [`answer`], or a [`problem`].

pub mod limits;
pub mod server;
mod stalled;
pub mod problem;
pub mod access;
pub mod api;
pub mod table;
pub mod call;
pub mod record;
pub mod views;
pub mod backend;
pub mod routes;
pub mod stream;
pub mod metrics;
pub mod answer;
#[cfg(feature = "memory")]
pub mod memory;

pub use api::{Api, ApiSettings};
pub use backend::{Backend, Records};
pub use gantry_database::model;
pub use problem::Problem;
