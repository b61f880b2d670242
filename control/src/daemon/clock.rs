//! The clock of schedules and windows: the system's, which tests set forward.
//!
//! In: nothing. Out: instants; waits that end in time also where the system's clock is set meanwhile.
//! What is measured (rates, time-outs) does not go by it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::run::now_ms;

/// A clock that was set is noticed within this time.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Clones are the same clock.
#[derive(Debug, Clone)]
pub struct Clock {
    ahead_ms: watch::Sender<u64>,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { ahead_ms: watch::Sender::new(0) }
    }
}

impl Clock {
    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        now_ms() + *self.ahead_ms.borrow()
    }

    /// The instant.
    pub fn now(&self) -> Timestamp {
        timestamp(self.now_ms())
    }

    /// Sets the clock forward: for tests, in which nights pass quickly.
    pub fn advance(&self, by: Duration) {
        self.ahead_ms.send_modify(|ahead| *ahead += by.as_millis() as u64);
    }

    /// Waits until this instant.
    pub async fn wait_until(&self, at: Timestamp) {
        let mut set = self.ahead_ms.subscribe();
        loop {
            set.borrow_and_update();
            let left_ms = at.as_millisecond() - self.now().as_millisecond();
            let Ok(left) = u64::try_from(left_ms) else { return };
            if left == 0 {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(left).min(LOOK_EVERY)) => {}
                _ = set.changed() => {}
            }
        }
    }
}

/// An instant as jiff has it; what no clock shows is its last.
pub(super) fn timestamp(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default()
}

/// Milliseconds since 1970; before that none.
pub(super) fn milliseconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_when_the_clock_is_set_forward() {
        let clock = Clock::default();
        let at = timestamp(clock.now_ms() + 3_600_000);
        let waiting = clock.clone();
        let waited = tokio::spawn(async move { waiting.wait_until(at).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waited.is_finished());
        clock.advance(Duration::from_secs(3600));
        tokio::time::timeout(Duration::from_secs(2), waited).await.expect("in time").expect("well");
    }
}
