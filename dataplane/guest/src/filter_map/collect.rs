//! From one volume to ranges of its disk with reasons.
//!
//! In: an open file system, what is asked of it. Out: [`Collected`], and what is refused. Invariants:
//! what a reader gave before it refused is not used; what touches a block that is certainly in use turns
//! every filter of the volume off (the self-check). Must not: decide what a file system's state allows;
//! its reader does.

use super::inspect::{FilterOptions, FilteredFile};
use super::{Dropped, Refusal, build, ranges};
use crate::disk::View;
use crate::limits;
use crate::volume::{Extent, FileRange, GuestFs, Reason, Refused};

/// What one volume's filters name.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// A mask of the disk; see [`build::mask`].
    pub(super) ranges: Vec<(Extent, Reason)>,
    pub(super) refused: Vec<Refusal>,
    /// The first files of which something is dropped.
    pub(super) files: Vec<FilteredFile>,
    /// And how many more there are.
    pub(super) files_more: u64,
    pub(super) dropped: Dropped,
}

/// Ranges as they come in, in bytes of the disk.
struct Ranges<'a> {
    view: &'a View<'a>,
    found: Vec<(Extent, Reason)>,
    most: usize,
    dropped: Dropped,
}

impl<'a> Ranges<'a> {
    fn new(view: &'a View<'a>) -> Ranges<'a> {
        let most = limits::COLLECTED_RANGES_MAX;
        Ranges { view, found: Vec::new(), most, dropped: Dropped::default() }
    }

    /// Takes a range of the volume.
    fn add(&mut self, range: Extent, reason: Reason) {
        for piece in self.view.on_disk(range) {
            match self.found.last_mut() {
                Some((last, of)) if *of == reason && ranges::end(*last) == piece.start => {
                    last.length += piece.length;
                }
                _ => self.found.push((piece, reason)),
            }
        }
        if self.found.len() >= self.most {
            let less = build::keep_largest(&mut self.found, self.most / 2);
            self.dropped.ranges += less.ranges;
            self.dropped.bytes += less.bytes;
        }
    }
}

/// Files as they come in.
#[derive(Default)]
struct Files {
    named: Vec<FilteredFile>,
    more: u64,
    last: String,
    left_out: Vec<Refusal>,
    left_out_more: u64,
}

impl Files {
    fn add(&mut self, volume: &str, found: &FileRange) {
        if let Some(file) = self.named.last_mut().filter(|file| file.path == found.path) {
            file.bytes += found.range.length;
        } else if self.named.len() < limits::FILTERED_FILES_MAX {
            self.named.push(FilteredFile {
                volume: volume.to_owned(),
                path: found.path.clone(),
                reason: found.reason,
                bytes: found.range.length,
            });
        } else if self.last != found.path {
            self.last.clone_from(&found.path);
            self.more += 1;
        }
    }

    fn leave_out(&mut self, volume: &str, path: &str, refused: Refused) {
        if self.left_out.len() < limits::FILES_LEFT_OUT_MAX {
            self.left_out.push(refusal(volume, path, refused));
        } else {
            self.left_out_more += 1;
        }
    }
}

/// What is refused of a volume.
pub(super) fn refusal(volume: &str, what: &str, refused: Refused) -> Refusal {
    Refusal { volume: volume.to_owned(), what: what.to_owned(), why: refused.why }
}

/// A question to a reader: it gives ranges of files, and says which files it leaves out.
type Ask<'a> =
    &'a dyn Fn(&mut dyn FnMut(FileRange), &mut dyn FnMut(&str, Refused)) -> Result<(), Refused>;

struct Volume<'a> {
    place: &'a str,
    view: &'a View<'a>,
    system: &'a dyn GuestFs,
    collected: Collected,
    given: Vec<(Extent, Reason)>,
}

