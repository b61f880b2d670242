//! How a mover that was killed and started again ends the QUIC connections of its predecessor.
//!
//! In: an identity. Out: endpoint configuration whose stateless resets (RFC 9000, section 10.3) and
//! connection ids are the same in every process with that identity. Without it a peer would notice
//! only when the idle time is over. Invariant: the keys say nothing about the identity's own key.

use std::sync::Arc;

use quinn::EndpointConfig;
use quinn_proto::HashedConnectionIdGenerator;
use quinn_proto::crypto::{CryptoError, HmacKey};

use super::identity::Identity;

const SIGNATURE_BYTES: usize = 32;

/// A key of keyed BLAKE3.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        SIGNATURE_BYTES
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Compares in constant time.
        let given = blake3::Hash::from_slice(signature).map_err(|_| CryptoError)?;
        if blake3::keyed_hash(&self.0, data) == given { Ok(()) } else { Err(CryptoError) }
    }
}

/// The configuration of an endpoint of this identity.
pub(super) fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(ResetKey(
        identity.derived_key("gantry 2026 quic stateless reset"),
    )));
    let [a, b, c, d, e, f, g, h, ..] = identity.derived_key("gantry 2026 quic connection ids");
    let ids = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}
