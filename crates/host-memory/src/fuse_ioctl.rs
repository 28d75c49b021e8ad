//! Ioctls on files of FUSE, which hand the server bytes and nothing else.

#![expect(
    unsafe_code,
    reason = "an ioctl reads and writes memory that it is given an address of"
)]

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

/// What fstatfs says of a file system in user space (FUSE_SUPER_MAGIC).
const FUSE_MAGIC: u64 = 0x6573_5546;

/// Bits of an ioctl's number that tell the size of its argument.
const SIZE_SHIFT: u32 = 16;
const SIZE_MASK: u32 = (1 << 14) - 1;

/// An ioctl whose argument is `bytes`, as many as its number says.
struct Call<'a> {
    number: Opcode,
    bytes: &'a mut [u8],
}

// SAFETY: the kernel is given a pointer to `bytes`, which is as long as the number tells
// (`fuse_ioctl` has checked), and FUSE copies that many bytes from there, back to there, or both.
// They are borrowed mutably, so `IS_MUTATING` may be true; the output is nothing.
unsafe impl Ioctl for Call<'_> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.number
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.bytes.as_mut_ptr().cast()
    }

    // SAFETY (of callers): nothing is read.
    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// Calls ioctl `number` on a file or directory of a FUSE mount; the server reads `bytes`, writes
/// to them, or both, as the number says.
///
/// # Errors
/// What the server answers; ENOTTY if `file` is not of a FUSE mount; EINVAL if the number does not
/// tell that the argument has the length of `bytes`.
pub fn fuse_ioctl(file: impl AsFd, number: u32, bytes: &mut [u8]) -> io::Result<()> {
    let file = file.as_fd();
    let size = (number >> SIZE_SHIFT) & SIZE_MASK;
    if bytes.is_empty() || usize::try_from(size).ok() != Some(bytes.len()) {
        return Err(Errno::INVAL.into());
    }
    let kind = rustix::fs::fstatfs(file)?.f_type;
    let stat = rustix::fs::fstat(file)?;
    let is_plain = matches!(
        rustix::fs::FileType::from_raw_mode(stat.st_mode),
        rustix::fs::FileType::RegularFile | rustix::fs::FileType::Directory
    );
    // A device node on the mount is not the server's.
    if u64::try_from(kind).ok() != Some(FUSE_MAGIC) || !is_plain {
        return Err(Errno::NOTTY.into());
    }
    let call = Call {
        number: Opcode::from(number),
        bytes,
    };
    // SAFETY: for regular files and directories of FUSE the kernel takes an ioctl that it does not
    // answer itself for a request with an argument of the length in its number
    // (`fuse_do_ioctl` without FUSE_IOCTL_UNRESTRICTED), which is that of `bytes`. Those that it
    // answers itself have arguments of that length as well, but for the few whose numbers predate
    // that rule: they have a length of 0, which is refused above.
    Ok(unsafe { rustix::ioctl::ioctl(file, call) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_and_wrong_lengths_are_refused() {
        let file = std::fs::File::open("/proc/self/exe").expect("this test");
        let number = 1 << 30 | 8 << 16 | 0xf7 << 8 | 2;
        let of = |bytes: &mut [u8]| fuse_ioctl(&file, number, bytes).map_err(|e| e.raw_os_error());
        assert_eq!(of(&mut [0; 8]), Err(Some(25)));
        assert_eq!(of(&mut [0; 7]), Err(Some(22)));
        assert_eq!(of(&mut []), Err(Some(22)));
    }
}
