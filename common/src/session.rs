//! A backup session between two movers, without I/O: the sender and the receiver.
//!
//! In: frames, work done by the pipeline or the store, the loss of a connection. Out: frames to
//! send, commands for the pipeline or the store. `handle_*` takes input, `poll_*` gives output.
//! The messages, their order and the state diagrams stand in docs/protocol.md.

pub mod source_port;
pub mod sender;
pub mod receiver;
pub mod store_port;
pub mod violation;

use crate::failure::Failure;
use crate::limits;

/// Cuts a failure's text to what a peer accepts.
fn bounded(mut failure: Failure) -> Failure {
    if failure.message.len() > limits::TEXT_BYTES_MAX {
        let mut end = limits::TEXT_BYTES_MAX;
        while !failure.message.is_char_boundary(end) {
            end -= 1;
        }
        failure.message.truncate(end);
    }
    failure
}

#[cfg(test)]
mod tests {
    use crate::failure::{Failure, FailureKind};

    #[test]
    fn long_texts_are_cut_between_characters() {
        let cut = super::bounded(Failure::new(FailureKind::Target, "ä".repeat(3000) + "x"));
        assert_eq!(cut.message.len(), 4096);
        let odd =
            super::bounded(Failure::new(FailureKind::Target, "x".to_string() + &"ä".repeat(3000)));
        assert_eq!(odd.message.len(), 4095);
    }
}
