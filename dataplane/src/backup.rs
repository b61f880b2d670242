//! One backup session of the source mover, from opened disks to the report.
//!
//! In: [`BackupOptions`]. Out: a committed point and a [`BackupReport`], or the failure. Joins
//! pipeline and sender; the command line and tasks of gantryd call it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_common::extents::Extent;
use gantry_common::failure::{Failure, FailureKind};
use gantry_common::ids::{PointId, SessionId};
use gantry_common::limits;
use gantry_common::manage::Retention;
use gantry_common::session::sender::Sender;
use gantry_common::source::SourceSpec;
use gantry_common::units::{BlockSize, Compression};
use gantry_common::wire::{
    self, BaseChoice, DiskOffer, SessionKind, SessionOffer, TaskTotals, TicketBytes,
};
use gantry_guest::FilterMap;
use serde::Serialize;

use crate::connect::Connector;
use crate::disk::Disk;
use crate::filters::{self, Filters};
use crate::host::{self, now_ms, random};
use crate::pipeline::audit::{AuditOptions, AuditSum};
use crate::pipeline::plan::{PlanOptions, ReadMode};
use crate::pipeline::{Pipeline, PipelineSettings, PipelineStats};
use crate::send::disks::{SessionDisk, SessionDisks};
use crate::send::{SendDriver, SendStats, Sent};
use crate::stats::{Bottleneck, BottleneckTimes, Progress};
use crate::transport::Pacer;
use gantry_common::stages::StageNumbers;

/// One disk of a backup.
#[derive(Debug, Clone)]
pub struct BackupSource {
    /// Where it is read from.
    pub spec: SourceSpec,
    /// Identity that stays when the disk moves; default: derived from the path.
    pub identity: Option<String>,
    /// Changed extents since the base.
    pub changed_extents: Option<Vec<Extent>>,
    /// All that is allocated: what lies outside reads as zeros.
    pub allocated_extents: Option<Vec<Extent>>,
    /// CBT change id of the frozen state, kept in the point.
    pub change_id: Option<String>,
    /// Digest of what is read; default: that of the extents given here and of the mask.
    pub read_digest: Option<[u8; 32]>,
    /// What of a guest's disk is neither read nor kept.
    pub filters: Filters,
}

/// What to back up and how.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// The session; default: a new one.
    pub session: Option<SessionId>,
    /// What the session is for.
    pub kind: SessionKind,
    /// Ticket to begin with.
    pub ticket: Option<TicketBytes>,
    /// Milliseconds since 1970 of the frozen state; default: now.
    pub created_ms: Option<u64>,
    /// The VM's name.
    pub name: String,
    /// Its disks.
    pub sources: Vec<BackupSource>,
    /// The point that changed extents refer to.
    pub base: Option<PointId>,
    /// Read everything, whatever the base.
    pub full: bool,
    /// Of a million blocks that the extents leave out, how many are compared nevertheless; at least
    /// [`limits::AUDIT_BLOCKS_MIN`]. Nothing: none.
    pub audit_per_million: Option<u32>,
    /// The VM's configuration, kept in the point.
    pub vm_config: Vec<u8>,
    /// Which points the repository keeps once this one is committed; nothing: all.
    pub retention: Option<Retention>,
    /// Identity of the frozen state; default: the source's fingerprint.
    pub snapshot: Option<String>,
    /// Block size.
    pub block_size: BlockSize,
    /// Compression.
    pub compression: Compression,
    /// Cores for the workers, one each.
    pub cores: Vec<usize>,
    /// Reads in flight for each worker.
    pub queue_depth: usize,
    /// Disks at a time.
    pub tasks_max: usize,
    /// How long to go on reconnecting.
    pub reconnect_for: Duration,
}

