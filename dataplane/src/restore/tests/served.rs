//! Client and server together, over a real store on a real file system.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_common::extents::Run;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{PointId, SessionId};
use gantry_common::session::store_port::{StoreCommand, StoreReport, TaskKey};
use gantry_common::units::{BlockSize, Compression};
use gantry_common::wire::{
    BaseChoice, DiskOffer, Mark, MarkKind, RestoreOffer, SessionKind, SessionOffer, TaskTotals,
    ToTarget,
};

use super::disks::{Model, NAME, offer};
use crate::payload::PayloadPool;
use crate::restore::{
    Destination, PackFiles, Progress, RestoreOptions, RestoreReport, RestoreRequest, ServeOptions,
    restore, serve,
};
use crate::store::admin;
use crate::store::reader::StoreReader;
use crate::store::service::StoreService;
use crate::store::storage::kernel::KernelStorage;
use crate::transport::{Connection, pair};

/// A repository in a folder of its own.
struct Repository {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Repository {
    fn new() -> Repository {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("repo");
        admin::init(&path, 1).unwrap();
        Repository { _dir: dir, path }
    }

    fn reader(&self) -> StoreReader {
        StoreReader::open(KernelStorage::new(&self.path)).unwrap().0
    }

    /// Backs the model up; its blocks are stored in another order than the disk's.
    fn store(&self, model: &Model, seed: u64) -> PointId {
        let pool = PayloadPool::new(16, model.block_size.bytes() as usize).unwrap();
        let service = StoreService::spawn(&self.path, vec![pool.buffers().clone()]).unwrap();
        let (handle, session) = (service.handle(), SessionId([seed as u8; 16]));
        let (to, reports) = crossbeam_channel::unbounded();
        handle.subscribe(session, Box::new(move |report| drop(to.send(report)))).unwrap();
        let submit = |command| handle.submit(command).unwrap();
        submit(StoreCommand::OpenSession {
            session,
            offer: session_offer(model, seed),
            kind: SessionKind::Backup,
        });
        let key = TaskKey { session, task: 0 };
        submit(StoreCommand::OpenTask { key });
        let zeros = model.zeros(Run { first: 0, count: model.blocks() });
        let marks = zeros.into_iter().map(|run| Mark { run, kind: MarkKind::Zero }).collect();
        submit(StoreCommand::Marks { key, marks });
        let mut numbers: Vec<u64> = model.blocks.keys().copied().collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut numbers);
        for block in numbers {
            let (head, stored) = model.stored_under(block, &handle.id_key()).unwrap();
            let mut payload = loop {
                match pool.take(stored.len()) {
                    Some(payload) => break payload,
                    None => std::thread::sleep(Duration::from_micros(100)),
                }
            };
            payload.stored_mut().copy_from_slice(&stored);
            submit(StoreCommand::Append { key, block, head, payload });
        }
        submit(StoreCommand::Seal { key, totals: TaskTotals::default(), mask: Vec::new() });
        loop {
            match reports.recv_timeout(Duration::from_secs(60)).unwrap() {
                StoreReport::Committed { point, .. } => return point,
                StoreReport::Failed { failure, .. } => panic!("{failure}"),
                _ => {}
            }
        }
    }

    fn packs(&self) -> Vec<PathBuf> {
        let folders = std::fs::read_dir(self.path.join("packs")).unwrap();
        let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect()
    }
}

fn session_offer(model: &Model, seed: u64) -> SessionOffer {
    SessionOffer {
        name: NAME.to_owned(),
        disks: vec![DiskOffer {
            identity: "disk".to_owned(),
            label: "disk.raw".to_owned(),
            size_bytes: model.size_bytes,
            block_size: model.block_size,
            snapshot: seed.to_string(),
            read_digest: [0; 32],
            base: BaseChoice::None,
            change_id: None,
        }],
        compression: Compression::Fast,
        created_ms: 1000 + seed,
        vm_config: Vec::new(),
        retention: None,
    }
}

/// A connection to a server that has read its `Hello`.
fn connect(store: &StoreReader, files: &PackFiles) -> Connection {
    let (client, server) = pair();
    let (store, files) = (store.clone(), files.clone());
    tokio::spawn(async move {
        let Connection { sender, mut receiver, .. } = server;
        let hello = receiver.recv().await.unwrap().unwrap().decode::<ToTarget>().unwrap();
        let ToTarget::Hello { intent: gantry_common::wire::Intent::Restore(offer), .. } = hello
        else {
            panic!("{hello:?}");
        };
        // What fails here, the client is told.
        let _ = serve(offer, store, sender, receiver, files, ServeOptions::default()).await;
    });
    client
}

async fn run(
    store: &StoreReader,
    offer: RestoreOffer,
    path: &Path,
) -> Result<RestoreReport, Failure> {
    let files = PackFiles::start().unwrap();
    let request = RestoreRequest { offer, destination: Destination::of(path) };
    let connect = || std::future::ready(Ok(connect(store, &files)));
    let options = RestoreOptions::default();
    restore(connect, request, options, Arc::new(Progress::default())).await
}

