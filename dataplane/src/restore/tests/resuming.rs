//! Restores that are interrupted: by the network, by the repository, by a kill.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::units::BlockSize;

use super::disks::{Model, offer};
use super::fake::{Manner, connect};
use crate::restore::{
    Destination, Progress, RestoreOptions, RestoreReport, RestoreRequest, restore,
};

async fn run(
    model: &Arc<Model>,
    path: &Path,
    manners: &[Manner],
    options: RestoreOptions,
) -> Result<RestoreReport, Failure> {
    let request =
        RestoreRequest { offer: offer(), destination: Destination::SparseFile(path.to_owned()) };
    let mut manners = manners.iter().copied();
    let connect = || {
        let manner = manners.next().unwrap_or(Manner::Honest);
        std::future::ready(Ok(connect(model, manner)))
    };
    restore(connect, request, options, Arc::new(Progress::default())).await
}

fn model() -> Arc<Model> {
    Arc::new(Model::random(5, (40 << 20) + 700, BlockSize::K256, 60))
}

#[tokio::test]
async fn lost_connections_are_made_again_and_no_block_comes_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (model, path) = (model(), dir.path().join("disk.raw"));
    let manners = [Manner::DropAfter(20), Manner::DropAfter(1), Manner::DropAfter(30)];
    let report = run(&model, &path, &manners, RestoreOptions::default()).await.unwrap();
    model.assert_is(&path);
    assert_eq!((report.reconnections, report.blocks), (3, model.blocks.len() as u64));
    assert_eq!(report.bytes_resumed, 0);
    assert!(!dir.path().join("disk.raw.gantry-restore").exists());
}

#[tokio::test]
async fn a_later_run_goes_on_with_the_same_point_only() {
    let dir = tempfile::tempdir().unwrap();
    let (model, path) = (model(), dir.path().join("disk.raw"));
    let once = RestoreOptions { reconnect_for: Duration::ZERO, ..RestoreOptions::default() };
    let failure = run(&model, &path, &[Manner::DropAfter(50)], once.clone()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Network, "{failure}");
    let sidecar = dir.path().join("disk.raw.gantry-restore");
    assert!(sidecar.exists());

    let other = Arc::new(Model::random(6, 1 << 20, BlockSize::K256, 60));
    let failure = run(&other, &path, &[], once.clone()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Usage, "{failure}");
    assert!(failure.to_string().contains("unfinished restore of web-01"), "{failure}");

    let report = run(&model, &path, &[], once).await.unwrap();
    model.assert_is(&path);
    assert!(report.bytes_resumed >= 40 * (256 << 10), "{}", report.bytes_resumed);
    assert!(report.blocks <= model.blocks.len() as u64 - 40, "{}", report.blocks);
    assert!(!sidecar.exists());
}

#[tokio::test]
async fn with_force_another_point_takes_the_place_of_an_unfinished_one() {
    let dir = tempfile::tempdir().unwrap();
    let (model, path) = (model(), dir.path().join("disk.raw"));
    let mut options = RestoreOptions { reconnect_for: Duration::ZERO, ..Default::default() };
    run(&model, &path, &[Manner::DropAfter(50)], options.clone()).await.unwrap_err();
    let other = Arc::new(Model::random(6, 1 << 20, BlockSize::K256, 60));
    options.force = true;
    let report = run(&other, &path, &[], options).await.unwrap();
    other.assert_is(&path);
    assert_eq!((std::fs::metadata(&path).unwrap().len(), report.bytes_resumed), (1 << 20, 0));
}

/// A kill: the future is dropped, nothing is said or written any more.
#[tokio::test]
async fn a_run_that_was_cut_off_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let (model, path) = (model(), dir.path().join("disk.raw"));
    for millis in [0, 1, 3, 10, 30, 100, u64::MAX] {
        let limit = Duration::from_millis(millis);
        let result = loop {
            let cut = run(&model, &path, &[], RestoreOptions::default());
            match tokio::time::timeout(limit, cut).await {
                // The workers of the run before have not yet let go of the file.
                Ok(Err(failure)) if failure.to_string().contains("is locked") => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                other => break other,
            }
        };
        match result {
            Err(_) => assert_ne!(millis, u64::MAX),
            Ok(report) => {
                if let Err(failure) = report {
                    // The run before was cut off after its last step.
                    assert!(failure.to_string().contains("exists"), "{failure}");
                }
                model.assert_is(&path);
                std::fs::remove_file(&path).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_block_fails_the_restore_and_the_others_still_come() {
    let dir = tempfile::tempdir().unwrap();
    let (model, path) = (model(), dir.path().join("disk.raw"));
    let bad = *model.blocks.keys().nth(20).unwrap();
    let options = RestoreOptions::default();
    let failure = run(&model, &path, &[Manner::Damaged(bad)], options.clone()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Target);
    assert!(failure.to_string().contains(&format!("block {bad}")), "{failure}");
    // Healed meanwhile: only that block is missing.
    let report = run(&model, &path, &[], options).await.unwrap();
    model.assert_is(&path);
    assert_eq!(report.blocks, 1);
}
