//! XFS against its own tools: made by mkfs.xfs, mounted by the kernel, judged by xfs_db and by mounting
//! what is left when everything that the reader gave away is spoilt.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gantry_guest::{Consistency, Disk, Extent, GuestFs, Reason, xfs};

mod images;
use images::host::Host;
use images::judge::{self, Ends};
use images::{Image, Loop, Mount, can, empty, run};

const TOOLS: [&str; 6] = ["mkfs.xfs", "xfs_db", "xfs_freeze", "xfs_repair", "mkswap", "losetup"];
const IMAGE_BYTES: u64 = 320 << 20;

/// An image, mounted.
struct Guest {
    mount: Mount,
    device: Loop,
    image: PathBuf,
}

impl Guest {
    fn new(host: &Host, options: &[&str]) -> Guest {
        let image = host.path("guest");
        empty(&image, IMAGE_BYTES);
        let name = image.to_str().unwrap().to_owned();
        run("mkfs.xfs", &[&["-q", "-f", "-L", "guest"], options, &[&name]].concat());
        Guest::of(host, image)
    }

    fn of(host: &Host, image: PathBuf) -> Guest {
        let device = Loop::whole(&image);
        let on = host.folder.path().join(image.file_name().unwrap()).with_extension("m");
        Guest { mount: Mount::new(&device.0, &on, "nouuid"), device, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.0.join(name)
    }

    /// Unmounts it.
    fn end(self) -> PathBuf {
        let Guest { mount, device, image } = self;
        drop(mount);
        drop(device);
        image
    }
}

fn block_bytes(image: &Path) -> u64 {
    let text = run("xfs_db", &["-r", "-c", "sb 0", "-c", "p blocksize", image.to_str().unwrap()]);
    text.trim().rsplit(' ').next().unwrap().parse().unwrap()
}

/// What xfs_db calls free, in bytes of the image.
fn freesp(image: &Path) -> Vec<Extent> {
    let name = image.to_str().unwrap();
    let text = run("xfs_db", &["-r", "-c", "sb 0", "-c", "p agblocks", name]);
    let group_blocks: u64 = text.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let unit = block_bytes(image);
    let mut found = Vec::new();
    for line in run("xfs_db", &["-r", "-c", "freesp -d", name]).lines() {
        let numbers: Option<Vec<u64>> =
            line.split_whitespace().map(|word| word.parse().ok()).collect();
        if let Some([group, block, blocks]) = numbers.as_deref() {
            let start = (group * group_blocks + block) * unit;
            found.push(Extent { start, length: blocks * unit });
        }
    }
    judge::joined(found)
}

/// Bytes of the groups' reserve lists, which xfs_db calls free and the reader keeps.
fn reserved(image: &Path) -> u64 {
    let name = image.to_str().unwrap();
    let text = run("xfs_db", &["-r", "-c", "sb 0", "-c", "p agcount", name]);
    let groups: u64 = text.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let of_group = |group: u64| -> u64 {
        let group = format!("agf {group}");
        let text = run("xfs_db", &["-r", "-c", &group, "-c", "p flcount", name]);
        text.trim().rsplit(' ').next().unwrap().parse().unwrap()
    };
    (0..groups).map(of_group).sum::<u64>() * block_bytes(image)
}

/// What is free once the kernel has replayed the journal of a copy.
fn free_after_replay(host: &Host, image: &Path) -> Vec<Extent> {
    let copy = host.copy(image, "replayed");
    let copy = Guest::of(host, copy).end();
    let free = freesp(&copy);
    fs::remove_file(copy).unwrap();
    free
}

fn some(random: &mut fastrand::Rng, bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(|| random.u8(1..200)).take(bytes).collect()
}

/// Files of all the kinds that matter for masks.
fn fill(guest: &Guest, random: &mut fastrand::Rng) {
    for name in ["many", "few", "deep/er", "swap"] {
        fs::create_dir_all(guest.path(name)).unwrap();
    }
    for number in 0..3000 {
        let name = format!("many/a file with quite a long name, number {number}.bin");
        fs::write(guest.path(&name), some(random, number % 40)).unwrap();
    }
    for name in ["few/alone.bin", "few/alone.txt", "deep/er/file.bin", "both1.bin", "half1.bin"] {
        fs::write(guest.path(name), some(random, 300_000)).unwrap();
    }
    fs::hard_link(guest.path("both1.bin"), guest.path("few/both2.bin")).unwrap();
    fs::hard_link(guest.path("half1.bin"), guest.path("few/half2.txt")).unwrap();
    let pieces = fs::File::create(guest.path("pieces.bin")).unwrap();
    for number in 0..400 {
        pieces.write_all_at(&some(random, 4096), number * 16384).unwrap();
        if number % 16 == 0 {
            pieces.sync_all().unwrap();
        }
    }
    for number in 0..2000 {
        fs::write(guest.path("deleted"), some(random, 2000)).unwrap();
        if number % 3 == 0 {
            fs::rename(guest.path("deleted"), guest.path(&format!("few/{number}"))).unwrap();
        }
    }
    let swap = guest.path("swap/file");
    fs::write(&swap, some(random, 8 << 20)).unwrap();
    run("mkswap", &[swap.to_str().unwrap()]);
    fs::write(guest.path("deleted"), some(random, 20 << 20)).unwrap();
    run("sync", &["-f", guest.mount.0.to_str().unwrap()]);
    fs::remove_file(guest.path("deleted")).unwrap();
    run("sync", &["-f", guest.mount.0.to_str().unwrap()]);
}

fn freeze(guest: &Guest, verb: &str) {
    run("xfs_freeze", &[verb, guest.mount.0.to_str().unwrap()]);
}

/// The free ranges of an image that must be given; they must be what xfs_db says, be worth having, and
/// be free after a replay.
fn expect_free(host: &Host, path: &Path) -> Vec<Extent> {
    let image = Image::open(path);
    let fs = xfs::open(&image).unwrap();
    assert_eq!(fs.consistency(), Consistency::Clean);
    let free = judge::free_of(&*fs).unwrap();
    let oracle = freesp(path);
    assert_eq!(judge::common_bytes(&free, &oracle), judge::bytes(&free), "xfs_db differs");
    assert_eq!(judge::bytes(&free) + reserved(path), judge::bytes(&oracle), "xfs_db differs");
    let replayed = free_after_replay(host, path);
    assert_eq!(judge::common_bytes(&free, &replayed), judge::bytes(&free), "live after replay");
    let worth = judge::worth_it(&replayed);
    let given = judge::common_bytes(&judge::worth_it(&free), &worth);
    assert!(given * 10 >= judge::bytes(&worth) * 9, "{given} of {}", judge::bytes(&worth));
    assert_eq!(judge::common_bytes(&free, &judge::in_use_of(&*fs, 7)), 0);
    free
}

#[test]
fn what_is_given_away_can_be_spoilt_and_the_rest_is_whole() {
    if !can(true, &TOOLS) {
        return;
    }
    let mut random = fastrand::Rng::with_seed(5);
    let kinds: [&[&str]; 3] = [
        &["-m", "rmapbt=1,reflink=1"],
        &["-b", "size=1024", "-m", "reflink=0,finobt=0", "-i", "sparse=0", "-d", "agcount=3"],
        &["-n", "size=8192", "-i", "size=1024", "-l", "su=32768"],
    ];
    for options in kinds {
        let host = Host::new();
        let guest = Guest::new(&host, options);
        fill(&guest, &mut random);
        let reflink = !options.contains(&"reflink=0,finobt=0");
        if reflink {
            let names = [guest.path("few/alone.txt"), guest.path("shared.bin")];
            let [from, to] = names.each_ref().map(|name| name.to_str().unwrap());
            run("cp", &["--reflink=always", from, to]);
        }
        let before = judge::checksums(&guest.mount.0);
        freeze(&guest, "-f");
        let frozen = host.copy(&guest.image, "frozen");
        freeze(&guest, "-u");
        let clean = guest.end();
        for path in [frozen, clean] {
            let mut away = expect_free(&host, &path);
            {
                let image = Image::open(&path);
                let fs = xfs::open(&image).unwrap();
                assert!(fs.identity().starts_with("guest "), "{}", fs.identity());
                away.extend(expect_files(&*fs, reflink));
            }
            judge::spoil(&path, &away);
            let guest = Guest::of(&host, path);
            let after = judge::checksums(&guest.mount.0);
            assert_eq!(after.len(), before.len());
            for (name, (length, sum)) in &before {
                let (length_after, sum_after) = after[name];
                assert_eq!(*length, length_after, "{name}");
                let kept = sum_after == *sum;
                let excluded = name.ends_with(".bin") && *length > 0;
                let excluded = excluded && name != "half1.bin" && name != "shared.bin";
                assert_eq!(kept, !excluded && name != "swap/file", "{options:?} {name}");
            }
            run("xfs_repair", &["-n", guest.end().to_str().unwrap()]);
        }
    }
}

/// The ranges of excluded files and swap files.
fn expect_files(fs: &dyn GuestFs, reflink: bool) -> Vec<Extent> {
    let (given, left) = judge::excluded_of(fs, &Ends(".bin"));
    let mut wrong = vec!["/half1.bin"];
    wrong.extend(reflink.then_some("/shared.bin"));
    assert_eq!(left.keys().collect::<Vec<_>>(), wrong);
    let (swap, left) = judge::system_of(fs);
    assert_eq!(left.len(), 0);
    assert_eq!(swap.keys().collect::<Vec<_>>(), ["/swap/file"]);
    let ranges: Vec<Extent> = swap["/swap/file"].iter().map(|range| range.range).collect();
    assert!(swap["/swap/file"].iter().all(|range| range.reason == Reason::Swap));
    assert_eq!(judge::bytes(&ranges), (8 << 20) - (64 << 10));
    let given: Vec<Extent> = given.values().flatten().map(|range| range.range).collect();
    let all = [given, ranges].concat();
    assert_eq!(judge::bytes(&judge::joined(all.clone())), judge::bytes(&all), "they overlap");
    all
}

/// Writes, fsyncs and deletes until told to end.
fn load(folder: &Path, seed: u64, end: &AtomicBool) {
    let mut random = fastrand::Rng::with_seed(seed);
    while !end.load(Ordering::Relaxed) {
        let path = folder.join(format!("load {} {}", seed % 4, random.u8(..100)));
        if random.u8(..3) == 0 {
            let _ = fs::remove_file(path);
            continue;
        }
        let length = random.usize(1..400_000);
        let file = fs::File::create(path).unwrap();
        let _ = file.write_all_at(&some(&mut random, length), 0);
        if random.bool() {
            let _ = file.sync_all();
        }
    }
}

#[test]
fn a_snapshot_under_load_gives_nothing_that_is_live_after_replay() {
    if !can(true, &TOOLS) {
        return;
    }
    let seeds = images::seeds(4);
    let host = Host::new();
    let guest = Guest::new(&host, &[]);
    let (mut frozen, mut accepted) = (0, 0);
    for seed in 0..seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let end = AtomicBool::new(false);
        let freezes = random.u8(..3) == 0 || seed == 1;
        let image = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..2)
                .map(|worker| {
                    let (end, folder) = (&end, &guest.mount.0);
                    scope.spawn(move || load(folder, seed * 2 + worker, end))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(random.u64(50..400)));
            if freezes {
                freeze(&guest, "-f");
            }
            let image = host.copy(&guest.image, "crash");
            if freezes {
                freeze(&guest, "-u");
            }
            end.store(true, Ordering::Relaxed);
            workers.into_iter().for_each(|worker| worker.join().unwrap());
            image
        });
        if freezes {
            println!("seed {seed}: frozen");
            expect_free(&host, &image);
            frozen += 1;
        } else {
            let disk = Image::open(&image);
            let fs = xfs::open(&disk).unwrap();
            if let Ok(free) = judge::free_of(&*fs) {
                let replayed = free_after_replay(&host, &image);
                let dead = judge::common_bytes(&free, &replayed);
                assert_eq!(dead, judge::bytes(&free), "seed {seed}: live after replay");
                accepted += 1;
            }
        }
        fs::remove_file(image).unwrap();
    }
    println!("{seeds} snapshots, {frozen} frozen, {accepted} others accepted");
    assert!(frozen > 0);
}

