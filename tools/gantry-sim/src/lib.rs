//! A simulated vCenter with ESXi hosts over TLS, for tests, demonstrations and fault drills.
//!
//! In: an inventory and disk images. Out: endpoints that official clients accept: the SOAP API,
//! datastore access by HTTPS, NFC leases. Every listener is on the loopback interface. Must not be
//! used by Gantry's own crates: only tests, benchmarks and tools know it.

pub mod storage;
