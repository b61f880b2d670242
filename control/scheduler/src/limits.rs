//! Every bound and default of the scheduler, in one place.

use std::time::Duration;

/// Tasks that a repository takes at a time unless configured otherwise.
pub const REPOSITORY_SLOTS: u32 = 4;

/// Task slots of a proxy for each of its cores unless configured otherwise.
pub const PROXY_SLOTS_PER_CORE: u32 = 2;

/// Snapshots that may be open on a datastore unless configured otherwise.
pub const SNAPSHOTS_PER_DATASTORE: u32 = 4;

/// Free space that a repository keeps beyond what running backups are expected to write.
pub const REPOSITORY_HEADROOM_BYTES: u64 = 1 << 30;

/// Job priorities go from 0 to this; each step doubles a session's share of the slots.
pub const PRIORITY_MAX: u8 = 10;

/// A session that got nothing for this long counts as one priority step higher, and so on.
pub const AGING_STEP: Duration = Duration::from_secs(15 * 60);

/// A machine that waited this long goes before the larger ones of its session.
pub const OVERDUE: Duration = Duration::from_secs(2 * 60 * 60);

/// Disks of one machine; vSphere allows some hundred.
pub const DISKS_PER_VM_MAX: usize = 1024;

/// Machines in the queue, over all sessions.
pub const VMS_MAX: usize = 100_000;
