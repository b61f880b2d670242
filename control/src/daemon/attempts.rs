//! What follows an attempt at a session's machines. Pure.
//!
//! In: how every machine's last run ended. Out: whether, when and at which machines there is another
//! attempt. A restart asks the same question of the same books, so that it goes on with the attempts
//! that are left, and a pause that was begun is not begun anew.

use std::collections::BTreeMap;

use gantry_database::model::SessionResult;
use gantry_scheduler::schedule::{Retry, RetryPlan, Windows};

use super::clock::timestamp;
use super::sessions::RunEnd;

/// What follows, and how many attempts there were.
pub(super) fn following(
    plan: &RetryPlan,
    ended: &BTreeMap<String, RunEnd>,
    windows: &Windows,
) -> (u32, Retry) {
    let attempts = ended.values().map(|end| end.attempt).max().unwrap_or(1);
    let ended_ms = ended.values().map(|end| end.ended_ms).max().unwrap_or(0);
    let failed = ended.iter().filter(|(_, end)| end.result == SessionResult::Failed);
    let failed = failed.map(|(vm, _)| vm.as_str().into()).collect();
    (attempts, plan.after(attempts, failed, timestamp(ended_ms), windows))
}

#[cfg(test)]
mod tests {
    use gantry_common::ids::SessionId;

    use super::*;
    use crate::run::document::RunDocument;

    fn end(vm: &str, attempt: u32, result: SessionResult, ended_ms: u64) -> (String, RunEnd) {
        let run = RunDocument::new(SessionId([1; 16]), vm, vm, false);
        (vm.to_owned(), RunEnd { run, attempt, result, ended_ms })
    }

    #[test]
    fn only_what_failed_is_tried_again_and_a_pause_counts_from_the_attempt_s_end() {
        use SessionResult::{Failed, Success, Warning};
        let plan = RetryPlan { retries: 3, pause_seconds: 600 };
        let always = Windows::always();
        let books = BTreeMap::from([end("a", 1, Success, 1_000), end("b", 1, Failed, 5_000)]);
        let (attempts, retry) = following(&plan, &books, &always);
        let (at, vms) = (timestamp(605_000), ["b".into()].into());
        assert_eq!((attempts, retry), (1, Retry::At { at, vms }));
        // What a gantryd finds that was restarted in the pause before the third attempt.
        let mut books = books;
        books.extend([end("b", 2, Failed, 700_000)]);
        let (attempts, retry) = following(&plan, &books, &always);
        let (at, vms) = (timestamp(1_300_000), ["b".into()].into());
        assert_eq!((attempts, retry), (2, Retry::At { at, vms }));
        books.extend([end("b", 4, Failed, 9_000_000)]);
        let (_, retry) = following(&plan, &books, &always);
        assert_eq!(retry, Retry::GiveUp { vms: ["b".into()].into(), window_closed: false });
        books.extend([end("b", 4, Warning, 9_000_000)]);
        assert_eq!(following(&plan, &books, &always).1, Retry::Done);
    }
}
