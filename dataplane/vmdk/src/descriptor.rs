//! The descriptor: a small text that says what a disk consists of and what its parent is.
//!
//! In: the bytes of a descriptor file, or those embedded in a sparse extent. Out: a [`Descriptor`]
//! whose extents stand one after the other and whose numbers are within bounds. Must not: open
//! anything, or guess: what is said twice, or not understood where it matters, is an error.
//! Source: VMware, *Virtual Disk Format 5.0*, "The Descriptor File".
//!
//! Errors are a line (counted from 1; 0 for the whole) and the reason; the caller adds the file.

mod encoding;

use crate::limits::{DESCRIPTOR_LINE_BYTES_MAX, DISK_BYTES_MAX, EXTENTS_MAX, SECTOR_BYTES};

/// `parentCID` of a disk without a parent.
const NO_PARENT: u32 = u32::MAX;

/// Bytes of an older descriptor that may follow the zero byte at the end: QEMU leaves up to seven
/// when it writes a content id with fewer digits than before.
const STALE_BYTES_MAX: usize = 16;

type Finding = (usize, String);

/// How the bytes of an extent are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExtentKind {
    /// As they are on the disk (`FLAT`, `VMFS`).
    Flat,
    /// Hosted sparse or COWD; the extent's own header tells (`SPARSE`, `VMFSSPARSE`).
    Sparse,
    /// Space-efficient sparse (`SESPARSE`).
    SeSparse,
    /// No file: all zero (`ZERO`).
    Zero,
}

/// One extent line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExtentLine {
    pub(crate) line: usize,
    pub(crate) sectors: u64,
    pub(crate) kind: ExtentKind,
    /// Empty for zeros.
    pub(crate) file_name: String,
    /// Where the extent begins in a flat file, in sectors.
    pub(crate) file_sector: u64,
}

/// What a descriptor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) content_id: u32,
    /// The content id that the parent must have.
    pub(crate) parent_id: Option<u32>,
    /// The parent's descriptor, if there is a parent.
    pub(crate) parent_name: Option<String>,
    pub(crate) create_type: String,
    pub(crate) extents: Vec<ExtentLine>,
    /// In vSphere's form: `6000c294-443e-5005-5cd6-e24fbe780908`.
    pub(crate) uuid: Option<String>,
    pub(crate) long_content_id: Option<String>,
    /// Why the contents cannot be understood, if so: encryption, a raw device.
    pub(crate) obstacle: Option<String>,
}

/// Keys of the header that decide; each may stand once.
#[derive(Default)]
struct Keys {
    version: Option<String>,
    content_id: Option<String>,
    parent_id: Option<String>,
    parent_name: Option<String>,
    create_type: Option<String>,
    uuid: Option<String>,
    long_content_id: Option<String>,
}

impl Descriptor {
    /// Parses a descriptor that is a file of its own.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Descriptor, Finding> {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let rest = bytes.get(end + STALE_BYTES_MAX..).unwrap_or_default();
        if rest.iter().any(|&byte| byte != 0) {
            return Err((0, "it holds zero bytes between its lines".into()));
        }
        parse(&bytes[..end])
    }

    /// Parses a descriptor in front of an extent, which ends at the first zero byte.
    pub(crate) fn parse_embedded(bytes: &[u8]) -> Result<Descriptor, Finding> {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        parse(&bytes[..end])
    }

    /// The disk's size in bytes, as the extents add up to.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.sectors).sum::<u64>() * SECTOR_BYTES
    }
}