#[tokio::test]
async fn points_of_every_block_size_come_back_bit_for_bit() {
    for (seed, block_size) in BlockSize::ALL.into_iter().enumerate() {
        let repository = Repository::new();
        let size = 60 * u64::from(block_size.bytes()) / 4 * 4 / 2 + 4999;
        let models = [seed as u64 * 2 + 1, seed as u64 * 2 + 2]
            .map(|seed| Model::random(seed, size, block_size, 60));
        let points = [1, 2].map(|seed| repository.store(&models[seed as usize - 1], seed));
        let (reader, dir) = (repository.reader(), tempfile::tempdir().unwrap());
        for (model, point) in models.iter().zip(points) {
            let path = dir.path().join(point.to_string());
            let report =
                run(&reader, RestoreOffer { point: Some(point), ..offer() }, &path).await.unwrap();
            model.assert_is(&path);
            assert_eq!((report.point, report.blocks), (point, model.blocks.len() as u64));
        }
        let newest = dir.path().join("newest");
        assert_eq!(run(&reader, offer(), &newest).await.unwrap().point, points[1]);
        models[1].assert_is(&newest);
    }
}

#[tokio::test]
async fn what_is_not_there_is_answered_with_what_is() {
    let repository = Repository::new();
    let point = repository.store(&Model::random(1, 1 << 20, BlockSize::K256, 60), 1);
    let (reader, dir) = (repository.reader(), tempfile::tempdir().unwrap());
    let path = dir.path().join("disk.raw");
    let other = PointId::new(9, [9; 10]);
    for (offer, words) in [
        (RestoreOffer { name: "db-02".to_owned(), ..offer() }, NAME.to_owned()),
        (RestoreOffer { point: Some(other), ..offer() }, point.to_string()),
        (RestoreOffer { disk: 1, ..offer() }, "0 (disk.raw)".to_owned()),
    ] {
        let failure = run(&reader, offer, &path).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage, "{failure}");
        assert!(failure.to_string().contains(&words), "{failure}");
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn damage_in_a_pack_names_place_disk_and_block_and_spares_the_rest() {
    let repository = Repository::new();
    let model = Model::random(3, 12 << 20, BlockSize::K256, 100);
    repository.store(&model, 1);
    let (reader, dir) = (repository.reader(), tempfile::tempdir().unwrap());
    let pack = repository.packs().pop().unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let bad = bytes.len() / 2;
    bytes[bad] ^= 0x10;
    std::fs::write(&pack, &bytes).unwrap();
    let path = dir.path().join("disk.raw");
    let failure = run(&reader, offer(), &path).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Target, "{failure}");
    let text = failure.to_string();
    for words in [
        pack.to_str().unwrap(),
        "damaged at byte",
        "block ",
        "disk 0 (disk.raw) of web-01",
        "verify",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    bytes[bad] ^= 0x10;
    std::fs::write(&pack, &bytes).unwrap();
    let report = run(&reader, offer(), &path).await.unwrap();
    assert_eq!(report.blocks, 1, "every other block had come");
    model.assert_is(&path);
}

#[tokio::test]
async fn sixteen_tebibytes_that_are_almost_empty_take_about_a_second() {
    let repository = Repository::new();
    let mut model = Model::random(1, 4 << 20, BlockSize::M1, 100);
    model.size_bytes = (16 << 40) - (1 << 20);
    for block in [1 << 20, 5_000_000, model.blocks() - 1] {
        model.blocks.insert(block, vec![3; 1 << 20]);
    }
    repository.store(&model, 1);
    let (reader, dir) = (repository.reader(), tempfile::tempdir().unwrap());
    let path = dir.path().join("disk.raw");
    let begun = Instant::now();
    let report = run(&reader, offer(), &path).await.unwrap();
    println!("{:?} {:?}", begun.elapsed(), report.peak_rss_bytes);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(report.blocks, 7);
    assert_eq!(report.bytes_zero, model.size_bytes - 7 * (1 << 20));
}

/// How fast a restore is within one process, without a network. Ignored: a measurement.
#[tokio::test]
#[ignore = "a measurement"]
async fn restore_speed() {
    let repository = Repository::new();
    let size = 2 << 30;
    let mut model = Model::random(1, size, BlockSize::M1, 100);
    // About 2.2:1 as zstd sees it.
    for (number, raw) in &mut model.blocks {
        let mut random = fastrand::Rng::with_seed(*number);
        raw.chunks_mut(64).for_each(|line| random.fill(&mut line[..28]));
    }
    repository.store(&model, 1);
    drop(model);
    let (reader, dir) = (repository.reader(), tempfile::tempdir().unwrap());
    for round in 0..3 {
        let path = dir.path().join(format!("{round}.raw"));
        let report = run(&reader, offer(), &path).await.unwrap();
        let gb = report.bytes_virtual as f64 / 1e9;
        println!(
            "{:.2} GB/s, {:.3} CPU-s/GB, rss {} MiB, transferred {:.2} GB, {:?}",
            gb / report.wall_seconds,
            report.cpu_seconds / gb,
            report.peak_rss_bytes >> 20,
            report.bytes_transferred as f64 / 1e9,
            report.bottleneck,
        );
        for stage in report.stages {
            println!("  {stage:?}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
