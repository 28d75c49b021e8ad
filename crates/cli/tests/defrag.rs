//! `defrag`, and the ioctls under it, on mounts.

mod common;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{Bench, can_mount};
use pagefence_fuse_front::ioctl::{extents, fallocate};
use pagefence_fuse_front::move_extents::{Donor, donate, move_extents};
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread::scope;
use rustix::fs::{FallocateFlags, IFlags};

const PIECE: u64 = 16 << 10;
const PIECES: u64 = 40;
const BLOCK: u64 = 4096;

/// A mount of a new file system, taken down and checked at the end.
struct Mount {
    bench: Bench,
}

impl Mount {
    fn new(kind: &str, options: &str) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let bench = Bench::new();
        bench.run(&format!("mkfs -q -t {kind} -b 4096 --size 64M a.img"));
        fs::create_dir(bench.join("mnt")).expect("a directory");
        bench.run(&format!("mount a.img mnt {options}"));
        Some(Self { bench })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.bench.join("mnt").join(name)
    }

    fn end(self) {
        self.bench.run("umount mnt");
        let checked = std::process::Command::new("e2fsck")
            .arg("-fn")
            .arg(self.bench.join("a.img"))
            .output()
            .expect("e2fsck can be run");
        assert!(checked.status.success(), "{checked:?}");
    }
}

fn open(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).expect("it opens")
}

/// What block `at` of a file holds that was written in round `round`.
fn block(at: u64, round: u64) -> Vec<u8> {
    let word = (at << 32 | round).to_ne_bytes();
    word.repeat(BLOCK as usize / word.len())
}

/// A file whose pieces lie between those of another one.
fn fragmented(mount: &Mount, name: &str) -> File {
    let (file, other) = (open(&mount.path(name)), open(&mount.path("other")));
    let blocks = PIECE / BLOCK;
    for piece in 0..PIECES {
        let bytes: Vec<u8> = (piece * blocks..(piece + 1) * blocks)
            .flat_map(|at| block(at, 0))
            .collect();
        for file in [&file, &other] {
            file.write_all_at(&bytes, piece * PIECE).expect("room");
            file.sync_all().expect("synced");
        }
    }
    file
}

fn runs(file: &File) -> usize {
    let found = extents(file).expect("it is on a mount");
    let breaks = found.windows(2);
    1 + breaks
        .filter(|pair| pair[0].physical + pair[0].length != pair[1].physical)
        .count()
}

const EPERM: Option<i32> = Some(1);
const EBADF: Option<i32> = Some(9);
const EINVAL: Option<i32> = Some(22);
const ENOTTY: Option<i32> = Some(25);
const EOPNOTSUPP: Option<i32> = Some(95);

fn errno<T: std::fmt::Debug>(outcome: io::Result<T>) -> Option<i32> {
    outcome.expect_err("it is refused").raw_os_error()
}

#[test]
fn a_file_in_pieces_becomes_one() {
    for options in ["", "-o writeback", "-s"] {
        let Some(mount) = Mount::new("ext4", options) else {
            return;
        };
        let file = fragmented(&mount, "file");
        let before = runs(&file);
        assert!(before > 20, "{before} pieces");
        let path = mount.path("file");
        let bytes = fs::read(&path).expect("it is read");
        let times = fs::metadata(&path).expect("it is there").mtime_nsec();
        let bench = &mount.bench;
        let told = bench.run("defrag --check mnt/file");
        assert_eq!(told, format!("mnt/file: {before} pieces\n"));
        let told = bench.run("defrag mnt/file");
        assert_eq!(told, format!("mnt/file: 1 piece, before {before}\n"));
        assert_eq!(runs(&file), 1);
        assert!(fs::read(&path).expect("it is read") == bytes);
        let after = fs::metadata(&path).expect("it is there").mtime_nsec();
        assert_eq!(after, times, "the times stay");
        let told = bench.run("defrag mnt/file mnt/other");
        let (first, second) = told.split_once('\n').expect("two lines");
        assert_eq!(first, "mnt/file: 1 piece, as before");
        assert!(second.starts_with("mnt/other: 1 piece, before "), "{told}");
        let names = fs::read_dir(mount.bench.join("mnt")).expect("it lists");
        assert_eq!(names.count(), 3, "the two and lost+found: no donor stays");
        drop(file);
        mount.end();
    }
}

