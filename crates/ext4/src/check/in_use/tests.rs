//! Checks while others write: of what is sound nothing is ever found, of damage all; and without
//! what a snapshot keeps, a check would find what is not there.

use std::ops::ControlFlow;
use std::time::Duration;

use pagefence_block_io::{Device, MemoryDevice};
use pagefence_ext4_format::InodeNo;
use pagefence_fs_model::races::{Churn, leave_room};
use pagefence_jbd2::SnapshotLost;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicU64, Ordering};
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::{
    Credentials, FallocateMode, FileSystem as _, MapFormat, New, NewKind, WriteMode,
};

use super::*;
use crate::check::{Progress, Subject, check_device};
use crate::filesystem::File;
use crate::mkfs::{Contents, Kind, Parameters, Tree, format};

/// Bytes that are left to writers, so that what is freed is soon used again.
const ROOM: u64 = 3 << 20;

/// Kinds, with and without a journal, checksums, an orphan file.
const KINDS: [(Kind, &str); 5] = [
    (Kind::Ext2, ""),
    (Kind::Ext3, ""),
    (Kind::Ext4, "orphan_file"),
    (Kind::Ext4, "^metadata_csum,^orphan_file"),
    (Kind::Ext4, "^has_journal,^orphan_file"),
];

fn open(kind: Kind, features: &str) -> (Arc<MemoryDevice>, FileSystem) {
    let device = MemoryDevice::new(16 << 20);
    let mut parameters = Parameters::new(kind);
    parameters.features.edit(features).expect("known features");
    parameters.block_size = Some(1024);
    parameters.contents = Contents::Zeros;
    format(&device, &parameters, &Tree::new()).expect("a new file system");
    let device = Arc::new(device);
    let options = MountOptions {
        write: true,
        cache: Some(16 << 20),
        commit_interval: Some(Duration::from_millis(50)),
        discard: true,
        ..MountOptions::default()
    };
    let fs = FileSystem::open(Arc::clone(&device) as _, &options).expect("it is sound");
    assert_eq!(fs.read_only_because(), None);
    leave_room(&fs, ROOM).expect("there is room");
    (device, fs)
}

fn root() -> Credentials {
    Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    }
}

fn churn(fs: &FileSystem, seed: u64) -> Churn<'_, FileSystem> {
    Churn::new(fs, seed).expect("a directory")
}

fn steps(churn: &mut Churn<'_, FileSystem>, count: u32) {
    for _ in 0..count {
        churn.step().unwrap_or_else(|error| panic!("{error}"));
    }
}

/// What a check finds, a line each; `progress` is told how far it is.
fn findings(
    fs: &FileSystem,
    mut progress: impl FnMut(Progress),
) -> Result<(Vec<String>, Summary), CheckError> {
    let mut lines = Vec::new();
    let summary = fs.check(&mut |event| {
        match event {
            Event::Finding(finding) => lines.push(finding.to_string()),
            Event::Progress(now) => progress(now),
        }
        ControlFlow::Continue(())
    })?;
    assert!(summary.is_complete && !summary.was_replayed, "{summary:?}");
    assert_eq!(summary.findings, lines.len() as u64);
    Ok((lines, summary))
}

/// Nothing is found on disk either when all is closed.
fn close(device: &Arc<MemoryDevice>, fs: FileSystem) {
    fs.shut_down().expect("nothing fails");
    drop(fs);
    let mut lines = Vec::new();
    let checked = check_device(Arc::clone(device) as _, &mut |event| {
        if let Event::Finding(finding) = event {
            lines.push(finding.to_string());
        }
        ControlFlow::Continue(())
    });
    checked.expect("it is there");
    assert_eq!(lines, [""; 0]);
}

