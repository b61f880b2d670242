//! The handshake of NBD (fixed newstyle), without I/O.
//!
//! In: the server's bytes, as many as [`Handshake::wants`] says. Out: bytes for the server, the
//! wish to begin TLS, and at last what was agreed on.
//!
//! ```text
//! greeting -> [STARTTLS -> TLS] -> STRUCTURED_REPLY -> SET_META_CONTEXT -> GO -> done
//!                                        | refused           | refused     | not known
//!                                        +-------------------+-----> GO    +-> EXPORT_NAME -> done
//! ```
//! Invariant: nothing agreed on before TLS counts after it. Every length is bounded and the number
//! of replies too.

use gantry_common::limits::{DISK_BYTES_MAX, NBD_NAME_BYTES_MAX};

use super::error::{NbdError, server_text};
use super::wire::{self, option, u16_at, u32_at, u64_at};

/// Replies to all options of one handshake.
const REPLIES_MAX: u32 = 256;
/// Bytes of a reply's data: a name of 4,096 bytes and what stands about it.
const REPLY_BYTES_MAX: u32 = NBD_NAME_BYTES_MAX as u32 + 64;
/// Bytes of one read where the server names no other bound (the protocol's own).
const READ_BYTES_MAX: u32 = 32 << 20;

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Bytes of the export.
    pub size_bytes: u64,
    /// Whether several connections may read it at once.
    pub multi_conn: bool,
    /// Whether replies come in chunks.
    pub structured: bool,
    /// Number of base:allocation, if the server knows its holes.
    pub context: Option<u32>,
    /// Bytes to which offset and length of a read must be aligned.
    pub block_min: u32,
    /// Bytes of a read at most.
    pub read_max: u32,
}

/// What is to happen next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Bytes are wanted.
    More,
    /// TLS is to begin, then bytes are wanted.
    BeginTls,
    /// The transmission phase has begun.
    Done(Agreed),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    ReplyHead,
    ReplyData { kind: u32, len: u32 },
    ExportName,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Handshake {
    export: String,
    tls: bool,
    state: State,
    option: u32,
    replies: u32,
    no_zeroes: bool,
    agreed: Agreed,
    has_export: bool,
    output: Vec<u8>,
}

impl Handshake {
    /// For this export; with TLS first, or not at all.
    pub(super) fn new(export: &str, tls: bool) -> Handshake {
        let agreed = Agreed {
            size_bytes: 0,
            multi_conn: false,
            structured: false,
            context: None,
            block_min: 1,
            read_max: READ_BYTES_MAX,
        };
        Handshake {
            export: export.to_owned(),
            tls,
            state: State::Greeting,
            option: 0,
            replies: 0,
            no_zeroes: false,
            agreed,
            has_export: false,
            output: Vec::new(),
        }
    }

    /// Bytes that [`Handshake::take`] wants next.
    pub(super) fn wants(&self) -> usize {
        match self.state {
            State::Greeting => 18,
            State::ReplyHead => 20,
            State::ReplyData { len, .. } => len as usize,
            State::ExportName if self.no_zeroes => 10,
            State::ExportName => 134,
        }
    }

    /// Bytes for the server.
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Takes exactly as many bytes as were wanted.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Step, NbdError> {
        debug_assert_eq!(bytes.len(), self.wants());
        match self.state {
            State::Greeting => self.greeting(bytes),
            State::ReplyHead => self.reply_head(bytes),
            State::ReplyData { kind, .. } => self.reply(kind, bytes),
            State::ExportName => {
                self.export_facts(bytes)?;
                self.finish()
            }
        }
    }