/// Back and forth between its blocks and a donor's, while blocks are read and written.
#[test]
fn a_file_moves_while_it_is_read_and_written() {
    for options in ["", "-o writeback"] {
        let Some(mount) = Mount::new("ext4", options) else {
            return;
        };
        let file = fragmented(&mount, "file");
        let donor = open(&mount.path("donor"));
        let (length, blocks) = (PIECE * PIECES, PIECE * PIECES / BLOCK);
        rustix::fs::fallocate(&donor, FallocateFlags::empty(), 0, length).expect("room");
        let named = donate(&donor).expect("it is open for writing");
        let is_over = AtomicBool::new(false);
        let last = scope(|scope| {
            let writer = scope.spawn(|| {
                let mut rounds = vec![0; blocks as usize];
                let mut at = 0;
                while !is_over.load(Ordering::Acquire) {
                    at = (at + 7) % blocks;
                    rounds[at as usize] += 1;
                    let bytes = block(at, rounds[at as usize]);
                    file.write_all_at(&bytes, at * BLOCK).expect("written");
                }
                rounds
            });
            let reader = scope.spawn(|| {
                let mut seen = vec![0; blocks as usize];
                let mut at = 0;
                while !is_over.load(Ordering::Acquire) {
                    at = (at + 11) % blocks;
                    let mut bytes = vec![0; BLOCK as usize];
                    file.read_exact_at(&mut bytes, at * BLOCK).expect("read");
                    let words = bytes.as_chunks::<8>().0;
                    let word = u64::from_ne_bytes(words[0]);
                    assert_eq!(word >> 32, at, "of another block");
                    let round = word & u64::from(u32::MAX);
                    assert!(round >= seen[at as usize], "older than what was seen");
                    seen[at as usize] = round;
                }
            });
            for round in 0..30 {
                let mut at = 0;
                while at < length {
                    let moved = move_extents(&file, at, &named, at, length - at);
                    at += moved.expect("moved");
                }
                file.sync_all().expect("synced");
                let place = extents(&file).expect("extents")[0].physical;
                let donors = extents(&donor).expect("extents")[0].physical;
                assert_ne!(place, donors, "round {round}");
            }
            is_over.store(true, Ordering::Release);
            reader.join().expect("the reader");
            writer.join().expect("the writer")
        });
        let due: Vec<u8> = (0..).zip(last).flat_map(|(at, n)| block(at, n)).collect();
        let path = mount.path("file");
        assert!(fs::read(&path).expect("it is read") == due, "{options}");
        // Opened anew, so that the kernel has no page of before.
        let left = fs::read(mount.path("donor")).expect("it is read");
        assert!(left.len() as u64 == length && left.iter().all(|byte| *byte == 0));
        drop((file, donor));
        mount.bench.run("umount mnt");
        mount.bench.run(&format!("mount a.img mnt {options}"));
        assert!(fs::read(&path).expect("it is read") == due, "{options}");
        mount.end();
    }
}

