//! Which proxy reads a disk, and by which road: a pure function of what stands free.
//!
//! In: the proxies that could take the task. Out: the cheapest, with the reason. Cost is in points of
//! a hundred: what the mode costs the production and the network more than the best would, how busy
//! the proxy is, and a fixed sum where the repository prefers others. So a proxy with the datastore
//! mounted is passed over only if it is much busier than one that needs a worse mode.

use std::fmt;

use gantry_common::transport_mode::TransportMode;
use serde::{Deserialize, Serialize};

use crate::names::{ProxyName, RepositoryName};

/// Points for a proxy outside the repository's affinity list: as much as a quarter of its load.
const OUTSIDE_AFFINITY_POINTS: u32 = 25;

/// What a mode costs more than reading the datastore directly.
pub fn mode_points(mode: TransportMode) -> u32 {
    match mode {
        TransportMode::Direct => 0,
        TransportMode::Hotadd => 10,
        TransportMode::Nbd => 30,
        TransportMode::Https => 40,
        TransportMode::Nfc => 80,
    }
}

/// A set of modes in a byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModeSet(u8);

impl ModeSet {
    /// Of these modes.
    pub fn of<'a>(modes: impl IntoIterator<Item = &'a TransportMode>) -> ModeSet {
        modes.into_iter().fold(ModeSet(0), |set, mode| ModeSet(set.0 | 1 << (*mode as u8)))
    }

    /// What both have.
    pub fn and(self, other: ModeSet) -> ModeSet {
        ModeSet(self.0 & other.0)
    }

    /// In order of preference.
    pub fn iter(self) -> impl Iterator<Item = TransportMode> {
        TransportMode::ALL.into_iter().filter(move |mode| self.0 & (1 << (*mode as u8)) != 0)
    }
}

/// A proxy that reaches the disk, and has a free slot.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// The caller's own index of it.
    pub index: usize,
    /// Its name; breaks ties.
    pub name: &'a ProxyName,
    /// Slots in use, reserved ones too.
    pub used: u32,
    /// Slots; more than are used.
    pub slots: u32,
    /// Its own measurement, 0 to 100.
    pub load_percent: u8,
    /// Best mode it has for this disk.
    pub mode: TransportMode,
    /// In the repository's affinity list, or the repository has none.
    pub preferred: bool,
}

impl Candidate<'_> {
    /// The busier of what we gave it and what it measures, in percent.
    fn busy_percent(&self) -> u32 {
        let given = u64::from(self.used) * 100 / u64::from(self.slots.max(1));
        u32::try_from(given).unwrap_or(100).max(u32::from(self.load_percent.min(100)))
    }

    fn points(&self) -> u32 {
        let outside = if self.preferred { 0 } else { OUTSIDE_AFFINITY_POINTS };
        mode_points(self.mode) + self.busy_percent() + outside
    }
}

/// Picks the cheapest candidate and says how many there were.
pub fn choose<'a>(
    candidates: impl Iterator<Item = Candidate<'a>>,
) -> Option<(Candidate<'a>, usize)> {
    let mut count = 0;
    let mut best: Option<(u32, Candidate<'a>)> = None;
    for candidate in candidates {
        count += 1;
        let points = candidate.points();
        let better = match &best {
            None => true,
            Some((least, held)) => (points, candidate.name) < (*least, held.name),
        };
        if better {
            best = Some((points, candidate));
        }
    }
    best.map(|(_, candidate)| (candidate, count))
}

/// Why a task is placed where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementReason {
    /// Who reads.
    pub proxy: ProxyName,
    /// By which road.
    pub mode: TransportMode,
    /// Proxies that reached the disk and had a free slot.
    pub candidates: usize,
    /// Slots in use before this task.
    pub used: u32,
    /// Slots it has.
    pub slots: u32,
    /// Its own measurement.
    pub load_percent: u8,
    /// A better mode that another proxy has, which was full, away or too busy.
    pub passed_over: Option<TransportMode>,
    /// The repository and whether its affinity list has this proxy; nothing: it has no list.
    pub affinity: Option<(RepositoryName, bool)>,
    /// It ran there before, and the proxy was lost or the road failed.
    pub before: Option<ProxyName>,
}

impl fmt::Display for PlacementReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlacementReason { proxy, mode, used, slots, load_percent, .. } = self;
        if let Some(before) = &self.before {
            write!(f, "resumed after proxy {before}: ")?;
        }
        write!(f, "proxy {proxy} reads by {mode}, with {used} of {slots} slots in use and ")?;
        write!(f, "{load_percent} % load, ")?;
        match self.candidates {
            1 => f.write_str("the only one with a free slot that reaches the disk")?,
            many => write!(f, "the best of {many} with a free slot that reach the disk")?,
        }
        if let Some(passed) = self.passed_over {
            write!(f, "; those that could read by {passed} are full, away or too busy")?;
        }
        match &self.affinity {
            Some((repository, true)) => write!(f, "; repository {repository} prefers it"),
            Some((repository, false)) => {
                write!(f, "; the proxies that repository {repository} prefers are no better now")
            }
            None => Ok(()),
        }
    }
}