/// Collects what the filters that are on name of a file system.
pub(super) fn file_system(
    place: &str,
    view: &View<'_>,
    system: &dyn GuestFs,
    options: &FilterOptions<'_>,
) -> Collected {
    let collected = Collected::default();
    let mut volume = Volume { place, view, system, collected, given: Vec::new() };
    // Files first: the reader then leaves those that it gave out of its samples of what is in use.
    if options.swap {
        let ask: Ask = &|give, left_out| system.system_files(give, left_out);
        volume.files("swap and page files", ask);
    }
    if let Some(masks) = options.excluded {
        let folded = masks.ignoring_case().filter(|_| system.kind() == "ntfs");
        let masks = folded.unwrap_or(masks);
        let ask: Ask = &|give, left_out| system.excluded_files(masks, give, left_out);
        volume.files("excluded files", ask);
    }
    if options.deleted {
        volume.deleted();
    }
    volume.collected.ranges = build::mask(u64::MAX, &volume.given);
    if let Err(refused) = volume.check(options.sample_seed) {
        let place = volume.place;
        let mut refusals = std::mem::take(&mut volume.collected.refused);
        refusals.push(refusal(place, "everything", refused));
        return Collected { refused: refusals, ..Collected::default() };
    }
    volume.collected
}

/// A volume of which a part is dropped whatever is in it: a swap partition.
pub(super) fn plain(view: &View<'_>, range: Extent, reason: Reason) -> Collected {
    let mut ranges = Ranges::new(view);
    ranges.add(range, reason);
    let ranges = build::mask(u64::MAX, &ranges.found);
    Collected { ranges, ..Collected::default() }
}

impl Volume<'_> {
    fn take(&mut self, ranges: Ranges<'_>) {
        self.given.extend(ranges.found);
        self.collected.dropped.ranges += ranges.dropped.ranges;
        self.collected.dropped.bytes += ranges.dropped.bytes;
    }

    fn files(&mut self, what: &str, ask: Ask<'_>) {
        let (mut ranges, mut files) = (Ranges::new(self.view), Files::default());
        let outside = std::cell::RefCell::new(&mut files);
        let given = ask(
            &mut |found| {
                ranges.add(found.range, found.reason);
                outside.borrow_mut().add(self.place, &found);
            },
            &mut |path, refused| outside.borrow_mut().leave_out(self.place, path, refused),
        );
        if let Err(refused) = given {
            self.collected.refused.push(refusal(self.place, what, refused));
            return;
        }
        self.take(ranges);
        self.collected.refused.extend(files.left_out);
        if files.left_out_more > 0 {
            let text = format!("{} more files are left out, too", files.left_out_more);
            self.collected.refused.push(refusal(self.place, what, Refused::new(text)));
        }
        self.collected.files.extend(files.named);
        self.collected.files_more += files.more;
    }

    fn deleted(&mut self) {
        let mut ranges = Ranges::new(self.view);
        match self.system.free(&mut |range| ranges.add(range, Reason::Deleted)) {
            Ok(()) => self.take(ranges),
            Err(refused) => {
                self.collected.refused.push(refusal(self.place, "deleted blocks", refused));
            }
        }
    }

    /// Compares what is called deleted with what is certainly in use: metadata, samples of files, and
    /// the content of files that is dropped for another reason.
    fn check(&self, seed: u64) -> Result<(), Refused> {
        let deleted = |(_, reason): &&(Extent, Reason)| *reason == Reason::Deleted;
        let free: Vec<Extent> =
            self.given.iter().filter(deleted).map(|(range, _)| *range).collect();
        if free.is_empty() {
            return Ok(());
        }
        let free = ranges::joined(free);
        let clash = |range: Extent, what: &str| {
            let hit = ranges::first_hit(&free, range)?;
            Some(Refused::new(format!(
                "its self-check failed: bytes {} to {} of the disk are called free, but {what} there; run a check of the file system in the guest",
                hit.start.max(range.start),
                ranges::end(hit).min(ranges::end(range)),
            )))
        };
        let files = self.given.iter().filter(|given| !deleted(given));
        let mut found = None;
        for (range, _) in files {
            found = found.or_else(|| clash(*range, "a file is"));
        }
        let in_use = self.system.in_use(seed, &mut |range| {
            for piece in self.view.on_disk(range) {
                if found.is_none() {
                    found = clash(piece, "metadata or a file in use is");
                }
            }
        });
        match (found, in_use) {
            (Some(refused), _) => Err(refused),
            (None, Err(refused)) => {
                let text = format!("its self-check could not be made: {refused}");
                Err(Refused::new(text))
            }
            (None, Ok(())) => Ok(()),
        }
    }
}