    fn greeting(&mut self, bytes: &[u8]) -> Result<Step, NbdError> {
        if u64_at(bytes, 0) != wire::MAGIC {
            return Err(NbdError::NotNbd("its greeting is another"));
        }
        match u64_at(bytes, 8) {
            wire::OPTION_MAGIC => {}
            wire::OLD_STYLE_MAGIC => return Err(NbdError::NotNbd("it speaks the old style")),
            _ => return Err(NbdError::NotNbd("its greeting is another")),
        }
        let flags = u16_at(bytes, 16);
        if flags & wire::FLAG_FIXED_NEWSTYLE == 0 {
            return Err(NbdError::NotNbd("it speaks the newstyle before it was fixed"));
        }
        let answer = flags & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
        self.no_zeroes = answer & wire::FLAG_NO_ZEROES != 0;
        self.output.extend(u32::from(answer).to_be_bytes());
        self.ask(if self.tls { wire::OPT_STARTTLS } else { wire::OPT_STRUCTURED_REPLY });
        Ok(Step::More)
    }

    fn ask(&mut self, number: u32) {
        let name = self.export.as_bytes();
        let mut data = Vec::new();
        match number {
            wire::OPT_EXPORT_NAME => data.extend(name),
            wire::OPT_SET_META_CONTEXT => {
                put(&mut data, name);
                data.extend(1u32.to_be_bytes());
                put(&mut data, wire::CONTEXT.as_bytes());
            }
            wire::OPT_GO => {
                put(&mut data, name);
                data.extend(1u16.to_be_bytes());
                data.extend(wire::INFO_BLOCK_SIZE.to_be_bytes());
            }
            _ => {}
        }
        self.output.extend(option(number, &data));
        self.option = number;
        self.state = match number {
            wire::OPT_EXPORT_NAME => State::ExportName,
            _ => State::ReplyHead,
        };
    }

    fn reply_head(&mut self, bytes: &[u8]) -> Result<Step, NbdError> {
        if u64_at(bytes, 0) != wire::OPTION_REPLY_MAGIC {
            return Err(NbdError::violation("a reply to an option begins with other bytes"));
        }
        let (number, kind, len) = (u32_at(bytes, 8), u32_at(bytes, 12), u32_at(bytes, 16));
        if number != self.option {
            let what = format!("option {} was asked, {number} was answered", self.option);
            return Err(NbdError::Violation(what));
        }
        self.replies += 1;
        if self.replies > REPLIES_MAX || len > REPLY_BYTES_MAX {
            return Err(NbdError::violation("too many or too long replies to options"));
        }
        self.state = State::ReplyData { kind, len };
        if len == 0 { self.reply(kind, &[]) } else { Ok(Step::More) }
    }

    /// A whole reply to the present option.
    fn reply(&mut self, kind: u32, data: &[u8]) -> Result<Step, NbdError> {
        self.state = State::ReplyHead;
        if kind & wire::REP_ERROR != 0 {
            return self.refused(kind, data);
        }
        match (self.option, kind) {
            (wire::OPT_STARTTLS, wire::REP_ACK) => {
                self.ask(wire::OPT_STRUCTURED_REPLY);
                Ok(Step::BeginTls)
            }
            (wire::OPT_STRUCTURED_REPLY, wire::REP_ACK) => {
                self.agreed.structured = true;
                self.ask(wire::OPT_SET_META_CONTEXT);
                Ok(Step::More)
            }
            (wire::OPT_SET_META_CONTEXT, wire::REP_META_CONTEXT) => self.context(data),
            (wire::OPT_SET_META_CONTEXT, wire::REP_ACK) => {
                self.ask(wire::OPT_GO);
                Ok(Step::More)
            }
            (wire::OPT_GO, wire::REP_INFO) => self.info(data),
            (wire::OPT_GO, wire::REP_ACK) => self.finish(),
            _ => Err(NbdError::Violation(format!("reply {kind} to option {}", self.option))),
        }
    }

