//! A disk that the repository has whole already: a name and a size, and no way to read it.
//!
//! In: a specification. Out: a [`RemoteSource`] of which every read fails. It stands for the disks of
//! a session that commits what parts brought in. Invariant: no I/O, ever.

use super::remote::{ReadRequest, RemoteError, RemoteSource, identity};

/// See the module's text.
#[derive(Debug)]
pub(super) struct DurableDisk {
    label: String,
    identity: String,
    size_bytes: u64,
}

impl DurableDisk {
    pub(super) fn new(label: String, size_bytes: u64) -> DurableDisk {
        let identity = identity(format!("durable:{label}"));
        DurableDisk { label, identity, size_bytes }
    }

    fn error(&self) -> RemoteError {
        let what = format!("disk {} was to be in the repository already", self.label);
        RemoteError::new(what, "bring the disk in, and commit then")
    }
}

impl RemoteSource for DurableDisk {
    fn label(&self) -> &str {
        &self.label
    }

    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn sector_bytes(&self) -> u32 {
        512
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    /// Names no content: the session says which frozen state it means.
    fn fingerprint(&self) -> &str {
        "durable"
    }

    fn is_unreadable(&self) -> bool {
        true
    }

    fn next_data(&self, _offset: u64) -> Result<Option<(u64, u64)>, RemoteError> {
        Err(self.error())
    }

    fn submit(&self, request: ReadRequest) {
        request.complete(Err(self.error()));
    }

    fn changed_since_open(&self) -> Result<Option<String>, RemoteError> {
        Ok(None)
    }
}
