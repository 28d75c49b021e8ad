//! Images that the kernel has mounted, who else recovers them, and how two results are compared.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use pagefence_block_io::file_device::{FileDevice, OpenOptions};
use pagefence_block_io::{Device, Overlay};
use pagefence_ext4_format::BlockNo;
use pagefence_jbd2::{
    Emptied, JournalError, JournalLocation, JournalRun, Recovery, recover, write_back,
};

/// Runs a program; its output if it succeeded.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<Output, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(format!(
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

/// An image that the kernel has mounted; unmounted when dropped.
pub(crate) struct Mounted {
    pub(crate) image: PathBuf,
    pub(crate) point: PathBuf,
    pub(crate) _dir: tempfile::TempDir,
}

impl Mounted {
    /// Makes an image and mounts it. `Err` says what is missing here.
    pub(crate) fn new(mke2fs: &[&str], size: &str, mount: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (image, point) = (dir.path().join("image"), dir.path().join("mnt"));
        std::fs::create_dir(&point).map_err(|error| error.to_string())?;
        let path = image.to_str().unwrap();
        run("mke2fs", &[&["-q", "-F"], mke2fs, &[path, size]].concat())?;
        let options = format!("loop,{mount}");
        run(
            "mount",
            &["-t", "ext4", "-o", &options, path, point.to_str().unwrap()],
        )?;
        Ok(Self {
            image,
            point,
            _dir: dir,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// Creates a file with something in it and makes it durable.
    pub(crate) fn synced(&self, name: &str) {
        let mut file = File::create(self.path(name)).unwrap();
        file.write_all(name.repeat(50).as_bytes()).unwrap();
        file.sync_all().unwrap();
    }

    /// A copy of the image as it is at this moment.
    pub(crate) fn copy(&self) -> tempfile::NamedTempFile {
        let copy = tempfile::NamedTempFile::new().unwrap();
        run(
            "cp",
            &[
                "--sparse=always",
                self.image.to_str().unwrap(),
                copy.path().to_str().unwrap(),
            ],
        )
        .unwrap();
        copy
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = run("umount", &[self.point.to_str().unwrap()]);
        if let Err(error) = unmounted {
            eprintln!("{error}");
        }
    }
}

/// The image's block size and the place of its journal, as debugfs tells them.
pub(crate) fn locate(image: &Path) -> JournalLocation {
    let path = image.to_str().unwrap();
    let stats = run("dumpe2fs", &["-h", path]).unwrap();
    let stats = String::from_utf8_lossy(&stats.stdout).into_owned();
    let field = |name: &str| {
        stats
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{name} in {stats}"))
            .trim()
            .to_owned()
    };
    let block_size: u32 = field("Block size:").parse().unwrap();
    // Of a journal that needs recovery dumpe2fs says less; its inode says it all.
    let inode = run("debugfs", &["-R", "stat <8>", path]).unwrap();
    let inode = String::from_utf8_lossy(&inode.stdout).into_owned();
    let size: u64 = inode
        .split("Size:")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap()
        .parse()
        .unwrap();
    let length = u32::try_from(size / u64::from(block_size)).unwrap();
    let mut commands = tempfile::NamedTempFile::new().unwrap();
    for block in 0..length {
        writeln!(commands, "bmap <8> {block}").unwrap();
    }
    let answer = run("debugfs", &["-f", commands.path().to_str().unwrap(), path]).unwrap();
    let blocks: Vec<u64> = String::from_utf8_lossy(&answer.stdout)
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    assert_eq!(blocks.len(), length as usize, "debugfs maps every block");
    let device_blocks = std::fs::metadata(image).unwrap().len() / u64::from(block_size);
    JournalLocation::new(
        block_size,
        device_blocks,
        (0..).zip(blocks).map(|(logical, block)| JournalRun {
            logical,
            physical: BlockNo(block),
            count: 1,
        }),
    )
    .unwrap()
}

pub(crate) fn open(image: &Path, write: bool) -> Arc<FileDevice> {
    let options = OpenOptions {
        write,
        ..OpenOptions::default()
    };
    Arc::new(FileDevice::open(image, options).unwrap())
}

/// The superblock with the fields blanked that differ for reasons of their own:
/// - s_wtime (0x30, 0x274) and s_kbytes_written (0x178): e2fsck writes the superblock, the journal
///   is not the one to do that;
/// - s_state (0x3a), needs_recovery in s_feature_incompat (0x60): the file system's to change,
///   above the journal;
/// - s_mtime (0x2c), s_mnt_count (0x34), s_lastcheck (0x40), s_last_mounted (0x88): of the mount or
///   the check;
/// - s_free_blocks_count and s_free_inodes_count (0xc, 0x10, 0x158): e2fsck sums the group
///   descriptors up anew after a replay;
/// - s_checksum (0x3fc): follows from them.
pub(crate) fn comparable_superblock(block: &mut [u8], at: usize) {
    for (offset, length) in [
        (0xc, 8),
        (0x2c, 10),
        (0x3a, 2),
        (0x40, 4),
        (0x60, 4),
        (0x88, 64),
        (0x158, 4),
        (0x178, 8),
        (0x274, 4),
        (0x3fc, 4),
    ] {
        block[at + offset..at + offset + length].fill(0);
    }
}

/// Blocks in which two images differ, outside of the journal, whose contents e2fsck and we leave
/// in different states (numbers of transactions, the head).
pub(crate) fn differences(
    ours: &dyn Device,
    theirs: &dyn Device,
    location: &JournalLocation,
) -> Vec<u64> {
    let size = location.block_size() as usize;
    let mut different = Vec::new();
    for block in 0..ours.size() / size as u64 {
        if !location.may_change(BlockNo(block)) {
            continue;
        }
        let read = |device: &dyn Device| {
            let mut bytes = vec![0; size];
            device.read(block * size as u64, &mut bytes).unwrap();
            if block == 1024 / size as u64 {
                comparable_superblock(&mut bytes, 1024 % size);
            }
            bytes
        };
        if read(ours) != read(theirs) {
            different.push(block);
        }
    }
    different
}

/// What a test knows of its journal.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) transactions: u32,
    pub(crate) revoked: u64,
    pub(crate) wrapped: bool,
    pub(crate) fast_commit_tags: usize,
}

/// Who else recovers an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Oracle {
    E2fsck,
    /// The kernel, by a mount. Takes longer. Needed where there are fast commits of an
    /// older transaction: e2fsck 1.47.0 stops at those with EINVAL and throws the log away.
    Kernel,
}

impl Oracle {
    /// Recovers the image; the transaction that it found damaged.
    pub(crate) fn recover(self, image: &Path, what: &str) -> Option<u32> {
        if self == Self::Kernel {
            let point = tempfile::tempdir().unwrap();
            let point = point.path().to_str().unwrap();
            let path = image.to_str().unwrap();
            let options = "loop,noinit_itable";
            run("mount", &["-t", "ext4", "-o", options, path, point]).unwrap();
            run("umount", &[point]).unwrap();
            return None;
        }
        // (With -f it would go on and check everything, and mend what an operation that was not
        // finished left.)
        let e2fsck = Command::new("e2fsck")
            .args(["-E", "journal_only", "-y"])
            .arg(image)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&e2fsck.stderr);
        // 0: nothing found; 1: something was done.
        assert!(
            e2fsck.status.code().is_some_and(|code| code <= 1) && !errors.contains("recovering"),
            "{what}: {errors}"
        );
        String::from_utf8_lossy(&e2fsck.stdout)
            .split_once("Journal transaction ")
            .and_then(|(_, rest)| rest.split_once(" was corrupt"))
            .map(|(number, _)| number.parse().unwrap())
    }
}

