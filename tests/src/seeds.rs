//! Seeds of random scenarios: few by default, more on demand, each repeatable.
//!
//! In: `GANTRY_SEED`, `GANTRY_SEEDS`. Out: one run for each seed, announced before it begins.

use fastrand::Rng;

/// Runs `scenario` with seeds 1 to `count` (or `GANTRY_SEEDS`), or with `GANTRY_SEED` alone.
pub fn each(count: u64, mut scenario: impl FnMut(u64, Rng)) {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is no number")))
    };
    let seeds = match number("GANTRY_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("GANTRY_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        eprintln!("seed {seed}; GANTRY_SEED={seed} repeats it");
        scenario(seed, Rng::with_seed(seed));
    }
}
