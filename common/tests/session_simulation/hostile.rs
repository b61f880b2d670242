//! Peers that send well-formed nonsense: neither machine panics, each keeps its promises.
//!
//! The receiver faces a hostile source over an honest store, the sender a hostile target over an
//! honest pipeline. Nonsense that is refused at once would try little, so most frames are such as
//! look honest at the moment, with odd contents.

mod source;
mod target;

use gantry_common::extents::Run;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::SessionId;

use crate::images::Image;

const SESSION: SessionId = SessionId([1; 16]);
const SEEDS: u64 = 3000;
const STEPS: usize = 300;

pub fn random_images(random: &mut fastrand::Rng) -> Vec<Image> {
    (0..random.usize(1..4)).map(|number| Image::random(random, number, 12)).collect()
}

/// Mostly on the disk, sometimes far beyond every disk.
pub fn random_run(random: &mut fastrand::Rng) -> Run {
    match random.u8(0..16) {
        0 => Run { first: random.u64(..), count: random.u64(..) },
        _ => Run { first: random.u64(0..10), count: random.u64(1..5) },
    }
}

pub fn random_runs(random: &mut fastrand::Rng) -> Vec<Run> {
    (0..random.usize(0..4)).map(|_| random_run(random)).collect()
}

pub fn random_failure(random: &mut fastrand::Rng) -> Failure {
    Failure::new(FailureKind::Target, "x".repeat(random.usize(0..9000)))
}

pub fn random_number(random: &mut fastrand::Rng) -> u64 {
    if random.u8(0..16) == 0 { random.u64(..) } else { random.u64(0..6) }
}