/// Recovers the dirty image `copy` in three ways and compares them: ours in memory, ours in place,
/// and the oracle's.
pub(crate) fn compare(copy: &Path, oracle: Oracle, what: &str) -> Found {
    let location = locate(copy);
    let theirs = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(copy, theirs.path()).unwrap();
    let damaged = oracle.recover(theirs.path(), what);

    let before = std::fs::read(copy).unwrap();
    let read_only = open(copy, false);
    let recovery = recover(&*read_only, &location).unwrap();
    assert_eq!(recovery.damaged().map(|at| at.0), damaged, "{what}");
    assert_eq!(recovery.errno(), 0, "{what}");
    let overlay: Overlay = recovery.overlay(read_only);
    let found = inspect(&recovery, &overlay, &location);
    let theirs = open(theirs.path(), false);
    if found.fast_commit_tags == 0 {
        assert_eq!(
            differences(&overlay, &*theirs, &location),
            [],
            "{what}: in memory"
        );
    }
    assert!(
        std::fs::read(copy).unwrap() == before,
        "{what}: a byte was changed"
    );

    let ours = open(copy, true);
    write_back(&*ours, &location, &recovery, Emptied::Clean).unwrap();
    if found.fast_commit_tags == 0 {
        assert_eq!(
            differences(&*ours, &*theirs, &location),
            [],
            "{what}: in place"
        );
    } else {
        assert_eq!(
            differences(&*ours, &overlay, &location),
            [],
            "{what}: overlay"
        );
    }
    let again = recover(&*ours, &location).unwrap();
    assert!(again.is_clean(), "{what}");
    // e2fsck takes our journal for a sound and clean one.
    let logdump = run("debugfs", &["-R", "logdump -S", copy.to_str().unwrap()]).unwrap();
    let logdump = String::from_utf8_lossy(&logdump.stdout).into_owned();
    assert!(
        logdump.contains("Journal start:            0"),
        "{what}: {logdump}"
    );
    println!(
        "{what}: {} transactions, {} blocks, {} revoked, wrapped: {}",
        recovery.transactions(),
        recovery.replacements().len(),
        recovery.revoked_blocks(),
        found.wrapped
    );
    found
}

pub(crate) fn inspect(recovery: &Recovery, overlay: &Overlay, location: &JournalLocation) -> Found {
    let mut fast_commit_tags = 0;
    recovery
        .fast_commits()
        .visit(overlay, location, |_| {
            fast_commit_tags += 1;
            Ok::<(), JournalError>(())
        })
        .unwrap();
    Found {
        transactions: recovery.transactions(),
        revoked: recovery.revoked_blocks(),
        wrapped: recovery.transactions() > 0 && recovery.head() <= recovery.superblock().start,
        fast_commit_tags,
    }
}
