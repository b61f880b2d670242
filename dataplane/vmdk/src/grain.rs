//! One compressed grain: deflated bytes in, plain bytes out, never more than a grain.
//!
//! In: what stands behind a grain marker. Out: the plain bytes in the caller's buffer. Invariant:
//! the buffer bounds what is inflated, whatever the deflated bytes announce. Must not: allocate
//! by a length from a file.

use flate2::{Decompress, FlushDecompress, Status};

use crate::limits::GRAIN_OVERHEAD_BYTES_MAX;

/// Bytes of a grain marker: sector of the disk (8), length of the deflated bytes (4).
pub(crate) const MARKER_BYTES: usize = 12;

/// An inflater that is used for one grain after the other.
pub(crate) struct Inflater {
    state: Decompress,
}

impl Inflater {
    pub(crate) fn new() -> Inflater {
        Inflater { state: Decompress::new(true) }
    }

    /// Inflates all of `deflated` into `plain`, and gives the number of bytes that it made.
    pub(crate) fn inflate(&mut self, deflated: &[u8], plain: &mut [u8]) -> Result<usize, String> {
        self.state.reset(true);
        let status = self
            .state
            .decompress(deflated, plain, FlushDecompress::Finish)
            .map_err(|error| format!("its deflated bytes are damaged ({error})"))?;
        let made = usize::try_from(self.state.total_out()).unwrap_or(usize::MAX);
        match status {
            Status::StreamEnd => Ok(made.min(plain.len())),
            _ if made >= plain.len() => {
                Err(format!("it inflates to more than the {} bytes of a grain", plain.len()))
            }
            _ => Err("its deflated bytes end too early".into()),
        }
    }
}

/// The longest deflated form of a grain of `grain_bytes` that is believed.
pub(crate) fn deflated_bytes_max(grain_bytes: u64) -> u64 {
    grain_bytes + grain_bytes / 2 + GRAIN_OVERHEAD_BYTES_MAX
}

/// Whether a grain that inflated to `made` bytes holds what the disk has there: a whole grain, or
/// at the disk's end at least what is left.
pub(crate) fn check_length(made: usize, grain_bytes: u64, left_bytes: u64) -> Result<(), String> {
    let wanted = grain_bytes.min(left_bytes);
    if (made as u64) < wanted {
        return Err(format!("it inflates to {made} bytes, where the disk has {wanted}"));
    }
    Ok(())
}
