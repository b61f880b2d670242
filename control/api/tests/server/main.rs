//! The API from outside: roles of every route, hostile requests, live streams, the document.
//!
//! Requests go through the router, or over TLS where connections matter; the backend is in memory.

mod roles;
mod rig;
mod requests;
mod document;
mod connections;
mod streams;
