//! Journals that Linux left behind: images are copied while the kernel has them mounted, and what
//! our write-back makes of them is compared, block by block, with what e2fsck makes of them.
//!
//! Needs root, a loop device, the kernel's ext4 and e2fsprogs; a test that lacks one prints what it
//! skipped.

mod running;
mod support;

use std::fs::File;
use std::io::Write as _;
use std::process::Command;

use pagefence_ext4_format::journal::FastCommitTag;
use pagefence_jbd2::{Emptied, JournalError, commit_once, recover, write_back};

use support::{Mounted, Oracle, compare, locate, open, run};

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