fn parse(bytes: &[u8]) -> Result<Descriptor, Finding> {
    let text = encoding::decode(bytes).map_err(|why| (0, why))?;
    let mut keys = Keys::default();
    let mut extents: Vec<ExtentLine> = Vec::new();
    let mut obstacle = None;
    let mut sectors = 0_u64;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if line.len() > DESCRIPTOR_LINE_BYTES_MAX {
            return Err((number, format!("it is longer than {DESCRIPTOR_LINE_BYTES_MAX} bytes")));
        }
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if is_extent(line) {
            if extents.len() == EXTENTS_MAX {
                return Err((number, format!("there are more than {EXTENTS_MAX} extents")));
            }
            match extent(number, line).map_err(|why| (number, why))? {
                Line::Extent(extent) => {
                    sectors = sectors.saturating_add(extent.sectors);
                    if sectors > DISK_BYTES_MAX / SECTOR_BYTES {
                        let why = format!("the disk is larger than {DISK_BYTES_MAX} bytes");
                        return Err((number, why));
                    }
                    extents.push(extent);
                }
                Line::Obstacle(what) => obstacle = obstacle.or(Some(what)),
            }
        } else if let Some((key, value)) = line.split_once('=') {
            let value = unquote(value.trim());
            keys.take(&key.trim().to_ascii_lowercase(), value, &mut obstacle)
                .map_err(|why| (number, why))?;
        } else {
            return Err((number, format!("{:?} is neither a setting nor an extent", start(line))));
        }
    }
    keys.finish(extents, obstacle).map_err(|why| (0, why))
}

impl Keys {
    fn take(
        &mut self,
        key: &str,
        value: &str,
        obstacle: &mut Option<String>,
    ) -> Result<(), String> {
        let place = match key {
            "version" => &mut self.version,
            "cid" => &mut self.content_id,
            "parentcid" => &mut self.parent_id,
            "parentfilenamehint" => &mut self.parent_name,
            "createtype" => &mut self.create_type,
            "ddb.uuid" => &mut self.uuid,
            "ddb.longcontentid" => &mut self.long_content_id,
            _ => {
                let lower = value.to_ascii_lowercase();
                let encrypted = key.starts_with("encryption")
                    || key.starts_with("ddb.encryption")
                    || (key == "ddb.iofilters" && lower.contains("vmwarevmcrypt"));
                if encrypted {
                    obstacle.get_or_insert_with(|| "it is encrypted".into());
                }
                return Ok(());
            }
        };
        match place {
            Some(_) => Err(format!("{key} stands twice")),
            None => {
                *place = Some(value.to_owned());
                Ok(())
            }
        }
    }

    fn finish(
        self,
        extents: Vec<ExtentLine>,
        obstacle: Option<String>,
    ) -> Result<Descriptor, String> {
        let version = self.version.ok_or("it has no version")?;
        if !["1", "2", "3", "4"].contains(&version.as_str()) {
            return Err(format!("version {:?} of the descriptor is not known", start(&version)));
        }
        let content_id = hex_id("CID", self.content_id.as_deref())?;
        let parent_id = match self.parent_id.as_deref() {
            None => NO_PARENT,
            some => hex_id("parentCID", some)?,
        };
        let parent_name = self.parent_name.filter(|name| !name.is_empty());
        let parent_id = (parent_id != NO_PARENT).then_some(parent_id);
        match (parent_id, &parent_name) {
            (Some(_), None) => {
                return Err("it is a delta (parentCID), but does not name its parent".into());
            }
            (None, Some(name)) => {
                return Err(format!(
                    "it names a parent ({:?}), but its parentCID says that there is none",
                    start(name)
                ));
            }
            _ => {}
        }
        let create_type = self.create_type.ok_or("it has no createType")?;
        if create_type.len() > 64 || !create_type.is_ascii() {
            return Err("its createType makes no sense".into());
        }
        let obstacle = obstacle.or_else(|| raw_device(&create_type));
        if extents.is_empty() && obstacle.is_none() {
            return Err("it has no extents".into());
        }
        Ok(Descriptor {
            content_id,
            parent_id,
            parent_name,
            create_type,
            extents,
            uuid: self.uuid.and_then(|value| uuid(&value)),
            long_content_id: self.long_content_id.filter(|id| id.len() <= 64),
            obstacle,
        })
    }
}

fn raw_device(create_type: &str) -> Option<String> {
    let lower = create_type.to_ascii_lowercase();
    let raw = ["vmfsrdm", "vmfsraw", "vmfsrawdevicemap", "vmfspassthroughrawdevicemap"];
    if raw.iter().any(|name| lower.starts_with(name)) {
        return Some(format!("it maps a raw device ({create_type})"));
    }
    if ["fulldevice", "partitioneddevice"].contains(&lower.as_str()) {
        return Some(format!("its data is on a device of its host ({create_type})"));
    }
    None
}

/// Whether a line is meant as an extent: it begins with an access.
fn is_extent(line: &str) -> bool {
    let word = line.split_whitespace().next().unwrap_or_default();
    ["RW", "RDONLY", "NOACCESS"].iter().any(|access| word.eq_ignore_ascii_case(access))
}

