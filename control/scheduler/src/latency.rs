//! The storage-latency guard: keeps backups from slowing production down.
//!
//! ```text
//!        >= 20 ms              >= 30 ms
//!   ok ----------> stop ---------------> throttle
//!      <----------      <---------------
//!        < 16 ms, after a minute   < 24 ms, after a minute
//! ```
//!
//! In: latencies of a datastore as vCenter measures them, at the times of measuring. Out: a
//! [`GuardState`]. Samples are smoothed with a time constant, so that a spike does nothing; going back
//! needs a lower level than going up, and some time, so that it does not flap. Without samples there is
//! no guard, which gantryd says in the session's log. Must not: take a sample that cannot be one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::resources::GuardState;

/// A slower answer is counted as this slow.
const SAMPLE_MS_MAX: f64 = 10_000.0;

/// When the guard acts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyLimits {
    /// No further task from here on.
    pub stop_ms: f64,
    /// Running tasks are slowed down from here on.
    pub throttle_ms: f64,
    /// Back below this part of the limit.
    pub release_ratio: f64,
    /// Time constant of the smoothing; ESXi has a value every 20 s.
    pub smoothing: Duration,
    /// A state is kept at least so long before it is eased.
    pub hold: Duration,
    /// A datastore of which nothing was heard for so long is not guarded.
    pub silence: Duration,
}

impl Default for LatencyLimits {
    fn default() -> LatencyLimits {
        LatencyLimits {
            stop_ms: 20.0,
            throttle_ms: 30.0,
            release_ratio: 0.8,
            smoothing: Duration::from_secs(40),
            hold: Duration::from_secs(60),
            silence: Duration::from_secs(300),
        }
    }
}

/// The guard of one datastore. Times are since any fixed moment.
#[derive(Debug, Clone)]
pub struct LatencyGuard {
    limits: LatencyLimits,
    /// Smoothed latency, and when it was measured.
    level: Option<(f64, Duration)>,
    state: GuardState,
    since: Duration,
}

impl LatencyGuard {
    /// Without a sample.
    pub fn new(limits: LatencyLimits) -> LatencyGuard {
        LatencyGuard { limits, level: None, state: GuardState::Ok, since: Duration::ZERO }
    }

    /// Takes a sample; the state from now on. What is no latency, or older than the last, is ignored.
    pub fn sample(&mut self, now: Duration, latency_ms: f64) -> GuardState {
        if !latency_ms.is_finite() || latency_ms < 0.0 {
            return self.state(now);
        }
        let latency_ms = latency_ms.min(SAMPLE_MS_MAX);
        let level_ms = match self.level {
            Some((_, at)) if now <= at => return self.state(now),
            Some((level_ms, at)) if now - at < self.limits.silence => {
                let smoothing = self.limits.smoothing.as_secs_f64().max(1e-3);
                let weight = 1.0 - (-(now - at).as_secs_f64() / smoothing).exp();
                level_ms + (latency_ms - level_ms) * weight
            }
            // One sample is no trend: it counts from the calm side.
            _ => latency_ms.min(self.limits.stop_ms * self.limits.release_ratio),
        };
        self.level = Some((level_ms, now));
        self.go_to(now, level_ms);
        self.state
    }

    /// The state at an instant.
    pub fn state(&mut self, now: Duration) -> GuardState {
        let silent = self.level.is_none_or(|(_, at)| now.saturating_sub(at) >= self.limits.silence);
        if silent {
            self.state = GuardState::Ok;
        }
        self.state
    }

    /// Smoothed latency in milliseconds, for the log.
    pub fn level_ms(&self) -> Option<f64> {
        self.level.map(|(level_ms, _)| level_ms)
    }

    fn go_to(&mut self, now: Duration, level_ms: f64) {
        let LatencyLimits { stop_ms, throttle_ms, release_ratio, .. } = self.limits;
        let wanted = match level_ms {
            level if level >= throttle_ms => GuardState::Throttle,
            level if level >= stop_ms => GuardState::StopAssigning,
            _ => GuardState::Ok,
        };
        let held = now.saturating_sub(self.since) >= self.limits.hold;
        let eased = match self.state {
            GuardState::Throttle if level_ms < throttle_ms * release_ratio => {
                GuardState::StopAssigning
            }
            GuardState::StopAssigning if level_ms < stop_ms * release_ratio => GuardState::Ok,
            same => same,
        };
        let next = if wanted > self.state {
            wanted
        } else if held {
            eased
        } else {
            self.state
        };
        if next != self.state {
            (self.state, self.since) = (next, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LatencyGuard, LatencyLimits};
    use crate::resources::GuardState;
    use std::time::Duration;

    /// Feeds one value every 20 s; the states, without repetition.
    fn states(guard: &mut LatencyGuard, from_s: u64, values: &[f64]) -> Vec<GuardState> {
        let mut seen = Vec::new();
        for (step, value) in (0..).zip(values) {
            seen.push(guard.sample(Duration::from_secs(from_s + 20 * step), *value));
        }
        seen.dedup();
        seen
    }

    #[test]
    fn it_goes_up_quickly_and_down_step_by_step() {
        let mut guard = LatencyGuard::new(LatencyLimits::default());
        use GuardState::{Ok, StopAssigning, Throttle};
        assert_eq!(states(&mut guard, 0, &[5.0; 10]), [Ok]);
        assert_eq!(states(&mut guard, 200, &[25.0; 10]), [Ok, StopAssigning]);
        assert_eq!(states(&mut guard, 400, &[60.0; 10]), [Throttle]);
        assert_eq!(states(&mut guard, 600, &[5.0; 20]), [Throttle, StopAssigning, Ok]);
    }

    #[test]
    fn a_spike_does_nothing_and_a_level_at_the_limit_does_not_flap() {
        let mut guard = LatencyGuard::new(LatencyLimits::default());
        let spike = [5.0, 5.0, 30.0, 5.0, 5.0];
        assert_eq!(states(&mut guard, 0, &spike), [GuardState::Ok]);
        let seed = 11;
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let noisy: Vec<f64> = (0..300).map(|_| 21.0 + random.f64() * 3.0 - 1.5).collect();
        let changes = states(&mut guard, 100, &noisy);
        assert_eq!(changes, [GuardState::Ok, GuardState::StopAssigning], "no flapping");
    }

    #[test]
    fn a_silent_datastore_is_not_guarded_and_nonsense_is_ignored() {
        let mut guard = LatencyGuard::new(LatencyLimits::default());
        states(&mut guard, 0, &[50.0; 10]);
        assert_eq!(guard.state(Duration::from_secs(190)), GuardState::Throttle);
        for nonsense in [f64::NAN, f64::INFINITY, -1.0] {
            guard.sample(Duration::from_secs(200), nonsense);
        }
        assert!(guard.level_ms().is_some_and(|level| level < 50.1));
        assert_eq!(guard.state(Duration::from_secs(481)), GuardState::Ok);
    }
}
