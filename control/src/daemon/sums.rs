//! A session's sums out of the movers' reports of its disks. Pure.
//!
//! In: reports as the runs' documents keep them. Out: [`SessionTotals`] with skipped bytes by reason and
//! the bottleneck, and the stages with their latencies; what does not add up, in words. Invariant: what was skipped for each reason and what
//! was sent is exactly what was processed, in each report and in the sum.

use gantry_common::stages::{StageNumbers, add_up};
use gantry_database::model::SessionTotals;
use serde_json::{Map, Value, json};

/// Whose time it is, as reports tell it.
const STAGES: [&str; 4] = ["source", "proxy", "network", "target"];

/// Adds up.
#[derive(Debug, Default)]
pub(super) struct Sums {
    totals: SessionTotals,
    sent_raw: u64,
    skipped: Map<String, Value>,
    times_ms: [u64; STAGES.len()],
    stages: Vec<StageNumbers>,
    wrong: Vec<String>,
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

impl Sums {
    /// A machine that ended with a point or without.
    pub(super) fn machine(&mut self, has_point: bool) {
        self.totals.vms += 1;
        match has_point {
            true => self.totals.vms_done += 1,
            false => self.totals.vms_failed += 1,
        }
    }

    /// A disk, and the report of its task if it is durable.
    pub(super) fn disk(&mut self, name: &str, report: Option<&Value>) {
        self.totals.disks += 1;
        let Some(report) = report else { return };
        let processed = number(&report["bytes_processed"]);
        self.totals.processed_bytes += processed;
        self.totals.read_bytes += number(&report["bytes_read"]);
        self.totals.transferred_bytes += number(&report["bytes_transferred"]);
        self.totals.stored_bytes += number(&report["bytes_stored"]);
        let sent_raw = number(&report["bytes_sent_raw"]);
        self.sent_raw += sent_raw;
        let mut fates = sent_raw;
        for (reason, bytes) in report["bytes_skipped"].as_object().into_iter().flatten() {
            let sum = self.skipped.entry(reason).or_insert_with(|| 0.into());
            *sum = (number(sum) + number(bytes)).into();
            fates += number(bytes);
        }
        if fates != processed {
            self.wrong.push(format!(
                "{name}: {processed} bytes were processed, and {fates} of them have a fate"
            ));
        }
        let stages = |list: &Value| serde_json::from_value::<Vec<StageNumbers>>(list.clone());
        let of_disks = report["disks"].as_array().into_iter().flatten().map(|disk| &disk["stages"]);
        for list in of_disks.chain([&report["network"]]) {
            add_up(&mut self.stages, &stages(list).unwrap_or_default());
        }
        for (time, stage) in self.times_ms.iter_mut().zip(STAGES) {
            *time += number(&report["bottleneck_times"][format!("{stage}_ms")]);
        }
    }

    /// The totals, and what does not add up.
    pub(super) fn end(self) -> (SessionTotals, Vec<String>) {
        let all: u64 = self.times_ms.iter().sum();
        let largest = (0..STAGES.len()).max_by_key(|at| self.times_ms[*at]);
        let share = |at: usize| (self.times_ms[at] as f64 * 1000.0 / all as f64).round() / 10.0;
        let shares: Map<String, Value> = match all {
            0 => Map::new(),
            _ => (0..STAGES.len()).map(|at| (STAGES[at].to_owned(), share(at).into())).collect(),
        };
        let name = largest.filter(|_| all > 0).map(|at| STAGES[at]);
        let more = json!({
            "bytes_skipped": self.skipped,
            "bytes_sent_raw": self.sent_raw,
            "bottleneck": name,
            "bottleneck_percent": shares,
            "stages": self.stages,
        });
        (SessionTotals { more, ..self.totals }, self.wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::Sums;
    use serde_json::json;

    fn report(processed: u64) -> serde_json::Value {
        json!({
            "bytes_processed": processed, "bytes_read": 70, "bytes_transferred": 20,
            "bytes_stored": 15, "bytes_sent_raw": 40,
            "bytes_skipped": { "zero": 30, "unchanged": 25, "duplicate": 5, "resumed": 0 },
            "disks": [{ "stages": [{ "stage": "read", "bytes": 70, "busy_seconds": 0.5, "blocks": 7,
                "p50_us": 90, "p90_us": 90, "p99_us": 90, "max_us": 90, "buckets_us": [[91, 7]] }] }],
            "network": [{ "stage": "send", "bytes": 20, "busy_seconds": 0.1, "blocks": 4, "p50_us": 5,
                "p90_us": 5, "p99_us": 5, "max_us": 5, "buckets_us": [[5, 4]] }],
            "bottleneck_times": { "source_ms": 10, "proxy_ms": 70, "network_ms": 15, "target_ms": 5 },
        })
    }

    #[test]
    fn reports_add_up_and_name_the_bottleneck() {
        let mut sums = Sums::default();
        sums.machine(true);
        sums.machine(false);
        sums.disk("a", Some(&report(100)));
        sums.disk("b", Some(&report(100)));
        sums.disk("c", None);
        let (totals, wrong) = sums.end();
        assert_eq!(wrong, Vec::<String>::new());
        assert_eq!((totals.vms, totals.vms_done, totals.vms_failed, totals.disks), (2, 1, 1, 3));
        assert_eq!((totals.processed_bytes, totals.read_bytes), (200, 140));
        assert_eq!(totals.more["bytes_skipped"]["unchanged"], 50);
        assert_eq!(totals.more["bottleneck"], "proxy");
        assert_eq!(totals.more["bottleneck_percent"]["proxy"], 70.0);
        let stages = &totals.more["stages"];
        assert_eq!((&stages[0]["stage"], &stages[0]["blocks"]), (&json!("read"), &json!(14)));
        assert_eq!((&stages[0]["p99_us"], &stages[1]["bytes"]), (&json!(90), &json!(40)));
    }

    #[test]
    fn what_does_not_add_up_is_told_and_nothing_names_no_bottleneck() {
        let mut sums = Sums::default();
        sums.disk("web: Hard disk 1", Some(&report(101)));
        let (_, wrong) = sums.end();
        assert!(wrong[0].contains("web: Hard disk 1") && wrong[0].contains("101"), "{wrong:?}");
        let (totals, _) = Sums::default().end();
        assert!(totals.more["bottleneck"].is_null());
    }
}