#[test]
fn of_what_is_sound_nothing_is_found_while_it_changes() {
    for (at, (kind, features)) in KINDS.into_iter().enumerate() {
        let (device, fs) = open(kind, features);
        let mut writer = churn(&fs, at as u64);
        steps(&mut writer, 40);
        for round in 0..3 {
            // Between any two parts, and any two directories, of the check.
            let (lines, summary) = findings(&fs, |_| {
                steps(&mut writer, 1);
                fs.sync().expect("nothing fails");
            })
            .unwrap_or_else(|error| panic!("{kind:?} {features}: {error}"));
            assert_eq!(lines, [""; 0], "{kind:?} {features}, check {round}");
            assert!(summary.directories >= 3, "{summary:?}");
        }
        println!("{kind:?} {features}: {} changes", writer.steps);
        close(&device, fs);
    }
}

#[test]
fn of_what_is_sound_nothing_is_found_beside_writers() {
    let given = std::env::var("PAGEFENCE_CHECKS").ok();
    let checks_min: u32 = given.map_or(4, |count| count.parse().expect("a number"));
    for (at, (kind, features)) in KINDS.into_iter().enumerate() {
        let (device, fs) = open(kind, features);
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let mut writers: Vec<Churn<'_, FileSystem>> = (0..3)
                .map(|number| churn(&fs, at as u64 * 10 + number))
                .collect();
            for mut writer in writers.drain(..) {
                let (stop, done) = (&stop, &done);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        writer.step().unwrap_or_else(|error| panic!("{error}"));
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let mut checks = 0_u32;
                while checks < checks_min || done.load(Ordering::Relaxed) < 200 {
                    let (lines, _) = findings(&fs, |_| thread::yield_now())
                        .unwrap_or_else(|error| panic!("{kind:?} {features}: {error}"));
                    assert_eq!(lines, [""; 0], "{kind:?} {features}, check {checks}");
                    checks += 1;
                }
                println!("{kind:?} {features}: {checks} checks, {done:?} changes");
            }));
            stop.store(true, Ordering::Relaxed);
            if let Err(panic) = checked {
                std::panic::resume_unwind(panic);
            }
        });
        close(&device, fs);
    }
}

/// Stops whoever starts some transaction, until he may go on.
#[derive(Default)]
struct Stop {
    /// Transactions until then.
    left: AtomicU64,
    is_stopped: AtomicBool,
    may_go: AtomicBool,
}

impl Stop {
    fn before_transaction(&self) {
        let less = |left: u64| left.checked_sub(1);
        let left = self
            .left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if left == Ok(1) {
            self.is_stopped.store(true, Ordering::Release);
            while !self.may_go.load(Ordering::Acquire) {
                thread::yield_now();
            }
        }
    }
}

/// Checks while `change` is stopped before the transaction `number` of those that it starts; false
/// if it does not start so many. A check that waits for the change lets it go on.
fn check_before_transaction(fs: &FileSystem, number: u64, change: impl FnOnce() + Send) -> bool {
    let stop = Arc::new(Stop::default());
    stop.left.store(number, Ordering::Release);
    let hook = Arc::clone(&stop);
    fs.instance
        .probe
        .before_transaction(move || hook.before_transaction());
    let unsound = &fs.instance.live().expect("it is written to").unsound;
    thread::scope(|scope| {
        let changing = scope.spawn(change);
        while !stop.is_stopped.load(Ordering::Acquire) && !changing.is_finished() {
            thread::yield_now();
        }
        let was_stopped = stop.is_stopped.load(Ordering::Acquire);
        stop.left.store(0, Ordering::Release);
        let checking = scope.spawn(|| findings(fs, |_| {}).expect("it is checked"));
        while !checking.is_finished() && !unsound.is_awaited() {
            thread::yield_now();
        }
        stop.may_go.store(true, Ordering::Release);
        let (lines, _) = checking.join().expect("no panic");
        changing.join().expect("no panic");
        assert_eq!(lines, [""; 0], "before transaction {number}");
        was_stopped
    })
}

/// Has blocks of a file move, in several transactions.
type Shift = fn(&FileSystem, &File) -> pagefence_vfs::Result<()>;

