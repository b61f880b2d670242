//! Stage 3 of 7: a block's bytes in, whether it is all zeros out.
//!
//! In: raw bytes. Out: yes or no, or which 4 KiB pieces are zero. Invariant: only bytes that are
//! all zero are called zero. Must not: copy, allocate, or look at anything but the bytes.
//! (Whether a block is unchanged is decided by its id, in the pipeline.)

/// Bytes that are folded together before looking at the result: four cache lines, so that the
/// compiler folds with vector registers.
const FOLD_BYTES: usize = 256;
/// Bytes after which a scan stops early if it found a set bit.
const EARLY_BYTES: usize = 16 << 10;
/// Pieces that [`zero_runs_4k`] tells apart.
pub const PIECE_BYTES: usize = 4096;

/// Whether all bytes are zero; true of no bytes.
///
/// Zero blocks are read once at the speed of memory; others end within 16 KiB of their first byte
/// that is not zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Most blocks that are not zero are not at their very beginning.
    match bytes.first_chunk::<FOLD_BYTES>() {
        Some(first) if fold(first) != 0 => false,
        _ => bytes.chunks(EARLY_BYTES).all(|part| {
            let whole = part.chunks_exact(FOLD_BYTES);
            let rest = whole.remainder().iter().fold(0, |bits, &byte| bits | byte);
            whole.fold(0, |bits, chunk| bits | fold(chunk)) == 0 && rest == 0
        }),
    }
}

/// All bits that are set anywhere in the bytes; a length that is no multiple of 8 loses its tail.
#[inline]
fn fold(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(0, |bits, word| bits | u64::from_ne_bytes(*word))
}

/// Which 4 KiB pieces of a block are zero, one bit a piece, lowest first; a short tail counts as a
/// piece. Bits beyond the last piece are clear. Blocks of up to 4 MiB: 1024 pieces.
pub fn zero_runs_4k(bytes: &[u8]) -> [u64; 16] {
    let mut map = [0u64; 16];
    for (number, piece) in bytes.chunks(PIECE_BYTES).take(map.len() * 64).enumerate() {
        if is_zero(piece) {
            map[number / 64] |= 1 << (number % 64);
        }
    }
    map
}

const _: () = assert!(16 * 64 * PIECE_BYTES >= gantry_common::limits::BLOCK_BYTES_MAX as usize);

#[cfg(test)]
mod tests {
    use super::{EARLY_BYTES, FOLD_BYTES, PIECE_BYTES, is_zero, zero_runs_4k};

    #[test]
    fn zeros_of_any_length_and_alignment_are_zero() {
        let zeros = vec![0u8; 3 * EARLY_BYTES + FOLD_BYTES + 77];
        for len in (0..1100).chain([EARLY_BYTES - 1, EARLY_BYTES, EARLY_BYTES + 1, zeros.len() - 9])
        {
            for start in 0..9 {
                assert!(is_zero(&zeros[start..start + len]), "{start} + {len}");
            }
        }
    }

    #[test]
    fn one_set_bit_anywhere_is_seen() {
        let len = 2 * EARLY_BYTES + 3 * FOLD_BYTES + 13;
        let mut bytes = vec![0u8; len];
        // Every place of the first and last kilobytes, and around each early exit.
        let near = |at: usize| at.saturating_sub(300)..(at + 300).min(len);
        let places = (0..1200).chain(len - 1200..len).chain(near(EARLY_BYTES));
        for place in places.chain(near(2 * EARLY_BYTES)) {
            for bit in [0, 7] {
                bytes[place] = 1 << bit;
                assert!(!is_zero(&bytes), "byte {place}, bit {bit}");
                assert!(is_zero(&bytes[..place]) && is_zero(&bytes[place + 1..]));
                bytes[place] = 0;
            }
        }
        // Short inputs, where no whole fold exists.
        for len in 1..FOLD_BYTES + 20 {
            for place in 0..len {
                bytes[place] = 0x80;
                assert!(!is_zero(&bytes[..len]), "byte {place} of {len}");
                bytes[place] = 0;
            }
        }
    }

    #[test]
    fn pieces_are_told_apart() {
        let mut bytes = vec![0u8; 70 * PIECE_BYTES + 10];
        assert_eq!(zero_runs_4k(&bytes)[..3], [u64::MAX, 0x7f, 0]);
        bytes[3 * PIECE_BYTES] = 1;
        bytes[70 * PIECE_BYTES + 9] = 1;
        assert_eq!(zero_runs_4k(&bytes)[..3], [!8, 0x3f, 0]);
        assert_eq!(zero_runs_4k(&[]), [0; 16]);
        assert_eq!(zero_runs_4k(&vec![0; 4 << 20]), [u64::MAX; 16]);
        assert_eq!(zero_runs_4k(&vec![0; 5 << 20]), [u64::MAX; 16], "beyond 4 MiB: nothing");
    }
}
