//! The crash suite: the real store on a simulated disk, power cuts and kills at any operation, and
//! a model of what was promised.
//!
//! Every choice comes from one seed. A failure prints it, the crash and what was done;
//! `GANTRY_CRASH_SEED=n` replays that seed alone (with `GANTRY_CRASH_TRACE=1` all that it does),
//! `GANTRY_CRASH_RUNS=n` runs that many from 0 on, `GANTRY_CRASH_THREADS=n` on so many threads.
//! `cargo xtask crash --runs N` is the long form.
//!
//! What holds after each crash: the store opens; every point reported committed restores bit for
//! bit; a point that is listed is one that some session meant, and restores; every block reported
//! durable of an unfinished session reads back, and its resumed task has it; verify is clean.

mod actions;
mod backup;
mod check;
mod content;
mod keeping;
mod life;
mod model;
mod scripted;
mod stats;
mod trace;
mod vm;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use fastrand::Rng;
use gantry_dataplane::store::storage::faulty::FaultyStorage;

use stats::Stats;
use world::World;

/// Runs of `cargo xtask test`.
const RUNS: u64 = 600;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// A run: a repository, some lives, an end.
fn run(seed: u64) -> Stats {
    let mut random = Rng::with_seed(seed ^ 0x6372_6173_6800);
    let disk = match random.u8(0..3) {
        0 => FaultyStorage::new(),
        _ => FaultyStorage::late(seed),
    };
    if random.bool() {
        // Packs are reserved, and full soon.
        disk.show_free(Some((32 << 20) + (random.u64(8..80) << 12)));
    } else {
        disk.refuse_allocation();
    }
    if random.u8(0..4) == 0 {
        disk.refuse_holes();
    }
    let title = format!("GANTRY_CRASH_SEED={seed} replays this");
    let mut world = World::new(title, seed, disk, random.usize(1..4));
    world.stats.runs = 1;
    world.reopen();
    for _ in 0..random.u8(1..5) {
        world.live(random.usize(5..90));
        world.reopen();
    }
    world.conclude();
    world.stats.clone()
}

/// Runs seeds from 0 on, on some threads; the first failure ends it.
fn run_all(runs: u64, threads: u64) -> Stats {
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let sum = Mutex::new(Stats::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= runs {
                        return;
                    }
                    let failing = FailOnPanic(&failed);
                    let stats = run(seed);
                    std::mem::forget(failing);
                    sum.lock().expect("no thread panics with it").add(&stats);
                }
            });
        }
    });
    sum.into_inner().expect("no thread panics with it")
}

struct FailOnPanic<'a>(&'a AtomicBool);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn random_histories_with_crashes_at_any_operation() {
    if let Some(seed) = number("GANTRY_CRASH_SEED") {
        println!("seed {seed}: {:?}", run(seed).fields());
        return;
    }
    let runs = number("GANTRY_CRASH_RUNS").unwrap_or(RUNS);
    let threads = number("GANTRY_CRASH_THREADS").unwrap_or(1);
    let begun = Instant::now();
    let sum = run_all(runs, threads);
    let seconds = begun.elapsed().as_secs_f64();
    for (name, count) in sum.fields() {
        println!("{count:>12} {name}");
        // A suite that never meets these would prove nothing about them.
        assert!(count > 0 || runs < RUNS, "no seed came upon: {name}");
    }
    let rate = runs as f64 / seconds;
    println!("{runs} seeds, {} crashes, {rate:.1} seeds a second", sum.crashes());
}
