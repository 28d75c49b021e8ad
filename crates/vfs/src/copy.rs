//! Copying from file to file, a piece at a time, for file systems that do no better.

use crate::error::{Error, Result};

/// Bytes copied at a time.
const PIECE_BYTES: usize = 1 << 20;

/// What is copied ([`crate::FileSystem::copy_range`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Where in the one file it begins, in bytes, and where in the other one.
    pub offsets: [u64; 2],
    /// Bytes, at most: it ends where the first file does.
    pub length: u64,
    /// How large the first file is, in bytes.
    pub size: u64,
    /// Both are the same file.
    pub is_same: bool,
}

/// Copies by `read` and `write`, which are given offsets in their files and say how many bytes they
/// did: one after the other, so that no two files' locks are held at once. Says how many bytes were
/// copied, fewer if one of them fails, or does less, after some were.
///
/// # Errors
/// `InvalidArgument` for ranges of one file that overlap; `FileTooLarge`; those of `read` and `write`
/// if nothing was copied.
pub fn copy_in_pieces(
    copy: &Copy,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<usize>,
    mut write: impl FnMut(u64, &[u8]) -> Result<usize>,
) -> Result<u64> {
    let [from, to] = copy.offsets;
    let length = copy.length.min(copy.size.saturating_sub(from));
    if copy.is_same && from.abs_diff(to) < length {
        return Err(Error::InvalidArgument);
    }
    let piece = |left: u64| usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
    let mut buffer = vec![0; piece(length)];
    let mut done = 0;
    while done < length {
        let want = piece(length - done);
        let step = to
            .checked_add(done)
            .ok_or(Error::FileTooLarge)
            .and_then(|to| {
                let read = read(from + done, &mut buffer[..want])?;
                Ok((read, write(to, &buffer[..read])?))
            });
        match step {
            Ok((_, 0)) => break,
            Ok((read, written)) => {
                done += written as u64;
                if written < read {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::{Copy, PIECE_BYTES, copy_in_pieces};
    use crate::error::{Error, Result};

    const SIZE: u64 = 3 * PIECE_BYTES as u64;

    fn copy(offsets: [u64; 2], length: u64, is_same: bool) -> Copy {
        Copy {
            offsets,
            length,
            size: SIZE,
            is_same,
        }
    }

    /// Copies within and past a file of which each byte is known; each write takes `most` bytes, and
    /// those from `full` on fail.
    fn run(copy: &Copy, most: usize, full: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let done = copy_in_pieces(
            copy,
            |at, buffer| {
                let left = usize::try_from(SIZE - at).expect("small").min(buffer.len());
                for (byte, at) in buffer[..left].iter_mut().zip(at..) {
                    *byte = (at % 251) as u8;
                }
                Ok(left)
            },
            |at, bytes| {
                assert_eq!(
                    at - copy.offsets[1],
                    out.len() as u64,
                    "one after the other"
                );
                if at >= full {
                    return Err(Error::NoSpace);
                }
                let taken = bytes.len().min(most);
                out.extend_from_slice(&bytes[..taken]);
                Ok(taken)
            },
        )?;
        assert_eq!(done, out.len() as u64);
        let expected = (copy.offsets[0]..).map(|at| (at % 251) as u8);
        assert!(expected.zip(&out).all(|(due, is)| due == *is));
        Ok(out)
    }

    #[test]
    fn all_is_copied_up_to_the_end() {
        let all = run(&copy([5, 0], u64::MAX, false), usize::MAX, u64::MAX);
        assert_eq!(all.expect("copied").len() as u64, SIZE - 5);
        let apart = run(&copy([0, SIZE], SIZE, true), usize::MAX, u64::MAX);
        assert_eq!(apart.expect("copied").len() as u64, SIZE);
        for nothing in [copy([SIZE, 0], 10, false), copy([3, 4], 0, true)] {
            assert_eq!(run(&nothing, usize::MAX, 0).expect("copied"), []);
        }
    }

    #[test]
    fn what_was_copied_before_an_error_counts() {
        let some = run(&copy([0, 0], SIZE, false), usize::MAX, 1);
        assert_eq!(some.expect("some").len(), PIECE_BYTES);
        let short = run(&copy([0, 0], SIZE, false), 100, u64::MAX);
        assert_eq!(short.expect("some").len(), 100);
        let none = run(&copy([0, 0], SIZE, false), usize::MAX, 0);
        assert!(matches!(none, Err(Error::NoSpace)));
        let overlap = run(&copy([0, 9], 10, true), usize::MAX, u64::MAX);
        assert!(matches!(overlap, Err(Error::InvalidArgument)));
        let far = run(&copy([0, u64::MAX - 10], SIZE, false), usize::MAX, u64::MAX);
        assert_eq!(far.expect("some").len(), PIECE_BYTES);
    }
}
