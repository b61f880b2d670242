//! The frame of a message: its bytes, its bounds, and the rules that postcard does not check.
//!
//! In: messages, or a peer's bytes. Out: bytes, or messages that keep every bound. Invariant:
//! nothing is allocated before its length was checked; no bytes make this panic.

use serde::{Serialize, de::DeserializeOwned};

use super::{
    BaseAnswer, BlockHead, Codec, FRAME_PREFIX_BYTES, Intent, MaskRange, PROTOCOL, SessionOffer,
    ToSource, ToTarget,
};
use crate::extents::Run;
use crate::ids::PointId;
use crate::limits;
use crate::manage::ManageRequest;

/// A frame that cannot be what a peer of this protocol sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length beyond the bound.
    #[error("frame {part} of {len} bytes is beyond the limit of {max}")]
    TooLong {
        /// Which part.
        part: &'static str,
        /// Announced.
        len: u32,
        /// Allowed.
        max: u32,
    },
    /// Bytes that are no message of this protocol.
    #[error("frame header of {len} bytes is no message of protocol {PROTOCOL}")]
    Garbled {
        /// Bytes of it.
        len: usize,
    },
    /// A message that breaks a bound or a rule, named.
    #[error("message breaks the protocol: {0}")]
    Rule(&'static str),
}

/// Lengths at the start of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePrefix {
    /// Bytes of the postcard header.
    pub header_len: u32,
    /// Bytes of the payload.
    pub payload_len: u32,
}

impl FramePrefix {
    /// Reads and bounds the lengths.
    ///
    /// # Errors
    /// [`FrameError::TooLong`].
    pub fn decode(bytes: [u8; FRAME_PREFIX_BYTES]) -> Result<FramePrefix, FrameError> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let header_len = u32::from_le_bytes([a, b, c, d]);
        let payload_len = u32::from_le_bytes([e, f, g, h]);
        let check = |part, len, max| {
            if len > max { Err(FrameError::TooLong { part, len, max }) } else { Ok(()) }
        };
        check("header", header_len, limits::FRAME_HEADER_BYTES_MAX)?;
        check("payload", payload_len, limits::FRAME_PAYLOAD_BYTES_MAX)?;
        Ok(FramePrefix { header_len, payload_len })
    }
}

/// A message that can travel: its own rules beyond what postcard checks.
pub trait Message: Serialize + DeserializeOwned {
    /// Checks counts and lengths against `limits`, and whether a payload belongs to it.
    ///
    /// # Errors
    /// [`FrameError::Rule`] names the first rule that is broken.
    fn check(&self, payload_len: u32) -> Result<(), FrameError>;
}

fn rule(holds: bool, name: &'static str) -> Result<(), FrameError> {
    if holds { Ok(()) } else { Err(FrameError::Rule(name)) }
}

fn check_head(head: &BlockHead, payload_len: u32) -> Result<(), FrameError> {
    rule(head.raw_len > 0 && head.raw_len <= limits::BLOCK_BYTES_MAX, "block length")?;
    rule(payload_len > 0 && payload_len <= head.raw_len, "payload of a block")?;
    rule(head.codec != Codec::Raw || payload_len == head.raw_len, "payload of a raw block")
}

/// A retention without any rule would keep one point only: nobody may ask for that by accident.
const RETENTION: &str = "retention without a rule";

fn check_runs(runs: &[Run]) -> Result<(), FrameError> {
    rule(runs.len() <= limits::RUNS_MAX, "number of runs")?;
    rule(runs.iter().all(|run| run.count > 0 && run.end().is_some()), "run of blocks")
}