/// Bytes by what became of them; in JSON these stand among the fields of the disk or session.
/// `processed` = the sum of `skipped` + `sent_raw`, which is `virtual` once the disk is complete.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Volumes {
    /// Bytes of the disk.
    pub bytes_virtual: u64,
    /// Bytes that have a fate: skipped for one reason, or sent.
    pub bytes_processed: u64,
    /// Bytes that were not sent, by reason.
    pub bytes_skipped: Skipped,
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Bytes in blocks of zeros, holes included.
    pub bytes_zero: u64,
    /// Bytes in blocks taken over from the base.
    pub bytes_unchanged: u64,
    /// Bytes in blocks that the repository had.
    pub bytes_duplicate: u64,
    /// Raw bytes of the blocks sent.
    pub bytes_sent_raw: u64,
    /// Bytes that an interrupted attempt had made durable.
    pub bytes_resumed: u64,
    /// Stored bytes of the blocks sent.
    pub bytes_transferred: u64,
    /// Bytes that the repository grew by.
    pub bytes_stored: u64,
}

/// Bytes that were not sent, by reason; the same numbers stand beside it under `bytes_…`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Read as zeros, holes included.
    pub zero: u64,
    /// As in the base.
    pub unchanged: u64,
    /// The repository had them.
    pub duplicate: u64,
    /// An earlier attempt, or a part, had made them durable.
    pub resumed: u64,
}

impl Skipped {
    fn of(totals: &TaskTotals) -> Skipped {
        Skipped {
            zero: totals.bytes_zero,
            unchanged: totals.bytes_unchanged,
            duplicate: totals.bytes_duplicate,
            resumed: totals.bytes_resumed,
        }
    }

    fn add(&mut self, other: &Skipped) {
        self.zero += other.zero;
        self.unchanged += other.unchanged;
        self.duplicate += other.duplicate;
        self.resumed += other.resumed;
    }

    /// Of all reasons.
    pub fn sum(&self) -> u64 {
        self.zero + self.unchanged + self.duplicate + self.resumed
    }
}

impl Volumes {
    fn of(disk: &SessionDisk) -> Volumes {
        let totals = disk.totals();
        let skipped = Skipped::of(&totals);
        Volumes {
            bytes_virtual: disk.size_bytes,
            bytes_processed: skipped.sum() + totals.bytes_sent_raw,
            bytes_skipped: skipped,
            bytes_read: totals.bytes_read,
            bytes_zero: totals.bytes_zero,
            bytes_unchanged: totals.bytes_unchanged,
            bytes_duplicate: totals.bytes_duplicate,
            bytes_sent_raw: totals.bytes_sent_raw,
            bytes_resumed: totals.bytes_resumed,
            bytes_transferred: totals.bytes_transferred,
            bytes_stored: disk.bytes_stored(),
        }
    }

    fn add(&mut self, other: &Volumes) {
        self.bytes_virtual += other.bytes_virtual;
        self.bytes_processed += other.bytes_processed;
        self.bytes_skipped.add(&other.bytes_skipped);
        self.bytes_read += other.bytes_read;
        self.bytes_zero += other.bytes_zero;
        self.bytes_unchanged += other.bytes_unchanged;
        self.bytes_duplicate += other.bytes_duplicate;
        self.bytes_sent_raw += other.bytes_sent_raw;
        self.bytes_resumed += other.bytes_resumed;
        self.bytes_transferred += other.bytes_transferred;
        self.bytes_stored += other.bytes_stored;
    }
}

/// What came of one disk.
#[derive(Debug, Clone, Serialize)]
pub struct DiskReport {
    /// File or device.
    pub source: String,
    /// Its identity.
    pub identity: String,
    /// Digest of what was read, in hexadecimal: a committing session says the same.
    pub read_digest: String,
    /// How it was read.
    pub mode: Option<ReadMode>,
    /// Why so.
    pub reason: Option<String>,
    /// Bytes that are not kept on purpose, by reason: in the point they read as zeros.
    pub filtered: BTreeMap<&'static str, u64>,
    /// What the audit of its changed extents found; nothing if there was none.
    pub audit: Option<AuditSum>,
    /// Its bytes.
    #[serde(flatten)]
    pub volumes: Volumes,
    /// Stages as the workers saw them.
    pub stages: Vec<StageNumbers>,
}