const SHIFTS: [(&str, Shift); 3] = [
    ("collapse", |fs, file| {
        fs.allocate(file, 2 << 10, 3 << 10, FallocateMode::COLLAPSE_RANGE)
    }),
    ("insertion", |fs, file| {
        fs.allocate(file, 2 << 10, 3 << 10, FallocateMode::INSERT_RANGE)
    }),
    ("exchange", |fs, file| {
        // Without a journal each block is a transaction.
        let blocks = if fs.instance.has_log() { 400 } else { 20 };
        fs.exchange_range(file, 0, file, 800 << 10, blocks << 10)
    }),
];

/// Without a journal pointers of a block map may be in it twice between two transactions.
#[test]
fn nothing_is_found_between_the_steps_of_what_moves_blocks() {
    for (kind, features) in KINDS {
        for to in [MapFormat::Blocks, MapFormat::Extents] {
            for (name, shift) in SHIFTS {
                let (device, fs) = open(kind, features);
                let new = New {
                    kind: NewKind::Regular,
                    permissions: 0o644,
                    umask: 0,
                };
                let made = fs.create(fs.root(), b"file", &new, &root());
                let id = made.expect("a file").attr.id;
                let file = fs.open(id, true).expect("it opens");
                // Several leaves of either kind of map.
                for block in (0..1600).step_by(2) {
                    fs.write(&file, block << 10, &[0xA5; 1024], WriteMode::default())
                        .expect("there is room");
                }
                fs.sync().expect("nothing fails");
                match fs.migrate(id, to, &root()) {
                    Ok(()) => {}
                    // Block maps are all that there is.
                    Err(Error::InvalidArgument) if to == MapFormat::Blocks => {}
                    Err(Error::InvalidArgument) => continue,
                    Err(error) => panic!("{kind:?} {features}: {error}"),
                }
                let change = || shift(&fs, &file).expect("nothing fails");
                let stops = (1..)
                    .take_while(|number| check_before_transaction(&fs, *number, change))
                    .count();
                println!("{kind:?} {features}, {to:?}, {name}: {stops} transactions");
                assert!(stops >= 2, "{kind:?} {features}, {to:?}, {name}: {stops}");
                drop(file);
                close(&device, fs);
            }
        }
    }
}

/// The mutant: the check reads the device as it is, not as it was.
#[test]
fn without_what_is_kept_the_check_finds_what_is_not_there() {
    for (kind, features) in KINDS {
        let (device, fs) = open(kind, features);
        let mut writer = churn(&fs, 1);
        steps(&mut writer, 60);
        let found = (0..20).any(|_| {
            drop(fs.snapshot(fs.instance.live().expect("it is written to"), KEPT_MAX));
            let now = Arc::clone(&device) as Arc<dyn Device>;
            let options = MountOptions::default();
            let checked = opening::check(now, State::Committed, &options, &mut |event| {
                if let Event::Progress(_) = event {
                    steps(&mut writer, 4);
                    fs.sync().expect("nothing fails");
                }
                ControlFlow::Continue(())
            });
            checked.is_ok_and(|summary| summary.findings > 0)
        });
        assert!(found, "{kind:?} {features}");
        close(&device, fs);
    }
}