/// The same numbers as EXT4_IOC_MOVE_EXT has, but for one: what is not on the mount can't be named.
#[test]
fn what_can_not_move_is_refused_as_linux_does() {
    let (Some(mount), Some(elsewhere)) = (Mount::new("ext4", ""), Mount::new("ext4", "")) else {
        return;
    };
    let path = mount.path("file");
    let made = |path: &Path| {
        fs::write(path, vec![1; 8 * BLOCK as usize]).expect("room");
        open(path)
    };
    let (file, donor) = (made(&path), made(&mount.path("donor")));
    let named = donate(&donor).expect("it is open for writing");
    let refuse = |file: &File, at, donor: &Donor, donor_at, length, due| {
        let outcome = errno(move_extents(file, at, donor, donor_at, length));
        assert_eq!(outcome, due, "{at} {donor_at} {length}");
    };
    // Descriptors.
    let reader = File::open(&path).expect("it opens");
    assert_eq!(errno(donate(&reader)), EBADF);
    refuse(&reader, 0, &named, 0, BLOCK, EBADF);
    let writer = File::options().write(true).open(&path).expect("it opens");
    refuse(&writer, 0, &named, 0, BLOCK, EBADF);
    drop(writer);
    let directory = File::open(mount.bench.join("mnt")).expect("it opens");
    assert_eq!(errno(donate(&directory)), EBADF);
    refuse(&directory, 0, &named, 0, BLOCK, EBADF);
    assert_eq!(errno(fallocate(&directory, 0, 0, BLOCK)), EBADF);
    let foreign = made(&elsewhere.path("donor"));
    refuse(
        &file,
        0,
        &donate(&foreign).expect("its own"),
        0,
        BLOCK,
        EBADF,
    );
    drop(foreign);
    let closed = donate(open(&mount.path("donor"))).expect("it is open for writing");
    wait_until_closed(&file, &closed);
    let plain = tempfile::tempfile().expect("a file");
    assert_eq!(errno(donate(&plain)), ENOTTY);
    refuse(&plain, 0, &named, 0, BLOCK, ENOTTY);
    // Ranges.
    refuse(&file, 512, &named, 0, BLOCK, EINVAL);
    refuse(&file, 0, &named, 512, BLOCK, EINVAL);
    refuse(&file, 0, &named, 0, 0, EINVAL);
    refuse(&file, 0, &named, 0, 100, EINVAL);
    refuse(&file, 8 * BLOCK, &named, 0, BLOCK, EINVAL);
    refuse(&file, 0, &named, 8 * BLOCK, BLOCK, EINVAL);
    refuse(&file, 1 << 63, &named, 0, BLOCK, EINVAL);
    refuse(&file, 0, &donate(&file).expect("named"), 0, BLOCK, EINVAL);
    // Donors that nobody writes to, or that run as somebody else.
    for (flag, due) in [(IFlags::IMMUTABLE, EPERM), (IFlags::APPEND, EPERM)] {
        let before = rustix::fs::ioctl_getflags(&donor).expect("flags");
        rustix::fs::ioctl_setflags(&donor, before | flag).expect("set");
        refuse(&file, 0, &named, 0, BLOCK, due);
        rustix::fs::ioctl_setflags(&donor, before).expect("set");
    }
    let mode = |bits| donor.set_permissions(fs::Permissions::from_mode(bits));
    mode(0o4755).expect("set-user-id");
    refuse(&file, 0, &named, 0, BLOCK, EINVAL);
    mode(0o644).expect("plain");
    // What is left of both, and no more.
    let moved = move_extents(&file, 0, &named, 4 * BLOCK, 100 * BLOCK);
    assert_eq!(moved.expect("half of it"), 4 * BLOCK);
    assert!(fs::read(&path).expect("it is read") == vec![1; 8 * BLOCK as usize]);
    let left = fs::read(mount.path("donor")).expect("it is read");
    assert_eq!(
        left.iter().filter(|byte| **byte == 1).count(),
        4 * BLOCK as usize
    );
    drop((file, donor, reader, directory));
    mount.end();
    elsewhere.end();
}

/// The kernel tells of a file that was closed a moment later.
fn wait_until_closed(file: &File, donor: &Donor) {
    let begin = std::time::Instant::now();
    loop {
        let outcome = move_extents(file, 0, donor, 0, 100);
        if errno(outcome) == EBADF {
            return;
        }
        assert!(
            begin.elapsed().as_secs() < 60,
            "it gives while it is closed"
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn files_without_extents_stay_where_they_are() {
    let Some(mount) = Mount::new("ext3", "") else {
        return;
    };
    let path = mount.path("file");
    fs::write(&path, vec![1; 8 * BLOCK as usize]).expect("room");
    fs::write(mount.path("donor"), vec![2; 8 * BLOCK as usize]).expect("room");
    let (file, donor) = (open(&path), open(&mount.path("donor")));
    let named = donate(&donor).expect("it is open for writing");
    let outcome = move_extents(&file, 0, &named, 0, BLOCK);
    assert_eq!(errno(outcome), EOPNOTSUPP);
    let told = mount.bench.fail("defrag mnt/file");
    assert!(told.contains("pagefence migrate"), "{told}");
    let told = mount.bench.fail("defrag a.img:/file");
    assert!(told.contains("mount it"), "{told}");
    drop((file, donor));
    mount.end();
}
