//! Stage 4 of 7: a block's raw bytes in, its stored bytes out; and the way back.
//!
//! In: raw bytes, or stored bytes with their head. Out: bytes in a buffer of the caller.
//! Invariant: stored bytes are never longer than raw ones; what is decompressed has exactly the
//! length that its head says, or is an error. Must not: allocate after start, verify ids (whoever
//! knows the key does), or trust anything in a frame.

use gantry_common::limits;
use gantry_common::units::Compression;
use gantry_common::wire::{BlockHead, Codec};
use zstd_safe::{CCtx, CParameter, DCtx, ErrorCode};

/// Percent of the raw length up to which compressed bytes are worth their decompression.
const STORED_PERCENT_MAX: usize = 97;

/// zstd could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressError {
    /// No memory for its tables.
    #[error("no memory for zstd's tables")]
    NoMemory,
    /// A parameter was refused.
    #[error("zstd refuses {parameter}: {reason}")]
    Parameter {
        /// Which.
        parameter: &'static str,
        /// zstd's word.
        reason: &'static str,
    },
}

/// What became of a block: its first `len` output bytes, in this coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compressed {
    /// Coding of the stored bytes.
    pub codec: Codec,
    /// Stored bytes.
    pub len: usize,
}

/// Compresses blocks of one worker; owns zstd's tables.
pub struct Compressor {
    /// Nothing for [`Compression::None`].
    context: Option<CCtx<'static>>,
}

impl Compressor {
    /// A compressor of this level.
    pub fn new(compression: Compression) -> Result<Compressor, CompressError> {
        let Some(level) = compression.zstd_level() else {
            return Ok(Compressor { context: None });
        };
        let mut context = CCtx::try_create().ok_or(CompressError::NoMemory)?;
        for (parameter, value) in [
            ("the level", CParameter::CompressionLevel(level)),
            // The reader checks it against the head before it decompresses.
            ("the content size", CParameter::ContentSizeFlag(true)),
            // The record's checksum and the block's id do better.
            ("the absence of a checksum", CParameter::ChecksumFlag(false)),
            ("the absence of a dictionary id", CParameter::DictIdFlag(false)),
        ] {
            let refused = |code| CompressError::Parameter { parameter, reason: reason(code) };
            context.set_parameter(value).map_err(refused)?;
        }
        Ok(Compressor { context: Some(context) })
    }

    /// Compresses `raw` into the beginning of `out`, or copies it there if compression saves less
    /// than 3 percent or is off.
    ///
    /// # Panics
    /// If `out` is shorter than `raw`.
    pub fn compress(&mut self, raw: &[u8], out: &mut [u8]) -> Compressed {
        assert!(out.len() >= raw.len(), "{} bytes of room for {}", out.len(), raw.len());
        if let Some(context) = &mut self.context {
            let room = raw.len() * STORED_PERCENT_MAX / 100;
            // The only error there is with enough memory is too little room: it did not shrink.
            if let Ok(len) = context.compress2(&mut out[..room], raw) {
                return Compressed { codec: Codec::Zstd, len };
            }
        }
        out[..raw.len()].copy_from_slice(raw);
        Compressed { codec: Codec::Raw, len: raw.len() }
    }
}

/// Why stored bytes are not the block that their head announces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// The head's length is impossible.
    #[error("a block of {raw_len} bytes; blocks have 1 to {max}")]
    Length {
        /// The head's length.
        raw_len: u32,
        /// The bound.
        max: u32,
    },
    /// The caller's buffer is too short.
    #[error("{room} bytes of room for a block of {raw_len}")]
    Room {
        /// The head's length.
        raw_len: u32,
        /// The buffer's.
        room: usize,
    },
    /// Raw bytes of another length than the head says.
    #[error("{stored} stored bytes of a raw block of {raw_len}")]
    RawLength {
        /// The head's length.
        raw_len: u32,
        /// Bytes there are.
        stored: usize,
    },
    /// No zstd frame, or one without its content size.
    #[error("the stored bytes are no zstd frame with a content size")]
    NoFrame,
    /// A frame of another length than the head says.
    #[error("a zstd frame of {frame} bytes in a block of {raw_len}")]
    FrameLength {
        /// The head's length.
        raw_len: u32,
        /// The frame's.
        frame: u64,
    },
    /// Bytes behind the frame, or a part of it is missing.
    #[error("{stored} stored bytes are not one whole zstd frame")]
    NotOneFrame {
        /// Bytes there are.
        stored: usize,
    },
    /// zstd found damage.
    #[error("the zstd frame is damaged: {reason}")]
    Damaged {
        /// zstd's word.
        reason: &'static str,
    },
}

/// Decompresses blocks of one thread.
pub struct Decompressor {
    context: DCtx<'static>,
}