/// What came of a session.
#[derive(Debug, Clone, Serialize)]
pub struct BackupReport {
    /// The committed point; nothing for a part.
    pub point: Option<String>,
    /// A part: its disks are complete and kept, and nothing was committed.
    pub held: bool,
    /// The session.
    pub session: String,
    /// The VM's name.
    pub name: String,
    /// Bytes of all disks.
    #[serde(flatten)]
    pub volumes: Volumes,
    /// Raw bytes of new blocks for each byte of them that had to be sent (zero and unchanged
    /// blocks not counted).
    pub dedup_ratio: f64,
    /// Raw bytes sent for each byte transferred.
    pub compression_ratio: f64,
    /// Seconds.
    pub wall_seconds: f64,
    /// CPU seconds of this process, all threads.
    pub cpu_seconds: f64,
    /// Peak resident set of this process.
    pub peak_rss_bytes: u64,
    /// For which share of the time each part of the road held the others up, percent.
    pub bottleneck: Bottleneck,
    /// The same as times, to be added up over the parts of a VM.
    pub bottleneck_times: BottleneckTimes,
    /// Its largest part.
    pub bottleneck_name: &'static str,
    /// Each disk.
    pub disks: Vec<DiskReport>,
    /// Sending and durability, as the network thread saw them.
    pub network: Vec<StageNumbers>,
    /// The session's log: choices and their reasons, warnings.
    pub log: Vec<String>,
}

/// Runs one session. `watch` is given each disk's label and live numbers before it begins.
///
/// # Errors
/// The first failure, with the kind that decides the exit code.
pub async fn run(
    options: BackupOptions,
    connector: &Connector,
    pacer: Pacer,
    watch: impl FnOnce(Vec<(String, Arc<Progress>)>),
) -> Result<BackupReport, Failure> {
    let started = Instant::now();
    let cpu_before = host::cpu_seconds();
    let (offers, disks, mut log) = open_disks(&options)?;
    watch(disks.iter().map(|disk| (disk.label.clone(), Arc::clone(&disk.progress))).collect());
    let offer = SessionOffer {
        name: options.name.clone(),
        disks: offers,
        compression: options.compression,
        created_ms: options.created_ms.unwrap_or_else(now_ms),
        vm_config: options.vm_config.clone(),
        retention: options.retention,
    };
    wire::check_offer(&offer)
        .map_err(|error| Failure::new(FailureKind::Usage, format!("this session: {error}")))?;
    let session = match options.session {
        Some(session) => session,
        None => SessionId(random()?),
    };
    let software = concat!("gantry-mover ", env!("CARGO_PKG_VERSION")).to_owned();
    let (pipeline, ends) = Pipeline::start(&PipelineSettings {
        cores: options.cores.clone(),
        queue_depth: options.queue_depth,
        block_size: options.block_size,
        compression: options.compression,
    })?;
    let sender = Sender::new(session, offer, options.ticket, software).of_kind(options.kind);
    let disks = SessionDisks::new(disks, options.tasks_max);
    let driver = SendDriver::new(sender, pipeline, ends, disks, pacer);
    let Sent { result, pipeline, disks, stats } =
        driver.run(connector, options.reconnect_for).await;
    let measured = pipeline.stop();
    let point = result?;
    log.extend(stats.log.iter().cloned());
    log.extend(measured.notes.iter().cloned());
    for disk in disks.iter() {
        log.extend(alarm(disk).map(|alarm| format!("disk {}: {alarm}", disk.label)));
    }
    let report = Report { point, session, name: options.name, log };
    Ok(report.make(&disks, &stats, &measured, started.elapsed(), cpu_before))
}