#[test]
fn damage_is_found_while_others_write() {
    for (kind, features) in KINDS {
        let (device, fs) = open(kind, features);
        // Nobody else has a record in its block.
        let idle: Vec<InodeNo> = (0..16)
            .map(|number| {
                let name = format!("idle {number}");
                let new = New {
                    kind: NewKind::Regular,
                    permissions: 0o644,
                    umask: 0,
                };
                let made = fs.create(fs.root(), name.as_bytes(), &new, &root());
                let id = made.expect("a file").attr.id;
                fs.forget(id);
                InodeNo(u32::try_from(id.0).expect("a number of 32 bits"))
            })
            .collect();
        fs.shut_down().expect("nothing fails");
        drop(fs);
        let options = MountOptions {
            write: true,
            cache: Some(16 << 20),
            ..MountOptions::default()
        };
        let fs = FileSystem::open(Arc::clone(&device) as _, &options).expect("it is sound");
        let mut writer = churn(&fs, 7);
        steps(&mut writer, 40);
        assert_eq!(findings(&fs, |_| {}).expect("it is checked").0, [""; 0]);
        let victim = idle[8];
        let (block, offset) = fs.instance.inode_block(victim).expect("it exists");
        // The link count.
        device
            .write(block.0 * 1024 + offset as u64 + 26, &[9, 0])
            .expect("memory is written");
        let (due, _) = findings(&fs, |_| {}).expect("it is checked");
        let about = Subject::Inode(victim).to_string();
        assert!(due.iter().any(|line| line.starts_with(&about)), "{due:?}");
        for _ in 0..4 {
            let (lines, _) = findings(&fs, |_| {
                steps(&mut writer, 3);
            })
            .expect("it is checked");
            assert_eq!(lines, due, "{kind:?} {features}");
        }
    }
}

#[test]
fn too_many_changes_end_the_check_alone() {
    for (kind, features) in [(Kind::Ext2, ""), (Kind::Ext4, "")] {
        let (device, fs) = open(kind, features);
        let mut writer = churn(&fs, 3);
        steps(&mut writer, 60);
        let few = 20 << 10;
        let mut is_first = true;
        let checked = fs.check_within(few, &mut |_| {
            if std::mem::take(&mut is_first) {
                steps(&mut writer, 200);
                fs.sync().expect("nothing fails");
            }
            ControlFlow::Continue(())
        });
        let Err(CheckError::Snapshot(lost)) = checked else {
            panic!("{checked:?}");
        };
        assert!(matches!(lost, SnapshotLost::Outgrown { bytes_max } if bytes_max == few));
        assert_eq!(findings(&fs, |_| {}).expect("it is checked").0, [""; 0]);
        close(&device, fs);
    }
}

#[test]
fn there_is_one_check_at_a_time() {
    let (device, fs) = open(Kind::Ext4, "");
    let mut second = None;
    let (lines, _) = findings(&fs, |_| {
        let other = || fs.check(&mut |_| ControlFlow::Continue(()));
        second.get_or_insert_with(other);
    })
    .expect("it is checked");
    assert_eq!(lines, [""; 0]);
    assert!(matches!(second, Some(Err(CheckError::InUse))), "{second:?}");
    assert!(findings(&fs, |_| {}).is_ok());
    close(&device, fs);
}

#[test]
fn an_abort_ends_the_check() {
    let (_device, fs) = open(Kind::Ext4, "");
    let checked = findings(&fs, |_| {
        fs.instance
            .live
            .as_ref()
            .expect("it is written to")
            .abort_half_done();
        // The superblock says so when it is done.
        while !fs.instance.live.as_ref().is_some_and(Live::is_aborted) {
            thread::yield_now();
        }
    });
    assert!(matches!(checked, Err(CheckError::Aborted)), "{checked:?}");
    let checked = findings(&fs, |_| {});
    assert!(matches!(checked, Err(CheckError::Aborted)), "{checked:?}");
}

#[test]
fn what_nobody_writes_to_is_checked_as_it_is() {
    let (device, fs) = open(Kind::Ext4, "");
    let mut writer = churn(&fs, 5);
    steps(&mut writer, 60);
    fs.sync().expect("nothing fails");
    // As after a power cut.
    let unclean = Arc::new(device.fork());
    close(&device, fs);
    let before = unclean.to_vec();
    let options = MountOptions {
        cache: Some(16 << 20),
        ..MountOptions::default()
    };
    let fs = FileSystem::open(Arc::clone(&unclean) as _, &options).expect("it is sound");
    let summary = fs.check(&mut |_| ControlFlow::Continue(()));
    let summary = summary.expect("it is checked");
    assert!(summary.is_complete && summary.was_replayed, "{summary:?}");
    assert_eq!(summary.findings, 0);
    drop(fs);
    assert!(unclean.to_vec() == before, "not a byte changes");
}
