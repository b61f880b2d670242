//! A repository that answers from a model, and misbehaves on demand.

use std::sync::Arc;

use bytes::Bytes;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{BlockId, RepositoryId};
use gantry_common::wire::{ToSource, ToTarget};

use super::disks::{KEY, Model};
use crate::transport::{CloseReason, Connection, OutFrame, Pacer, pair};

pub(super) const REPOSITORY: RepositoryId = RepositoryId([3; 16]);

/// What the repository does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    Honest,
    /// Drops the connection after so many blocks.
    DropAfter(u64),
    /// This block is sent with another block's bytes.
    WrongBytes(u64),
    /// This block is sent with an id that fits its bytes, but a shorter one.
    Short(u64),
    /// This block is sent twice.
    Twice(u64),
    /// This block cannot be read: a failure instead.
    Damaged(u64),
    /// `ReadDone` without the blocks.
    Silent,
    /// Zeros that were not asked for.
    ZerosBeyond,
    /// A disk of an impossible size.
    Huge,
    /// The point is refused.
    NoPoint,
}

/// The client's end of a connection to a repository of this manner.
pub(super) fn connect(model: &Arc<Model>, manner: Manner) -> Connection {
    let (client, server) = pair();
    let model = Arc::clone(model);
    tokio::spawn(async move {
        let closed = client_gone(serve(server, &model, manner).await);
        assert!(closed, "the fake repository fails only when its client is gone");
    });
    client
}

fn client_gone(result: Result<(), crate::transport::TransportError>) -> bool {
    result.is_ok()
        || matches!(result, Err(ref error) if error.failure_kind() == FailureKind::Network || error.failure_kind() == FailureKind::Refused)
}

struct Fake<'a> {
    connection: Connection,
    model: &'a Model,
    manner: Manner,
    credit: u64,
    sent: u64,
}

async fn serve(
    connection: Connection,
    model: &Model,
    manner: Manner,
) -> Result<(), crate::transport::TransportError> {
    let mut fake = Fake { connection, model, manner, credit: 0, sent: 0 };
    let hello = fake.next().await?;
    assert!(matches!(hello, Some(ToTarget::Hello { .. })), "{hello:?}");
    let welcome =
        ToSource::Welcome { repository: REPOSITORY, id_key: KEY, ticket: None, credit: 0 };
    fake.control(welcome).await?;
    let mut point = model.summary();
    match manner {
        Manner::NoPoint => {
            let failure = Failure::new(FailureKind::Usage, "no such point; there is 1234");
            return fake.control(ToSource::Failed { task: None, failure }).await;
        }
        Manner::Huge => point.disks[0].size_bytes = u64::MAX,
        _ => {}
    }
    fake.control(ToSource::PointOpened { point }).await?;
    fake.connection.sender.open_lanes(4).await?;
    let mut reads = std::collections::VecDeque::new();
    loop {
        match fake.next().await? {
            Some(ToTarget::Read { batch, run }) => reads.push_back((batch, run)),
            Some(ToTarget::Credit { total }) => fake.credit = total,
            Some(ToTarget::Bye) => return fake.connection.sender.finish().await,
            None => return Ok(()),
            other => panic!("{other:?}"),
        }
        while fake.credit > 0
            && let Some((batch, run)) = reads.pop_front()
        {
            if !fake.answer(batch, run, &mut reads).await? {
                return Ok(());
            }
        }
    }
}

impl Fake<'_> {
    async fn next(&mut self) -> Result<Option<ToTarget>, crate::transport::TransportError> {
        let frame = self.connection.receiver.recv().await?;
        Ok(frame.map(|frame| frame.decode().unwrap()))
    }

    async fn control(&mut self, message: ToSource) -> Result<(), crate::transport::TransportError> {
        self.connection.sender.send_control(OutFrame::message(&message)).await
    }

    /// False: the connection was dropped.
    async fn answer(
        &mut self,
        batch: u64,
        run: gantry_common::extents::Run,
        reads: &mut std::collections::VecDeque<(u64, gantry_common::extents::Run)>,
    ) -> Result<bool, crate::transport::TransportError> {
        let mut runs = self.model.zeros(run);
        if self.manner == Manner::ZerosBeyond {
            runs = vec![gantry_common::extents::Run { first: run.first, count: run.count + 1 }];
        }
        if !runs.is_empty() {
            self.control(ToSource::Zeros { runs }).await?;
        }
        let mut blocks = 0;
        let first = self.model.blocks.range(run.first..run.first + run.count);
        // Packs hold blocks in another order than the disk.
        let mut numbers: Vec<u64> = first.map(|(block, _)| *block).collect();
        fastrand::Rng::with_seed(batch).shuffle(&mut numbers);
        for block in numbers {
            if self.manner == Manner::Silent {
                continue;
            }
            if self.manner == Manner::Damaged(block) {
                let text = format!("pack 7 is damaged at byte 4096: block {block}");
                let failure = Failure::new(FailureKind::Target, text);
                self.control(ToSource::Failed { task: None, failure }).await?;
                continue;
            }
            if self.manner == Manner::DropAfter(self.sent) {
                self.connection.sender.close(CloseReason::Failed("the server stops".into()));
                return Ok(false);
            }
            while self.sent == self.credit {
                match self.next().await? {
                    Some(ToTarget::Credit { total }) => self.credit = total,
                    Some(ToTarget::Read { batch, run }) => reads.push_back((batch, run)),
                    _ => return Ok(false),
                }
            }
            self.block(block).await?;
            blocks += 1;
            if self.manner == Manner::Twice(block) {
                self.block(block).await?;
            }
        }
        let done = ToSource::ReadDone { batch, blocks, reading_us: 1, sending_us: 3 };
        self.control(done).await?;
        Ok(true)
    }

    async fn block(&mut self, block: u64) -> Result<(), crate::transport::TransportError> {
        let (mut head, mut stored) = self.model.stored(block).unwrap();
        match self.manner {
            Manner::WrongBytes(bad) if bad == block => {
                head.id = BlockId([1; 32]);
            }
            Manner::Short(bad) if bad == block => {
                stored = vec![5; 512];
                head.codec = gantry_common::wire::Codec::Raw;
                head.raw_len = 512;
                head.id = KEY.block_id(&stored);
            }
            _ => {}
        }
        let frame = OutFrame::block(&ToSource::Block { block, head }, Bytes::from(stored));
        self.sent += 1;
        self.connection.sender.send_lane((block % 4) as usize, frame, &Pacer::unlimited()).await
    }
}
