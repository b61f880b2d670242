//! Costs, their medians, and the alternating race between Gantry's way and the library's.
//!
//! In: contenders, each a piece of work that reports what it cost. Out: a [`Stage`]. Invariant:
//! a round runs every contender once, in turn; a ratio is the median of the rounds' own ratios,
//! so that a slow moment of the machine strikes both sides. Must not: know what is measured.

use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Largest ratio of a stage to its library (issue 2).
pub const STAGE_BAR: f64 = 1.15;
/// Largest ratio of the whole to the sum of its stages (issue 2).
pub const WHOLE_BAR: f64 = 1.5;

/// What some bytes cost once.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes that went in.
    pub bytes: u64,
    /// Time on the clock.
    pub wall_seconds: f64,
    /// CPU time, of all threads that took part; nothing if a foreign program does not say.
    pub cpu_seconds: Option<f64>,
    /// Of it the sending end's, where there are two.
    pub cpu_seconds_sender: Option<f64>,
}

impl Cost {
    /// CPU seconds for 10^9 bytes.
    pub fn cpu_seconds_per_gb(&self) -> Option<f64> {
        self.cpu_seconds.map(|cpu| cpu / self.gb())
    }

    /// 10^9 bytes a second.
    pub fn gb_per_second(&self) -> f64 {
        self.gb() / self.wall_seconds.max(1e-9)
    }

    fn gb(&self) -> f64 {
        self.bytes as f64 / 1e9
    }
}

/// Runs since its start, on the clock and on the process's CPU.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch {
    wall: Instant,
    cpu: Duration,
}

impl Stopwatch {
    /// Starts.
    pub fn start() -> Stopwatch {
        Stopwatch { wall: Instant::now(), cpu: cpu_time_process() }
    }

    /// Seconds so far.
    pub fn wall_seconds(&self) -> f64 {
        self.wall.elapsed().as_secs_f64()
    }

    /// What `bytes` cost since the start.
    pub fn cost(&self, bytes: u64) -> Cost {
        let cpu = cpu_time_process().saturating_sub(self.cpu).as_secs_f64();
        Cost {
            bytes,
            wall_seconds: self.wall_seconds(),
            cpu_seconds: Some(cpu),
            cpu_seconds_sender: None,
        }
    }
}

fn cpu_time_process() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Median and extremes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Middle value.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of these values; nothing of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = values.len() / 2;
        let lower = (values.len() - 1) / 2;
        Some(Spread { median: (values[lower] + values[upper]) / 2.0, min, max })
    }
}

/// One way of doing a stage, over all rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Way {
    /// Whose way.
    pub name: String,
    /// 10^9 bytes a second.
    pub gb_per_second: Spread,
    /// CPU seconds for 10^9 bytes.
    pub cpu_seconds_per_gb: Option<Spread>,
    /// Of it the sending end's, where there are two.
    pub cpu_seconds_per_gb_sender: Option<Spread>,
    /// Gantry's cost for each unit of this way's cost; nothing for Gantry itself.
    pub ratio: Option<Spread>,
    /// What else there is to say.
    pub note: Option<String>,
    /// Every round.
    pub rounds: Vec<Cost>,
}

/// One stage: Gantry's way first, then the references; the first reference is the one that counts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stage {
    /// Name, such as `compress optimal`.
    pub name: String,
    /// Gantry's cost.
    pub gantry: Way,
    /// What it is compared with.
    pub references: Vec<Way>,
    /// Largest ratio to the first reference that is good enough; nothing if there is no bar.
    pub ratio_max: Option<f64>,
    /// Whether the bar is kept.
    pub within_bar: Option<bool>,
}

impl Stage {
    /// Ratio to the first reference.
    pub fn ratio(&self) -> Option<f64> {
        self.references.first()?.ratio.map(|ratio| ratio.median)
    }
}

/// A way to do a stage: a name and the work, which notes something about itself if it wants.
pub struct Contender<'a> {
    name: String,
    work: Box<dyn FnMut() -> Result<(Cost, Option<String>)> + 'a>,
}

impl<'a> Contender<'a> {
    /// Work that has nothing to note.
    pub fn new(
        name: impl Into<String>,
        mut work: impl FnMut() -> Result<Cost> + 'a,
    ) -> Contender<'a> {
        Contender::noting(name, move || Ok((work()?, None)))
    }

    /// Work with a note.
    pub fn noting(
        name: impl Into<String>,
        work: impl FnMut() -> Result<(Cost, Option<String>)> + 'a,
    ) -> Contender<'a> {
        Contender { name: name.into(), work: Box::new(work) }
    }
}