enum Line {
    Extent(ExtentLine),
    Obstacle(String),
}

/// `RW 4192256 FLAT "disk-f001.vmdk" 0`.
fn extent(line: usize, text: &str) -> Result<Line, String> {
    let (access, rest) = word(text);
    let (sectors, rest) = word(rest);
    let (kind, rest) = word(rest);
    let sectors: u64 =
        sectors.parse().map_err(|_| format!("{:?} is no number of sectors", start(sectors)))?;
    if sectors == 0 {
        return Err("an extent of no sectors".into());
    }
    if sectors > DISK_BYTES_MAX / SECTOR_BYTES {
        return Err(format!("an extent larger than {DISK_BYTES_MAX} bytes"));
    }
    if access.eq_ignore_ascii_case("NOACCESS") {
        return Ok(Line::Obstacle(format!("its extent {:?} has no access", start(rest))));
    }
    let kind = match kind.to_ascii_uppercase().as_str() {
        "FLAT" | "VMFS" => ExtentKind::Flat,
        "SPARSE" | "VMFSSPARSE" => ExtentKind::Sparse,
        "SESPARSE" => ExtentKind::SeSparse,
        "ZERO" => ExtentKind::Zero,
        "VMFSRDM" | "VMFSRAW" | "VMFSRDMP" => {
            return Ok(Line::Obstacle(format!("its extent is a raw device ({kind})")));
        }
        "VSANSPARSE" | "VSANOBJECT" => {
            return Ok(Line::Obstacle(format!("its extent is an object of vSAN ({kind})")));
        }
        _ => return Err(format!("an extent of type {:?} is not known", start(kind))),
    };
    let (file_name, rest) = match kind {
        ExtentKind::Zero => (String::new(), rest),
        _ => quoted(rest)?,
    };
    let rest = rest.trim();
    let file_sector = match kind {
        ExtentKind::Flat if !rest.is_empty() => {
            let (number, _) = word(rest);
            number.parse().map_err(|_| format!("{:?} is no offset in sectors", start(number)))?
        }
        // Behind a raw or sparse extent products may write a partition's or a device's id.
        _ => 0_u64,
    };
    if file_sector.checked_add(sectors).is_none_or(|end| end > u64::MAX / SECTOR_BYTES) {
        return Err(format!("an offset of {file_sector} sectors is not possible"));
    }
    Ok(Line::Extent(ExtentLine { line, sectors, kind, file_name, file_sector }))
}

/// The first word and what is behind it.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    text.split_at(end)
}

/// A file name in quotes and what is behind it.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let inner = text.trim_start().strip_prefix('"').ok_or("an extent without a file name")?;
    let (name, rest) = inner.split_once('"').ok_or("a file name whose quotes do not close")?;
    if name.is_empty() {
        return Err("an extent with an empty file name".into());
    }
    Ok((name.to_owned(), rest))
}

fn unquote(value: &str) -> &str {
    value.strip_prefix('"').map_or(value, |inner| inner.strip_suffix('"').unwrap_or(inner))
}

fn hex_id(name: &str, value: Option<&str>) -> Result<u32, String> {
    let value = value.ok_or_else(|| format!("it has no {name}"))?;
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = if digits { u32::from_str_radix(value, 16).ok() } else { None };
    id.ok_or_else(|| format!("{name} {:?} is no 32-bit number in hexadecimal", start(value)))
}

/// `60 00 C2 94 44 3e 50 05-5c d6 e2 4f be 78 09 08` as vSphere shows it elsewhere.
fn uuid(value: &str) -> Option<String> {
    let digits: String =
        value.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_ascii_lowercase();
    let separators = |c: char| c.is_ascii_hexdigit() || c == ' ' || c == '-';
    if digits.len() != 32 || !value.chars().all(separators) {
        return None;
    }
    let part = |from: usize, to: usize| digits[from..to].to_owned();
    Some([part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-"))
}

/// The beginning of a text from a file, short enough for a message.
fn start(text: &str) -> &str {
    let end = text.char_indices().nth(60).map_or(text.len(), |(index, _)| index);
    &text[..end]
}

#[cfg(test)]
mod tests;
