//! How long the mover waits before it dials gantryd again: a pure function.
//!
//! In: attempts that failed, a random number. Out: a duration that doubles up to a limit, and differs
//! from mover to mover, so that a restarted gantryd is not met by all of them at once.

use std::time::Duration;

/// After the first failure.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// At most.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The pause after `failures` attempts in a row; `random` in 0..1.
pub(super) fn pause(failures: u32, random: f64) -> Duration {
    let whole = PAUSE_MIN.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX);
    // Half of it is certain.
    whole.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_differ_and_end() {
        assert!(pause(0, 1.0) <= PAUSE_MIN && pause(0, 0.0) >= PAUSE_MIN / 2);
        assert!(pause(3, 0.0) > pause(1, 0.9));
        assert_eq!(pause(u32::MAX, 1.0), PAUSE_MAX);
        assert_ne!(pause(4, 0.1), pause(4, 0.2));
    }
}
