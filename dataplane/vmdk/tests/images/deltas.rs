//! Writes what only hosts write: vmfs flat disks, COWD (vmfsSparse) and seSparse deltas.
//!
//! In: a model of the disk's grains. Out: files in a folder. Tables and grains stand in a random
//! order, so that a reader that expects them in order is found out.

use std::path::Path;

/// What a delta has for one grain.
#[derive(Clone, PartialEq, Eq)]
pub enum Cell {
    Parent,
    /// seSparse only.
    Zero,
    /// seSparse only: given up by the guest.
    Unmapped,
    Data(Vec<u8>),
}

/// The descriptor of a link: its extents' lines and its place in the chain.
pub fn descriptor(
    folder: &Path,
    name: &str,
    create_type: &str,
    ids: (u32, Option<(u32, &str)>),
    extents: &str,
) {
    let (parent, hint) = match ids.1 {
        Some((id, name)) => (id, format!("parentFileNameHint=\"{name}\"\n")),
        None => (u32::MAX, String::new()),
    };
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID={:08x}\nparentCID={parent:08x}\n\
         createType=\"{create_type}\"\n{hint}# Extent description\n{extents}\n\
         # The Disk Data Base\n#DDB\n\nddb.adapterType = \"lsilogic\"\n",
        ids.0
    );
    std::fs::write(folder.join(name), text).expect("a descriptor");
}

/// A file that is written at any sector and grows.
#[derive(Default)]
struct Sectors {
    bytes: Vec<u8>,
}

impl Sectors {
    fn put(&mut self, sector: usize, bytes: &[u8]) {
        let end = sector * 512 + bytes.len();
        let whole = end.next_multiple_of(512);
        if self.bytes.len() < whole {
            self.bytes.resize(whole, 0);
        }
        self.bytes[sector * 512..end].copy_from_slice(bytes);
    }
}

fn shuffled(random: &mut fastrand::Rng, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    random.shuffle(&mut order);
    order
}

/// A COWD extent of `sectors` in grains of `grain` sectors.
pub fn cowd(sectors: u32, grain: u32, cells: &[Cell], random: &mut fastrand::Rng) -> Vec<u8> {
    let tables = cells.len().div_ceil(4096);
    let mut file = Sectors::default();
    let mut header = b"COWD".to_vec();
    for value in [1, 3, sectors, grain, 4, tables as u32, 0] {
        header.extend_from_slice(&u32::to_le_bytes(value));
    }
    file.put(0, &header);
    let mut next = 4 + (tables * 4).div_ceil(512);
    let mut directory = vec![0_u8; tables * 4];
    for table in shuffled(random, tables) {
        let part = &cells[table * 4096..cells.len().min((table + 1) * 4096)];
        if part.iter().all(|cell| *cell == Cell::Parent) && random.bool() {
            continue;
        }
        directory[table * 4..][..4].copy_from_slice(&(next as u32).to_le_bytes());
        let place = next;
        next += 32;
        let mut entries = vec![0_u8; 4096 * 4];
        for index in shuffled(random, part.len()) {
            if let Cell::Data(data) = &part[index] {
                file.put(next, data);
                entries[index * 4..][..4].copy_from_slice(&(next as u32).to_le_bytes());
                next += grain as usize;
            }
        }
        file.put(place, &entries);
    }
    file.put(4, &directory);
    file.bytes
}

/// A seSparse extent of `sectors`, a multiple of 8.
pub fn se_sparse(sectors: u64, cells: &[Cell], random: &mut fastrand::Rng) -> Vec<u8> {
    let tables = cells.len().div_ceil(4096);
    let directory_sectors = (tables * 8).div_ceil(512);
    let (volatile, directory) = (1, 8);
    let tables_start = directory + directory_sectors;
    let grains_start = (tables_start + tables * 64).next_multiple_of(8);
    let grains: usize = cells.iter().filter(|cell| matches!(cell, Cell::Data(_))).count();
    let mut header = [0_u64; 26];
    header[..6].copy_from_slice(&[0xcafe_babe, 0x2_0000_0001, sectors, 8, 64, 0]);
    header[10..14].copy_from_slice(&[volatile as u64, 1, 2, 1]);
    header[14..16].copy_from_slice(&[3, 1]);
    header[16..20].copy_from_slice(&[
        directory as u64,
        directory_sectors as u64,
        tables_start as u64,
        tables as u64 * 64,
    ]);
    header[20..26].copy_from_slice(&[4, 1, 5, 1, grains_start as u64, grains as u64 * 8]);
    let mut file = Sectors::default();
    let bytes =
        |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    file.put(0, &bytes(&header));
    file.put(volatile, &bytes(&[0xcafe_cafe, 0, 1, 0]));
    let mut entries = vec![0_u64; tables];
    // More places than grains, so that numbers need both parts of an entry.
    let mut places = shuffled(random, grains + 5000).into_iter();
    for (number, table) in shuffled(random, tables).into_iter().enumerate() {
        let part = &cells[table * 4096..cells.len().min((table + 1) * 4096)];
        if part.iter().all(|cell| *cell == Cell::Parent) && random.bool() {
            continue;
        }
        entries[table] = 0x1000_0000_0000_0000 | number as u64;
        let mut words = vec![0_u64; 4096];
        for (word, cell) in words.iter_mut().zip(part) {
            *word = match cell {
                Cell::Parent => 0,
                Cell::Unmapped => 0x1000_0000_0000_0000,
                Cell::Zero => 0x2000_0000_0000_0000,
                Cell::Data(data) => {
                    let index = places.next().expect("a place") as u64;
                    file.put(grains_start + index as usize * 8, data);
                    0x3000_0000_0000_0000 | (index & 0xfff) << 48 | index >> 12
                }
            };
        }
        file.put(tables_start + number * 64, &bytes(&words));
    }
    file.put(directory, &bytes(&entries));
    file.bytes
}

/// Random cells of `grain_bytes` for `grains` grains: runs of each kind, of which parents are most.
pub fn cells(
    grains: usize,
    grain_bytes: usize,
    zeros: bool,
    random: &mut fastrand::Rng,
) -> Vec<Cell> {
    let mut cells = Vec::with_capacity(grains);
    while cells.len() < grains {
        let kind = random.u8(..8);
        let length = random.usize(1..if kind < 5 { 3000 } else { 40 });
        for _ in 0..length.min(grains - cells.len()) {
            cells.push(match kind {
                5 if zeros => Cell::Zero,
                6 if zeros => Cell::Unmapped,
                5.. => {
                    let mut data = vec![0; grain_bytes];
                    random.fill(&mut data);
                    Cell::Data(data)
                }
                _ => Cell::Parent,
            });
        }
    }
    cells
}

/// Lays `cells` over `disk`, as a reader should see them.
pub fn lay_over(disk: &mut [u8], cells: &[Cell], grain_bytes: usize) {
    for (part, cell) in disk.chunks_mut(grain_bytes).zip(cells) {
        match cell {
            Cell::Parent => {}
            Cell::Zero | Cell::Unmapped => part.fill(0),
            Cell::Data(data) => part.copy_from_slice(&data[..part.len()]),
        }
    }
}
