//! A hostile source against the receiver, which stands over an honest store.

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use gantry_common::extents::Run;
use gantry_common::ids::{BlockId, IdKey, PointId, RepositoryId};
use gantry_common::session::receiver::{Admission, Receiver};
use gantry_common::session::store_port::{StoreCommand, StoreReport, TaskKey};
use gantry_common::wire::{
    BaseAnswer, Mark, MarkKind, Message, SessionKind, SessionOffer, TaskTotals, ToSource, ToTarget,
};

use super::{SEEDS, SESSION, STEPS, random_failure, random_images, random_number, random_run};
use crate::NameSeed;
use crate::images::{Image, Payload, offer_of};

fn random_to_target(random: &mut fastrand::Rng, images: &[Image]) -> (ToTarget, bool) {
    let task = random.u16(0..4);
    let number = random_number(random);
    let mark = |random: &mut fastrand::Rng| Mark {
        run: random_run(random),
        kind: if random.bool() { MarkKind::Zero } else { MarkKind::Unchanged },
    };
    let message = match random.u8(0..40) {
        0 => ToTarget::Bye,
        1 => ToTarget::GiveUp { task, failure: random_failure(random) },
        2 => ToTarget::Credit { total: number },
        3 => ToTarget::Read { batch: number, run: random_run(random) },
        4..12 => ToTarget::OpenTask { task },
        12..16 => ToTarget::NeedBase { task, leaf: number },
        16..20 => {
            ToTarget::Marks { task, marks: (0..random.usize(0..4)).map(|_| mark(random)).collect() }
        }
        20..26 => ToTarget::Query {
            task,
            batch: number,
            blocks: (0..random.usize(1..4))
                .map(|_| (random_number(random), BlockId([9; 32])))
                .collect(),
        },
        26..30 => ToTarget::Seal { task, totals: TaskTotals::default(), mask: Vec::new() },
        _ => {
            let image = random.choice(images).expect("there is a disk");
            let block = random.u64(0..image.blocks.len() as u64);
            let head = image.head(block);
            let block = if random.u8(0..8) == 0 { number } else { block };
            return (ToTarget::Block { task, block, head }, random.u8(0..16) > 0);
        }
    };
    (message, random.u8(0..32) == 0)
}

/// What the hostile source has seen of its connection.
#[derive(Default)]
struct Seen {
    is_welcome: bool,
    opened: BTreeSet<u16>,
    sealed: BTreeSet<u16>,
    credit: u64,
}

impl Seen {
    fn take(&mut self, frame: &ToSource) {
        match frame {
            ToSource::Welcome { credit, .. } => (self.is_welcome, self.credit) = (true, *credit),
            ToSource::TaskOpened { task, .. } => drop(self.opened.insert(*task)),
            ToSource::Credit { total } => self.credit = *total,
            _ => {}
        }
    }

    fn looks_honest(&mut self, message: &ToTarget, images: &[Image]) -> bool {
        let is_open = |task: &u16| self.opened.contains(task) && !self.sealed.contains(task);
        let blocks = |task: &u16| images[usize::from(*task)].blocks.len() as u64;
        self.is_welcome
            && match message {
                ToTarget::OpenTask { task } => {
                    usize::from(*task) < images.len() && !self.opened.contains(task)
                }
                ToTarget::NeedBase { task, leaf } => is_open(task) && *leaf == 0,
                ToTarget::Marks { task, marks } => {
                    let ends = |mark: &Mark| mark.run.end().is_some_and(|end| end <= blocks(task));
                    is_open(task) && marks.iter().all(ends)
                }
                ToTarget::Query { task, blocks: asked, .. } => {
                    is_open(task) && asked.iter().all(|(block, _)| *block < blocks(task))
                }
                ToTarget::Block { task, block, head } => {
                    let is_right = is_open(task)
                        && *block < blocks(task)
                        && self.credit > 0
                        && head.raw_len == images[usize::from(*task)].len(*block);
                    self.credit -= u64::from(is_right);
                    is_right
                }
                ToTarget::Seal { task, .. } => is_open(task) && self.sealed.insert(*task),
                _ => false,
            }
    }
}

