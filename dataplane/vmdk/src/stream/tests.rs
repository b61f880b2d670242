//! Streams that are cut, reordered, blown up or lie: each refusal by its kind.

use std::io::{self, Read};

use super::{Parser, StreamError, Writer, WriterError, WriterOptions};

const GRAIN: usize = 65_536;
const HEADER: usize = 65_536;

/// A stream of `grains`, each filled with its number and one.
fn stream(size_bytes: u64, grains: &[u64]) -> Vec<u8> {
    let options = WriterOptions { level: 6, ..WriterOptions::new(size_bytes) };
    let mut writer = Writer::new(Vec::new(), &options).expect("a writer");
    for &grain in grains {
        let offset = grain * GRAIN as u64;
        let data = vec![grain as u8 + 1; GRAIN.min((size_bytes - offset) as usize)];
        writer.write(offset, &data).expect("a grain");
    }
    writer.finish().expect("the end")
}

/// All grains' offsets, or the error.
fn parse(bytes: &[u8]) -> Result<Vec<u64>, StreamError> {
    let mut parser = Parser::new(bytes)?;
    let mut offsets = Vec::new();
    while let Some(grain) = parser.next_grain()? {
        assert!(grain.data.iter().all(|&byte| byte == (grain.offset / GRAIN as u64) as u8 + 1));
        offsets.push(grain.offset);
    }
    Ok(offsets)
}

/// The stream with `sector` put in at `at`.
fn with_sector(stream: &[u8], at: usize, sector: &[u8; 512]) -> Vec<u8> {
    [&stream[..at], sector, &stream[at..]].concat()
}

#[test]
fn a_stream_that_is_cut_anywhere_is_an_error() {
    let whole = stream(8 << 20, &[0, 5, 127]);
    assert_eq!(parse(&whole).expect("the whole stream"), [0, 5 << 16, 127 << 16]);
    for length in (0..whole.len()).step_by(128).chain([whole.len() - 1]) {
        let error = parse(&whole[..length]).expect_err("a cut");
        assert!(matches!(error, StreamError::Truncated { .. }), "{length}: {error}");
    }
}

#[test]
fn a_hole_of_zeros_is_no_end() {
    let whole = stream(8 << 20, &[0, 5, 127]);
    for at in (HEADER..whole.len() - 512).step_by(512) {
        let mut bytes = whole.clone();
        bytes[at..].fill(0);
        parse(&bytes).expect_err("zeros");
    }
}

/// A host's connection dies between two chunks: a stream of an error after so many bytes.
#[test]
fn an_error_of_the_source_is_told_with_its_place() {
    struct Dies<'a>(&'a [u8]);
    impl Read for Dies<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            self.0.read(buffer)
        }
    }
    let whole = stream(8 << 20, &[0, 5]);
    let mut parser = Parser::new(Dies(&whole[..HEADER + 100])).expect("a parser");
    let error = parser.next_grain().expect_err("a reset");
    assert!(matches!(error, StreamError::Io { offset: 65_636, .. }), "{error}");
}

#[test]
fn progress_markers_are_passed_over() {
    let whole = stream(8 << 20, &[0]);
    let mut progress = [0; 512];
    progress[12] = 4;
    progress[16] = 99;
    // Whether the sender counts them in its places or not: here it does not.
    for at in [HEADER, HEADER + 512, whole.len() - 3 * 512] {
        assert_eq!(parse(&with_sector(&whole, at, &progress)).expect("a sign of life"), [0]);
    }
    progress[12] = 5;
    let error = parse(&with_sector(&whole, HEADER, &progress)).expect_err("an unknown marker");
    assert!(matches!(error, StreamError::Damaged { .. }), "{error}");
}

#[test]
fn grains_that_go_back_repeat_or_leave_the_disk_are_refused() {
    let whole = stream(8 << 20, &[3, 4]);
    let second = HEADER + 512;
    let moved = |lba: u64| {
        let mut bytes = whole.clone();
        bytes[second..second + 8].copy_from_slice(&lba.to_le_bytes());
        parse(&bytes).expect_err("a wrong place")
    };
    assert!(matches!(moved(128), StreamError::Backwards { found: 65_536, last: 196_608, .. }));
    assert!(matches!(moved(3 * 128), StreamError::Backwards { .. }), "a grain twice");
    for lba in [4 * 128 + 1, 16_384, u64::MAX, u64::MAX / 512 + 1] {
        assert!(matches!(moved(lba), StreamError::Damaged { .. }), "{lba}");
    }
}

#[test]
fn a_grain_behind_the_directory_is_in_no_table() {
    let whole = stream(8 << 20, &[3]);
    let mut grain: [u8; 512] = whole[HEADER..HEADER + 512].try_into().expect("a sector");
    grain[..8].copy_from_slice(&(4 * 128_u64).to_le_bytes());
    let error = parse(&with_sector(&whole, whole.len() - 3 * 512, &grain)).expect_err("a grain");
    assert!(error.to_string().contains("after the directory"), "{error}");
}

