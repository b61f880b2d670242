//! What runs met: a suite that never meets a thing proves nothing about it.
//!
//! In: counts. Out: their sum, and which stayed zero.

/// Counts of one run, or of many.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Stats {
    pub runs: u64,
    pub operations: u64,
    pub power_cuts: u64,
    pub kills: u64,
    pub crashes_while_opening: u64,
    pub restarts: u64,
    pub committed: u64,
    pub seen_unreported: u64,
    pub restored: u64,
    pub durable_checked: u64,
    pub resumed: u64,
    pub adopted: u64,
    pub known: u64,
    pub failures: u64,
    pub verified: u64,
    pub index_lost: u64,
    pub deleted: u64,
    pub undeleted: u64,
    pub collections: u64,
    pub purged: u64,
    pub packs_removed: u64,
    pub packs_punched: u64,
    pub packs_rewritten: u64,
    pub spoilt: u64,
}

impl Stats {
    /// Adds another run's.
    pub fn add(&mut self, other: &Stats) {
        let fields = other.fields();
        for (own, (_, other)) in self.fields_mut().into_iter().zip(fields) {
            *own += other;
        }
    }

    fn fields_mut(&mut self) -> Vec<&mut u64> {
        vec![
            &mut self.runs,
            &mut self.operations,
            &mut self.power_cuts,
            &mut self.kills,
            &mut self.crashes_while_opening,
            &mut self.restarts,
            &mut self.committed,
            &mut self.seen_unreported,
            &mut self.restored,
            &mut self.durable_checked,
            &mut self.resumed,
            &mut self.adopted,
            &mut self.known,
            &mut self.failures,
            &mut self.verified,
            &mut self.index_lost,
            &mut self.deleted,
            &mut self.undeleted,
            &mut self.collections,
            &mut self.purged,
            &mut self.packs_removed,
            &mut self.packs_punched,
            &mut self.packs_rewritten,
            &mut self.spoilt,
        ]
    }

    /// Each count with its name.
    pub fn fields(&self) -> Vec<(&'static str, u64)> {
        const NAMES: [&str; 24] = [
            "runs",
            "operations",
            "power cuts",
            "kills",
            "crashes while opening",
            "restarts",
            "points committed",
            "points seen unreported",
            "points restored",
            "durable blocks read",
            "blocks resumed",
            "blocks adopted",
            "blocks known",
            "failures",
            "verifications",
            "indexes lost",
            "points deleted",
            "points brought back",
            "collections",
            "points purged",
            "packs removed",
            "packs punched",
            "packs rewritten",
            "bytes spoilt",
        ];
        let values = self.clone().fields_mut().into_iter().map(|value| *value).collect::<Vec<_>>();
        NAMES.into_iter().zip(values).collect()
    }

    /// Crashes of every kind.
    pub fn crashes(&self) -> u64 {
        self.power_cuts + self.kills
    }
}
