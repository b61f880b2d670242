//! Jobs' clocks: kept, moved, gone with their job.

use super::{NOW, job, open, repository, vcenter};
use crate::model::Job;

#[tokio::test]
async fn a_job_s_clock_outlives_a_restart_and_goes_with_the_job() {
    let folder = tempfile::tempdir().unwrap();
    let (vcenter, repository) = (vcenter("vc"), repository("repo"));
    let nightly = job("nightly", &vcenter, &repository);
    {
        let database = open(folder.path()).await;
        database.create(&vcenter, &[], NOW).await.unwrap();
        database.create(&repository, &[], NOW).await.unwrap();
        database.create(&nightly, &[], NOW).await.unwrap();
        assert!(database.job_clocks().await.unwrap().is_empty());
        database.set_job_clock(nightly.id, NOW).await.unwrap();
        database.set_job_clock(nightly.id, NOW + 7).await.unwrap();
    }
    let database = open(folder.path()).await;
    assert_eq!(database.job_clocks().await.unwrap()[&nightly.id], NOW + 7);
    database.delete::<Job>(nightly.id).await.unwrap();
    database.set_job_clock(nightly.id, NOW + 8).await.unwrap();
    assert!(database.job_clocks().await.unwrap().is_empty());
}
