//! What one seed means: sizes, speeds, faults, and the bug that is planted, if one.

/// A bug that the simulation must notice, put into the surroundings of the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// The honest run.
    Nothing,
    /// The store says that a block is durable which it never got.
    StoreClaimsTooMuch,
    /// The target acknowledges a block as durable as soon as it is appended.
    DurableTooEarly,
    /// A crash of the store forgets a block that it called durable, and still claims it.
    StoreForgetsContent,
    /// The network loses one `Marks` message without losing the connection.
    MarksLost,
    /// The store calls a block known that it does not have.
    KnownUntrue,
    /// The receiver hands out one buffer too many.
    CreditTooHigh,
    /// Nobody tells the pipeline what it has to do again.
    RedoLost,
    /// The point is committed when all disks but one are sealed.
    CommitTooEarly,
}

impl Plant {
    /// All bugs.
    pub const BUGS: [Plant; 8] = [
        Plant::StoreClaimsTooMuch,
        Plant::DurableTooEarly,
        Plant::StoreForgetsContent,
        Plant::MarksLost,
        Plant::KnownUntrue,
        Plant::CreditTooHigh,
        Plant::RedoLost,
        Plant::CommitTooEarly,
    ];
}

/// The numbers of one run.
pub struct Plan {
    pub random: fastrand::Rng,
    pub plant: Plant,
    pub disks: usize,
    pub blocks_max: u64,
    pub has_base: bool,
    pub first_credit: u64,
    pub window: usize,
    /// Weight of each action in `World::act`, in its order.
    pub weights: [u32; 13],
    pub faults: u32,
    /// One fault in this many steps, until they are used up.
    pub fault_every: u32,
    /// Whether the pipeline may report a block twice.
    pub repeats_blocks: bool,
    /// Whether every message goes through its wire form.
    pub encodes: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64, plant: Plant) -> Plan {
        let mut random = fastrand::Rng::with_seed(seed);
        let is_large = random.u8(0..40) == 0;
        let disks = if is_large { 1 } else { random.usize(1..5) };
        let mut weights = [0; 13];
        // Each part of the world may be slow or fast: that is what delays are here.
        weights.iter_mut().for_each(|weight| *weight = [1, 4, 16, 64][random.usize(0..4)]);
        let faults = random.u32(0..9);
        Plan {
            repeats_blocks: faults == 0,
            disks,
            blocks_max: if is_large { 3000 } else { random.u64(1..60) },
            has_base: random.bool(),
            first_credit: random.u64(1..24),
            window: random.usize(1..12),
            weights,
            faults,
            fault_every: random.u32(20..400),
            encodes: random.u8(0..8) == 0,
            plant,
            random,
        }
    }
}
