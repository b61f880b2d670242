//! ext4 as mke2fs makes it, compared with dumpe2fs and debugfs.

#![allow(clippy::unwrap_used)]

mod images;

use std::collections::BTreeSet;
use std::path::Path;

use gantry_guest::{
    Cache, Consistency, Extent, FileMasks, GuestFs, SnapshotKind, VolumeKind, open_file_system,
};
use images::ext4::{blocks_of, free, merged, outside, sum};
use images::{Image, can, empty, run};

const MIB: u64 = 1 << 20;
const TOOLS: [&str; 3] = ["mke2fs", "dumpe2fs", "debugfs"];

/// mke2fs's options: blocks, features, journals of every kind that is filtered.
const KINDS: [&[&str]; 9] = [
    &["-t", "ext4", "-b", "4096"],
    &["-t", "ext4", "-b", "1024"],
    &["-t", "ext4", "-b", "4096", "-O", "^metadata_csum,uninit_bg"],
    &["-t", "ext4", "-b", "2048", "-O", "^64bit,^flex_bg"],
    &["-t", "ext4", "-b", "1024", "-g", "1024", "-O", "^resize_inode"],
    &["-t", "ext4", "-O", "inline_data,casefold,metadata_csum_seed,sparse_super2"],
    &["-t", "ext3", "-b", "1024"],
    &["-t", "ext2", "-b", "4096"],
    &["-t", "ext4", "-b", "65536"],
];

/// A tree with files of several kinds, given to mke2fs.
fn tree(at: &Path) {
    std::fs::create_dir_all(at.join("home/ann/deep")).unwrap();
    std::fs::create_dir_all(at.join("many")).unwrap();
    for number in 0..600 {
        std::fs::write(at.join(format!("many/a-name-that-is-rather-long-{number}")), "x").unwrap();
    }
    for (name, length) in [("video.mkv", 9_000_001), ("other", 700_000), ("deep/two.mkv", 50_000)] {
        std::fs::write(at.join("home/ann").join(name), vec![7; length]).unwrap();
    }
    std::fs::hard_link(at.join("home/ann/other"), at.join("home/linked.mkv")).unwrap();
    std::fs::write(at.join("home/both.mkv"), vec![8; 300_000]).unwrap();
    std::fs::hard_link(at.join("home/both.mkv"), at.join("home/ann/both.mkv")).unwrap();
    std::fs::write(at.join("swap.img"), vec![5; 3 << 20]).unwrap();
    run("mkswap", &[at.join("swap.img").to_str().unwrap()]);
}

fn with_image(options: &[&str], check: impl Fn(&Path, &dyn GuestFs)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    tree(&folder.path().join("tree"));
    empty(&path, 96 * MIB + 5 * 1024);
    let tree = folder.path().join("tree");
    let more = ["-q", "-F", "-L", "data", "-d", tree.to_str().unwrap(), path.to_str().unwrap()];
    run("mke2fs", &options.iter().copied().chain(more).collect::<Vec<_>>());
    let image = Image::open(&path);
    let cache = Cache::new(&image);
    let opened = open_file_system(VolumeKind::Ext4, &cache, SnapshotKind::Crash);
    check(&path, &*opened.unwrap_or_else(|refused| panic!("{options:?}: {refused}")));
}

fn free_of(system: &dyn GuestFs) -> Vec<Extent> {
    let mut found = Vec::new();
    system.free(&mut |range| found.push(range)).unwrap();
    merged(found)
}