    fn refused(&mut self, kind: u32, data: &[u8]) -> Result<Step, NbdError> {
        let next = match (self.option, kind) {
            (_, wire::REP_ERR_TLS_REQD) if !self.tls => None,
            (wire::OPT_STRUCTURED_REPLY | wire::OPT_SET_META_CONTEXT, _) => Some(wire::OPT_GO),
            (wire::OPT_GO, wire::REP_ERR_UNSUP) => Some(wire::OPT_EXPORT_NAME),
            _ => None,
        };
        if let Some(next) = next {
            if self.option == wire::OPT_SET_META_CONTEXT {
                self.agreed.context = None;
            }
            self.ask(next);
            return Ok(Step::More);
        }
        let option = match self.option {
            wire::OPT_STARTTLS => "TLS",
            wire::OPT_GO => "the export",
            _ => "an option",
        };
        let words = server_text(data);
        let why = match kind {
            wire::REP_ERR_TLS_REQD => format!("it wants TLS {words}"),
            wire::REP_ERR_UNKNOWN => format!("it has no export '{}' {words}", self.export),
            wire::REP_ERR_UNSUP => format!("it does not know it {words}"),
            other => format!("error {} {words}", other & !wire::REP_ERROR),
        };
        Err(NbdError::Refused { option, why: why.trim_end().to_owned() })
    }

    fn context(&mut self, data: &[u8]) -> Result<Step, NbdError> {
        if data.get(4..) != Some(wire::CONTEXT.as_bytes()) || self.agreed.context.is_some() {
            return Err(NbdError::violation("a context that was not asked for"));
        }
        self.agreed.context = Some(u32_at(data, 0));
        Ok(Step::More)
    }

    fn info(&mut self, data: &[u8]) -> Result<Step, NbdError> {
        let short = || NbdError::violation("a piece of information has another length");
        if data.len() < 2 {
            return Err(short());
        }
        match u16_at(data, 0) {
            wire::INFO_EXPORT if data.len() == 12 => self.export_facts(&data[2..])?,
            wire::INFO_BLOCK_SIZE if data.len() == 14 => {
                let [min, preferred, max] = [2, 6, 10].map(|at| u32_at(data, at));
                let sane = min.is_power_of_two()
                    && min <= 64 << 10
                    && preferred.is_power_of_two()
                    && preferred >= min
                    && max >= min;
                if !sane {
                    let what = format!("block sizes {min}, {preferred}, {max}");
                    return Err(NbdError::Violation(what));
                }
                self.agreed.block_min = min;
                self.agreed.read_max = (max / min * min).min(READ_BYTES_MAX);
            }
            wire::INFO_EXPORT | wire::INFO_BLOCK_SIZE => return Err(short()),
            // Name, description, and whatever comes later.
            _ => {}
        }
        Ok(Step::More)
    }

    fn export_facts(&mut self, data: &[u8]) -> Result<(), NbdError> {
        let flags = u16_at(data, 8);
        self.agreed.size_bytes = u64_at(data, 0);
        if flags & wire::EXPORT_HAS_FLAGS != 0 {
            self.agreed.multi_conn = flags & wire::EXPORT_CAN_MULTI_CONN != 0;
        }
        self.has_export = true;
        Ok(())
    }

    fn finish(&mut self) -> Result<Step, NbdError> {
        let Agreed { size_bytes, block_min, .. } = self.agreed;
        if !self.has_export {
            return Err(NbdError::violation("the export was opened without its size"));
        }
        if size_bytes == 0 || size_bytes > DISK_BYTES_MAX {
            return Err(NbdError::Export(format!(
                "the export '{}' has {size_bytes} bytes; a disk has 1 to {DISK_BYTES_MAX}",
                self.export
            )));
        }
        if size_bytes % u64::from(block_min) != 0 {
            return Err(NbdError::Export(format!(
                "the export '{}' has {size_bytes} bytes, but only blocks of {block_min} can be \
                 read: its end would be lost",
                self.export
            )));
        }
        Ok(Step::Done(self.agreed.clone()))
    }
}

fn put(data: &mut Vec<u8>, text: &[u8]) {
    data.extend((text.len() as u32).to_be_bytes());
    data.extend(text);
}
