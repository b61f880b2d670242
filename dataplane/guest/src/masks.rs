//! Masks of files and folders that an administrator excludes.
//!
//! In: masks as a person writes them. Out: [`Masks`], a [`FileMasks`]. A mask without `/` is a name,
//! anywhere; one with `/` is a path from the volume's root (`/home/*/.cache`). `*` and `?` stand for what
//! they do in a shell, within a name; `**` stands for any number of folders. A mask that fits a folder
//! excludes all beneath it. On NTFS case does not matter, `\` may stand for `/`. Pure. Written here and
//! not taken from a crate of globs: those match whole paths, and cannot say that nothing beneath a
//! folder can match, which saves the walk over most of a disk.

use crate::limits;
use crate::volume::{FileMasks, Refused};

/// Masks; see the module.
#[derive(Debug, Clone, Default)]
pub struct Masks {
    exact: Patterns,
    folded: Patterns,
}

#[derive(Debug, Clone, Default)]
struct Patterns {
    all: Vec<Vec<Part>>,
    fold: bool,
}

/// What one folder or name of a path must be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// `**`.
    Folders,
    Name(Vec<char>),
}

impl Masks {
    /// From what a person wrote, a mask each.
    ///
    /// # Errors
    /// There are too many, one is too long, or names nothing or everything.
    pub fn parse<M: AsRef<str>>(masks: &[M]) -> Result<Masks, Refused> {
        if masks.len() > limits::MASKS_MAX {
            return Err(Refused::new(format!("more than {} masks", limits::MASKS_MAX)));
        }
        let of = |fold: bool| -> Result<Patterns, Refused> {
            let all = masks.iter().map(|mask| pattern(mask.as_ref(), fold));
            Ok(Patterns { all: all.collect::<Result<_, _>>()?, fold })
        };
        Ok(Masks { exact: of(false)?, folded: of(true)? })
    }
}

fn pattern(mask: &str, fold: bool) -> Result<Vec<Part>, Refused> {
    let wrong = |what: &str| {
        let start: String = mask.chars().take(80).collect();
        Err(Refused::new(format!("the mask '{start}' {what}")))
    };
    if mask.len() > limits::MASK_BYTES_MAX {
        return wrong("is too long");
    }
    if mask.contains('\\') && mask.contains('/') {
        return wrong("has both '/' and '\\'; write '/'");
    }
    if mask.get(1..2) == Some(":") {
        return wrong("has a drive's letter, which a disk does not know; begin with '/'");
    }
    let plain = mask.replace('\\', "/");
    let rooted = plain.trim_end_matches('/').contains('/');
    let mut parts: Vec<Part> = if rooted { Vec::new() } else { vec![Part::Folders] };
    for name in plain.split('/').filter(|name| !name.is_empty()) {
        match name {
            "**" if parts.last() == Some(&Part::Folders) => {}
            "**" => parts.push(Part::Folders),
            "." | ".." => return wrong("has a '.' or '..' folder"),
            _ => parts.push(Part::Name(letters(name, fold))),
        }
    }
    let all = |part: &Part| match part {
        Part::Folders => true,
        Part::Name(name) => name.iter().all(|letter| *letter == '*'),
    };
    if parts.iter().all(all) {
        return wrong("would exclude everything; leave the disk out of the job instead");
    }
    Ok(parts)
}

/// A name's letters, as they are compared.
fn letters(name: &str, fold: bool) -> Vec<char> {
    if fold { name.chars().flat_map(char::to_uppercase).collect() } else { name.chars().collect() }
}

/// Whether a name fits `*`, `?` and letters.
fn fits(pattern: &[char], name: &[char]) -> bool {
    let (mut at, mut next) = (0, 0);
    // The last star, and the letter up to which it has taken the name.
    let mut star: Option<(usize, usize)> = None;
    while next < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, next));
                at += 1;
            }
            Some(letter) if *letter == '?' || *letter == name[next] => {
                at += 1;
                next += 1;
            }
            _ => {
                let Some((place, taken)) = star else { return false };
                star = Some((place, taken + 1));
                (at, next) = (place + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|letter| *letter == '*')
}

/// How far a pattern has come along a path: the places in it that the next name may be held against.
struct Along<'a> {
    pattern: &'a [Part],
    places: Vec<usize>,
}

