//! Damaged repositories: verify names what is hit, the next run heals it, a restore never gives
//! wrong bytes, and what is not hit restores. The index is only a cache.

use std::path::{Path, PathBuf};

use gantry_tests::compare::first_difference;
use gantry_tests::images;
use gantry_tests::program::Outcome;
use gantry_tests::seeds;
use gantry_tests::site::{Site, files_below};

const MIB: u64 = 1 << 20;

/// Two VMs in a folder, and which packs the first one's blocks are in.
struct Scene {
    site: Site,
    hit: PathBuf,
    hit_point: String,
    hit_packs: Vec<PathBuf>,
    spared: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let site = Site::new();
        site.repo("init").ok();
        let (hit, spared) = (site.scratch.join("hit.raw"), site.scratch.join("spared.raw"));
        images::noise_disk(&hit, 5 * MIB + 512, 11);
        images::noise_disk(&spared, 3 * MIB, 12);
        site.backup_local("spared").disk(&spared, "spared").report();
        let before = packs(&site);
        let hit_point = site.backup_local("hit").disk(&hit, "hit").report().point();
        let mut hit_packs = packs(&site);
        hit_packs.retain(|pack| !before.contains(pack));
        // The pack with the blocks first; map nodes may have a pack of their own.
        hit_packs.sort_by_key(|pack| std::cmp::Reverse(bytes(pack)));
        assert!(!hit_packs.is_empty());
        site.verify();
        Scene { site, hit, hit_point, hit_packs, spared }
    }

    /// Verify fails and says something about each of these words.
    #[track_caller]
    fn verify_names(&self, words: &[&str]) {
        let outcome = self.site.repo("verify").fails_with(5);
        let said = format!("{}{}", outcome.out, outcome.err).to_lowercase();
        for word in words {
            assert!(said.contains(&word.to_lowercase()), "verify does not name '{word}': {said}");
        }
    }

    /// A restore gives the very bytes of `source`, or fails and says why.
    #[track_caller]
    fn right_or_refused(&self, name: &str, source: &Path) -> Result<(), Outcome> {
        let run = self.site.restore_local(name);
        let to = run.fresh_file();
        let outcome = run.run(&to);
        if outcome.code() != 0 {
            return Err(outcome.fails_with(5));
        }
        assert_eq!(first_difference(source, &to), None, "a restore gave wrong bytes silently");
        std::fs::remove_file(to).expect("removable");
        Ok(())
    }

    /// The other VM is as it was.
    #[track_caller]
    fn spared_is_whole(&self) {
        self.site.restore_local("spared").equals(&self.spared);
    }

    /// After the next backup the VM restores again; gives what was sent.
    #[track_caller]
    fn heals(&self) -> u64 {
        let report = self.site.backup_local("hit").disk(&self.hit, "hit").report();
        self.site.restore_local("hit").point(&report.point()).equals(&self.hit);
        report.number("bytes_transferred")
    }
}

fn packs(site: &Site) -> Vec<PathBuf> {
    let mut files = files_below(&site.repository);
    files.retain(|path| path.extension().is_some_and(|ending| ending == "pack"));
    files
}

fn bytes(path: &Path) -> u64 {
    std::fs::metadata(path).expect("a file").len()
}

fn file_name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

#[test]
fn a_damaged_block_is_named_refused_and_healed() {
    let scene = Scene::new();
    let pack = &scene.hit_packs[0];
    images::flip(pack, bytes(pack) / 2, 64);
    let refused = scene.right_or_refused("hit", &scene.hit).expect_err("a block is gone");
    refused.saying(&["block"]);
    scene.spared_is_whole();
    scene.verify_names(&["hit", &scene.hit_point, &file_name(pack)]);
    let sent = scene.heals();
    assert!(sent > 0, "the damaged block is sent again");
    assert!(sent <= 2 * MIB, "and only that one: {sent} bytes");
    // The healed copy serves the old point too.
    scene.site.restore_local("hit").point(&scene.hit_point).equals(&scene.hit);
    scene.spared_is_whole();
}

#[test]
fn a_damaged_footer_costs_no_block() {
    let scene = Scene::new();
    for pack in &scene.hit_packs {
        images::flip(pack, bytes(pack) - 64, 64);
    }
    scene.verify_names(&[&file_name(&scene.hit_packs[0])]);
    scene.spared_is_whole();
    let right = scene.right_or_refused("hit", &scene.hit);
    right.expect("the records are whole, and the index knows them");
    // Without index and footer the records speak for themselves.
    remove_index(&scene.site);
    scene.right_or_refused("hit", &scene.hit).expect("records are found by a scan");
    scene.spared_is_whole();
    scene.heals();
}

