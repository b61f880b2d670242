//! Random reads of a frozen disk, and of a part of it.
//!
//! In: a [`Disk`]. Out: the same for a partition or a logical volume, and the way back from its ranges
//! to the disk's. Invariant: a read is whole or an error, and never leaves the view. Must not: cache
//! without a bound.

use std::io;

use crate::limits;
use crate::volume::Extent;

/// A frozen disk, or a part of one.
pub trait Disk {
    /// Its length in bytes.
    fn length(&self) -> u64;

    /// Reads exactly `buffer`.
    ///
    /// # Errors
    /// The range is not within the disk, or cannot be read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// Pieces of a disk, one after another: a partition is one piece, a linear logical volume several.
pub struct View<'a> {
    disk: &'a dyn Disk,
    /// Ranges of the disk in the order of the view.
    pieces: Vec<Extent>,
    /// Where in the view each piece begins.
    begins: Vec<u64>,
    length: u64,
}

impl<'a> View<'a> {
    /// The whole disk.
    pub fn whole(disk: &'a dyn Disk) -> View<'a> {
        let length = disk.length();
        View { disk, pieces: vec![Extent { start: 0, length }], begins: vec![0], length }
    }

    /// These pieces of the disk.
    ///
    /// # Errors
    /// A piece is empty or not within the disk, or there are too many.
    pub fn of(disk: &'a dyn Disk, pieces: Vec<Extent>) -> io::Result<View<'a>> {
        let outside = |piece: &Extent| {
            let end = piece.start.checked_add(piece.length);
            piece.length == 0 || end.is_none_or(|end| end > disk.length())
        };
        if pieces.is_empty() || pieces.len() > limits::PIECES_MAX || pieces.iter().any(outside) {
            let text = "a volume's pieces are not within its disk";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut length = 0u64;
        let mut begins = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            begins.push(length);
            let text = "a volume is longer than any disk";
            let sum = length.checked_add(piece.length);
            length = sum.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text))?;
        }
        Ok(View { disk, pieces, begins, length })
    }

    /// A range of the view as ranges of the disk, in the view's order; what is beyond the view is
    /// left out.
    pub fn on_disk(&self, range: Extent) -> Vec<Extent> {
        let mut found = Vec::new();
        let end = range.start.saturating_add(range.length);
        // The last piece that begins at or before the range; the first piece begins at 0.
        let first = self.begins.partition_point(|&begin| begin <= range.start).saturating_sub(1);
        for (piece, &begin) in self.pieces.iter().zip(&self.begins).skip(first) {
            let piece_end = begin + piece.length;
            let (from, to) = (range.start.max(begin), end.min(piece_end));
            if from < to {
                found.push(Extent { start: piece.start + (from - begin), length: to - from });
            }
            if piece_end >= end {
                break;
            }
        }
        found
    }
}

impl Disk for View<'_> {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = buffer.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            let text = format!("{length} bytes at {offset} are not within {} bytes", self.length);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let mut rest = buffer;
        for piece in self.on_disk(Extent { start: offset, length }) {
            // No longer than the buffer, whose length is a usize.
            let (now, later) = rest.split_at_mut(piece.length as usize);
            self.disk.read_at(piece.start, now)?;
            rest = later;
        }
        Ok(())
    }
}

impl Disk for Vec<u8> {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok();
        let range = from.and_then(|from| self.get(from..from.checked_add(buffer.len())?));
        let range = range.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(range);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_as_one_and_found_again() {
        let disk: Vec<u8> = (0..200).collect();
        let [first, second] = [Extent { start: 100, length: 10 }, Extent { start: 20, length: 30 }];
        let view = View::of(&disk, vec![first, second]).unwrap();
        let mut bytes = [0; 6];
        view.read_at(7, &mut bytes).unwrap();
        assert_eq!(bytes, [107, 108, 109, 20, 21, 22]);
        let ranges = view.on_disk(Extent { start: 9, length: 1000 });
        assert_eq!(ranges, [Extent { start: 109, length: 1 }, Extent { start: 20, length: 30 }]);
        assert!(view.read_at(35, &mut bytes).is_err());
        assert!(view.read_at(u64::MAX, &mut bytes).is_err());
        for piece in [Extent { start: 190, length: 11 }, Extent { start: 3, length: 0 }] {
            assert!(View::of(&disk, vec![piece]).is_err());
        }
    }
}
