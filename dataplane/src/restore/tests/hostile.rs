//! Repositories that lie, and points that are not there.

use std::sync::Arc;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::units::BlockSize;

use super::disks::{Model, offer};
use super::fake::{Manner, connect};
use crate::restore::{Destination, Progress, RestoreOptions, RestoreRequest, restore};

async fn failure_of(model: Model, manner: Manner) -> Failure {
    let dir = tempfile::tempdir().unwrap();
    let model = Arc::new(model);
    let path = dir.path().join("disk.raw");
    let request =
        RestoreRequest { offer: offer(), destination: Destination::SparseFile(path.clone()) };
    let result = restore(
        || std::future::ready(Ok(connect(&model, manner))),
        request,
        RestoreOptions::default(),
        Arc::new(Progress::default()),
    );
    let failure = result.await.unwrap_err();
    // What was written is kept only with its record beside it.
    let sidecar = dir.path().join("disk.raw.gantry-restore");
    assert_eq!(path.exists(), sidecar.exists(), "{failure}");
    failure
}

fn model() -> Model {
    Model::random(11, (5 << 20) + 1000, BlockSize::K256, 100)
}

#[tokio::test]
async fn a_block_with_a_wrong_id_or_length_is_refused_and_named() {
    for manner in [Manner::WrongBytes(3), Manner::Short(3)] {
        let failure = failure_of(model(), manner).await;
        assert_eq!(failure.kind, FailureKind::Target, "{failure}");
        let text = failure.to_string();
        assert!(text.contains("block 3 of web-01") && text.contains("repo verify"), "{text}");
    }
}

#[tokio::test]
async fn what_was_not_asked_for_is_refused() {
    for (manner, words) in [
        (Manner::Twice(5), "block 5 came unasked"),
        (Manner::ZerosBeyond, "unasked"),
        (Manner::Silent, "unanswered"),
        (Manner::Huge, "18446744073709551615"),
    ] {
        let failure = failure_of(model(), manner).await;
        assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
        assert!(failure.to_string().contains(words), "{failure}");
    }
}

#[tokio::test]
async fn the_repositorys_own_words_reach_the_person() {
    let failure = failure_of(model(), Manner::NoPoint).await;
    assert_eq!(failure, Failure::new(FailureKind::Usage, "no such point; there is 1234"));
}