/// Runs all contenders in turn, `rounds` times; every other round backwards. The first is Gantry.
///
/// # Errors
/// The first that fails.
///
/// # Panics
/// Without a contender.
pub fn race(
    name: &str,
    ratio_max: Option<f64>,
    rounds: usize,
    mut contenders: Vec<Contender<'_>>,
) -> Result<Stage> {
    eprintln!("measuring {name}");
    let mut costs = vec![Vec::new(); contenders.len()];
    let mut notes = vec![None; contenders.len()];
    for round in 0..rounds.max(1) {
        for step in 0..contenders.len() {
            let turn = if round % 2 == 0 { step } else { contenders.len() - 1 - step };
            let (cost, note) = (contenders[turn].work)()?;
            costs[turn].push(cost);
            notes[turn] = note;
        }
    }
    let ours = costs[0].clone();
    let mut ways = contenders.iter().zip(costs).zip(notes).map(|((contender, costs), note)| {
        let ratio = ours.iter().zip(&costs).map(|(ours, theirs)| ratio(ours, theirs));
        let ratio = Spread::of(ratio);
        way(&contender.name, costs, ratio, note)
    });
    let mut gantry = ways.next().expect("a race has a contender");
    gantry.ratio = None;
    let references: Vec<Way> = ways.collect();
    let ratio = references.first().and_then(|way| way.ratio);
    let ratio_max = ratio_max.filter(|_| ratio.is_some());
    let within_bar = ratio_max.zip(ratio).map(|(max, ratio)| ratio.median <= max);
    Ok(Stage { name: name.to_owned(), gantry, references, ratio_max, within_bar })
}

/// By CPU time if both know theirs, else by the clock.
fn ratio(ours: &Cost, theirs: &Cost) -> f64 {
    match (ours.cpu_seconds_per_gb(), theirs.cpu_seconds_per_gb()) {
        (Some(ours), Some(theirs)) if theirs > 0.0 => ours / theirs,
        _ => theirs.gb_per_second() / ours.gb_per_second(),
    }
}

fn way(name: &str, rounds: Vec<Cost>, ratio: Option<Spread>, note: Option<String>) -> Way {
    let all = |value: fn(&Cost) -> Option<f64>| Spread::of(rounds.iter().filter_map(value));
    let none = Spread { median: 0.0, min: 0.0, max: 0.0 };
    let sender = |cost: &Cost| cost.cpu_seconds_sender.map(|cpu| cpu / cost.gb());
    Way {
        name: name.to_owned(),
        gb_per_second: all(|cost| Some(cost.gb_per_second())).unwrap_or(none),
        cpu_seconds_per_gb: all(Cost::cpu_seconds_per_gb),
        cpu_seconds_per_gb_sender: all(sender),
        ratio,
        note,
        rounds,
    }
}

#[cfg(test)]
mod tests {
    use super::{Contender, Cost, Spread, race};

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(Spread::of([]), None);
        let odd = Spread::of([3.0, 1.0, 2.0]);
        assert_eq!(odd, Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]).map(|spread| spread.median), Some(2.5));
    }

    #[test]
    fn ratios_take_cpu_time_where_both_know_it_and_the_clock_otherwise() {
        let cost = |wall_seconds, cpu_seconds| Cost {
            bytes: 1_000_000_000,
            wall_seconds,
            cpu_seconds,
            cpu_seconds_sender: None,
        };
        let stage = race(
            "test",
            Some(1.15),
            3,
            vec![
                Contender::new("gantry", || Ok(cost(3.0, Some(1.1)))),
                Contender::new("library", || Ok(cost(1.0, Some(1.0)))),
                Contender::new("program", || Ok(cost(2.0, None))),
            ],
        );
        let stage = stage.unwrap();
        let ratios: Vec<_> = stage.references.iter().map(|way| way.ratio.unwrap().median).collect();
        assert!((ratios[0] - 1.1).abs() < 1e-9 && (ratios[1] - 1.5).abs() < 1e-9, "{ratios:?}");
        assert_eq!(stage.within_bar, Some(true));
    }
}
