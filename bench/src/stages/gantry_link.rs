//! Gantry's transport between two threads: block frames on four lanes, credits on control.
//!
//! In: stored blocks. Out: what both ends used. The receiver does what a target mover's network
//! thread does short of the session: payloads into pooled buffers, credits back in batches.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use gantry_common::limits;
use gantry_common::wire::{ToSource, ToTarget};
use gantry_dataplane::payload::PayloadPool;
use gantry_dataplane::transport::{
    FrameReceiver, FrameSender, Identity, Listener, Options, OutFrame, Pacer, Trust, connect,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::network::{End, EndWatch, Link, Meeting, Traffic};

/// Receive buffers: as many as credits at the start.
const SLOTS: usize = 64;
/// Blocks between two messages of credit.
const CREDIT_EVERY: usize = 8;

/// Two movers' identities.
pub(super) struct GantryLink {
    source: Identity,
    target: Identity,
    options: Options,
}

impl GantryLink {
    pub(super) fn new(options: Options) -> Result<GantryLink> {
        let (source, target) = (Identity::generate("source")?, Identity::generate("target")?);
        Ok(GantryLink { source, target, options })
    }
}

impl Link for GantryLink {
    async fn receive(&self, traffic: Arc<Traffic>, meeting: Meeting) -> Result<End> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let trust = Trust::of_pins([self.source.pin()]);
        let mut listener = Listener::bind(any, &self.target, &trust, &self.options).await?;
        meeting.listens_at(listener.address())?;
        let mut connection = listener.accept().await?;
        let longest = (0..traffic.count).map(|number| traffic.block(number).bytes.len()).max();
        let pool = PayloadPool::new(SLOTS, longest.unwrap_or(0))?;
        connection.receiver.accept_lanes(pool);
        let watch = EndWatch::start();
        let mut received = 0;
        while let Some(frame) = connection.receiver.recv().await? {
            let ToTarget::Block { .. } = frame.decode()? else { continue };
            drop(frame);
            received += 1;
            if received % CREDIT_EVERY == 0 || received == traffic.count {
                let credit = ToSource::Credit { total: (received + SLOTS) as u64 };
                connection.sender.send_control(OutFrame::message(&credit)).await?;
            }
        }
        ensure!(received == traffic.count, "{received} of {} blocks came", traffic.count);
        let end = watch.stop(None);
        meeting.sender_done().await;
        Ok(end)
    }

    async fn send(&self, traffic: Arc<Traffic>, to: SocketAddr) -> Result<End> {
        let trust = Trust::of_pins([self.target.pin()]);
        let connection = connect(&to.to_string(), &self.source, &trust, &self.options).await?;
        let (sender, receiver) = (connection.sender, connection.receiver);
        sender.open_lanes(limits::LANES_MAX).await?;
        let credit = Arc::new(Semaphore::new(SLOTS));
        let next = Arc::new(AtomicUsize::new(0));
        let watch = EndWatch::start();
        let mut tasks = JoinSet::new();
        tasks.spawn(take_credit(receiver, credit.clone(), traffic.count));
        for lane in 0..limits::LANES_MAX {
            let (sender, traffic) = (sender.clone(), traffic.clone());
            tasks.spawn(send_lane(lane, sender, traffic, next.clone(), credit.clone()));
        }
        while let Some(task) = tasks.join_next().await {
            task??;
        }
        let stats = sender.stats();
        let note = (stats.mtu_bytes > 0).then(|| {
            let lost = 100.0 * stats.packets_lost as f64 / stats.packets_sent.max(1) as f64;
            format!("MTU {}, {lost:.2} % lost", stats.mtu_bytes)
        });
        let end = watch.stop(note);
        sender.finish().await?;
        Ok(end)
    }
}

async fn send_lane(
    lane: usize,
    sender: FrameSender,
    traffic: Arc<Traffic>,
    next: Arc<AtomicUsize>,
    credit: Arc<Semaphore>,
) -> Result<()> {
    let pacer = Pacer::unlimited();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= traffic.count {
            return Ok(());
        }
        credit.acquire().await?.forget();
        let head = traffic.block(number).head;
        let message = ToTarget::Block { task: 0, block: number as u64, head };
        sender.send_lane(lane, OutFrame::block(&message, traffic.payload(number)), &pacer).await?;
    }
}

/// Takes credits until they say that every block has arrived.
async fn take_credit(
    mut receiver: FrameReceiver,
    credit: Arc<Semaphore>,
    count: usize,
) -> Result<()> {
    let mut known = SLOTS;
    while known < count + SLOTS {
        let frame = receiver.recv().await?.context("the receiver ended early")?;
        let ToSource::Credit { total } = frame.decode()? else { bail!("not a credit") };
        let total = usize::try_from(total)?;
        credit.add_permits(total.saturating_sub(known));
        known = total;
    }
    Ok(())
}