fn remove_index(site: &Site) {
    // A restore reads only: it builds what it needs in memory and leaves the folder alone.
    match std::fs::remove_dir_all(site.repository.join("index")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
        _ => {}
    }
}

#[test]
fn a_damaged_manifest_hides_only_its_point() {
    let scene = Scene::new();
    let second = scene.site.scratch.join("second.raw");
    images::copy_sparse(&scene.hit, &second);
    images::overwrite(&second, MIB + 77, b"the second version");
    let newest = scene.site.backup_local("hit").disk(&second, "hit").report().point();
    let manifests = files_below(&scene.site.repository.join("points"));
    // Both of its files: one alone is served by the other.
    let of_newest: Vec<_> =
        manifests.iter().filter(|path| file_name(path).contains(&newest)).collect();
    assert_eq!(of_newest.len(), 2, "{of_newest:?}");
    for manifest in of_newest {
        images::flip(manifest, bytes(manifest) / 2, 8);
    }
    scene.verify_names(&[&newest]);
    scene.spared_is_whole();
    let old = scene.site.restore_local("hit").point(&scene.hit_point);
    old.equals(&scene.hit);
    let to = scene.site.scratch.join("never.raw");
    scene.site.restore_local("hit").point(&newest).run(&to).fails_with(5).saying(&[&newest]);
    // The next backup builds on what is left.
    let report = scene.site.backup_local("hit").disk(&second, "hit").report();
    scene.site.restore_local("hit").point(&report.point()).equals(&second);
}

#[test]
fn the_index_is_a_cache() {
    let scene = Scene::new();
    let both_restore = || {
        scene.site.restore_local("hit").equals(&scene.hit);
        scene.spared_is_whole();
    };
    remove_index(&scene.site);
    both_restore();
    remove_index(&scene.site);
    scene.site.repo("rebuild-index").ok();
    scene.site.verify();
    both_restore();
    let index = files_below(&scene.site.repository.join("index"));
    for file in &index {
        images::overwrite(file, 0, &[0xee; 512]);
    }
    scene.site.repo("rebuild-index").ok();
    both_restore();
    for file in &index {
        std::fs::File::options().write(true).open(file).unwrap().set_len(bytes(file) / 3).unwrap();
    }
    scene.site.repo("rebuild-index").ok();
    both_restore();
    scene.site.verify();
    let known = scene.site.backup_local("hit").disk(&scene.hit, "hit").report();
    assert_eq!(known.number("bytes_transferred"), 0, "the rebuilt index knows the blocks");
}

#[test]
fn a_lost_pack_is_named_and_healed() {
    let scene = Scene::new();
    let lost = &scene.hit_packs[0];
    std::fs::remove_file(lost).unwrap();
    scene.right_or_refused("hit", &scene.hit).expect_err("the blocks are gone");
    scene.spared_is_whole();
    scene.verify_names(&["hit", &scene.hit_point]);
    assert!(scene.heals() > 4 * MIB);
    scene.spared_is_whole();
}

/// Spoils the record of the map leaf with this number; the root is number 0 too.
fn spoil_leaf(packs: &[PathBuf], number: u64) {
    for pack in packs {
        let bytes = std::fs::read(pack).expect("readable");
        for (offset, page) in (0..).step_by(4096).zip(bytes.chunks(4096)) {
            let is_node = page.len() >= 128 && &page[..7] == b"GANTREC" && page[10] == 2;
            if is_node && page[96..104] == number.to_le_bytes() {
                return images::flip(pack, offset + 130, 1);
            }
        }
    }
    panic!("no leaf {number} in {packs:?}");
}

/// A VM whose disk has more than one map leaf, with data under both.
fn two_leaves(scene: &Scene) -> PathBuf {
    let disk = scene.site.scratch.join("leaves.raw");
    images::blank(&disk, 1100 * MIB);
    for at in [3, 500, 1050, 1090] {
        images::overwrite(&disk, at * MIB, &vec![at as u8 + 1; 700_000]);
    }
    disk
}

#[test]
fn a_lost_map_leaf_heals_without_a_full() {
    let scene = Scene::new();
    let disk = two_leaves(&scene);
    let before = packs(&scene.site);
    let backup = || scene.site.backup_local("leaves").disk(&disk, "leaves").report();
    let old = backup().point();
    let mut new = packs(&scene.site);
    new.retain(|pack| !before.contains(pack));
    spoil_leaf(&new, 1);
    scene.verify_names(&["leaves", &old, "\"first\": 1024", "\"count\": 76"]);
    let to = scene.site.scratch.join("never.raw");
    scene.site.restore_local("leaves").point(&old).run(&to).fails_with(5);
    let report = backup();
    assert_eq!(report.number("bytes_transferred"), 0, "the blocks are known, only the map is lost");
    for point in [&old, &report.point()] {
        scene.site.restore_local("leaves").point(point).equals(&disk);
    }
    // What is left is the damaged record itself, which nobody needs: a collection takes it away.
    scene.site.repo("gc").ok();
    scene.site.verify();
    scene.site.restore_local("leaves").point(&old).equals(&disk);
}

