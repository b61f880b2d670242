//! A seeded simulation of whole backup sessions: both machines, a pipeline, a network, a store.
//!
//! Every choice comes from one seed. A failure prints it; `GANTRY_SEED=n cargo nextest run -p
//! gantry-common simulation` replays that seed alone, `GANTRY_SEEDS=n` runs that many from 0 on.
//!
//! What each run asserts: the session ends committed within bounded steps (no deadlock); every
//! committed point equals its session's disks block for block; nothing is visible before it;
//! `Durable` and `TaskOpened` only claim what the store's journal holds; a session's buffers at
//! the target never exceed its first credit; neither machine sees a protocol violation; `Redo`
//! never names a block that is still inside the pipeline.

mod hostile;
mod images;
mod network;
mod pipeline;
mod plan;
mod store;
mod target;
mod world;

use plan::{Plan, Plant};
use world::{Stats, World};

/// Names the seed when a machine's or the simulation's own assertion fails.
struct NameSeed(u64);

impl Drop for NameSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("GANTRY_SEED={} replays this", self.0);
        }
    }
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn run(seed: u64, plant: Plant) -> Result<Stats, String> {
    let _name = NameSeed(seed);
    World::new(Plan::new(seed, plant)).run()
}

fn run_or_panic(seed: u64) -> Stats {
    run(seed, Plant::Nothing).unwrap_or_else(|text| panic!("GANTRY_SEED={seed}: {text}"))
}

#[test]
fn simulation_of_sessions_with_losses_crashes_and_restarts() {
    if let Some(seed) = number_from_environment("GANTRY_SEED") {
        println!("seed {seed}: {:?}", run_or_panic(seed));
        return;
    }
    let mut sum = Stats::default();
    for seed in 0..number_from_environment("GANTRY_SEEDS").unwrap_or(4000) {
        sum.add(&run_or_panic(seed));
    }
    println!("{sum:?}");
    // A simulation that never meets these would prove nothing about them.
    for (what, count) in sum.counts() {
        assert!(count > 0, "no seed came upon: {what}");
    }
}

#[test]
fn simulation_catches_planted_bugs() {
    for plant in Plant::BUGS {
        let caught = (0..600).find_map(|seed| run(seed, plant).err().map(|text| (seed, text)));
        let (seed, text) = caught.unwrap_or_else(|| panic!("{plant:?} was never noticed"));
        println!("{plant:?} noticed at seed {seed}: {text}");
    }
}