#[test]
fn free_blocks_are_those_of_dumpe2fs() {
    if !can(false, &TOOLS) {
        return;
    }
    for options in KINDS {
        with_image(options, |path, system| {
            assert_eq!(system.consistency(), Consistency::Clean);
            assert!(system.identity().starts_with("data "), "{}", system.identity());
            let (found, oracle) = (free_of(system), free(path));
            assert_eq!(outside(&found, &oracle.ranges), None, "{options:?}");
            let unset = |range: &Extent| outside(&[*range], &oracle.unset).is_none();
            let expected = oracle.ranges.iter().filter(|range| range.length >= 16 << 10);
            let expected: Vec<_> = expected.filter(|range| !unset(range)).copied().collect();
            // Groups that were never written lie within longer ranges of the oracle's.
            let missing = sum(&expected) - sum(&found);
            assert!(missing <= sum(&oracle.unset), "{options:?}: {missing} {:?}", oracle.unset);
            if oracle.unset.is_empty() {
                assert_eq!(found, expected, "{options:?}");
            }
            system
                .in_use(3, &mut |range| {
                    let hit = found.iter().find(|free| {
                        free.start < range.start + range.length
                            && range.start < free.start + free.length
                    });
                    assert_eq!(hit, None, "{options:?}: {range:?}");
                })
                .unwrap();
        });
    }
}

/// Asserts that both name the same blocks, and shows only where they differ.
fn same(one: BTreeSet<u64>, other: BTreeSet<u64>, what: &str) {
    let (more, less): (Vec<_>, Vec<_>) =
        (one.difference(&other).take(20).collect(), other.difference(&one).take(20).collect());
    assert!(more.is_empty() && less.is_empty(), "{what}: given {more:?}, not given {less:?}");
}

struct Mkv;

impl FileMasks for Mkv {
    fn excludes(&self, path: &str) -> bool {
        path.ends_with(".mkv")
    }

    fn may_exclude_beneath(&self, folder: &str) -> bool {
        folder != "/many"
    }
}

#[test]
fn excluded_and_swap_files_are_those_of_debugfs() {
    if !can(false, &TOOLS) {
        return;
    }
    for options in KINDS {
        with_image(options, |path, system| {
            let block = free(path).block_bytes;
            let blocks = |ranges: &[(String, Extent)], name: &str| -> BTreeSet<u64> {
                let of_file = ranges.iter().filter(|(path, _)| path == name);
                of_file
                    .flat_map(|(_, range)| {
                        range.start / block..(range.start + range.length).div_ceil(block)
                    })
                    .collect()
            };
            let (mut given, mut left) = (Vec::new(), Vec::new());
            system
                .excluded_files(
                    &Mkv,
                    &mut |found| given.push((found.path, found.range)),
                    &mut |path, why| left.push((path.to_owned(), why.why)),
                )
                .unwrap();
            if options.iter().any(|option| option.contains("inline_data")) {
                // Small folders stand in their inodes and are not read: what is in them stays.
                assert!(left.iter().any(|(_, why)| why.contains("cannot be read")), "{left:?}");
                return;
            }
            let data = |name: &str| {
                let whole = blocks_of(path, name);
                let tree = run("debugfs", &["-R", &format!("stat {name}"), path.to_str().unwrap()]);
                // Blocks of the map itself are listed with a sign of their depth.
                let map = tree
                    .split(['\n', ','])
                    .filter(|part| part.contains("IND)") || part.contains("ETB"));
                let map: BTreeSet<u64> = map
                    .filter_map(|part| part.rsplit([':', ')']).next()?.trim().parse().ok())
                    .collect();
                whole.difference(&map).copied().collect::<BTreeSet<_>>()
            };
            for name in ["/home/ann/video.mkv", "/home/ann/deep/two.mkv"] {
                same(blocks(&given, name), data(name), &format!("{options:?} {name}"));
            }
            let both = given.iter().find(|(path, _)| path.ends_with("both.mkv"));
            same(blocks(&given, &both.unwrap().0), data("/home/both.mkv"), &format!("{options:?}"));
            assert_eq!(left.len(), 1, "{left:?}");
            assert!(
                left[0].0 == "/home/linked.mkv" && left[0].1.contains("1 of its 2"),
                "{left:?}"
            );
            let (mut given, mut left) = (Vec::new(), Vec::new());
            system
                .system_files(
                    &mut |found| given.push((found.path, found.range)),
                    &mut |path, why| left.push((path.to_owned(), why.why)),
                )
                .unwrap();
            assert_eq!(sum(&given.iter().map(|(_, r)| *r).collect::<Vec<_>>()), 3 * MIB - 4096);
            let mut kept = data("/swap.img");
            // Its first page stays; some of that may be holes.
            for logical in 0..4096 / block {
                let ask = format!("bmap /swap.img {logical}");
                let physical = run("debugfs", &["-R", &ask, path.to_str().unwrap()]);
                kept.remove(&physical.trim().parse().unwrap());
            }
            same(blocks(&given, "/swap.img"), kept, &format!("{options:?}"));
            // Samples leave out what was given.
            let excluded = merged(given.iter().map(|(_, range)| *range).collect());
            for seed in 0..5 {
                let hit = &mut |range| {
                    assert_eq!(
                        images::ext4::shared(&excluded, &[range]),
                        0,
                        "{options:?} {range:?}"
                    );
                };
                system.in_use(seed, hit).unwrap();
            }
        });
    }
}