#[test]
fn repair_saves_what_records_prove() {
    let scene = Scene::new();
    let disk = two_leaves(&scene);
    let before = packs(&scene.site);
    scene.site.backup_local("leaves").disk(&disk, "leaves").report();
    let mut new = packs(&scene.site);
    new.retain(|pack| !before.contains(pack));
    spoil_leaf(&new, 1);
    images::flip(&scene.hit_packs[0], bytes(&scene.hit_packs[0]) - 64, 8);
    images::flip(&scene.site.repository.join("superblock.1"), 20, 4);
    let manifests = files_below(&scene.site.repository.join("points"));
    let of_hit = |path: &&PathBuf| file_name(path) == format!("{}.manifest", scene.hit_point);
    images::flip(manifests.iter().find(of_hit).unwrap(), 100, 3);
    let folder = scene.site.repository.as_os_str();
    let repair = |more: &[&str]| {
        let mut arguments = vec!["repo".as_ref(), "repair".as_ref(), folder, "--json".as_ref()];
        arguments.extend(more.iter().map(std::ffi::OsStr::new));
        scene.site.run(&arguments)
    };
    let count = |report: &serde_json::Value, field: &str| report[field].as_u64().unwrap();
    let tried = repair(&["--dry-run"]).fails_with(5).json();
    assert!(tried["dry_run"].as_bool().unwrap() && count(&tried, "nodes_rebuilt") == 1, "{tried}");
    scene.verify_names(&["\"first\": 1024", "\"count\": 76", "superblock", "its copy serves"]);
    let report = repair(&[]).ok().json();
    assert_eq!(count(&report, "nodes_rebuilt"), 1, "{report}");
    assert_eq!(count(&report, "manifests_restored"), 1, "{report}");
    assert!(count(&report, "packs_sealed") >= 1, "{report}");
    scene.site.restore_local("leaves").equals(&disk);
    scene.site.restore_local("hit").point(&scene.hit_point).equals(&scene.hit);
    scene.spared_is_whole();
    scene.site.repo("gc").ok();
    scene.site.verify();
    let server = scene.site.serve();
    repair(&[]).fails_with(5).saying(&["in use by process"]);
    drop(server);
}

#[test]
fn a_damaged_superblock_has_copies() {
    let scene = Scene::new();
    let copies = ["superblock", "superblock.1", "superblock.2"];
    for damaged in &copies[..2] {
        images::flip(&scene.site.repository.join(damaged), 16, 32);
        scene.site.restore_local("hit").equals(&scene.hit);
    }
    images::flip(&scene.site.repository.join(copies[2]), 16, 32);
    let to = scene.site.scratch.join("never.raw");
    scene.site.restore_local("hit").run(&to);
    assert!(!to.exists() || first_difference(&scene.hit, &to).is_none());
}

#[test]
fn random_damage_never_yields_wrong_bytes() {
    let mut scene = Scene::new();
    let whole = scene.site.repository.clone();
    seeds::each(12, |seed, mut random| {
        let copy = scene.site.scratch.join(format!("copy-{seed}"));
        let copied = std::process::Command::new("cp").arg("-a").args([&whole, &copy]).status();
        assert!(copied.unwrap().success());
        scene.site.repository = copy.clone();
        let files: Vec<PathBuf> =
            files_below(&copy).into_iter().filter(|file| bytes(file) > 0).collect();
        for _ in 0..random.u8(1..=3) {
            let file = random.choice(&files).unwrap();
            let length = random.u64(1..=bytes(file).min(6000));
            let position = random.u64(0..=bytes(file) - length);
            eprintln!("{} bytes {position}+{length}", file.display());
            images::flip(file, position, length as usize);
        }
        let sources = [("hit", &scene.hit), ("spared", &scene.spared)];
        let refused: Vec<Outcome> = sources
            .iter()
            .filter_map(|(name, source)| scene.right_or_refused(name, source).err())
            .collect();
        let verified = scene.site.repo("verify");
        let code = verified.code();
        assert!(code == 0 || code == 5, "verify ended with {code}: {}", verified.err);
        if let Some(refused) = refused.first() {
            assert_eq!(code, 5, "verify is clean, but a restore failed: {}", refused.err);
        }
        std::fs::remove_dir_all(copy).unwrap();
    });
}
