//! Whether a failed call is repeated, and after what pause. Pure.

use std::time::Duration;

use super::error::{ErrorKind, VimError};
use super::fault::FaultKind;
use crate::limits;

/// What repeating a call would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It only reads, or does the same again: it may be repeated.
    Harmless,
    /// It changes something: it is repeated only if it certainly was not done.
    Changes,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Tell the caller.
    GiveUp,
    /// Log in again, then repeat.
    LogIn,
    /// Repeat after this pause.
    Pause(Duration),
}

/// Decides after the `tries`-th try (from 1) of a call failed. `logged_in_again` says whether this
/// call has already led to a new log-in; `jitter` is between 0 and 1.
pub fn decide(
    error: &VimError,
    repeat: Repeat,
    tries: u32,
    logged_in_again: bool,
    jitter: f64,
) -> Next {
    // The service did not do the call: it did not know who asked.
    if matches!(error.fault(), Some(FaultKind::NotAuthenticated)) {
        return if logged_in_again { Next::GiveUp } else { Next::LogIn };
    }
    if tries >= limits::CALL_TRIES_MAX || !error.is_retryable() {
        return Next::GiveUp;
    }
    if repeat == Repeat::Changes {
        // Of the faults that pass, each says that nothing was done, except an unreachable host.
        let certainly_not_done = match &*error.kind {
            ErrorKind::Http(_) | ErrorKind::Fault(_) => !error.outcome_is_unknown(),
            _ => false,
        };
        if !certainly_not_done {
            return Next::GiveUp;
        }
    }
    let doubled = limits::CALL_PAUSE_MS.saturating_mul(1 << tries.saturating_sub(1).min(16));
    let pause = doubled.min(limits::CALL_PAUSE_MS_MAX) as f64;
    Next::Pause(Duration::from_millis((pause * (0.5 + jitter.clamp(0.0, 1.0) / 2.0)) as u64))
}

#[cfg(test)]
mod tests {
    use gantry_http::{Endpoint, HttpError, StatusCode, TimedOut};
    use std::time::Duration;

    use super::{Next, Repeat, decide};
    use crate::limits;
    use crate::vcenter::error::{ErrorKind, VimError};
    use crate::vcenter::fault::{Fault, FaultKind};

    fn error(kind: ErrorKind) -> VimError {
        VimError { endpoint: "e".into(), method: "M", object: "o".into(), kind: Box::new(kind) }
    }

    fn fault(kind: FaultKind) -> VimError {
        error(ErrorKind::Fault(Fault { kind, message: String::new() }))
    }

    fn timeout(stage: TimedOut) -> VimError {
        let endpoint = Endpoint::new("h", 1).expect("an endpoint");
        error(ErrorKind::Http(HttpError::Timeout { endpoint, stage, after: Duration::ZERO }))
    }

    #[test]
    fn what_may_have_been_done_is_never_repeated() {
        let pauses = |error: &VimError, repeat| {
            matches!(decide(error, repeat, 1, false, 0.5), Next::Pause(_))
        };
        let answer_lost = timeout(TimedOut::Response);
        assert!(pauses(&answer_lost, Repeat::Harmless) && !pauses(&answer_lost, Repeat::Changes));
        let not_connected = timeout(TimedOut::Connect);
        assert!(
            pauses(&not_connected, Repeat::Harmless) && pauses(&not_connected, Repeat::Changes)
        );
        let busy = fault(FaultKind::TaskInProgress);
        assert!(pauses(&busy, Repeat::Harmless) && pauses(&busy, Repeat::Changes));
        let lost_host = fault(FaultKind::HostUnreachable { fault: "HostCommunication".into() });
        assert!(pauses(&lost_host, Repeat::Harmless) && !pauses(&lost_host, Repeat::Changes));
        let status = error(ErrorKind::Status(StatusCode::BAD_GATEWAY, String::new()));
        assert!(pauses(&status, Repeat::Harmless) && !pauses(&status, Repeat::Changes));
        let refused = fault(FaultKind::InvalidArgument { property: "x".into() });
        assert!(!pauses(&refused, Repeat::Harmless));
    }

    #[test]
    fn a_lost_session_leads_to_one_new_log_in() {
        let lost = fault(FaultKind::NotAuthenticated);
        assert_eq!(decide(&lost, Repeat::Changes, 1, false, 0.0), Next::LogIn);
        assert_eq!(decide(&lost, Repeat::Changes, 2, true, 0.0), Next::GiveUp);
    }

    #[test]
    fn pauses_grow_and_end() {
        let busy = fault(FaultKind::TaskInProgress);
        let pause = |tries, jitter| match decide(&busy, Repeat::Harmless, tries, false, jitter) {
            Next::Pause(pause) => pause.as_millis() as u64,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            (pause(1, 1.0), pause(2, 1.0)),
            (limits::CALL_PAUSE_MS, 2 * limits::CALL_PAUSE_MS)
        );
        assert_eq!(pause(1, 0.0), limits::CALL_PAUSE_MS / 2);
        let last = decide(&busy, Repeat::Harmless, limits::CALL_TRIES_MAX, false, 0.0);
        assert_eq!(last, Next::GiveUp);
    }
}
