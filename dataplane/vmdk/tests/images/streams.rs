//! streamOptimized as we write it: qemu-img, our image reader and our parser agree on it.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use gantry_vmdk::stream::{Parser, Writer, WriterOptions};

use crate::tool::{compare, folder, open, raw, run};

/// Writes `raw` as a stream, in pieces of several grains; leaves out what is a hole by chance.
fn write_stream(raw: &Path, stream: &Path, level: u32) {
    let file = File::open(raw).expect("raw");
    let size = file.metadata().expect("size").len();
    let mut options = WriterOptions::new(size);
    options.level = level;
    options.uuid = Some(*b"0123456789abcdef");
    let sink = BufWriter::new(File::create(stream).expect("a file"));
    let mut writer = Writer::new(sink, &options).expect("a writer");
    let mut at = 0;
    while at < size {
        let mut data = vec![0; (size - at).min(5 * 65_536) as usize];
        file.read_exact_at(&mut data, at).expect("data");
        writer.write(at, &data).expect("a write");
        at += data.len() as u64;
    }
    writer.finish().expect("the end").flush().expect("a flush");
}

/// Writes what the parser yields into a raw image.
fn parse_stream(stream: &Path, raw: &Path) {
    let source = BufReader::new(File::open(stream).expect("a stream"));
    let mut parser = Parser::new(source).expect("a parser");
    let file = File::create(raw).expect("raw");
    file.set_len(parser.info().size_bytes).expect("size");
    assert_eq!(parser.info().uuid.as_deref(), Some("30313233-3435-3637-3839-616263646566"));
    while let Some(grain) = parser.next_grain().expect("a grain") {
        file.write_all_at(grain.data, grain.offset).expect("a write");
    }
    let length = std::fs::metadata(stream).expect("its size").len();
    assert_eq!(parser.position_bytes(), length, "nothing is left");
}

#[test]
fn qemu_and_we_read_what_we_write() {
    let sizes = [512, 65_536, 1_000_448, (32 << 20) + 65_536, (97 << 20) - 512];
    for (index, size) in sizes.into_iter().enumerate() {
        let folder = folder();
        let source = raw(folder.path(), "disk.raw", size, 200 + index as u64);
        let stream = folder.path().join("s.vmdk");
        write_stream(&source, &stream, [1, 6, 0, 9, 1][index]);
        run(folder.path(), "qemu-img", &["compare", "-q", "disk.raw", "s.vmdk"]);
        run(folder.path(), "qemu-img", &["convert", "-O", "raw", "s.vmdk", "qemu.raw"]);
        run(folder.path(), "cmp", &["disk.raw", "qemu.raw"]);
        compare(&open(&stream), &source, size);
        parse_stream(&stream, &folder.path().join("ours.raw"));
        run(folder.path(), "cmp", &["disk.raw", "ours.raw"]);
    }
}

#[test]
fn an_empty_disk_and_a_large_one_are_streams_too() {
    for size in [1 << 20, 3_u64 << 40] {
        let folder = folder();
        let stream = folder.path().join("s.vmdk");
        let sink = BufWriter::new(File::create(&stream).expect("a file"));
        let mut writer = Writer::new(sink, &WriterOptions::new(size)).expect("a writer");
        if size > 1 << 40 {
            writer.write(size - 65_536, &[7; 65_536]).expect("the last grain");
        }
        drop(writer.finish().expect("the end"));
        run(folder.path(), "qemu-img", &["info", "s.vmdk"]);
        let image = open(&stream);
        let expected = (size > 1 << 40).then_some((size - 65_536, size));
        assert_eq!(image.next_data(0).expect("the map"), expected);
        let mut parser = Parser::new(File::open(&stream).expect("a stream")).expect("a parser");
        let first = parser.next_grain().expect("a grain").map(|grain| grain.offset);
        assert_eq!(first, expected.map(|(start, _)| start));
        assert!(first.is_none() || parser.next_grain().expect("the end").is_none());
    }
}