/// Whether this can be the name of a VM or the identity of a disk: 1 to `limits::NAME_BYTES_MAX`
/// bytes, without control characters, because names are shown on terminals.
pub fn is_name(text: &str) -> bool {
    (1..=limits::NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Checks what is asked of a repository.
///
/// # Errors
/// [`FrameError::Rule`] names what is too long, too much or missing.
pub fn check_request(request: &ManageRequest) -> Result<(), FrameError> {
    let named = |name: &str| rule(is_name(name), "name of a VM");
    let few = |points: &[PointId]| {
        rule(points.len() <= limits::MANAGE_POINTS_MAX, "points in one request")
    };
    let some = |points: &[PointId]| rule(!points.is_empty(), "request without a point");
    match request {
        ManageRequest::UndeletePoints { name, points } => {
            named(name)?;
            few(points)
        }
        ManageRequest::DeletePoints { name, points, .. }
        | ManageRequest::ProtectPoints { name, points, .. } => {
            named(name)?;
            few(points)?;
            some(points)
        }
        ManageRequest::Prune { name, retention, .. } => {
            name.as_deref().map_or(Ok(()), named)?;
            rule(retention.has_rule(), RETENTION)
        }
        ManageRequest::Verify(options) => {
            rule((1..=100).contains(&options.percent), "percentage to verify")?;
            rule(options.rate != Some(0), "rate of zero")
        }
        ManageRequest::Abandon { name, snapshot } => {
            named(name)?;
            let short = |text: &String| text.len() <= limits::NAME_BYTES_MAX;
            rule(snapshot.as_ref().is_none_or(short), "snapshot of a disk")
        }
        ManageRequest::Collect(_) | ManageRequest::Stat => Ok(()),
    }
}

/// Checks what a session brings against `limits`, so that it fits a frame.
///
/// # Errors
/// [`FrameError::Rule`] names what is too long, too much or missing.
pub fn check_offer(offer: &SessionOffer) -> Result<(), FrameError> {
    let short = |text: &str| text.len() <= limits::NAME_BYTES_MAX;
    rule(is_name(&offer.name), "name of the session")?;
    rule(!offer.disks.is_empty(), "session without a disk")?;
    rule(offer.disks.len() <= limits::SESSION_DISKS_MAX, "number of disks")?;
    rule(offer.vm_config.len() <= limits::VM_CONFIG_BYTES_MAX, "VM configuration")?;
    rule(offer.retention.is_none_or(|retention| retention.has_rule()), RETENTION)?;
    for disk in &offer.disks {
        rule(is_name(&disk.identity), "identity of a disk")?;
        rule(short(&disk.label), "name of a disk")?;
        rule(short(&disk.snapshot), "snapshot of a disk")?;
        rule(disk.change_id.as_deref().is_none_or(short), "change id of a disk")?;
        rule(disk.size_bytes > 0 && disk.size_bytes <= limits::DISK_BYTES_MAX, "size of a disk")?;
    }
    Ok(())
}

/// How many; what they mean is judged by who uses them.
fn check_mask(mask: &[MaskRange]) -> Result<(), FrameError> {
    rule(mask.len() <= limits::MASK_RANGES_MAX, "ranges of a mask")
}

fn check_intent(intent: &Intent) -> Result<(), FrameError> {
    match intent {
        Intent::Backup(offer) | Intent::Part(offer) | Intent::Commit(offer) => check_offer(offer),
        Intent::Restore(offer) => rule(is_name(&offer.name), "name of a VM"),
        Intent::List { name, .. } => rule(name.is_empty() || is_name(name), "name of a VM"),
        Intent::Manage(request) => check_request(request),
    }
}

impl Message for ToTarget {
    fn check(&self, payload_len: u32) -> Result<(), FrameError> {
        if let ToTarget::Block { head, .. } = self {
            return check_head(head, payload_len);
        }
        rule(payload_len == 0, "payload on a message without one")?;
        match self {
            ToTarget::Hello { intent, software, .. } => {
                rule(software.is_empty() || is_name(software), "name of the software")?;
                check_intent(intent)
            }
            ToTarget::Marks { marks, .. } => {
                rule(marks.len() <= limits::RUNS_MAX, "number of marks")?;
                marks.iter().try_for_each(|mark| check_runs(&[mark.run]))
            }
            ToTarget::Query { blocks, .. } => {
                rule(!blocks.is_empty() && blocks.len() <= limits::QUERY_IDS_MAX, "size of a query")
            }
            ToTarget::Seal { mask, .. } => check_mask(mask),
            ToTarget::Read { run, .. } => check_runs(&[*run]),
            _ => Ok(()),
        }
    }
}

impl Message for ToSource {
    fn check(&self, payload_len: u32) -> Result<(), FrameError> {
        if let ToSource::Block { head, .. } = self {
            return check_head(head, payload_len);
        }
        rule(payload_len == 0, "payload on a message without one")?;
        match self {
            ToSource::TaskOpened { base, durable, .. } => {
                check_runs(durable)?;
                match base {
                    BaseAnswer::Usable { damaged, mask, .. } => {
                        check_runs(damaged)?;
                        check_mask(mask)
                    }
                    _ => Ok(()),
                }
            }
            ToSource::BaseIds { ids, .. } => rule(ids.len() <= limits::BASE_IDS_MAX, "base ids"),
            ToSource::Known { known, .. } => rule(known.len() <= limits::QUERY_IDS_MAX, "answer"),
            ToSource::Durable { runs, .. } | ToSource::Zeros { runs } => check_runs(runs),
            ToSource::Progress { phase, .. } => rule(is_name(phase), "name of a phase"),
            ToSource::Report { page, more } => {
                rule(page.len() <= limits::MANAGE_PAGE_BYTES_MAX, "page of a report")?;
                rule(!more || !page.is_empty(), "empty page of a report")
            }
            ToSource::Points { points, more } => {
                rule(!more || !points.is_empty(), "empty page of a list")
            }
            ToSource::Committed { deleted, .. } => {
                rule(deleted.len() <= limits::RETIRED_POINTS_MAX, "points deleted by retention")
            }
            _ => Ok(()),
        }
    }
}

/// Encodes a frame's prefix and header; the payload follows it on the wire.
///
/// # Panics
/// If our own message breaks its rules or bounds: a bug.
pub fn encode<M: Message>(message: &M, payload_len: usize) -> Vec<u8> {
    let payload_len = u32::try_from(payload_len).expect("payloads are bounded");
    let frame = postcard::to_extend(message, vec![0u8; FRAME_PREFIX_BYTES]);
    let mut frame = frame.expect("messages of this protocol always encode");
    let header_len = (frame.len() - FRAME_PREFIX_BYTES) as u32;
    assert!(header_len <= limits::FRAME_HEADER_BYTES_MAX, "header of {header_len} bytes");
    debug_assert_eq!(message.check(payload_len), Ok(()));
    frame[..4].copy_from_slice(&header_len.to_le_bytes());
    frame[4..FRAME_PREFIX_BYTES].copy_from_slice(&payload_len.to_le_bytes());
    frame
}

/// Decodes a frame's header and checks it against the rules.
///
/// # Errors
/// [`FrameError`]; never panics, whatever the bytes.
pub fn decode<M: Message>(header: &[u8], payload_len: u32) -> Result<M, FrameError> {
    let (message, rest) = postcard::take_from_bytes::<M>(header)
        .map_err(|_| FrameError::Garbled { len: header.len() })?;
    rule(rest.is_empty(), "bytes after the message")?;
    message.check(payload_len)?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{BlockId, SessionId, StoredChecksum};
    use crate::manage::{Retention, VerifyOptions};
    use crate::wire::RestoreOffer;

    #[test]
    fn frames_come_back_and_hostile_ones_are_refused() {
        let head = BlockHead {
            id: BlockId([3; 32]),
            codec: Codec::Zstd,
            raw_len: 1 << 20,
            checksum: StoredChecksum([4; 16]),
        };
        let message = ToTarget::Block { task: 1, block: 1 << 40, head };
        let frame = encode(&message, 77);
        let prefix = FramePrefix::decode(frame[..8].try_into().unwrap()).unwrap();
        assert_eq!(prefix.payload_len, 77);
        assert_eq!(decode::<ToTarget>(&frame[8..], 77), Ok(message));
        assert!(decode::<ToTarget>(&frame[8..], 0).is_err());
        assert!(decode::<ToTarget>(&frame[8..], (1 << 20) + 1).is_err());
        assert!(decode::<ToTarget>(&frame[8..frame.len() - 1], 77).is_err());
        assert!(FramePrefix::decode([255; 8]).is_err());
    }

    #[test]
    fn hostile_requests_are_refused() {
        let (name, point) = (String::from("vm"), PointId([1; 16]));
        let many = vec![point; limits::MANAGE_POINTS_MAX + 1];
        let delete = |name: &str, points: &[PointId]| ManageRequest::DeletePoints {
            name: name.into(),
            points: points.to_vec(),
            last_too: false,
        };
        let verify = |percent, rate| {
            ManageRequest::Verify(VerifyOptions { percent, rate, ..VerifyOptions::default() })
        };
        let prune = |name: Option<&str>, days| ManageRequest::Prune {
            name: name.map(str::to_owned),
            retention: Retention { days, ..Retention::default() },
            dry_run: true,
        };
        let frame = |request: &ManageRequest| {
            let message = ToTarget::Hello {
                protocol: PROTOCOL,
                software: String::new(),
                session: SessionId([1; 16]),
                intent: Intent::Manage(request.clone()),
                ticket: None,
            };
            decode::<ToTarget>(&postcard::to_stdvec(&message).unwrap(), 0)
        };
        let good = [
            delete("vm", &[point]),
            ManageRequest::UndeletePoints { name: name.clone(), points: Vec::new() },
            verify(1, None),
            verify(100, Some(1)),
            prune(None, 1),
            ManageRequest::Stat,
        ];
        good.iter().for_each(|request| assert!(frame(request).is_ok(), "{request:?}"));
        let bad = [
            delete("vm", &[]),
            delete("vm", &many),
            delete("", &[point]),
            delete("a\nb", &[point]),
            delete(&"x".repeat(limits::NAME_BYTES_MAX + 1), &[point]),
            ManageRequest::ProtectPoints { name, points: many.clone(), protect: true },
            ManageRequest::UndeletePoints { name: String::new(), points: Vec::new() },
            verify(0, None),
            verify(101, None),
            verify(50, Some(0)),
            prune(Some("vm"), 0),
            prune(Some(""), 1),
        ];
        bad.iter().for_each(|request| assert!(frame(request).is_err(), "{request:?}"));
    }

    /// A ticket is issued for the name, which panicked where it was too long for one.
    #[test]
    fn names_of_lists_and_restores_are_bounded_too() {
        let long = "x".repeat(limits::NAME_BYTES_MAX + 1);
        let hello = |name: &str, is_list: bool| {
            let name = name.to_owned();
            let restore =
                Intent::Restore(RestoreOffer { name: name.clone(), point: None, disk: 0 });
            let intent = if is_list { Intent::List { name, deleted: false } } else { restore };
            let (session, software) = (SessionId([1; 16]), "s".to_owned());
            let message =
                ToTarget::Hello { protocol: PROTOCOL, software, session, intent, ticket: None };
            decode::<ToTarget>(&postcard::to_stdvec(&message).unwrap(), 0)
        };
        for is_list in [true, false] {
            assert!(hello("vm", is_list).is_ok());
            assert!(hello(&long, is_list).is_err());
            assert!(hello("\x1b[2J", is_list).is_err());
        }
        assert!(hello("", true).is_ok() && hello("", false).is_err());
    }

    #[test]
    fn long_answers_of_a_hostile_repository_are_refused() {
        let bytes = |message: &ToSource| postcard::to_stdvec(message).unwrap();
        let page = |len| ToSource::Report { page: vec![7; len], more: true };
        let max = limits::MANAGE_PAGE_BYTES_MAX;
        assert!(decode::<ToSource>(&bytes(&page(max)), 0).is_ok());
        assert!(decode::<ToSource>(&bytes(&page(max + 1)), 0).is_err());
        assert!(decode::<ToSource>(&bytes(&page(0)), 0).is_err(), "pages without end");
        let list = ToSource::Points { points: Vec::new(), more: true };
        assert!(decode::<ToSource>(&bytes(&list), 0).is_err(), "pages without end");
        let phase = |phase: &str| ToSource::Progress { phase: phase.into(), done: 1, total: 2 };
        assert!(decode::<ToSource>(&bytes(&phase("mark")), 0).is_ok());
        assert!(decode::<ToSource>(&bytes(&phase("\x1b[2J")), 0).is_err());
    }

    #[test]
    fn random_bytes_never_panic() {
        for seed in 0..20_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let bytes: Vec<u8> = (0..random.usize(0..200)).map(|_| random.u8(..)).collect();
            let _ = decode::<ToTarget>(&bytes, random.u32(..));
            let _ = decode::<ToSource>(&bytes, random.u32(..));
        }
    }
}
