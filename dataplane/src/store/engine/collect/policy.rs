//! What to do with a pack that has dead records: a pure decision.
//!
//! In: bytes live and dead, what the file system and the options allow. Out: an action. The order
//! is: remove what is wholly dead; rewrite what is mostly dead, where it may cost that; else make
//! holes where that gives back enough; else leave it.

use gantry_common::limits;

/// A pack's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackUse {
    /// Of the file.
    pub file_bytes: u64,
    /// Records that are live.
    pub live: u32,
    /// Their bytes.
    pub live_bytes: u64,
    /// Bytes of records that are dead and not given back yet.
    pub dead_bytes: u64,
    /// Verification found damaged records in it.
    pub is_damaged: bool,
}

/// What is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Means {
    /// Files can have holes.
    pub can_punch: bool,
    /// Bytes of live records that may still be copied.
    pub rewrite_bytes: u64,
}

/// What is done with a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Keep,
    /// Its dead records become holes.
    Punch,
    /// Its live records are copied to another pack, and it goes.
    Rewrite,
    /// It goes.
    Remove,
}

/// Decides for one pack.
pub fn decide(pack: &PackUse, means: &Means) -> Action {
    if pack.live == 0 {
        return Action::Remove;
    }
    if pack.dead_bytes == 0 {
        return Action::Keep;
    }
    let percent = match means.can_punch {
        true => limits::COLLECT_REWRITE_LIVE_PERCENT,
        false => limits::COLLECT_REWRITE_LIVE_PERCENT_WITHOUT_HOLES,
    };
    let is_mostly_dead = pack.live_bytes * 100 < pack.file_bytes * percent;
    if is_mostly_dead && pack.live_bytes <= means.rewrite_bytes {
        return Action::Rewrite;
    }
    // Else every verification would name a damaged record that nothing needs any more.
    let is_worth_it = pack.is_damaged
        || pack.dead_bytes >= limits::COLLECT_PUNCH_BYTES_MIN
        || pack.dead_bytes * limits::COLLECT_PUNCH_PARTS >= pack.file_bytes;
    match means.can_punch && is_worth_it {
        true => Action::Punch,
        false => Action::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(live_mib: u64, dead_mib: u64, can_punch: bool, rewrite_mib: u64) -> Action {
        let pack = PackUse {
            file_bytes: 256 << 20,
            live: live_mib as u32,
            live_bytes: live_mib << 20,
            dead_bytes: dead_mib << 20,
            is_damaged: false,
        };
        decide(&pack, &Means { can_punch, rewrite_bytes: rewrite_mib << 20 })
    }

    #[test]
    fn each_pack_gets_the_cheapest_action_that_helps() {
        assert_eq!(decided(0, 255, true, 0), Action::Remove);
        assert_eq!(decided(0, 0, false, 0), Action::Remove, "emptied by an earlier collection");
        assert_eq!(decided(255, 0, true, 999), Action::Keep);
        assert_eq!(decided(63, 192, true, 63), Action::Rewrite);
        assert_eq!(decided(63, 192, true, 62), Action::Punch, "beyond what may be copied");
        assert_eq!(decided(64, 191, true, 999), Action::Punch);
        assert_eq!(decided(127, 128, false, 999), Action::Rewrite);
        assert_eq!(decided(128, 127, false, 999), Action::Keep);
        assert_eq!(decided(254, 1, true, 999), Action::Punch);
    }

    #[test]
    fn little_is_left_alone_unless_the_pack_is_little_too() {
        let means = Means { can_punch: true, rewrite_bytes: 0 };
        let pack = |file_bytes, dead_bytes| PackUse {
            file_bytes,
            live: 1,
            live_bytes: file_bytes - dead_bytes,
            dead_bytes,
            is_damaged: false,
        };
        assert_eq!(decide(&pack(256 << 20, 8192), &means), Action::Keep);
        let damaged = PackUse { is_damaged: true, ..pack(256 << 20, 8192) };
        assert_eq!(decide(&damaged, &means), Action::Punch);
        assert_eq!(decide(&pack(64 << 10, 8192), &means), Action::Punch);
    }
}
