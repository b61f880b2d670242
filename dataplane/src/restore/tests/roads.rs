//! Every destination, bit for bit.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use gantry_common::failure::{Failure, FailureKind};
use gantry_common::units::BlockSize;

use super::disks::{Model, offer};
use super::fake::{Manner, connect};
use crate::restore::client::restore_to;
use crate::restore::{
    Destination, Progress, RestoreOptions, RestoreReport, RestoreRequest, restore, verify_against,
};

async fn to(
    model: &Arc<Model>,
    destination: Destination,
    force: bool,
) -> Result<RestoreReport, Failure> {
    let request = RestoreRequest { offer: offer(), destination };
    let connect = || std::future::ready(Ok(connect(model, Manner::Honest)));
    let options = RestoreOptions { force, ..RestoreOptions::default() };
    restore(connect, request, options, Arc::new(Progress::default())).await
}

#[tokio::test]
async fn files_of_every_block_size_and_odd_tail_come_back_and_stay_sparse() {
    let dir = tempfile::tempdir().unwrap();
    for (seed, block_size) in BlockSize::ALL.into_iter().enumerate() {
        for tail in [0, 1, 511, 512, 4096 + 512] {
            let size = 30 * u64::from(block_size.bytes()) / 4 + tail;
            let model = Arc::new(Model::random(seed as u64, size, block_size, 40));
            let path = dir.path().join(format!("{block_size}-{tail}.raw"));
            let report = to(&model, Destination::of(&path), false).await.unwrap();
            model.assert_is(&path);
            let stat = std::fs::metadata(&path).unwrap();
            assert_eq!(stat.len(), size);
            let zero: u64 = model
                .zeros(gantry_common::extents::Run { first: 0, count: model.blocks() })
                .iter()
                .map(|run| run.count)
                .sum();
            assert!(stat.blocks() * 512 <= (model.blocks() - zero) * u64::from(block_size.bytes()));
            assert_eq!(report.blocks, model.blocks() - zero);
            assert_eq!(report.point, model.point);
            std::fs::remove_file(&path).unwrap();
        }
    }
}

#[tokio::test]
async fn an_existing_file_is_refused_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, vec![9; 5 << 20]).unwrap();
    let model = Arc::new(Model::random(1, 2 << 20, BlockSize::K256, 50));
    let failure = to(&model, Destination::of(&path), false).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Usage);
    assert!(failure.to_string().contains("exists"), "{failure}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![9; 5 << 20]);
    to(&model, Destination::of(&path), true).await.unwrap();
    model.assert_is(&path);
}

#[tokio::test]
async fn sixteen_tebibytes_of_holes_take_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    let mut model = Model::random(1, 4 << 20, BlockSize::M1, 100);
    // ext4 ends one block short of 16 TiB.
    model.size_bytes = (16 << 40) - (1 << 20);
    model.blocks.insert(model.blocks() - 1, vec![3; 1 << 20]);
    let model = Arc::new(model);
    let begun = Instant::now();
    let report = to(&model, Destination::of(&path), false).await.unwrap();
    println!("{:?}", begun.elapsed());
    let stat = std::fs::metadata(&path).unwrap();
    assert_eq!((stat.len(), report.blocks), (model.size_bytes, 5));
    assert!(stat.blocks() * 512 <= 6 << 20);
    let same = dir.path().join("same.raw");
    to(&model, Destination::of(&same), false).await.unwrap();
    verify_against(&path, &same, &Progress::default()).unwrap();
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_stream_is_in_order_with_its_zeros_also_over_lost_connections() {
    for (seed, block_size) in [(1, BlockSize::K256), (2, BlockSize::M4)] {
        let size = 90 * u64::from(block_size.bytes()) / 2 + 77;
        let model = Arc::new(Model::random(seed, size, block_size, 50));
        let mut manners = [Manner::DropAfter(7), Manner::DropAfter(9)].into_iter();
        let connect =
            || std::future::ready(Ok(connect(&model, manners.next().unwrap_or(Manner::Honest))));
        let request = RestoreRequest { offer: offer(), destination: Destination::Stdout };
        let (sink, progress) = (Sink::default(), Arc::new(Progress::default()));
        let output = sink.clone();
        let report =
            restore_to(connect, request, RestoreOptions::default(), Arc::clone(&progress), || {
                Box::new(output)
            })
            .await
            .unwrap();
        assert!(*sink.0.lock().unwrap() == model.bytes(), "seed {seed}");
        assert_eq!((report.bytes_written, report.reconnections), (size, 2));
        assert_eq!(Progress::get(&progress.done_bytes), size);
    }
}

/// A loop device over a file full of rubbish; detached when dropped.
struct Loop {
    device: String,
}

impl Loop {
    fn over(path: &Path) -> Option<Loop> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(path).output().ok()?;
        let device = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        output.status.success().then_some(Loop { device })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
        let _ = std::fs::remove_file(format!("{}.gantry-restore", self.device));
    }
}

#[tokio::test]
async fn a_block_device_is_overwritten_whole_and_only_when_forced_and_free() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backing");
    std::fs::write(&path, vec![0xaa; 24 << 20]).unwrap();
    let Some(device) = Loop::over(&path) else {
        eprintln!("skipped: no loop device here (needs root)");
        return;
    };
    let destination = || Destination::of(Path::new(&device.device));
    assert!(matches!(destination(), Destination::BlockDevice(_)));
    let model = Arc::new(Model::random(3, (20 << 20) + 700, BlockSize::M1, 50));
    let failure = to(&model, destination(), false).await.unwrap_err();
    assert!(failure.to_string().contains("--force"), "{failure}");
    let large = Arc::new(Model::random(3, 25 << 20, BlockSize::M1, 50));
    let failure = to(&large, destination(), true).await.unwrap_err();
    assert!(failure.to_string().contains("larger device"), "{failure}");
    to(&model, destination(), true).await.unwrap();
    model.assert_is(Path::new(&device.device));
    // What lies behind the disk's end is not ours.
    let bytes = std::fs::read(&device.device).unwrap();
    assert!(bytes[model.size_bytes as usize..].iter().all(|&byte| byte == 0xaa));
    let raw = dir.path().join("disk.raw");
    std::fs::write(&raw, model.bytes()).unwrap();
    verify_against(Path::new(&device.device), &raw, &Progress::default()).unwrap();

    // Another disk under the same numbers is not taken for this one.
    let name = || crate::disk::attached_name(&std::fs::metadata(&device.device).unwrap());
    let first = name();
    assert!(first.is_some() && first == name(), "{first:?}");
    let losetup = |arguments: &[&str]| Command::new("losetup").args(arguments).status();
    losetup(&["--detach", &device.device]).unwrap();
    if losetup(&[&device.device, path.to_str().unwrap()]).is_ok_and(|status| status.success()) {
        assert_ne!(name(), first);
    }
}