impl<'a> Along<'a> {
    fn new(pattern: &'a [Part]) -> Along<'a> {
        let mut along = Along { pattern, places: Vec::new() };
        along.reach(0);
        along
    }

    /// A place, and what is behind it if it may stand for no folder at all.
    fn reach(&mut self, mut place: usize) {
        loop {
            if !self.places.contains(&place) {
                self.places.push(place);
            }
            if self.pattern.get(place) != Some(&Part::Folders) {
                return;
            }
            place += 1;
        }
    }

    /// Takes the next name; whether the whole pattern has matched.
    fn step(&mut self, name: &[char]) -> bool {
        for place in std::mem::take(&mut self.places) {
            match self.pattern.get(place) {
                Some(Part::Folders) => self.reach(place),
                Some(Part::Name(letters)) if fits(letters, name) => self.reach(place + 1),
                _ => {}
            }
        }
        self.places.contains(&self.pattern.len())
    }
}

impl Patterns {
    /// Whether one matches the path or a folder above it; and, with `beneath`, whether one may match
    /// something beneath.
    fn any(&self, path: &str, beneath: bool) -> bool {
        let names = path.split('/').filter(|name| !name.is_empty());
        let names: Vec<Vec<char>> = names.map(|name| letters(name, self.fold)).collect();
        self.all.iter().any(|pattern| {
            let mut along = Along::new(pattern);
            names.iter().any(|name| along.step(name)) || beneath && !along.places.is_empty()
        })
    }
}

impl FileMasks for Patterns {
    fn excludes(&self, path: &str) -> bool {
        self.any(path, false)
    }

    fn may_exclude_beneath(&self, folder: &str) -> bool {
        self.any(folder, true)
    }
}

impl FileMasks for Masks {
    fn excludes(&self, path: &str) -> bool {
        self.exact.excludes(path)
    }

    fn may_exclude_beneath(&self, folder: &str) -> bool {
        self.exact.may_exclude_beneath(folder)
    }

    fn ignoring_case(&self) -> Option<&dyn FileMasks> {
        Some(&self.folded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(mask: &str) -> Masks {
        Masks::parse(&[mask]).unwrap()
    }

    #[test]
    fn masks_exclude_what_they_say_and_nothing_else() {
        let cases: [(&str, &[&str], &[&str]); 9] = [
            ("*.iso", &["/a.iso", "/x/y/b.iso", "/c.iso/d"], &["/a.isos", "/iso", "/A.ISO"]),
            ("/var/cache", &["/var/cache", "/var/cache/a/b"], &["/x/var/cache/a", "/var/caches"]),
            ("/home/*/.cache/", &["/home/ann/.cache/x"], &["/home/.cache/x", "/home/a/b/.cache/x"]),
            ("/home/**/tmp", &["/home/tmp/x", "/home/a/b/tmp"], &["/tmp", "/home/a/tmps"]),
            ("cache/", &["/cache/x", "/a/cache"], &["/caches/x"]),
            ("a?c*", &["/abc", "/x/abcd"], &["/ac", "/xabc"]),
            ("*a*b*", &["/ab", "/xxaxxbxx", "/aab"], &["/ba", "/a"]),
            ("\\Temp\\*.tmp", &["/Temp/x.tmp"], &["/Temp/x/y.tmp", "/temp/x.tmp"]),
            ("**/ä*/b", &["/äx/b/c", "/q/ä/b"], &["/äx/c"]),
        ];
        for (mask, yes, no) in cases {
            yes.iter().for_each(|path| assert!(masks(mask).excludes(path), "{mask} {path}"));
            no.iter().for_each(|path| assert!(!masks(mask).excludes(path), "{mask} {path}"));
        }
        let folded = masks("\\TEMP\\*.Ömp");
        assert!(folded.ignoring_case().unwrap().excludes("/temp/X.öMP"));
        assert!(!folded.excludes("/temp/X.öMP"));
    }

    #[test]
    fn folders_without_a_match_beneath_are_not_walked() {
        let rooted = masks("/home/*/.cache");
        for folder in ["", "/home", "/home/ann", "/home/ann/.cache", "/home/ann/.cache/deep"] {
            assert!(rooted.may_exclude_beneath(folder), "{folder}");
        }
        for folder in ["/var", "/home/ann/music", "/homes"] {
            assert!(!rooted.may_exclude_beneath(folder), "{folder}");
        }
        assert!(masks("*.iso").may_exclude_beneath("/any/where"));
    }

    #[test]
    fn what_excludes_everything_or_cannot_be_meant_is_refused() {
        let long = "x".repeat(limits::MASK_BYTES_MAX + 1);
        for mask in ["", "/", "*", "**", "/*", "/**/*", "a/../b", "C:\\Temp", "a\\b/c", &long] {
            Masks::parse(&[mask]).unwrap_err();
        }
        Masks::parse(&vec!["a"; limits::MASKS_MAX + 1]).unwrap_err();
    }

    /// Whatever is excluded lies in folders that are walked.
    #[test]
    fn the_walk_finds_all_that_is_excluded() {
        for seed in 0..3000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut text = |parts: &[&str], most: usize| {
                let count = random.usize(1..most);
                let names: Vec<_> =
                    (0..count).map(|_| parts[random.usize(..parts.len())]).collect();
                names.join("/")
            };
            let mask = format!("/{}", text(&["a", "b", "*", "**", "a*", "?b"], 5));
            let path = format!("/{}", text(&["a", "b", "ab", "bb"], 6));
            let Ok(masks) = Masks::parse(&[&mask]) else { continue };
            if masks.excludes(&path) {
                for (end, _) in path.match_indices('/') {
                    assert!(masks.may_exclude_beneath(&path[..end]), "seed {seed}: {mask} {path}");
                }
            }
        }
    }
}