#[test]
fn doubtful_file_systems_are_refused_with_the_reason() {
    if !can(false, &TOOLS) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let refused = |options: &[&str], commands: &[&str]| {
        empty(&path, 64 * MIB);
        let fixed = ["-q", "-F", "-t", "ext4", path.to_str().unwrap()];
        run("mke2fs", &options.iter().copied().chain(fixed).collect::<Vec<_>>());
        for command in commands {
            run("debugfs", &["-w", "-R", command, path.to_str().unwrap()]);
        }
        let image = Image::open(&path);
        let opened = open_file_system(VolumeKind::Ext4, &image, SnapshotKind::Quiesced);
        opened.and_then(|system| system.free(&mut |_| ()))
    };
    refused(&[], &[]).unwrap();
    let cases: [(&[&str], &[&str], &str); 8] = [
        (&["-O", "fast_commit"], &[], "fast_commit"),
        (&["-O", "bigalloc"], &[], "bigalloc"),
        (&["-O", "meta_bg,^resize_inode"], &[], "meta_bg"),
        (&[], &["ssv state 3"], "notes errors"),
        (&["-O", "^has_journal"], &["ssv state 0"], "no journal"),
        (&[], &["feature FEATURE_I24"], "not known"),
        (&[], &["set_bg 0 free_blocks_count 7", "set_bg 0 checksum calc"], "its descriptor says"),
        (&[], &["set_bg 0 free_blocks_count 7"], "descriptor"),
    ];
    for (options, commands, why) in cases {
        let refused = refused(options, commands).unwrap_err();
        assert!(refused.why.contains(why), "{options:?} {commands:?}: {refused}");
    }
}

/// Free blocks follow from the union rule (see `ext4_live`), content of files does not.
#[test]
fn before_a_replay_free_blocks_are_named_and_content_of_files_is_not() {
    if !can(false, &TOOLS) {
        return;
    }
    with_image(KINDS[0], |path, clean| {
        let free = free_of(clean);
        run("debugfs", &["-w", "-R", "feature needs_recovery", path.to_str().unwrap()]);
        let image = Image::open(path);
        let system = open_file_system(VolumeKind::Ext4, &image, SnapshotKind::Crash).unwrap();
        assert_eq!(system.consistency(), Consistency::Replayable);
        assert_eq!(free_of(&*system), free);
        let mut given = |found: gantry_guest::FileRange| panic!("{found:?} is given");
        let swap = system.system_files(&mut given, &mut |_, _| {});
        let excluded = system.excluded_files(&Mkv, &mut given, &mut |_, _| {});
        for refused in [swap, excluded] {
            assert!(refused.unwrap_err().why.contains("not replayed"));
        }
    });
}