/// Puts the right checksum into a spoilt structure, so that what is behind it is looked at.
fn mend(bytes: &mut [u8]) -> bool {
    let at = match &bytes[..4] {
        b"XFSB" => 224,
        b"XAGF" => 216,
        b"XAGI" => 312,
        b"XAFL" => 32,
        b"AB3B" | b"IAB3" | b"FIB3" | b"R3FC" => 52,
        b"BMA3" => 64,
        b"XDB3" | b"XDD3" => 4,
        [b'I', b'N', ..] => 100,
        [0xfe, 0xed, 0xba, 0xbe] => {
            let end = (512 + u32::from_be_bytes(bytes[12..16].try_into().unwrap()) as usize)
                .min(bytes.len());
            bytes[32..36].fill(0);
            let sum = crc32c::crc32c(&bytes[..328]);
            let sum = crc32c::crc32c_append(sum, &bytes[512..end.max(512)]);
            bytes[32..36].copy_from_slice(&sum.to_le_bytes());
            return true;
        }
        _ => return false,
    };
    bytes[at..at + 4].fill(0);
    let sum = crc32c::crc32c(bytes);
    bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
    true
}

/// Structures of the image, each as it is read, by their magic number.
fn structures(disk: &dyn Disk) -> Vec<Vec<(u64, Vec<u8>)>> {
    let fs = xfs::open(disk).unwrap();
    let mut places = Vec::new();
    for seed in 0..4 {
        fs.in_use(seed, &mut |extent| places.push(extent)).unwrap();
    }
    places.sort_unstable();
    places.dedup();
    let mut found: BTreeMap<[u8; 2], Vec<_>> = BTreeMap::new();
    for place in places {
        let unit = match place.length {
            2048 => 512,
            length if length < 4096 => length,
            _ => 4096,
        };
        for start in (place.start..place.start + place.length).step_by(unit as usize).take(64) {
            let mut bytes = vec![0; unit as usize];
            disk.read_at(start, &mut bytes).unwrap();
            if mend(&mut bytes) {
                found.entry([bytes[0], bytes[1]]).or_default().push((start, bytes));
            }
        }
    }
    found.into_values().collect()
}

