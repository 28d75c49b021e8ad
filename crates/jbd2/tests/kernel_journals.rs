//! Journals that Linux left behind: images are copied while the kernel has them mounted, and what
//! our write-back makes of them is compared, block by block, with what e2fsck makes of them.
//!
//! Needs root, a loop device, the kernel's ext4 and e2fsprogs; a test that lacks one prints what it
//! skipped.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pagefence_block_io::file_device::{FileDevice, OpenOptions};
use pagefence_block_io::{Device, Overlay};
use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::journal::FastCommitTag;
use pagefence_jbd2::{
    Emptied, JournalError, JournalLocation, JournalRun, Recovery, commit_once, recover, write_back,
};
use std::sync::Arc;

/// Runs a program; its output if it succeeded.
fn run(program: &str, arguments: &[&str]) -> Result<Output, String> {
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
struct Mounted {
    image: PathBuf,
    point: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mounted {
    /// Makes an image and mounts it. `Err` says what is missing here.
    fn new(mke2fs: &[&str], size: &str, mount: &str) -> Result<Self, String> {
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

    fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// Creates a file with something in it and makes it durable.
    fn synced(&self, name: &str) {
        let mut file = File::create(self.path(name)).unwrap();
        file.write_all(name.repeat(50).as_bytes()).unwrap();
        file.sync_all().unwrap();
    }

    /// A copy of the image as it is at this moment.
    fn copy(&self) -> tempfile::NamedTempFile {
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
fn locate(image: &Path) -> JournalLocation {
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

fn open(image: &Path, write: bool) -> Arc<FileDevice> {
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
fn comparable_superblock(block: &mut [u8], at: usize) {
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
fn differences(ours: &dyn Device, theirs: &dyn Device, location: &JournalLocation) -> Vec<u64> {
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
struct Found {
    transactions: u32,
    revoked: u64,
    wrapped: bool,
    fast_commit_tags: usize,
}

/// Who else recovers an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Oracle {
    E2fsck,
    /// The kernel, by a mount. Takes longer. Needed where there are fast commits of an
    /// older transaction: e2fsck 1.47.0 stops at those with EINVAL and throws the log away.
    Kernel,
}

impl Oracle {
    /// Recovers the image; the transaction that it found damaged.
    fn recover(self, image: &Path, what: &str) -> Option<u32> {
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
fn compare(copy: &Path, oracle: Oracle, what: &str) -> Found {
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

fn inspect(recovery: &Recovery, overlay: &Overlay, location: &JournalLocation) -> Found {
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

/// Whether everything is there; else prints what is skipped.
fn mounted(mke2fs: &[&str], size: &str, mount: &str) -> Option<Mounted> {
    match Mounted::new(mke2fs, size, mount) {
        Ok(mounted) => Some(mounted),
        Err(error) => {
            println!("skipped, {mke2fs:?}: {error}");
            None
        }
    }
}

const KINDS: [(&str, &[&str], &str); 9] = [
    ("default 4k", &["-t", "ext4", "-b", "4096"], "defaults"),
    ("default 1k", &["-t", "ext4", "-b", "1024"], "defaults"),
    (
        "no checksums",
        &["-t", "ext4", "-b", "4096", "-O", "^metadata_csum"],
        "defaults",
    ),
    (
        "32-bit with checksums",
        &["-t", "ext4", "-b", "4096", "-O", "^64bit"],
        "defaults",
    ),
    (
        "32-bit without checksums, 1k",
        &["-t", "ext4", "-b", "1024", "-O", "^64bit,^metadata_csum"],
        "defaults",
    ),
    (
        "checksums of version 1",
        &["-t", "ext4", "-b", "4096", "-O", "^metadata_csum"],
        "journal_checksum",
    ),
    (
        "checksums of version 1, asynchronous commits",
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"],
        "journal_async_commit,data=writeback",
    ),
    ("ext3", &["-t", "ext3", "-b", "1024"], "defaults"),
    (
        "journalled data",
        &["-t", "ext4", "-b", "4096"],
        "data=journal",
    ),
];

/// Creates, deletes and creates again, so that blocks of directories are revoked and used again.
fn churn(mounted: &Mounted, rounds: usize) {
    for round in 0..rounds {
        let dir = mounted.path(&format!("dir{}", round % 3));
        std::fs::create_dir(&dir).unwrap();
        for file in 0..60 {
            std::fs::write(dir.join(format!("{file:0>100}")), "x").unwrap();
        }
        mounted.synced(&format!("file{round}"));
        // Contents that begin with the journal's magic number.
        let mut magic = File::create(mounted.path("magic")).unwrap();
        magic
            .write_all(&[0xc0, 0x3b, 0x39, 0x98].repeat(3000))
            .unwrap();
        magic.sync_all().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        mounted.synced("last");
    }
}

#[test]
fn dirty_journals_of_every_kind_recover_as_e2fsck_recovers_them() {
    let mut revoked = 0;
    let mut tried = 0;
    for (what, mke2fs, mount) in KINDS {
        let Some(mounted) = mounted(mke2fs, "64M", mount) else {
            continue;
        };
        churn(&mounted, 4);
        let copy = mounted.copy();
        drop(mounted);
        let found = compare(copy.path(), Oracle::E2fsck, what);
        assert!(found.transactions > 2, "{what}");
        revoked += found.revoked;
        tried += 1;
    }
    assert!(tried == 0 || revoked > 0);
}

#[test]
fn a_log_that_went_round_recovers_as_e2fsck_recovers_it() {
    let mut wrapped = 0;
    let mut tried = 0;
    for block_size in ["1024", "4096"] {
        let journal = if block_size == "1024" {
            "size=1"
        } else {
            "size=4"
        };
        let mke2fs = ["-t", "ext4", "-b", block_size, "-J", journal];
        let Some(mounted) = mounted(&mke2fs, "64M", "defaults") else {
            continue;
        };
        // 1024 blocks of log; each round takes some dozens. Copied several times, for it is
        // chance where the log's start is.
        for round in 0..12 {
            churn(&mounted, 5);
            for file in 0..20 {
                mounted.synced(&format!("round{round}-{file}"));
            }
            let copy = mounted.copy();
            let found = compare(
                copy.path(),
                Oracle::E2fsck,
                &format!("{block_size}, round {round}"),
            );
            tried += 1;
            if found.wrapped {
                wrapped += 1;
                break;
            }
        }
    }
    assert!(
        tried == 0 || wrapped == 2,
        "not both of {tried} logs went round"
    );
}

#[test]
fn fast_commits_are_found_with_what_they_say() {
    for block_size in ["1024", "4096"] {
        let mke2fs = [
            "-t",
            "ext4",
            "-b",
            block_size,
            "-O",
            "fast_commit",
            "-J",
            "fast_commit_size=512",
        ];
        let size = if block_size == "1024" { "64M" } else { "128M" };
        let Some(mounted) = mounted(&mke2fs, size, "defaults") else {
            continue;
        };
        // A full commit first; then only what a fast commit can say.
        mounted.synced("before");
        run("sync", &["-f", mounted.point.to_str().unwrap()]).unwrap();
        for file in 0..30 {
            mounted.synced(&format!("fast{file}"));
        }
        let copy = mounted.copy();
        drop(mounted);
        let location = locate(copy.path());
        let device = open(copy.path(), false);
        let recovery = recover(&*device, &location).unwrap();
        assert_eq!(recovery.damaged(), None);
        let mut names = Vec::new();
        let mut kinds = [0; 4];
        recovery
            .fast_commits()
            .visit(&*device, &location, |tag| {
                match tag {
                    FastCommitTag::Head { sequence, .. } | FastCommitTag::Tail { sequence, .. } => {
                        assert_eq!(sequence, recovery.next_sequence());
                        kinds[0] += 1;
                    }
                    FastCommitTag::Inode { raw, .. } => {
                        assert!(raw.len() == 256 || raw.len() == 160, "{}", raw.len());
                        kinds[1] += 1;
                    }
                    FastCommitTag::AddRange { .. } => kinds[2] += 1,
                    FastCommitTag::Creat(entry) => {
                        names.push(String::from_utf8_lossy(entry.name).into_owned());
                    }
                    _ => kinds[3] += 1,
                }
                Ok::<(), JournalError>(())
            })
            .unwrap();
        println!("{block_size}: {} names, tags {kinds:?}", names.len());
        assert!(
            !recovery.fast_commits().is_empty(),
            "the kernel made fast commits"
        );
        assert!(names.contains(&"fast29".to_owned()), "{names:?}");
        assert!(kinds[0] > 0 && kinds[1] > 0 && kinds[2] > 0);

        // A transaction behind the log makes them void at one stroke: so what they say can be
        // made durable as a whole.
        let device = open(copy.path(), true);
        let found = commit_once(&*device, &location, &recovery, &[], &[]).unwrap();
        assert!(found.fast_commits().is_empty());
        assert_eq!(found.transactions(), recovery.transactions() + 1);
        write_back(&*device, &location, &found, Emptied::Clean).unwrap();
    }
}

#[test]
fn full_commits_after_fast_ones_recover_as_the_kernel_recovers_them() {
    let mke2fs = [
        "-t",
        "ext4",
        "-b",
        "1024",
        "-O",
        "fast_commit",
        "-J",
        "size=2",
    ];
    let Some(mounted) = mounted(&mke2fs, "64M", "defaults") else {
        return;
    };
    let location = locate(&mounted.image);
    let mut compared = 0;
    for round in 0..200 {
        churn(&mounted, 2);
        // What a fast commit can't say makes a full one.
        std::fs::create_dir_all(mounted.path("a/b")).unwrap();
        std::fs::rename(mounted.path("a/b"), mounted.path("b")).unwrap();
        mounted.synced("last");
        std::fs::remove_dir(mounted.path("b")).unwrap();
        // Most rounds are like the one before: compared are the first, and one that went round.
        let recovery = recover(&*open(&mounted.image, false), &location).unwrap();
        let wrapped = recovery.head() <= recovery.superblock().start;
        if !recovery.fast_commits().is_empty() || !(compared == 0 || wrapped) {
            continue;
        }
        let what = format!("fast commits, round {round}");
        let found = compare(mounted.copy().path(), Oracle::Kernel, &what);
        assert_eq!(found.fast_commit_tags, 0);
        compared += 1;
        if found.wrapped {
            return;
        }
    }
    panic!("no log went round");
}

#[test]
fn keeping_fast_commits_keeps_them() {
    let mke2fs = ["-t", "ext4", "-b", "1024", "-O", "fast_commit"];
    let Some(mounted) = mounted(&mke2fs, "64M", "defaults") else {
        return;
    };
    mounted.synced("before");
    run("sync", &["-f", mounted.point.to_str().unwrap()]).unwrap();
    for file in 0..10 {
        mounted.synced(&format!("fast{file}"));
    }
    let copy = mounted.copy();
    drop(mounted);
    let location = locate(copy.path());
    let device = open(copy.path(), true);
    let recovery = recover(&*device, &location).unwrap();
    assert!(!recovery.fast_commits().is_empty());
    write_back(&*device, &location, &recovery, Emptied::KeepFastCommits).unwrap();
    let kept = recover(&*device, &location).unwrap();
    assert_eq!(kept.transactions(), 0);
    assert_eq!(kept.fast_commits(), recovery.fast_commits());
    // Linux agrees: its own replay finds the file that only a fast commit names.
    let e2fsck = Command::new("e2fsck")
        .args(["-E", "journal_only", "-y"])
        .arg(copy.path())
        .output()
        .unwrap();
    assert!(e2fsck.status.code().is_some_and(|code| code <= 1));
    let listing = run("debugfs", &["-R", "ls -p /", copy.path().to_str().unwrap()]).unwrap();
    assert!(String::from_utf8_lossy(&listing.stdout).contains("fast9"));
}

/// Journals that debugfs writes, which makes what Linux no longer does: checksums of version 2.
#[test]
fn journals_of_debugfs_recover_as_e2fsck_recovers_them() {
    for version in ["0", "2", "3"] {
        for features in [
            "64bit,metadata_csum",
            "^64bit,metadata_csum",
            "64bit,^metadata_csum",
        ] {
            let image = tempfile::NamedTempFile::new().unwrap();
            let path = image.path().to_str().unwrap();
            let mke2fs = [
                "-q", "-F", "-t", "ext4", "-b", "1024", "-O", features, path, "32M",
            ];
            if let Err(error) = run("mke2fs", &mke2fs) {
                println!("skipped: {error}");
                return;
            }
            let data = tempfile::NamedTempFile::new().unwrap();
            let mut contents: Vec<u8> = (0..200 * 1024_u32).map(|at| (at / 700) as u8).collect();
            // The block that begins with the journal's magic number is escaped.
            contents[7 * 1024..][..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
            std::fs::write(data.path(), contents).unwrap();
            let mut commands = tempfile::NamedTempFile::new().unwrap();
            let file = data.path().display();
            match version {
                "0" => writeln!(commands, "jo -c").unwrap(),
                _ => writeln!(commands, "jo -c -v {version}").unwrap(),
            }
            writeln!(commands, "jw -b 30000-30149 {file}").unwrap();
            writeln!(commands, "jw -r 30010-30020,30100").unwrap();
            writeln!(commands, "jw -b 30015,30030,30300 {file}").unwrap();
            writeln!(commands, "jc").unwrap();
            let script = commands.path().to_str().unwrap();
            run("debugfs", &["-w", "-f", script, path]).unwrap();
            let what = format!("debugfs, version {version}, {features}");
            let found = compare(image.path(), Oracle::E2fsck, &what);
            if found.transactions == 1 {
                // Without metadata_csum debugfs makes checksums of version 1, and 1.47.0 computes
                // them wrongly where a transaction has revokes; e2fsck says so too.
                assert!(features.contains("^metadata_csum"), "{what}");
                continue;
            }
            assert_eq!(found.transactions, 3, "{what}");
            assert_eq!(found.revoked, 12, "{what}");
        }
    }
}