#[test]
fn a_bomb_inflates_to_one_grain_at_most() {
    let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    io::Write::write_all(&mut writer, &vec![0; 64 << 20]).expect("zeros");
    let bomb = writer.finish().expect("a bomb");
    let mut bytes = stream(8 << 20, &[]);
    bytes.truncate(HEADER);
    bytes.extend_from_slice(&0_u64.to_le_bytes());
    bytes.extend_from_slice(&(bomb.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&bomb);
    bytes.resize(bytes.len().next_multiple_of(512) + 512, 0);
    let error = parse(&bytes).expect_err("a bomb").to_string();
    assert!(error.contains("inflates to more") || error.contains("exceeds"), "{error}");
    let mut huge = stream(8 << 20, &[0]);
    huge[HEADER + 8..HEADER + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = parse(&huge).expect_err("a length").to_string();
    assert!(error.contains("4294967295 deflated bytes"), "{error}");
}

#[test]
fn a_short_grain_is_an_error_but_at_the_disks_end() {
    let short = |grain: u64, length: usize| {
        let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        io::Write::write_all(&mut writer, &vec![grain as u8 + 1; length]).expect("data");
        let deflated = writer.finish().expect("data");
        let mut bytes = stream(3 * GRAIN as u64 - 512, &[grain]);
        bytes[HEADER + 8..HEADER + 12].copy_from_slice(&(deflated.len() as u32).to_le_bytes());
        bytes[HEADER + 12..HEADER + 512].fill(0);
        bytes[HEADER + 12..HEADER + 12 + deflated.len()].copy_from_slice(&deflated);
        parse(&bytes)
    };
    assert_eq!(short(2, GRAIN - 512).expect("the last grain"), [2 << 16]);
    for (grain, length) in [(2, GRAIN - 513), (1, GRAIN - 512), (0, 0)] {
        let error = short(grain, length).expect_err("a short grain").to_string();
        assert!(error.contains("where the disk has"), "{error}");
    }
}

#[test]
fn a_grain_that_was_taken_out_or_put_in_is_missed_at_the_directory() {
    let whole = stream(8 << 20, &[0, 1, 2]);
    let mut without = whole.clone();
    without.drain(HEADER + 512..HEADER + 1024);
    let error = parse(&without).expect_err("a lost grain");
    assert!(matches!(error, StreamError::Inconsistent { .. }), "{error}");
    // Its place is kept, but what stands there is a sign of life instead.
    let mut hidden = whole;
    hidden[HEADER + 512..HEADER + 1024].fill(0);
    hidden[HEADER + 512 + 12] = 4;
    let error = parse(&hidden).expect_err("a hidden grain");
    assert!(error.to_string().contains("lists 3 grains that are not the 2"), "{error}");
}

#[test]
fn what_is_no_stream_is_said_to_be_none() {
    for bytes in [vec![0; 512], b"# Disk DescriptorFile\n".repeat(100)] {
        let error = parse(&bytes).expect_err("no stream");
        assert!(matches!(error, StreamError::NotAStream { .. }), "{error}");
    }
    let mut text_mode = stream(8 << 20, &[]);
    text_mode[75] = b'\n';
    assert!(parse(&text_mode).expect_err("text mode").to_string().contains("copied as text"));
}

#[test]
fn the_writer_refuses_what_a_stream_cannot_have() {
    let mut writer = Writer::new(Vec::new(), &WriterOptions::new(200_192)).expect("a writer");
    let mut refused = |offset: u64, length: usize| {
        let error = writer.write(offset, &vec![1; length]).expect_err("out of order");
        assert!(matches!(error, WriterError::Order { .. }), "{error}");
    };
    refused(1, 10);
    refused(0, 100);
    refused(196_608, 3_585);
    refused(u64::MAX - 65_535, GRAIN);
    writer.write(65_536, &[1; GRAIN]).expect("a grain");
    for offset in [0, 65_536] {
        let error = writer.write(offset, &[1; GRAIN]).expect_err("backwards");
        assert!(matches!(error, WriterError::Order { .. }), "{error}");
    }
    writer.write(196_608, &[3; 3_584]).expect("the disk's end");
    let bytes = writer.finish().expect("the end");
    let mut parser = Parser::new(bytes.as_slice()).expect("a parser");
    assert_eq!(parser.info().size_bytes, 200_192);
    assert_eq!(parser.next_grain().expect("one").expect("one").offset, 65_536);
    assert_eq!(parser.next_grain().expect("two").expect("two").data, [3; 3_584]);
    assert!(parser.next_grain().expect("the end").is_none());
    for size in [0, 511, (64 << 40) + 512] {
        let error = Writer::new(Vec::new(), &WriterOptions::new(size)).err().expect("a size");
        assert!(matches!(error, WriterError::Options(_)), "{error}");
    }
}
