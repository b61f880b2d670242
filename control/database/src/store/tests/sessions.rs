//! Sessions and their machines: all or nothing, one winner a step, order, pruning, speed.

use std::time::Instant;

use gantry_common::ids::PointId;

use super::*;
use crate::DatabaseError;
use crate::store::{Ending, SessionFilter, Transition};

fn step(run: &VmRunRecord, expected: &str, new: &str) -> Transition {
    let (expected, new) = (expected.to_owned(), new.to_owned());
    let document = json!({"at": new});
    Transition { vm_run: run.id, expected, new, document, ending: None, now_ms: NOW + 1 }
}

#[tokio::test]
async fn a_session_goes_from_its_first_step_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let own = session(NOW);
    let runs = [run(&own, 1), run(&own, 2)];
    let stranger = run(&session(NOW), 3);
    assert!(database.create_session(&own, std::slice::from_ref(&stranger)).await.is_err());
    assert!(database.session(own.id).await.is_err(), "all or nothing");
    database.create_session(&own, &runs).await.unwrap();
    assert_eq!(database.session(own.id).await.unwrap(), own);
    assert_eq!(database.unfinished_vm_runs().await.unwrap().len(), 2);
    let (pending, running) = (SessionState::Pending, SessionState::Running);
    database.move_session(own.id, pending, running, NOW + 1).await.unwrap();
    let error = database.move_session(own.id, pending, running, NOW).await.unwrap_err();
    assert!(matches!(&error, DatabaseError::StateMoved { found, .. } if found == "running"));
    database.transition(&step(&runs[0], "waiting", "snapshot")).await.unwrap();
    let totals = SessionTotals { vms: 2, ..SessionTotals::default() };
    let (result, reason) = (SessionResult::Warning, Some("look"));
    let error = database.finish_session(own.id, result, reason, &totals, NOW).await.unwrap_err();
    assert!(error.to_string().contains("VM vm1"), "{error}");
    let point = Some(PointId::new(NOW, [3; 10]));
    let ending = Some(Ending { result: SessionResult::Success, reason: None, point });
    for (each, from) in runs.iter().zip(["snapshot", "waiting"]) {
        let last = Transition { ending: ending.clone(), ..step(each, from, "done") };
        database.transition(&last).await.unwrap();
        assert!(database.transition(&step(each, "done", "again")).await.is_err(), "it is over");
    }
    let ended = database.vm_run(runs[0].id).await.unwrap();
    assert_eq!(
        (ended.point, ended.ended_ms, ended.document),
        (point, Some(NOW + 1), json!({"at": "done"}))
    );
    database.finish_session(own.id, result, reason, &totals, NOW + 9).await.unwrap();
    let over = database.session(own.id).await.unwrap();
    assert_eq!((over.result, over.ended_ms, over.totals.vms), (Some(result), Some(NOW + 9), 2));
    assert!(database.finish_session(own.id, result, None, &totals, NOW).await.is_err());
    let again = VmRunRecord { id: Id::draw(NOW), attempt: 2, ..runs[0].clone() };
    assert!(database.add_vm_runs(own.id, &[again]).await.is_err(), "the session is over");
    assert!(database.unfinished_sessions().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_take_the_same_step_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let own = session(NOW);
    let one = run(&own, 1);
    database.create_session(&own, std::slice::from_ref(&one)).await.unwrap();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (database, one) = (database.clone(), one.clone());
        workers.spawn(async move {
            let mut won = 0;
            for at in 0..40 {
                let from = if at == 0 { "waiting".to_owned() } else { format!("s{at}") };
                match database.transition(&step(&one, &from, &format!("s{}", at + 1))).await {
                    Ok(()) => won += 1,
                    Err(DatabaseError::StateMoved { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            won
        });
    }
    let won: u32 = workers.join_all().await.into_iter().sum();
    let reached = database.vm_run(one.id).await.unwrap().state;
    assert_eq!(reached, format!("s{won}"), "as many steps as winners");
    assert!((1..=40).contains(&won));
}

#[tokio::test]
async fn constraints_hold_whoever_writes() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let own = session(NOW);
    let one = run(&own, 1);
    database.create_session(&own, std::slice::from_ref(&one)).await.unwrap();
    assert!(database.create_session(&own, &[]).await.is_err(), "the id is taken");
    let same = VmRunRecord { id: Id::draw(NOW), ..one.clone() };
    assert!(database.add_vm_runs(own.id, &[same]).await.is_err(), "that attempt is there");
    let second = VmRunRecord { id: Id::draw(NOW), attempt: 2, ..one.clone() };
    database.add_vm_runs(own.id, &[second]).await.unwrap();
    let lost = session(NOW);
    let events = [event(&own, "kept?"), event(&lost, "x")];
    let error = database.append_events(&events).await.unwrap_err();
    assert!(matches!(error, DatabaseError::NotFound { .. }), "{error}");
    assert!(database.events(own.id, 0, 10).await.unwrap().is_empty(), "all or none");
    let mut task = TaskRecord {
        id: Id::draw(NOW),
        vm_run: lost.id,
        disk: "Hard disk 1".to_owned(),
        proxy: None,
        repository: Some(Id([4; 16])),
        mode: Some(gantry_common::transport_mode::TransportMode::Nbd),
        state: "reading".to_owned(),
        numbers: json!({"read": 5}),
        reasons: vec!["nearest".to_owned()],
    };
    assert!(database.put_tasks(std::slice::from_ref(&task)).await.is_err(), "no such run");
    task.vm_run = one.id;
    database.put_tasks(std::slice::from_ref(&task)).await.unwrap();
    task.state = "done".to_owned();
    database.put_tasks(std::slice::from_ref(&task)).await.unwrap();
    assert_eq!(database.tasks(one.id).await.unwrap(), [task]);
    let half = SessionRecord { state: SessionState::Finished, ..session(NOW) };
    assert!(database.create_session(&half, &[]).await.is_err(), "finished without a result");
}

#[tokio::test]
async fn old_sessions_go_with_all_that_is_theirs() {
    const DAY: u64 = 24 * 3_600_000;
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let (old, young, open_still) = (session(NOW), session(NOW + 80 * DAY), session(NOW));
    for each in [&old, &young, &open_still] {
        database.create_session(each, &[]).await.unwrap();
    }
    let totals = SessionTotals::default();
    for each in [&old, &young] {
        let (result, ended) = (SessionResult::Success, each.created_ms + 1);
        database.append_events(&[event(each, "x")]).await.unwrap();
        database.finish_session(each.id, result, None, &totals, ended).await.unwrap();
    }
    assert_eq!(database.prune_sessions(NOW + 90 * DAY).await.unwrap(), 0);
    assert_eq!(database.prune_sessions(NOW + 91 * DAY).await.unwrap(), 1);
    assert!(database.session(old.id).await.is_err());
    assert!(database.events(old.id, 0, 10).await.unwrap().is_empty());
    assert!(
        database.session(young.id).await.is_ok() && database.session(open_still.id).await.is_ok()
    );
}

/// DESIGN asks for 10,000 events a second; half of that here, since the machine is shared.
#[tokio::test]
async fn events_are_appended_fast_and_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let own = session(NOW);
    database.create_session(&own, &[]).await.unwrap();
    let begun = Instant::now();
    for batch in 0..20 {
        let text =
            |at: usize| format!("event {} of a usual length, with its reason", batch * 500 + at);
        let events: Vec<EventRecord> = (0..500).map(|at| event(&own, &text(at))).collect();
        database.append_events(&events).await.unwrap();
    }
    let second = 10_000.0 / begun.elapsed().as_secs_f64();
    println!("{second:.0} events a second, in batches of 500");
    assert!(second > 5_000.0, "{second}");
    let page = database.events(own.id, 9_000, 1000).await.unwrap();
    assert_eq!((page.len(), page[0].0, page[999].0), (1000, 9_001, 10_000));
    assert!(page[0].1.text.starts_with("event 9000 "));
    let long = EventRecord { text: "é".repeat(5000), ..event(&own, "") };
    database.append_events(&[long]).await.unwrap();
    assert!(database.events(own.id, 10_000, 1).await.unwrap()[0].1.text.len() <= 4096);
}

#[tokio::test]
async fn pages_of_many_sessions_come_fast() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    // By SQL: what is measured is the reading.
    sqlx::query(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99999) \
         INSERT INTO sessions SELECT printf('%012x%020x', $1 + i, i), 'backup', \
         printf('%032x', i % 10), 'nightly', 'schedule', NULL, 'finished', \
         CASE WHEN i % 100 = 7 THEN 'failed' ELSE 'success' END, NULL, $1 + i, $1 + i, $1 + i, \
         '{}', '{}' FROM n",
    )
    .bind(NOW as i64)
    .execute(&database.inner.writer)
    .await
    .unwrap();
    let plain = SessionFilter { limit: 100, ..SessionFilter::default() };
    let newest = database.sessions(&plain).await.unwrap();
    assert_eq!((newest.len(), newest[0].created_ms), (100, NOW + 99_999));
    let job = Some(Id(3u128.to_be_bytes()));
    let failed = Some(SessionResult::Failed);
    let middle = Some(Id::new(NOW + 50_000, [0; 10]));
    for (what, filter, first) in [
        ("newest", plain.clone(), 99_999),
        ("in the middle", SessionFilter { before: middle, ..plain.clone() }, 49_999),
        ("of a job", SessionFilter { job, ..plain.clone() }, 99_993),
        ("failed", SessionFilter { result: failed, ..plain.clone() }, 99_907),
        (
            "finished",
            SessionFilter { state: Some(SessionState::Finished), ..plain.clone() },
            99_999,
        ),
    ] {
        let mut best = f64::MAX;
        for _ in 0..5 {
            let begun = Instant::now();
            let page = database.sessions(&filter).await.unwrap();
            best = best.min(begun.elapsed().as_secs_f64() * 1000.0);
            assert_eq!((page.len(), page[0].created_ms), (100, NOW + first), "{what}");
        }
        println!("100 of 100,000 sessions, {what}: {best:.1} ms");
        assert!(best < 20.0, "{what}: {best} ms");
    }
}