impl Decompressor {
    /// A decompressor.
    pub fn new() -> Result<Decompressor, CompressError> {
        Ok(Decompressor { context: DCtx::try_create().ok_or(CompressError::NoMemory)? })
    }

    /// Puts the block's `head.raw_len` bytes at the beginning of `out`. Writes nowhere else, and
    /// after an error what stands there means nothing.
    ///
    /// # Errors
    /// [`DecompressError`] for whatever is not exactly one block of that length.
    pub fn decompress(
        &mut self,
        head: &BlockHead,
        stored: &[u8],
        out: &mut [u8],
    ) -> Result<(), DecompressError> {
        let raw_len = head.raw_len;
        if raw_len == 0 || raw_len > limits::BLOCK_BYTES_MAX {
            return Err(DecompressError::Length { raw_len, max: limits::BLOCK_BYTES_MAX });
        }
        let room = out.len();
        let out = out.get_mut(..raw_len as usize).ok_or(DecompressError::Room { raw_len, room })?;
        match head.codec {
            Codec::Raw if stored.len() == out.len() => {
                out.copy_from_slice(stored);
                Ok(())
            }
            Codec::Raw => Err(DecompressError::RawLength { raw_len, stored: stored.len() }),
            Codec::Zstd => self.decompress_frame(raw_len, stored, out),
        }
    }

    fn decompress_frame(
        &mut self,
        raw_len: u32,
        stored: &[u8],
        out: &mut [u8],
    ) -> Result<(), DecompressError> {
        match zstd_safe::get_frame_content_size(stored) {
            Ok(Some(frame)) if frame == u64::from(raw_len) => {}
            Ok(Some(frame)) => return Err(DecompressError::FrameLength { raw_len, frame }),
            Ok(None) | Err(_) => return Err(DecompressError::NoFrame),
        }
        let whole = zstd_safe::find_frame_compressed_size(stored);
        if whole != Ok(stored.len()) {
            return Err(DecompressError::NotOneFrame { stored: stored.len() });
        }
        match self.context.decompress(out, stored) {
            Ok(len) if len == out.len() => Ok(()),
            Ok(len) => Err(DecompressError::FrameLength { raw_len, frame: len as u64 }),
            Err(code) => Err(DecompressError::Damaged { reason: reason(code) }),
        }
    }
}

fn reason(code: ErrorCode) -> &'static str {
    zstd_safe::get_error_name(code)
}

#[cfg(test)]
mod tests {
    use super::{Compressed, Compressor, DecompressError, Decompressor};
    use gantry_common::ids::{BlockId, StoredChecksum};
    use gantry_common::limits;
    use gantry_common::units::Compression;
    use gantry_common::wire::{BlockHead, Codec};

    fn head(codec: Codec, raw_len: usize) -> BlockHead {
        let raw_len = raw_len as u32;
        BlockHead { id: BlockId([1; 32]), codec, raw_len, checksum: StoredChecksum([0; 16]) }
    }

    /// Bytes that look like a guest's: this program's own.
    fn program() -> Vec<u8> {
        let mut bytes = std::fs::read("/proc/self/exe").unwrap();
        bytes.truncate(1 << 20);
        assert!(bytes.len() > 100_000);
        bytes
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(|| random.u8(..)).take(len).collect()
    }

    fn frame_of(raw: &[u8]) -> Vec<u8> {
        let mut out = vec![0; raw.len()];
        let done = Compressor::new(Compression::Optimal).unwrap().compress(raw, &mut out);
        assert_eq!(done.codec, Codec::Zstd);
        out.truncate(done.len);
        out
    }

    #[test]
    fn every_level_brings_every_kind_of_block_back() {
        let text = program();
        let mixed = [noise(1, 300_000), vec![0; 300_000], text.clone()].concat();
        let tiny = vec![b'a'];
        for compression in Compression::ALL {
            let mut compressor = Compressor::new(compression).unwrap();
            let mut decompressor = Decompressor::new().unwrap();
            for raw in [&text, &mixed, &noise(2, 1 << 20), &vec![5; 4 << 20], &tiny, &vec![7; 40]] {
                let mut stored = vec![0xee; raw.len() + 10];
                let Compressed { codec, len } = compressor.compress(raw, &mut stored);
                assert!(len <= raw.len());
                assert_eq!(codec == Codec::Raw, len == raw.len(), "{compression}");
                assert!(codec == Codec::Raw || len * 100 <= raw.len() * 97);
                let mut back = vec![0xdd; raw.len() + 3];
                let head = head(codec, raw.len());
                decompressor.decompress(&head, &stored[..len], &mut back).unwrap();
                assert_eq!((&back[..raw.len()], &back[raw.len()..]), (&raw[..], &[0xdd; 3][..]));
            }
        }
    }

