//! Which engine reads packs best: the figures of docs/decisions/0003. Ignored: a measurement.
//!
//! `cargo nextest run --release -p gantry-dataplane read_engines --run-ignored all --no-capture`

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_uring::buffer::BufferPool;
use gantry_uring::direct::open_read_only;
use gantry_uring::files::FileSlot;
use gantry_uring::ring::{Ring, RingConfig};
use hdrhistogram::Histogram;
use tokio_uring::buf::BoundedBuf;

use crate::host::cpu_seconds;

const FILE_BYTES: u64 = 2 << 30;

#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    read_bytes: usize,
    depth: usize,
    direct: bool,
    reads: usize,
}

impl Load {
    /// Sequential for large reads; scattered, as deduplicated blocks lie, for small ones.
    fn offsets(&self) -> Vec<u64> {
        let mut random = fastrand::Rng::with_seed(1);
        let places = FILE_BYTES / self.read_bytes as u64;
        let place = |read: u64| match self.read_bytes >= 4 << 20 {
            true => read % places,
            false => random.u64(0..places),
        };
        (0..self.reads as u64).map(place).map(|place| place * self.read_bytes as u64).collect()
    }
}

fn tokio_uring_reads(path: &Path, load: Load) -> Histogram<u64> {
    let pool = BufferPool::new(load.depth, load.read_bytes).unwrap();
    tokio_uring_with(path, load, move || (pool.try_take().unwrap(), 0))
}

/// All that safe code can do without help.
fn tokio_uring_vec_reads(path: &Path, load: Load) -> Histogram<u64> {
    tokio_uring_with(path, load, move || {
        let buf = vec![0u8; load.read_bytes + 4096];
        let skip = buf.as_ptr().align_offset(4096);
        (buf, skip)
    })
}

fn tokio_uring_with<B: tokio_uring::buf::IoBufMut>(
    path: &Path,
    load: Load,
    buffer: impl Fn() -> (B, usize),
) -> Histogram<u64> {
    tokio_uring::start(async move {
        let (file, _) = open_read_only(path, load.direct).unwrap();
        let file = Rc::new(tokio_uring::fs::File::from_std(file));
        let offsets = Rc::new(RefCell::new(load.offsets().into_iter()));
        let times = Rc::new(RefCell::new(Histogram::<u64>::new(2).unwrap()));
        let tasks: Vec<_> = (0..load.depth)
            .map(|_| {
                let (file, offsets, times) = (file.clone(), offsets.clone(), times.clone());
                let (mut buf, skip) = buffer();
                tokio_uring::spawn(async move {
                    loop {
                        let Some(offset) = offsets.borrow_mut().next() else { return };
                        let begun = Instant::now();
                        let slice = buf.slice(skip..skip + load.read_bytes);
                        let (read, slice) = file.read_at(slice, offset).await;
                        assert_eq!(read.unwrap(), load.read_bytes);
                        times.borrow_mut().record(begun.elapsed().as_micros() as u64).unwrap();
                        buf = slice.into_inner();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        times.borrow().clone()
    })
}

fn ring_reads(path: &Path, load: Load) -> Histogram<u64> {
    let (file, _) = open_read_only(path, load.direct).unwrap();
    let pool = BufferPool::new(load.depth, load.read_bytes).unwrap();
    let mut ring = Ring::new(&RingConfig::new(load.depth as u32)).unwrap();
    let _ = ring.register_pool(&pool);
    let _ = ring.register_files(1).unwrap();
    ring.set_file(FileSlot(0), file).unwrap();
    let mut times = Histogram::new(2).unwrap();
    let mut offsets = load.offsets().into_iter();
    let mut begun = vec![Instant::now(); load.depth];
    loop {
        while let Some(buf) = pool.try_take() {
            let Some(offset) = offsets.next() else { break };
            let slot = buf.slot_index();
            begun[slot] = Instant::now();
            ring.read(FileSlot(0), offset, load.read_bytes, buf, slot as u64).unwrap();
        }
        if ring.in_flight() == 0 {
            return times;
        }
        ring.wait(1, None).unwrap();
        let done: Vec<_> = ring.completions().collect();
        for completion in done {
            assert_eq!(completion.result.unwrap() as usize, load.read_bytes);
            let took = begun[completion.user as usize].elapsed();
            times.record(took.as_micros() as u64).unwrap();
        }
    }
}

fn pread_threads(path: &Path, load: Load) -> Histogram<u64> {
    let file: Arc<File> = Arc::new(open_read_only(path, load.direct).unwrap().0);
    let offsets = std::sync::Mutex::new(load.offsets().into_iter());
    let pool = BufferPool::new(load.depth, load.read_bytes).unwrap();
    let mut times = Histogram::<u64>::new(2).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.depth)
            .map(|_| {
                scope.spawn(|| {
                    let mut buf = pool.try_take().unwrap();
                    let mut times = Histogram::<u64>::new(2).unwrap();
                    loop {
                        let Some(offset) = offsets.lock().unwrap().next() else { return times };
                        let begun = Instant::now();
                        file.read_exact_at(&mut buf[..load.read_bytes], offset).unwrap();
                        times.record(begun.elapsed().as_micros() as u64).unwrap();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| times.add(thread.join().unwrap()).unwrap());
    });
    times
}

type Engine = fn(&Path, Load) -> Histogram<u64>;

#[test]
#[ignore = "a measurement of some minutes"]
fn read_engines_compared() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("pack");
    let mut file = File::create(&path).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut chunk = vec![0; 4 << 20];
    for _ in 0..FILE_BYTES / (4 << 20) {
        random.fill(&mut chunk);
        file.write_all(&chunk).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    let engines: [(&str, Engine); 4] = [
        ("tokio-uring", tokio_uring_reads),
        ("tokio-uring, Vec", tokio_uring_vec_reads),
        ("gantry_uring::Ring", ring_reads),
        ("pread threads", pread_threads),
    ];
    let load =
        |name, read_bytes, depth, direct, reads| Load { name, read_bytes, depth, direct, reads };
    for load in [
        load("4 MiB sequential, depth 4, O_DIRECT", 4 << 20, 4, true, 512),
        load("4 MiB sequential, depth 4, buffered, cold", 4 << 20, 4, false, 512),
        load("320 KiB scattered, depth 16, O_DIRECT", 320 << 10, 16, true, 3000),
        load("320 KiB scattered, depth 16, buffered, cold", 320 << 10, 16, false, 3000),
        load("4 KiB scattered, depth 16, O_DIRECT", 4096, 16, true, 40_000),
    ] {
        println!("{}", load.name);
        for round in 0..3 {
            for (engine, read) in engines {
                rustix::fs::fadvise(
                    File::open(&path).unwrap(),
                    0,
                    None,
                    rustix::fs::Advice::DontNeed,
                )
                .unwrap();
                std::thread::sleep(Duration::from_millis(200));
                let (begun, cpu) = (Instant::now(), cpu_seconds());
                let times = read(&path, load);
                let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
                let bytes = (load.reads * load.read_bytes) as f64 / 1e9;
                println!(
                    "  {round} {engine:20} {:5.2} GB/s  {:.3} CPU-s/GB  p50 {:6} us  p99 {:6} us  max {:6} us",
                    bytes / wall,
                    cpu / bytes,
                    times.value_at_quantile(0.5),
                    times.value_at_quantile(0.99),
                    times.max(),
                );
            }
        }
    }
}