/// Digest of the read set that the changed extents and the mask ask for. An interrupted attempt counted blocks
/// as unchanged because its list did not name them; one with another list, or none, must not go on
/// from that.
fn read_digest(base: Option<PointId>, source: &BackupSource, mask: &FilterMap) -> [u8; 32] {
    if let Some(digest) = source.read_digest {
        return digest;
    }
    if source.changed_extents.is_none() && source.allocated_extents.is_none() && mask.is_empty() {
        return [0; 32];
    }
    let mut hasher = blake3::Hasher::new_derive_key("gantry 2026 read set 2");
    hasher.update(&base.map_or([0; 16], |point| point.0));
    for extents in [&source.changed_extents, &source.allocated_extents] {
        let extents = extents.as_deref();
        hasher.update(&extents.map_or(u64::MAX, |extents| extents.len() as u64).to_le_bytes());
        for extent in extents.unwrap_or_default() {
            hasher.update(&extent.start.to_le_bytes()).update(&extent.length.to_le_bytes());
        }
    }
    if !mask.is_empty() {
        hasher.update(b"mask").update(&mask.digest());
    }
    *hasher.finalize().as_bytes()
}

/// Which blocks are audited: the same for every attempt at the same frozen state, since an attempt
/// may go on from what an earlier one has marked as unchanged.
fn audit_seed(offer: &DiskOffer) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("gantry 2026 audit sample 1");
    hasher.update(&offer.read_digest).update(offer.identity.as_bytes());
    hasher.update(offer.snapshot.as_bytes());
    let mut seed = [0; 8];
    hasher.finalize_xof().fill(&mut seed);
    u64::from_le_bytes(seed)
}

type Opened = (Vec<DiskOffer>, Vec<SessionDisk>, Vec<String>);

fn open_disks(options: &BackupOptions) -> Result<Opened, Failure> {
    let (mut offers, mut disks, mut log) = (Vec::new(), Vec::new(), Vec::new());
    for source in &options.sources {
        let disk = Disk::open_source(&source.spec).map_err(Failure::from)?;
        let label = disk.label().to_owned();
        log.extend(disk.notes().iter().map(|note| format!("disk {label}: {note}")));
        if disk.is_stream() && source.changed_extents.is_some() {
            return Err(Failure::new(
                FailureKind::Usage,
                format!(
                    "disk {label} is an export stream, which is read as a whole: leave its changed \
                     extents out, or choose another transport mode"
                ),
            ));
        }
        let identity = source.identity.clone().unwrap_or_else(|| disk.identity().to_owned());
        if offers.iter().any(|offer: &DiskOffer| offer.identity == identity) {
            return Err(Failure::new(
                FailureKind::Usage,
                format!(
                    "two disks of this backup have the identity '{identity}': give each its own --disk-id"
                ),
            ));
        }
        let base = match (options.full, options.base) {
            (true, _) => BaseChoice::None,
            (false, Some(point)) => BaseChoice::Point(point),
            (false, None) => BaseChoice::Latest,
        };
        let snapshot = match &options.snapshot {
            // Of a stream just what is missing is taken too: but a lone mover's caller may give
            // two streams of different moments the same name.
            Some(snapshot) if !disk.is_stream() || options.kind != SessionKind::Backup => {
                snapshot.clone()
            }
            _ => disk.fingerprint().to_owned(),
        };
        let (mask, filtered) = filters::mask(&disk, &source.filters, &snapshot)?;
        log.extend(filtered.into_iter().map(|line| format!("disk {label}: {line}")));
        offers.push(DiskOffer {
            identity,
            label: label.clone(),
            size_bytes: disk.size_bytes(),
            block_size: options.block_size,
            snapshot,
            read_digest: read_digest(options.base, source, &mask),
            base,
            change_id: source.change_id.clone(),
        });
        // A stream tells by itself what is allocated, and a sample of it cannot be read before it.
        let is_stream = disk.is_stream() || disk.is_unreadable();
        let plan = PlanOptions {
            force_full: options.full,
            changed_extents: source.changed_extents.clone(),
            extents_base: options.base,
            allocated_extents: source.allocated_extents.clone().filter(|_| !is_stream),
            audit: options.audit_per_million.filter(|_| !is_stream).map(|per_million| {
                AuditOptions {
                    per_million,
                    blocks_min: limits::AUDIT_BLOCKS_MIN,
                    seed: audit_seed(&offers[offers.len() - 1]),
                }
            }),
            mask: Some(Arc::new(mask)),
        };
        let offer = offers[offers.len() - 1].clone();
        disks.push(SessionDisk::new(offer, disk, plan));
    }
    Ok((offers, disks, log))
}

