//! The throttle's gate: lets wire bytes out at a rate that may change at any moment.
//!
//! In: a rate and requests for bytes. Out: permits, in the order of asking. Invariant: over any
//! stretch of time no more than rate × time + [`BURST_MS`] of bytes pass; without a rate a permit
//! costs one atomic load.
//!
//! It is a leaky bucket in bytes (GCRA's twin, ITU-T I.371): each permit adds to a debt that
//! drains at the rate, and a permit waits until the debt is gone. Timers here wake up to some
//! milliseconds late, so the debt may drain below zero by [`BURST_MS`]: late wakes are made up for.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

/// What an idle or late sender may catch up, in milliseconds of the rate.
pub const BURST_MS: u64 = 50;

/// One throttle, shared by all lanes of a session (or of several). Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Pacer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Bytes a second; 0: no limit.
    rate: AtomicU64,
    /// Milliseconds that permits were held back, all together.
    waited_ms: AtomicU64,
    /// Whoever holds it is next.
    turn: Mutex<Option<Debt>>,
    changed: Notify,
}

/// The bucket: pure, the time comes in.
#[derive(Debug, Clone, Copy)]
struct Debt {
    bytes: f64,
    /// Bytes a second at which it drains.
    rate: f64,
    at: Instant,
}

impl Debt {
    fn none(now: Instant, rate: NonZeroU64) -> Debt {
        Debt { bytes: 0.0, rate: rate.get() as f64, at: now }
    }

    /// Asks for bytes at `now`; the answer is how long to wait before asking again, or nothing if
    /// they may go. The time before `now` drained at the rate that held then.
    fn ask(&mut self, now: Instant, rate: NonZeroU64, wire_bytes: usize) -> Option<Duration> {
        let drained = self.rate * now.saturating_duration_since(self.at).as_secs_f64();
        let rate = rate.get() as f64;
        let credit_max = rate * Duration::from_millis(BURST_MS).as_secs_f64();
        *self = Debt { bytes: (self.bytes - drained).max(-credit_max), rate, at: now };
        if self.bytes > 0.0 {
            // Bounded, so that no rate however small makes an endless duration.
            return Some(Duration::from_secs_f64((self.bytes / rate).min(3600.0)));
        }
        self.bytes += wire_bytes as f64;
        None
    }
}

impl Pacer {
    /// A throttle without a limit, until [`Pacer::set_rate`].
    pub fn unlimited() -> Pacer {
        Pacer::default()
    }

    /// A throttle of this many wire bytes a second.
    pub fn of_rate(bytes_per_second: NonZeroU64) -> Pacer {
        let pacer = Pacer::default();
        pacer.set_rate(Some(bytes_per_second));
        pacer
    }

    /// Changes the rate; who waits already is let out at the new one.
    pub fn set_rate(&self, bytes_per_second: Option<NonZeroU64>) {
        self.shared.rate.store(bytes_per_second.map_or(0, NonZeroU64::get), Ordering::Relaxed);
        self.shared.changed.notify_one();
    }

    /// The rate in wire bytes a second, if there is one.
    pub fn rate(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.shared.rate.load(Ordering::Relaxed))
    }

    /// Milliseconds for which it has held bytes back so far: never more than have passed.
    pub fn waited_ms(&self) -> u64 {
        self.shared.waited_ms.load(Ordering::Relaxed)
    }

    /// Waits until `wire_bytes` may go out.
    pub async fn permit(&self, wire_bytes: usize) {
        if self.rate().is_none() {
            return;
        }
        let mut turn = self.shared.turn.lock().await;
        loop {
            let Some(rate) = self.rate() else {
                *turn = None;
                return;
            };
            let now = Instant::now();
            let debt = turn.get_or_insert_with(|| Debt::none(now, rate));
            let Some(wait) = debt.ask(now, rate, wire_bytes) else { return };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shared.changed.notified() => {}
            }
            // By the clock, since a wait may be cut short; whole milliseconds, rounded up or down.
            let held_ms = (now.elapsed().as_micros() as u64 + 500) / 1000;
            self.shared.waited_ms.fetch_add(held_ms, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Debt, Pacer};
    use std::num::NonZeroU64;
    use std::time::Duration;
    use tokio::time::{Instant, timeout};

    const SLICE: usize = 64 << 10;

    fn rate(mb_per_second: u64) -> NonZeroU64 {
        NonZeroU64::new(mb_per_second * 1_000_000).unwrap()
    }

    /// Bytes that pass in `seconds` of simulated time, with timers as late as a busy host's.
    fn simulate(debt: &mut Debt, start: Instant, seconds: u64, mb: u64, seed: u64) -> f64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut now, mut bytes) = (start, 0);
        while now < start + Duration::from_secs(seconds) {
            match debt.ask(now, rate(mb), SLICE) {
                Some(wait) => now += wait + Duration::from_micros(random.u64(0..5000)),
                None => bytes += SLICE,
            }
        }
        bytes as f64
    }

    #[test]
    fn ten_seconds_keep_within_three_percent_from_one_megabyte_to_ten_gigabytes() {
        for (seed, mb) in [1, 5, 100, 1000, 10_000].into_iter().enumerate() {
            let start = Instant::now();
            let mut debt = Debt::none(start, rate(mb));
            let ratio = simulate(&mut debt, start, 10, mb, seed as u64) / (mb as f64 * 1e7);
            assert!((0.97..1.03).contains(&ratio), "{mb} MB/s: {ratio}");
        }
    }

    #[test]
    fn idleness_saves_up_no_more_than_the_burst_and_a_new_rate_holds_at_once() {
        let start = Instant::now();
        let mut debt = Debt::none(start, rate(10));
        let later = start + Duration::from_secs(60);
        let ratio = simulate(&mut debt, later, 5, 10, 1) / 5e7;
        assert!((0.97..1.03).contains(&ratio), "{ratio}");
        let ratio = simulate(&mut debt, later + Duration::from_secs(5), 5, 40, 2) / 2e8;
        assert!((0.97..1.03).contains(&ratio), "{ratio}");
    }

    #[tokio::test]
    async fn a_new_rate_reaches_who_waits_already() {
        let pacer = Pacer::of_rate(NonZeroU64::new(1000).unwrap());
        pacer.permit(1_000_000).await;
        let waiting = tokio::spawn({
            let pacer = pacer.clone();
            async move { pacer.permit(1).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        pacer.set_rate(Some(rate(10)));
        timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        pacer.permit(1_000_000_000).await;
        pacer.set_rate(None);
        timeout(Duration::from_secs(5), pacer.permit(1)).await.unwrap();
    }
}