    #[test]
    fn what_shrinks_is_coded_and_what_does_not_is_raw() {
        let mut compressor = Compressor::new(Compression::Optimal).unwrap();
        let mut codec_of = |raw: &[u8]| compressor.compress(raw, &mut vec![0; raw.len()]).codec;
        assert_eq!(codec_of(&program()), Codec::Zstd);
        assert_eq!(codec_of(&noise(3, 1 << 20)), Codec::Raw);
        assert_eq!(codec_of(&program()), Codec::Zstd, "a raw block leaves no trace");
        // 2 % of zeros are not worth it, 5 % are.
        assert_eq!(codec_of(&[noise(4, 980_000), vec![0; 20_000]].concat()), Codec::Raw);
        assert_eq!(codec_of(&[noise(4, 950_000), vec![0; 50_000]].concat()), Codec::Zstd);
        assert_eq!(codec_of(&[]), Codec::Raw);
        let mut none = Compressor::new(Compression::None).unwrap();
        let done = none.compress(&[0; 4096], &mut [1; 4096]);
        assert_eq!(done, Compressed { codec: Codec::Raw, len: 4096 });
    }

    #[test]
    fn a_frame_tells_its_length_and_carries_no_checksum() {
        let frame = frame_of(&program());
        assert_eq!(zstd_safe::get_frame_content_size(&frame).unwrap(), Some(1 << 20));
        // RFC 8878, 3.1.1.1.1: bit 2 of the descriptor is the checksum flag, bits 0-1 a dictionary.
        assert_eq!(frame[4] & 0b111, 0);
    }

    #[test]
    fn heads_and_frames_that_disagree_are_refused() {
        let raw = vec![9u8; 10_000];
        let frame = frame_of(&raw);
        let mut decompressor = Decompressor::new().unwrap();
        let mut check = |codec, raw_len, stored: &[u8], room| {
            decompressor.decompress(&head(codec, raw_len), stored, &mut vec![0; room])
        };
        let max = limits::BLOCK_BYTES_MAX as usize;
        type Error = DecompressError;
        for raw_len in [0, max + 1] {
            let error = check(Codec::Zstd, raw_len, &frame, max + 1).unwrap_err();
            assert!(matches!(error, Error::Length { .. }), "{error}");
        }
        let error = check(Codec::Zstd, 10_000, &frame, 9_999).unwrap_err();
        assert_eq!(error, Error::Room { raw_len: 10_000, room: 9_999 });
        let error = check(Codec::Raw, 10_000, &raw[1..], max).unwrap_err();
        assert_eq!(error, Error::RawLength { raw_len: 10_000, stored: 9_999 });
        for raw_len in [9_999, 10_001] {
            let error = check(Codec::Zstd, raw_len, &frame, max).unwrap_err();
            assert_eq!(error, Error::FrameLength { raw_len: raw_len as u32, frame: 10_000 });
        }
        for twice in [[&frame[..], &frame].concat(), [&frame[..], &[0]].concat()] {
            let error = check(Codec::Zstd, 10_000, &twice, max).unwrap_err();
            assert_eq!(error, Error::NotOneFrame { stored: twice.len() });
        }
        // A skippable frame, nothing at all, and plain bytes.
        for hostile in [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &[], &raw] {
            assert!(check(Codec::Zstd, 10_000, hostile, max).is_err());
        }
    }

    #[test]
    fn a_frame_that_claims_less_than_it_holds_is_bounded_by_the_head() {
        // The content size of a frame of 70,000 bytes stands in 4 bytes behind the descriptor.
        let mut frame = frame_of(&vec![9u8; 70_000]);
        let at = frame.windows(4).position(|four| four == 70_000u32.to_le_bytes()).unwrap();
        frame[at..at + 4].copy_from_slice(&66_000u32.to_le_bytes());
        let mut out = vec![0xdd; 70_000];
        let mut decompressor = Decompressor::new().unwrap();
        let result = decompressor.decompress(&head(Codec::Zstd, 66_000), &frame, &mut out);
        assert!(result.is_err());
        assert!(out[66_000..].iter().all(|&byte| byte == 0xdd));
    }

    #[test]
    fn damaged_frames_never_panic_and_the_decompressor_goes_on() {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let raw = &program()[..200_000];
        let frame = frame_of(raw);
        let mut decompressor = Decompressor::new().unwrap();
        let mut out = vec![0; raw.len()];
        let head = head(Codec::Zstd, raw.len());
        for _ in 0..300 {
            let mut bad = frame.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bad.len());
                bad[at] ^= random.u8(1..);
            }
            if random.bool() {
                bad.truncate(random.usize(..bad.len()));
            }
            // Without a checksum some damage is not seen here: it is by the record's.
            let _ = decompressor.decompress(&head, &bad, &mut out);
        }
        decompressor.decompress(&head, &frame, &mut out).unwrap();
        assert_eq!(out, raw);
    }
}
