//! Moments of a conversation with the simulated vCenter: when a method is about to be done, is done, or
//! its task has worked.
//!
//! In: a moment. Out: word that it has come; the call waits until the other program is dead.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use gantry_sim::requests::{Phase, Then};

use crate::vsphere::Sphere;

/// How long a call is held while gantryd is killed.
const HELD: Duration = Duration::from_secs(5);

/// The moment that is waited for: method, how many of its kind come before, phase.
pub type Moment = (&'static str, usize, Phase);

/// Tells when a moment comes, and holds the call until gantryd is dead.
pub fn hold_at(
    sphere: &Sphere,
    (method, before, phase): Moment,
) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (came, comes) = mpsc::channel();
    let (go, goes) = mpsc::channel();
    let once = Mutex::new((before, Some(goes)));
    let came = Arc::new(Mutex::new(came));
    sphere.sim.on_request(move |seen| {
        if (seen.method, seen.phase) == (method, phase)
            && let Some(goes) = {
                let mut once = once.lock().expect("once");
                let is_it = once.0 == 0;
                once.0 = once.0.saturating_sub(1);
                if is_it { once.1.take() } else { None }
            }
        {
            came.lock().expect("a channel").send(()).ok();
            goes.recv_timeout(HELD).ok();
        }
        Then::GoOn
    });
    (comes, go)
}