struct Report {
    point: Option<PointId>,
    session: SessionId,
    name: String,
    log: Vec<String>,
}

impl Report {
    fn make(
        self,
        disks: &SessionDisks,
        stats: &SendStats,
        measured: &PipelineStats,
        took: Duration,
        cpu_before: f64,
    ) -> BackupReport {
        let disks: Vec<DiskReport> =
            disks.iter().enumerate().map(|(n, disk)| disk_report(n, disk, measured)).collect();
        let mut volumes = Volumes::default();
        disks.iter().for_each(|disk| volumes.add(&disk.volumes));
        let sent_raw = volumes.bytes_sent_raw;
        let bottleneck = measured.time.bottleneck();
        BackupReport {
            point: self.point.map(|point| point.to_string()),
            held: self.point.is_none(),
            session: self.session.to_string(),
            name: self.name,
            dedup_ratio: ratio(volumes.bytes_duplicate + sent_raw, sent_raw),
            compression_ratio: ratio(sent_raw, volumes.bytes_transferred),
            volumes,
            wall_seconds: took.as_secs_f64(),
            cpu_seconds: host::cpu_seconds() - cpu_before,
            peak_rss_bytes: host::peak_rss_bytes(),
            bottleneck,
            bottleneck_times: measured.time.times(),
            bottleneck_name: bottleneck.name(),
            network: vec![stats.send.summary("send"), stats.durable.summary("durable")],
            disks,
            log: self.log,
        }
    }
}

/// What a person must know when the audit found changed-block tracking wrong.
fn alarm(disk: &SessionDisk) -> Option<String> {
    let AuditSum { blocks, wrong, first_wrong } = disk.audit.sum();
    first_wrong.map(|first| {
        format!(
            "ALARM: changed-block tracking is wrong: {wrong} of {blocks} audited blocks, the first \
             block {first}, had changed though they were not listed. The whole disk was read, and \
             this point is right; earlier points made by changed extents may not be. Reset CBT of \
             this VM and make a full backup"
        )
    })
}

fn disk_report(number: usize, disk: &SessionDisk, measured: &PipelineStats) -> DiskReport {
    let (mut mode, mut reason) = disk.plan.clone().unzip();
    let audit = disk.audit.sum();
    if let Some(alarm) = alarm(disk) {
        mode = mode.map(|mode| if mode == ReadMode::Full { mode } else { ReadMode::Compare });
        reason = Some(alarm);
    }
    let stages = measured.tasks.get(&(number as u16)).map(|stages| stages.summary());
    DiskReport {
        source: disk.label.clone(),
        identity: disk.offer.identity.clone(),
        read_digest: gantry_common::hex::encode(&disk.offer.read_digest),
        mode,
        reason,
        filtered: filters::bytes_by_name(&disk.effective),
        audit: (audit.blocks > 0).then_some(audit),
        volumes: Volumes::of(disk),
        stages: stages.unwrap_or_default(),
    }
}

fn ratio(of: u64, to: u64) -> f64 {
    if to == 0 { 0.0 } else { (of as f64 / to as f64 * 100.0).round() / 100.0 }
}