#[test]
fn spoilt_structures_are_refused_without_panic_or_endless_reads() {
    if !can(true, &TOOLS) {
        return;
    }
    let host = Host::new();
    let guest = Guest::new(&host, &["-m", "reflink=1"]);
    let mut random = fastrand::Rng::with_seed(11);
    fill(&guest, &mut random);
    freeze(&guest, "-f");
    let path = host.copy(&guest.image, "frozen");
    freeze(&guest, "-u");
    let image = Image::open(&path);
    let good = structures(&image);
    assert!(good.len() >= 9, "kinds of structures");
    let seeds = images::seeds(4);
    let (mut refused, mut rounds) = (0, 0);
    for seed in 0..seeds * 60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut pieces = Vec::new();
        for _ in 0..random.u8(1..4) {
            let kind = &good[random.usize(..good.len())];
            let (start, bytes) = &kind[random.usize(..kind.len())];
            let mut bytes = bytes.clone();
            for _ in 0..random.u8(1..5) {
                let at = if random.bool() { bytes.len() } else { 160.min(bytes.len()) };
                let at = random.usize(..at);
                bytes[at] = [0, 0xff, random.u8(..), bytes[at] ^ 1][random.usize(..4)];
            }
            if random.u8(..8) > 0 {
                mend(&mut bytes);
            }
            pieces.push((*start, bytes));
        }
        let disk = judge::Spoilt::new(&image, pieces);
        rounds += 1;
        let Ok(fs) = xfs::open(&disk) else {
            refused += 1;
            continue;
        };
        let mut bad = fs.free(&mut |_| {}).is_err();
        bad |= fs.in_use(seed, &mut |_| {}).is_err();
        bad |= fs.system_files(&mut |_| {}, &mut |_, _| {}).is_err();
        bad |= fs.excluded_files(&Ends(".bin"), &mut |_| {}, &mut |_, _| {}).is_err();
        refused += u64::from(bad);
        let (reads, bytes) = (disk.reads.get(), disk.bytes.get());
        assert!(reads < 60_000 && bytes < 128 << 20, "seed {seed}: {reads} reads, {bytes} bytes");
    }
    println!("{refused} of {rounds} refused");
    assert!(refused > rounds / 4);
}
