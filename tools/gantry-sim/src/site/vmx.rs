//! The configuration file of a machine (`.vmx`), as far as registering one needs it.
//!
//! In: the text, which is hostile. Out: settings by key, and what they say about a machine. Keys are
//! case-insensitive; what is not understood is left out.

use std::collections::BTreeMap;

/// Longest file that is read, bytes.
pub const BYTES_MAX: u64 = 256 << 10;
/// SCSI controllers of a machine, and units on each.
const CONTROLLERS: i32 = 4;
const UNITS: i32 = 16;
/// Network cards that are looked for.
const CARDS: usize = 10;

/// The settings of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vmx(BTreeMap<String, String>);

/// A disk of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmxDisk {
    /// The controller's number.
    pub bus: i32,
    /// The place on it.
    pub unit: i32,
    /// The descriptor: relative to the machine's folder, or `/vmfs/volumes/NAME/...`.
    pub file: String,
    /// `persistent`, `independent-persistent`, ...
    pub mode: String,
}

impl Vmx {
    /// Reads lines of `key = "value"`; others are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
            Some((key.trim().to_ascii_lowercase(), value.to_owned()))
        });
        Self(pairs.collect())
    }

    /// A setting.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(&key.to_ascii_lowercase()).map(String::as_str)
    }

    /// A number.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<i32> {
        self.get(key)?.trim().parse().ok()
    }

    fn is(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// vSphere's guest id: `ubuntu-64` is `ubuntu64Guest`.
    #[must_use]
    pub fn guest_id(&self) -> String {
        let short = self.get("guestOS").unwrap_or("other-64");
        format!("{}Guest", short.replace("-64", "64"))
    }

    /// A UUID as vSphere writes it: `56 4d ...-...` is `564d....-....`.
    #[must_use]
    pub fn uuid(&self, key: &str) -> Option<String> {
        let digits: String = self.get(key)?.chars().filter(char::is_ascii_hexdigit).collect();
        let part = |from: usize, to: usize| digits.get(from..to);
        let all = [part(0, 8)?, part(8, 12)?, part(12, 16)?, part(16, 20)?, part(20, 32)?];
        Some(all.join("-").to_ascii_lowercase())
    }

    /// Its SCSI controllers' numbers and sharing.
    #[must_use]
    pub fn controllers(&self) -> Vec<(i32, String)> {
        let there = (0..CONTROLLERS).filter(|bus| self.is(&format!("scsi{bus}.present")));
        let sharing = |bus| match self.get(&format!("scsi{bus}.sharedBus")) {
            Some("virtual") => "virtualSharing",
            Some("physical") => "physicalSharing",
            _ => "noSharing",
        };
        there.map(|bus| (bus, sharing(bus).to_owned())).collect()
    }

    /// Its disks on SCSI controllers.
    #[must_use]
    pub fn disks(&self) -> Vec<VmxDisk> {
        let places = (0..CONTROLLERS).flat_map(|bus| (0..UNITS).map(move |unit| (bus, unit)));
        let disks = places.filter_map(|(bus, unit)| {
            let at = format!("scsi{bus}:{unit}");
            let file = self.get(&format!("{at}.fileName"))?.to_owned();
            let kind = self.get(&format!("{at}.deviceType")).unwrap_or("scsi-hardDisk");
            let is_disk = kind.eq_ignore_ascii_case("scsi-hardDisk") && file.ends_with(".vmdk");
            let mode = self.get(&format!("{at}.mode")).unwrap_or("persistent").replace('-', "_");
            (is_disk && self.is(&format!("{at}.present"))).then_some(VmxDisk {
                bus,
                unit,
                file,
                mode,
            })
        });
        disks.collect()
    }

    /// The names of its networks.
    #[must_use]
    pub fn networks(&self) -> Vec<&str> {
        let cards = (0..CARDS).filter(|at| self.is(&format!("ethernet{at}.present")));
        cards.filter_map(|at| self.get(&format!("ethernet{at}.networkName"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Vmx, VmxDisk};

    #[test]
    fn a_file_is_read_and_rubbish_left_out() {
        let vmx = Vmx::parse(
            ".encoding = \"UTF-8\"\ndisplayName = \"web 0\"\nguestOS = \"ubuntu-64\"\nmemSize = \"512\"\n\
             uuid.bios = \"56 4d 01 02 03 04 05 06-07 08 09 0a 0b 0c 0d 0e\"\nrubbish\nx = y\n\
             scsi0.present = \"TRUE\"\nscsi0:1.present = \"TRUE\"\nscsi0:1.fileName = \"a.vmdk\"\n\
             scsi0:2.present = \"FALSE\"\nscsi0:2.fileName = \"b.vmdk\"\n\
             ethernet0.present = \"true\"\nethernet0.networkName = \"VM Network\"\n",
        );
        assert_eq!((vmx.get("DISPLAYNAME"), vmx.number("memsize")), (Some("web 0"), Some(512)));
        assert_eq!(vmx.guest_id(), "ubuntu64Guest");
        let uuid = vmx.uuid("uuid.bios");
        assert_eq!(uuid.as_deref(), Some("564d0102-0304-0506-0708-090a0b0c0d0e"));
        assert_eq!(vmx.controllers(), [(0, "noSharing".to_owned())]);
        let disk = VmxDisk { bus: 0, unit: 1, file: "a.vmdk".into(), mode: "persistent".into() };
        assert_eq!(vmx.disks(), [disk]);
        assert_eq!(vmx.networks(), ["VM Network"]);
        assert_eq!(Vmx::parse("\u{0}=\"").disks(), []);
    }
}
