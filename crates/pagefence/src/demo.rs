//! A small image with something in it, to try things on.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::mkfs::{Attributes, Kind, Mkfs, Uuid};

/// Bytes of the image, which is sparse.
const SIZE_BYTES: u64 = 16 << 20;
/// Bytes of the file with a hole.
const SPARSE_BYTES: usize = 2 << 20;

const README: &str = "\
This is an ext4 file system of 16 MiB, made by pagefence without mounting it.

/etc/hostname         a file of one line
/usr/bin              programs, if these were some
/usr/share/sparse.bin 2 MiB of which only the first and last few bytes take space
/hostname             a symbolic link
/a/b/c/d              directories in directories
";

/// Makes an ext4 image of 16 MiB at `path`, with a few files of every kind in it: what
/// `pagefence demo` mounts, and what the examples of this crate read.
///
/// # Errors
/// The file can't be made, or there is a file system in it already.
///
/// ```
/// use pagefence::{Options, Volume};
/// # let path = std::env::temp_dir().join(format!("pagefence-doc-{}", pagefence::Uuid::new_v4()));
/// pagefence::demo_image(&path)?;
/// let volume = Volume::open(&path, Options::new())?;
/// assert_eq!(volume.read_to_string("/etc/hostname")?, "pagefence\n");
/// # std::fs::remove_file(&path).expect("it is there");
/// # Ok::<(), pagefence::Error>(())
/// ```
pub fn demo_image(path: impl AsRef<Path>) -> Result<()> {
    let mut sparse = vec![0; SPARSE_BYTES];
    let (start, end) = (b"the start".as_slice(), b"the end".as_slice());
    sparse[..start.len()].copy_from_slice(start);
    sparse[SPARSE_BYTES - end.len()..].copy_from_slice(end);
    let program = |words: &str| format!("#!/bin/sh\necho {words}\n");
    let executable = || Attributes::new().permissions(0o755);
    let commented = Attributes::new().xattr("user.comment", "start here");
    Mkfs::new(Kind::Ext4)
        .size(SIZE_BYTES)
        .label("demo")
        .file_with("/README.txt", README, commented)
        .file("/etc/hostname", "pagefence\n")
        .file("/etc/os-release", "NAME=pagefence\n")
        .file_with("/usr/bin/hello", program("hello, world"), executable())
        .file_with("/usr/bin/bye", program("good bye"), executable())
        .file_with(
            "/usr/share/sparse.bin",
            sparse,
            Attributes::new().holes(true),
        )
        .symlink("/hostname", "etc/hostname")
        .symlink("/bin", "usr/bin")
        .file("/a/b/c/d/deep.txt", "four directories down\n")
        .directory_with("/tmp", Attributes::new().permissions(0o1777))
        .format(path)
        .map(drop)
}

/// The demo image in a file of its own, for the examples; the file goes with it.
#[doc(hidden)]
#[derive(Debug)]
pub struct DocImage(PathBuf);

impl AsRef<Path> for DocImage {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for DocImage {
    fn drop(&mut self) {
        // It may be gone already; an example is not the place to say so.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Makes the image that the examples read.
///
/// # Panics
/// There is no room for it in the directory for temporary files.
#[doc(hidden)]
#[must_use]
pub fn doc_image() -> DocImage {
    let name = format!("pagefence-doc-{}.img", Uuid::new_v4());
    let path = std::env::temp_dir().join(name);
    demo_image(&path).expect("the directory for temporary files can be written");
    DocImage(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Volume};

    #[test]
    fn the_demo_holds_what_it_says() {
        let image = doc_image();
        let volume = Volume::open(&image, Options::new()).expect("it opens");
        let text = |path: &str| volume.read_to_string(path).expect(path);
        assert_eq!(text("/hostname"), "pagefence\n");
        assert_eq!(text("/a/b/c/d/deep.txt"), "four directories down\n");
        assert_eq!(text("/bin/hello"), "#!/bin/sh\necho hello, world\n");
        let comment = volume
            .xattr("/README.txt", "user.comment")
            .expect("it is read");
        assert_eq!(comment.as_deref(), Some(&b"start here"[..]));
        let sparse = volume.read("/usr/share/sparse.bin").expect("it is read");
        assert_eq!(sparse.len(), SPARSE_BYTES);
        assert!(sparse.starts_with(b"the start\0") && sparse.ends_with(b"\0the end"));
        for line in text("/README.txt")
            .lines()
            .filter(|line| line.starts_with('/'))
        {
            let path = line.split(' ').next().unwrap_or_default();
            assert!(volume.exists(path).expect(path), "{path}");
        }
    }
}