/// What an honest store answers.
fn answer(
    command: StoreCommand<Payload>,
    offer: &SessionOffer,
    random: &mut fastrand::Rng,
) -> Option<StoreReport> {
    let disk_blocks = |key: TaskKey| {
        let disk = &offer.disks[usize::from(key.task)];
        disk.block_size.block_count(disk.size_bytes)
    };
    Some(match command {
        StoreCommand::OpenSession { session, .. } if random.u8(0..8) == 0 => {
            StoreReport::Failed { session, task: None, failure: random_failure(random) }
        }
        StoreCommand::OpenSession { session, .. } => {
            let committed = (random.u8(0..16) == 0).then_some(PointId([3; 16]));
            StoreReport::SessionOpened { session, committed }
        }
        StoreCommand::OpenTask { key } => {
            let first = random.u64(0..disk_blocks(key));
            let base = BaseAnswer::Usable {
                point: PointId([5; 16]),
                size_bytes: random.u64(1..1 << 32),
                change_id: None,
                damaged: vec![Run { first: 0, count: 1 }; random.usize(0..2) * 9000],
                mask: Vec::new(),
                fallback_reason: None,
            };
            let base = if random.bool() { base } else { BaseAnswer::NotAsked };
            StoreReport::TaskOpened { key, base, durable: vec![Run { first, count: 1 }] }
        }
        StoreCommand::NeedBase { key, leaf } => StoreReport::BaseIds { key, leaf, ids: Vec::new() },
        StoreCommand::Marks { key, marks } => {
            StoreReport::Durable { key, runs: marks.iter().map(|mark| mark.run).collect() }
        }
        StoreCommand::Query { key, batch, blocks } => {
            let known = blocks.iter().map(|_| random.bool()).collect();
            StoreReport::Answered { key, batch, known }
        }
        StoreCommand::Append { key, block, payload, .. } => {
            drop(payload);
            StoreReport::Appended { key, block }
        }
        StoreCommand::Seal { key, .. } if random.u8(0..4) == 0 => {
            let failure = random_failure(random);
            StoreReport::Failed { session: key.session, task: Some(key.task), failure }
        }
        StoreCommand::Seal { key, .. } => StoreReport::Sealed { key, bytes_stored: 1 },
        StoreCommand::Detach { session } => StoreReport::Detached { session },
    })
}

fn connect(receiver: &mut Receiver<Payload>, offer: &SessionOffer) {
    receiver.handle_connected();
    let admission = Admission {
        session: SESSION,
        offer: offer.clone(),
        kind: SessionKind::Backup,
        repository: RepositoryId([1; 16]),
        id_key: IdKey([2; 32]),
        ticket: None,
    };
    receiver.handle_hello(admission).expect("the same Hello as before");
}

#[test]
fn hostile_sources_never_panic_the_receiver() {
    let (mut seals, mut violations) = (0, 0);
    for seed in 0..SEEDS {
        let _name = NameSeed(seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let images = random_images(&mut random);
        let offer = offer_of(&images, 0, true);
        let first_credit = random.u64(1..6);
        let buffers: Rc<Cell<u64>> = Rc::default();
        let mut receiver = Receiver::new(first_credit);
        let mut commands = VecDeque::new();
        connect(&mut receiver, &offer);
        let mut seen = Seen::default();
        for _ in 0..STEPS {
            while random.bool()
                && let Some(command) = receiver.poll_store()
            {
                seals += u32::from(matches!(command, StoreCommand::Seal { .. }));
                commands.push_back(command);
            }
            while random.bool()
                && let Some(command) = commands.pop_front()
            {
                answer(command, &offer, &mut random)
                    .into_iter()
                    .for_each(|r| receiver.handle_report(r));
            }
            while random.u8(0..4) > 0
                && let Some(frame) = receiver.poll_transmit()
            {
                assert_eq!(frame.check(0), Ok(()));
                seen.take(&frame);
            }
            let (frame, has_payload) = random_to_target(&mut random, &images);
            let is_honest = seen.looks_honest(&frame, &images)
                && has_payload == matches!(frame, ToTarget::Block { .. });
            if !is_honest && random.u8(0..32) > 0 {
                continue;
            }
            // A driver hands in blocks only: what cannot hold a buffer has none to count.
            let payload = has_payload.then(|| Payload::new(1, &buffers));
            if receiver.handle_frame(frame, payload).is_err() {
                violations += 1;
                if random.u8(0..4) > 0 {
                    connect(&mut receiver, &offer);
                    seen = Seen::default();
                }
            }
            assert!(receiver.blocks_in_store() <= first_credit, "{}", receiver.blocks_in_store());
            assert_eq!(receiver.blocks_in_store(), buffers.get());
        }
    }
    println!("{seals} seals, {violations} violations");
    assert!(seals > 100 && violations > 1000, "{seals} seals, {violations} violations");
}
