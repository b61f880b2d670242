//! A hostile target against the sender, which stands over an honest pipeline.

use std::collections::{BTreeMap, BTreeSet};

use gantry_common::extents::Run;
use gantry_common::ids::{BlockId, IdKey, PointId, RepositoryId};
use gantry_common::session::sender::Sender;
use gantry_common::session::source_port::SourceCommand;
use gantry_common::wire::{BaseAnswer, Message, ToSource, ToTarget};

use super::{SEEDS, SESSION, STEPS, random_failure, random_images, random_number, random_runs};
use crate::NameSeed;
use crate::images::{Image, offer_of};
use crate::pipeline::Pipeline;

fn random_to_source(random: &mut fastrand::Rng) -> ToSource {
    let task = random.u16(0..4);
    let number = random_number(random);
    match random.u8(0..80) {
        0 => ToSource::Refused { failure: random_failure(random) },
        1 => ToSource::Failed {
            task: random.bool().then_some(task),
            failure: random_failure(random),
        },
        2 => ToSource::Committed { point: PointId([7; 16]), deleted: Vec::new() },
        3 => {
            ToSource::ReadDone { batch: number, blocks: number, reading_us: number, sending_us: 0 }
        }
        4 => ToSource::Zeros { runs: random_runs(random) },
        5..20 => ToSource::Welcome {
            repository: RepositoryId([u8::from(random.u8(0..32) == 0); 16]),
            id_key: IdKey([2; 32]),
            ticket: None,
            credit: number,
        },
        20..40 => {
            let usable = BaseAnswer::Usable {
                point: PointId([u8::from(random.u8(0..32) == 0); 16]),
                size_bytes: 5 << 20,
                change_id: None,
                damaged: Vec::new(),
                mask: Vec::new(),
                fallback_reason: None,
            };
            let base = if random.bool() { usable } else { BaseAnswer::NotAsked };
            let (durable, more) = (random_runs(random), random.u8(0..4) == 0);
            ToSource::TaskOpened { task, base, durable, more }
        }
        40..48 => {
            let ids = vec![BlockId::ZERO; random.choice([0, 2, 5, 20]).expect("four")];
            ToSource::BaseIds { task, leaf: number / 4, ids }
        }
        48..64 => {
            let known = (0..random.usize(1..4)).map(|_| random.bool()).collect();
            ToSource::Known { task, batch: number, known }
        }
        64..70 => ToSource::Credit { total: random.u64(0..40) },
        70..75 => ToSource::Durable { task, runs: random_runs(random) },
        _ => ToSource::Sealed { task, bytes_stored: number },
    }
}

/// What the hostile target has been asked on its connection.
#[derive(Default)]
struct Seen {
    is_greeted: bool,
    is_welcomed: bool,
    opening: BTreeSet<u16>,
    leaves: BTreeSet<(u16, u64)>,
    queries: BTreeMap<(u16, u64), usize>,
    sealing: BTreeSet<u16>,
    credit: u64,
}

impl Seen {
    fn take(&mut self, frame: &ToTarget) {
        match frame {
            ToTarget::Hello { .. } => *self = Seen { is_greeted: true, ..Seen::default() },
            ToTarget::OpenTask { task } => drop(self.opening.insert(*task)),
            ToTarget::NeedBase { task, leaf } => drop(self.leaves.insert((*task, *leaf))),
            ToTarget::Query { task, batch, blocks } => {
                self.queries.insert((*task, *batch), blocks.len());
            }
            ToTarget::Seal { task, .. } => drop(self.sealing.insert(*task)),
            _ => {}
        }
    }

    fn looks_honest(&mut self, frame: &ToSource, images: &[Image]) -> bool {
        let on_disk = |task: &u16, runs: &[Run]| {
            let blocks =
                images.get(usize::from(*task)).map_or(0, |image| image.blocks.len() as u64);
            runs.iter().all(|run| run.end().is_some_and(|end| end <= blocks))
        };
        match frame {
            ToSource::Welcome { repository, credit, .. } => {
                let is_first = self.is_greeted && !self.is_welcomed && repository.0 == [0; 16];
                if is_first {
                    (self.is_welcomed, self.credit) = (true, *credit);
                }
                is_first
            }
            ToSource::TaskOpened { task, durable, more, .. } => {
                let is_asked = self.opening.contains(task) && on_disk(task, durable);
                if is_asked && !more {
                    self.opening.remove(task);
                }
                is_asked
            }
            ToSource::BaseIds { task, leaf, .. } => self.leaves.contains(&(*task, *leaf)),
            ToSource::Known { task, batch, known } => {
                let is_asked = self.queries.get(&(*task, *batch)) == Some(&known.len());
                is_asked && self.queries.remove(&(*task, *batch)).is_some()
            }
            ToSource::Credit { total } => {
                let is_more = self.is_welcomed && *total >= self.credit;
                self.credit = self.credit.max(*total);
                is_more
            }
            ToSource::Durable { task, runs } => {
                self.is_welcomed && !self.opening.contains(task) && on_disk(task, runs)
            }
            ToSource::Sealed { task, .. } => self.sealing.remove(task),
            _ => false,
        }
    }
}

#[test]
fn hostile_targets_never_panic_the_sender() {
    let (mut seals, mut redos, mut violations) = (0, 0, 0);
    for seed in 0..SEEDS {
        let _name = NameSeed(seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let images = random_images(&mut random);
        let offer = offer_of(&images, 0, true);
        let mut sender = Sender::new(SESSION, offer, None, String::new());
        let mut pipeline = Pipeline::new(&images, 3);
        let mut seen = Seen::default();
        for _ in 0..STEPS {
            if random.u8(0..64) == 0 || !seen.is_greeted {
                sender.handle_connected(random.usize(1..5));
            }
            while random.u8(0..4) > 0
                && let Some(transmit) = sender.poll_transmit()
            {
                seen.take(&transmit.message);
                seals += u32::from(matches!(transmit.message, ToTarget::Seal { .. }));
                let payload_len = u32::from(transmit.payload.is_some());
                assert_eq!(transmit.message.check(payload_len), Ok(()));
            }
            let frame = random_to_source(&mut random);
            if (seen.looks_honest(&frame, &images) || random.u8(0..64) == 0)
                && sender.handle_frame(frame).is_err()
            {
                violations += 1;
                seen = Seen::default();
            }
            while let Some(command) = sender.poll_command() {
                redos += u32::from(matches!(command, SourceCommand::Redo { .. }));
                pipeline.handle(command).expect("the pipeline's contract, whatever the peer says");
            }
            while random.u8(0..4) > 0
                && let Some(report) = pipeline.work(&mut random)
            {
                sender.handle_report(report);
            }
        }
    }
    let counts = (seals, redos, violations);
    println!("{counts:?}");
    assert!(seals > 100 && redos > 100 && violations > 1000, "{counts:?}");
}
