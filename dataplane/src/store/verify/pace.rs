//! How fast a verification goes, and whether it goes on.
//!
//! In: bytes read. Out: progress, and pauses that keep it below its rate. Invariant: a pause ends
//! soon after it was told to stop.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::OnProgress;

const PAUSE_MAX: Duration = Duration::from_millis(100);

pub(super) struct Pace<'a> {
    rate: Option<u64>,
    started: Instant,
    total: u64,
    on_progress: &'a mut OnProgress<'a>,
    pub(super) is_stopped: bool,
}

impl<'a> Pace<'a> {
    pub(super) fn new(
        rate: Option<u64>,
        total: u64,
        on_progress: &'a mut OnProgress<'_>,
    ) -> Pace<'a> {
        Pace { rate, started: Instant::now(), total, on_progress, is_stopped: false }
    }

    /// So many bytes were read in all. Sleeps as long as that was too fast.
    pub(super) fn read(&mut self, bytes: u64) {
        loop {
            let told = (self.on_progress)(bytes.min(self.total), self.total);
            self.is_stopped |= told == ControlFlow::Break(());
            let Some(rate) = self.rate.filter(|_| !self.is_stopped) else { return };
            let due = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            let ahead = due.saturating_sub(self.started.elapsed());
            if ahead < Duration::from_millis(1) {
                return;
            }
            std::thread::sleep(ahead.min(PAUSE_MAX));
        }
    }
}
