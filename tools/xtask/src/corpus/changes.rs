//! What a day does to a file system: appended logs, rewritten pieces, removed and new files.
//!
//! In: a tree, the files in it, new files, a seed. Out: the same tree a day later. Every byte goes
//! through the file system.

use anyhow::Result;

use super::content::{HostFile, MemoryPages};
use super::volume::{Placed, Tree};

/// How much happens in a day.
#[derive(Debug, Clone, Copy)]
pub struct Day {
    /// Files that grow.
    pub appends: usize,
    /// Pieces rewritten in place.
    pub rewrites: usize,
    /// Longest rewritten piece, in 4 KiB pages.
    pub rewrite_pages_max: usize,
    /// Shortest.
    pub rewrite_pages_min: usize,
    /// Files removed.
    pub removals: usize,
}

/// Lets a day pass; files that it removes leave the list.
///
/// # Errors
/// When the file system becomes full or refuses.
pub fn pass(
    tree: &mut Tree,
    files: &mut Vec<Placed>,
    new: &[HostFile],
    day: Day,
    pages: &mut MemoryPages,
    random: &mut fastrand::Rng,
) -> Result<()> {
    let gone: Vec<Placed> = files.drain(..day.removals.min(files.len() / 4)).collect();
    let rest = files.as_slice();
    for _ in 0..day.appends {
        let Some(file) = random.choice(rest) else { break };
        tree.append(&file.name, &log_lines(random))?;
    }
    let long: Vec<&Placed> =
        rest.iter().filter(|f| f.bytes >= (day.rewrite_pages_max * 4096) as u64).collect();
    let mut piece = vec![0; day.rewrite_pages_max * 4096];
    for _ in 0..day.rewrites {
        let Some(file) = random.choice(&long) else { break };
        let length = random.usize(day.rewrite_pages_min..=day.rewrite_pages_max) * 4096;
        let offset = random.u64(0..=file.bytes - length as u64) / 4096 * 4096;
        pages.fill(&mut piece[..length]);
        tree.overwrite(&file.name, offset, &piece[..length])?;
    }
    tree.put_all(new)?;
    tree.write("var/log/day-2.log", &log_lines(random))?;
    tree.remove_all(&gone)
}

/// Text as services write it.
fn log_lines(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut text = String::new();
    for number in 0..random.usize(50..400) {
        let (host, code) = (random.u8(..), random.u16(200..505));
        text.push_str(&format!(
            "2025-03-{:02}T12:{:02}:{:02}Z web[{}]: 10.0.0.{host} GET /item/{} {code}\n",
            random.u8(1..29),
            number / 60 % 60,
            number % 60,
            random.u16(..),
            random.u32(..)
        ));
    }
    text.into_bytes()
}
