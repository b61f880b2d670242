//! Streams as gantry-vmdk writes them, whole, cut and spoilt.

use std::io::Cursor;

use crossbeam_channel::unbounded;
use gantry_vmdk::stream::{Writer, WriterOptions};

use super::RemoteError;
use super::stream::{Ask, Server};
use crate::disk::remote::{ReadRequest, RemoteSource};
use crate::disk::test_reader::read_blocks;

const MIB: u64 = 1 << 20;

/// A stream without a host.
#[derive(Debug)]
struct Plain {
    asks: crossbeam_channel::Sender<Ask>,
    size_bytes: u64,
}

impl Plain {
    fn open(stream: Vec<u8>, size_bytes: u64) -> Result<Plain, RemoteError> {
        let (asks, asked) = unbounded();
        let server = Server::open(Cursor::new(stream), size_bytes)?;
        std::thread::spawn(move || server.serve(&asked));
        Ok(Plain { asks, size_bytes })
    }
}

impl RemoteSource for Plain {
    fn label(&self) -> &str {
        "stream"
    }
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn sector_bytes(&self) -> u32 {
        512
    }
    fn identity(&self) -> &str {
        ""
    }
    fn fingerprint(&self) -> &str {
        ""
    }
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>, RemoteError> {
        let (reply, answer) = std::sync::mpsc::channel();
        self.asks.send(Ask::NextData { offset, reply }).unwrap();
        answer.recv().unwrap()
    }
    fn submit(&self, request: ReadRequest) {
        self.asks.send(Ask::Read(request)).unwrap();
    }
    fn changed_since_open(&self) -> Result<Option<String>, RemoteError> {
        Ok(None)
    }
}

/// A disk with holes and its stream.
fn disk(seed: u64, size_bytes: u64) -> (Vec<u8>, Vec<u8>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; size_bytes as usize];
    let mut at = 0;
    while at < bytes.len() {
        let len = random.usize(1..1_500_000).min(bytes.len() - at);
        if random.bool() {
            random.fill(&mut bytes[at..at + len]);
        }
        at += len;
    }
    let mut writer = Writer::new(Vec::new(), &WriterOptions::new(size_bytes)).unwrap();
    for (number, grain) in bytes.chunks(64 << 10).enumerate() {
        if grain.iter().any(|byte| *byte != 0) {
            writer.write(number as u64 * (64 << 10), grain).unwrap();
        }
    }
    (bytes, writer.finish().unwrap())
}

/// As planner and readers take it: a question, the blocks that it names, the next question.
fn walk(source: &Plain, block_bytes: u64) -> Result<(Vec<u8>, u64), RemoteError> {
    let (mut disk, mut read_bytes, mut at) = (vec![0; source.size_bytes as usize], 0, 0);
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        while let Some((start, end)) = source.next_data(at)? {
            assert!(start >= at && end > start);
            let blocks: Vec<u64> = (start / block_bytes..end.div_ceil(block_bytes)).collect();
            at = end.next_multiple_of(block_bytes);
            // The next question comes while these blocks are still being read.
            readers.push(scope.spawn(move || {
                std::thread::sleep(std::time::Duration::from_micros(200));
                (blocks.clone(), read_blocks(source, &blocks, block_bytes, 2))
            }));
        }
        for reader in readers {
            let (blocks, read) = reader.join().unwrap();
            let (bytes, count) = read?;
            read_bytes += count;
            for block in blocks {
                let from = (block * block_bytes) as usize;
                let to = (from + block_bytes as usize).min(disk.len());
                disk[from..to].copy_from_slice(&bytes[from..to]);
            }
        }
        Ok((disk, read_bytes))
    })
}

#[test]
fn a_stream_is_the_disk_whatever_the_block_size() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    for (block_bytes, size_bytes) in
        [(256 << 10, 8 * MIB), (MIB, 8 * MIB + 512), (4 * MIB, 9 * MIB), (MIB, 512)]
    {
        let (bytes, stream) = disk(seed, size_bytes);
        let source = Plain::open(stream, size_bytes).unwrap();
        let (read, read_bytes) = walk(&source, block_bytes).unwrap();
        assert!(read == bytes, "{block_bytes} of {size_bytes}");
        assert!(read_bytes <= size_bytes);
        // It does not go back.
        if bytes[..MIB.min(size_bytes) as usize].iter().any(|byte| *byte != 0) {
            let again = read_blocks(&source, &[0], block_bytes, 1).unwrap_err();
            assert!(again.to_string().contains("passed"), "{again}");
        }
    }
}

#[test]
fn a_stream_that_is_cut_or_spoilt_never_ends_well() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (bytes, stream) = disk(seed, 6 * MIB);
    for _ in 0..30 {
        let cut = random.usize(..stream.len() - 512);
        let failed = Plain::open(stream[..cut].to_vec(), 6 * MIB).and_then(|s| walk(&s, MIB));
        assert!(failed.is_err(), "cut at {cut}");
    }
    for _ in 0..30 {
        let mut spoilt = stream.clone();
        let at = random.usize(..spoilt.len());
        spoilt[at] ^= 1 << random.u8(..8);
        if let Ok((read, _)) = Plain::open(spoilt, 6 * MIB).and_then(|source| walk(&source, MIB)) {
            assert!(read == bytes, "a flipped bit at {at} was taken for the disk");
        }
    }
    let other = Plain::open(stream, 7 * MIB).unwrap_err().to_string();
    assert!(other.contains("6291456"), "{other}");
}
