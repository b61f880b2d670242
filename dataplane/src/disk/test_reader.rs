//! For tests: reads a remote source the way planner and reader do.
//!
//! In: a source. Out: the disk's bytes, and how many of them were asked for.

use std::collections::HashMap;

use gantry_uring::buffer::BufferPool;
use gantry_uring::ring::{Ring, RingConfig};

use super::remote::{ReadRequest, RemoteError, RemoteSource, ReturnPath};

/// The whole disk, `depth` blocks at a time, and the bytes that were read of it.
pub(super) fn read_all(
    source: &dyn RemoteSource,
    block_bytes: u64,
    depth: usize,
) -> Result<(Vec<u8>, u64), RemoteError> {
    let size_bytes = source.size_bytes();
    let mut blocks = Vec::new();
    let mut at = 0;
    while let Some((start, end)) = source.next_data(at)? {
        assert!(start >= at && end > start && end <= size_bytes, "{at}: {start}..{end}");
        let first = (start / block_bytes).max(blocks.last().map_or(0, |last| last + 1));
        blocks.extend(first..end.div_ceil(block_bytes));
        at = end.next_multiple_of(block_bytes);
    }
    read_blocks(source, &blocks, block_bytes, depth)
}

/// These blocks of the disk, all else zeros, and the bytes read.
pub(super) fn read_blocks(
    source: &dyn RemoteSource,
    blocks: &[u64],
    block_bytes: u64,
    depth: usize,
) -> Result<(Vec<u8>, u64), RemoteError> {
    let size_bytes = source.size_bytes();
    let pool = BufferPool::new(depth, block_bytes as usize).unwrap();
    let mut ring = Ring::new(&RingConfig::new(2)).unwrap();
    let (done, answers) = crossbeam_channel::unbounded();
    let back = ReturnPath { done, waker: ring.waker().unwrap() };
    let mut disk = vec![0; size_bytes as usize];
    let mut todo = blocks.iter();
    let (mut asked, mut read_bytes, mut failed) = (HashMap::new(), 0, None);
    for slot in 0.. {
        while let Some(mut buf) = pool.try_take() {
            let Some(block) = todo.next().filter(|_| failed.is_none()) else { break };
            buf.fill(0xAA);
            let offset = block * block_bytes;
            let len = block_bytes.min(size_bytes - offset);
            let number = slot * depth + asked.len() + 1000 * *block as usize;
            asked.insert(number, (offset as usize, len as usize));
            source.submit(ReadRequest::new(offset, len as usize, buf, number, back.clone()));
        }
        if asked.is_empty() {
            break;
        }
        let answer = answers.recv_timeout(std::time::Duration::from_secs(100)).unwrap();
        let (offset, len) = asked.remove(&answer.slot).expect("one answer for each request");
        match answer.result {
            Ok(()) => {
                disk[offset..offset + len].copy_from_slice(&answer.buf[..len]);
                read_bytes += len as u64;
            }
            Err(error) => failed = Some(error),
        }
    }
    assert_eq!(pool.free(), depth, "every buffer came back");
    match failed {
        Some(error) => Err(error),
        None => Ok((disk, read_bytes)),
    }
}
