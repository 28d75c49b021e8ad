//! Maps of files on mounts, in this process and in others.

#[path = "../common/mod.rs"]
mod common;
mod ends;
mod kit;
mod pointers;

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use common::can_mount;
use kit::{Child, PAGE, Served, Watchdog, child_place};
use pagefence::{Map, MapOptions, Options, Volume};
use pagefence_lock_order::primitives::atomic::Ordering;
use rustix::fs::{FallocateFlags, fallocate};

/// A user who is not root.
const NOBODY: u32 = 65_534;

const SIGBUS: i32 = 7;

pub(crate) fn bytes(map: &Map, at: usize, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    map.read_at(at, &mut bytes).expect("inside the file");
    bytes
}

#[test]
fn a_mapped_file_and_the_mount_agree() {
    if !can_mount() {
        return;
    }
    let _watchdog = Watchdog::new("a_mapped_file_and_the_mount_agree");
    let mut served = Served::new("rw");
    let path = served.file("f", &vec![1; 5 * PAGE + 100]);
    let mounted = Volume::connect(served.mountpoint()).expect("it serves maps");
    assert_eq!(mounted.path(), served.mountpoint());
    let map = mounted.map("/f", .., MapOptions::shared());
    let map = map.expect("it maps");
    assert_eq!((map.len(), map.offset()), (5 * PAGE + 100, 0));
    let part = File::options().read(true).write(true).open(&path);
    let part = part.expect("it opens");
    let tail = mounted.map_file(&part, PAGE as u64 + 5.., MapOptions::shared());
    let tail = tail.expect("it maps");
    assert_eq!(
        (tail.len(), tail.offset()),
        (4 * PAGE + 95, PAGE as u64 + 5)
    );

    // What is stored is read, and loaded by the other map; what is written is loaded.
    for step in 2..40_u8 {
        let at = usize::from(step) * 311;
        map.write_at(at, &[step; 300]).expect("inside");
        assert!(std::fs::read(&path).expect("it is there")[at..at + 300] == [step; 300]);
        if at > PAGE + 5 {
            assert!(bytes(&tail, at - PAGE - 5, 300) == [step; 300]);
        }
        part.write_all_at(&[step ^ 255; 7], at as u64 + 3)
            .expect("it is written");
        assert!(bytes(&map, at + 3, 7) == [step ^ 255; 7]);
        assert!(map.slice(at + 3..at + 10).expect("inside") == [step ^ 255; 7]);
    }
    assert_eq!(
        map.fetch_add(8, 5_u32, Ordering::AcqRel).expect("inside"),
        0x0101_0101
    );
    let word = map.load::<u32>(8, Ordering::Acquire).expect("inside");
    assert_eq!(word, 0x0101_0106);
    // A hole that is punched is one for all.
    let hole = (2 * PAGE as u64, PAGE as u64);
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    map.write_at(2 * PAGE, &[7; PAGE]).expect("inside");
    fallocate(&part, mode, hole.0, hole.1).expect("a hole");
    assert!(bytes(&map, 2 * PAGE, PAGE) == [0; PAGE]);
    map.populate(..).expect("it can be read");
    map.write_at(4 * PAGE, b"durable").expect("inside");
    map.flush_range(4 * PAGE..).expect("it is written");
    let seen = bytes(&map, 0, map.len());
    drop((map, tail, part, mounted));
    served.unmount();
    let volume = Volume::open(served.image(), Options::new()).expect("an image");
    assert!(volume.read("/f").expect("it is there") == seen);
    drop(volume);
    served.check();
}

#[test]
fn what_the_kernel_keeps_of_a_mapped_file_goes_soon() {
    if !can_mount() {
        return;
    }
    let _watchdog = Watchdog::new("what_the_kernel_keeps_of_a_mapped_file_goes_soon");
    let served = Served::new("rw");
    let path = served.file("f", &[1; PAGE]);
    let before = File::open(&path).expect("it opens");
    let mut byte = [0];
    before.read_exact_at(&mut byte, 0).expect("it is read");
    let mounted = Volume::connect(served.mountpoint()).expect("it serves maps");
    let map = mounted.map("f", .., MapOptions::shared()).expect("it maps");
    for step in 2..10 {
        map.write_at(0, &[step]).expect("inside");
        let begin = Instant::now();
        while byte != [step] {
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "it stays {byte:?}"
            );
            std::thread::sleep(Duration::from_millis(1));
            before.read_exact_at(&mut byte, 0).expect("it is read");
        }
    }
}

#[test]
fn the_end_of_a_file_is_that_of_its_maps() {
    if !can_mount() {
        return;
    }
    let _watchdog = Watchdog::new("the_end_of_a_file_is_that_of_its_maps");
    let served = Served::new("rw");
    let path = served.file("f", &[3; 4 * PAGE]);
    let mounted = Volume::connect(served.mountpoint()).expect("it serves maps");
    let map = mounted.map("f", ..8 * PAGE as u64, MapOptions::shared());
    let map = map.expect("it maps");
    let kind = |at: usize| map.read_at(at, &mut [0; 10]).map_err(|error| error.kind());
    assert_eq!(kind(4 * PAGE - 10), Ok(()));
    assert_eq!(kind(4 * PAGE - 9), Err(ErrorKind::UnexpectedEof));
    assert_eq!(kind(8 * PAGE - 9), Err(ErrorKind::InvalidInput));
    let file = File::options().write(true).open(&path).expect("it opens");
    file.set_len(PAGE as u64 + 10).expect("it is cut");
    assert_eq!(kind(PAGE), Ok(()));
    assert_eq!(kind(PAGE + 1), Err(ErrorKind::UnexpectedEof));
    assert_eq!(kind(3 * PAGE), Err(ErrorKind::UnexpectedEof));
    assert_eq!(
        map.write_at(3 * PAGE, b"x").map_err(|error| error.kind()),
        Err(ErrorKind::UnexpectedEof)
    );
    file.set_len(6 * PAGE as u64).expect("it grows");
    assert!(bytes(&map, PAGE + 10, 5 * PAGE - 10) == [0; 5 * PAGE - 10]);
    map.write_at(5 * PAGE, b"stored").expect("inside again");
    assert_eq!(
        std::fs::read(&path).expect("it is there")[5 * PAGE..][..6],
        *b"stored"
    );
    // Past the end there is nothing but SIGBUS for a pointer.
    let child = Child::start("child_that_loads_past_the_end", &served, 0);
    assert_eq!(child.end().signal, Some(SIGBUS));
}

#[test]
fn child_that_loads_past_the_end() {
    let Some(mountpoint) = child_place() else {
        return;
    };
    let mounted = Volume::connect(&mountpoint).expect("it serves maps");
    let options = MapOptions::shared().read_only();
    let map = mounted
        .map("f", ..8 * PAGE as u64, options)
        .expect("it maps");
    assert_eq!(pointers::load(&map, 5 * PAGE), b's');
    eprintln!("{}", pointers::load(&map, 6 * PAGE));
}

#[test]
fn private_stores_stay_where_they_are() {
    if !can_mount() {
        return;
    }
    let _watchdog = Watchdog::new("private_stores_stay_where_they_are");
    let served = Served::new("rw");
    let path = served.file("f", &[3; 4 * PAGE]);
    let mounted = Volume::connect(served.mountpoint()).expect("it serves maps");
    let private = mounted
        .map("f", .., MapOptions::private())
        .expect("it maps");
    let shared = mounted.map("f", .., MapOptions::shared()).expect("it maps");
    private.write_at(10, b"mine").expect("inside");
    assert!(std::fs::read(&path).expect("it is there") == [3; 4 * PAGE]);
    shared.write_at(10, b"ours").expect("inside");
    shared.write_at(PAGE, b"ours").expect("inside");
    assert_eq!(bytes(&private, 10, 4), b"mine");
    assert_eq!(bytes(&private, PAGE, 4), b"ours");
    private.flush().expect("nothing to do");
    let file = File::options().write(true).open(&path).expect("it opens");
    // Copies past the end go with it.
    private.write_at(3 * PAGE, b"mine").expect("inside");
    file.set_len(PAGE as u64).expect("it is cut");
    file.set_len(4 * PAGE as u64).expect("it grows");
    assert_eq!(bytes(&private, 10, 4), b"mine");
    assert!(bytes(&private, 3 * PAGE, PAGE) == [0; PAGE]);
}

#[test]
fn other_users_load_what_they_may_read_and_store_nothing() {
    if !can_mount() {
        return;
    }
    let _watchdog = Watchdog::new("other_users_load_what_they_may_read_and_store_nothing");
    let served = Served::new("rw,allow_other");
    for (name, mode) in [("open", 0o666), ("readable", 0o644), ("secret", 0o600)] {
        let path = served.file(name, &[9; 3 * PAGE]);
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, mode).expect("it is ours");
    }
    let mounted = Volume::connect(served.mountpoint()).expect("it serves maps");
    let ours = mounted
        .map("open", .., MapOptions::shared())
        .expect("it maps");
    let child = Child::start("child_that_is_another_user", &served, NOBODY);
    child.wait_for("mapped");
    ours.write_at(PAGE, b"seen").expect("inside");
    child.say("stored");
    let end = child.end();
    assert_eq!(end.code, Some(0), "{}", end.said);
    assert!(
        std::fs::read(served.mountpoint().join("open")).expect("it is there")[..PAGE] == [9; PAGE]
    );
}

#[test]
fn child_that_is_another_user() {
    let Some(mountpoint) = child_place() else {
        return;
    };
    assert_eq!(rustix::process::geteuid().as_raw(), NOBODY);
    let mounted = Volume::connect(&mountpoint).expect("it serves maps");
    let refused = |name: &str, options| {
        let error = mounted.map(name, .., options).expect_err("not for us");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        error.to_string()
    };
    let shared = MapOptions::shared();
    assert!(refused("open", shared).contains("the user who serves the mount (user id 0)"));
    refused("readable", shared);
    refused("secret", shared.read_only());
    let map = mounted
        .map("open", .., shared.read_only())
        .expect("it maps");
    assert!(bytes(&map, 0, 3 * PAGE) == [9; 3 * PAGE]);
    let error = map.write_at(0, b"x").expect_err("for reading only");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    let private = mounted
        .map("readable", .., MapOptions::private())
        .expect("it maps");
    private.write_at(5, b"mine").expect("inside");
    assert_eq!(bytes(&private, 5, 4), b"mine");
    kit::tell(&mountpoint, "mapped");
    kit::await_told(&mountpoint, "stored");
    assert_eq!(bytes(&map, PAGE, 4), b"seen");
}

#[test]
fn a_map_of_a_mount_is_written_to_a_volume_and_back() {
    if !can_mount() {
        return;
    }
    let _watchdog = Watchdog::new("a_map_of_a_mount_is_written_to_a_volume_and_back");
    let served = Served::new("rw");
    let contents: Vec<u8> = (0..40 * PAGE).map(|at| (at / 7) as u8).collect();
    let path = served.file("f", &contents);
    let mounted = Volume::connect(served.mountpoint()).expect("it serves maps");
    let map = mounted.map("f", .., MapOptions::shared()).expect("it maps");
    // The image of the volume lies on the mount.
    let image = served.mountpoint().join("inner.img");
    let mkfs = pagefence::Mkfs::new(pagefence::Kind::Ext4).size(8 << 20);
    mkfs.format(&image).expect("it is made");
    let volume = Volume::open(&image, Options::new().write(true)).expect("it opens");
    for direct in [false, true] {
        let options = pagefence::OpenOptions::new().read(true).write(true);
        let options = options.create(true).direct(direct);
        let file = options.open(&volume, "/g").expect("it opens");
        let bytes = pointers::as_slice(&map);
        file.write_all_at(0, bytes).expect("it is written");
        let copy = file.map(.., MapOptions::shared()).expect("it maps");
        assert!(copy.slice(..).expect("inside") == contents[..]);
        copy.write_at(PAGE, &[77; PAGE]).expect("inside");
        let mut private = mounted
            .map("f", .., MapOptions::private())
            .expect("it maps");
        let target = pointers::as_mut_slice(&mut private);
        assert_eq!(file.read_at(0, target).expect("it is read"), contents.len());
        assert!(private.slice(PAGE..2 * PAGE).expect("inside") == [77; PAGE]);
        assert!(private.slice(2 * PAGE..).expect("inside") == contents[2 * PAGE..]);
    }
    volume.close().expect("it closes");
    assert!(std::fs::read(&path).expect("it is there") == contents);
}

#[test]
fn child_that_is_not_let_in() {
    let Some(mountpoint) = child_place() else {
        return;
    };
    let error = Volume::connect(&mountpoint).expect_err("it is root's");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(error.to_string().contains("allow_other"), "{error}");
}

#[test]
fn programs_count_together() {
    if !can_mount() {
        return;
    }
    let _watchdog = Watchdog::new("programs_count_together");
    let served = Served::new("rw");
    served.file("f", &[0; PAGE]);
    let children = [0, 1].map(|_| Child::start("child_that_counts", &served, 0));
    for child in children {
        let end = child.end();
        assert_eq!(end.code, Some(0), "{}", end.said);
    }
    let counted = std::fs::read(served.mountpoint().join("f")).expect("it is there");
    assert_eq!(counted[..8], (2 * COUNTS).to_ne_bytes());
}

const COUNTS: u64 = 200_000;

#[test]
fn child_that_counts() {
    let Some(mountpoint) = child_place() else {
        return;
    };
    let mounted = Volume::connect(&mountpoint).expect("it serves maps");
    let map = mounted.map("f", .., MapOptions::shared()).expect("it maps");
    for count in 0..COUNTS {
        map.fetch_add(0, 1_u64, Ordering::Relaxed).expect("inside");
        if count % 10_000 == 0 {
            map.flush().expect("durable");
        }
    }
}

#[test]
fn what_cannot_be_mapped_says_why() {
    if !can_mount() {
        return;
    }
    let _watchdog = Watchdog::new("what_cannot_be_mapped_says_why");
    let refused = |path: &Path, kind: ErrorKind, says: &str| {
        let error = Volume::connect(path).expect_err("no maps there");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    let served = Served::new("rw");
    let path = served.file("f", &[3; PAGE]);
    refused(
        served.bench(),
        ErrorKind::Unsupported,
        "pagefence mount IMAGE",
    );
    refused(&path, ErrorKind::NotADirectory, "Not a directory");
    let child = Child::start("child_that_is_not_let_in", &served, NOBODY);
    let end = child.end();
    assert_eq!(end.code, Some(0), "{}", end.said);
    refused(
        &served.bench().join("none"),
        ErrorKind::NotFound,
        "No such file",
    );
    let mounted = Volume::connect(served.mountpoint()).expect("it serves maps");
    let kind = |path: &str, options| mounted.map(path, .., options).expect_err("no").kind();
    let shared = MapOptions::shared();
    assert_eq!(kind("none", shared), ErrorKind::NotFound);
    assert_eq!(kind("/", shared.read_only()), ErrorKind::InvalidInput);
    let file = File::open(&path).expect("it opens");
    let of_file = |file: &File| {
        let error = mounted.map_file(file, .., shared).expect_err("no");
        (error.kind(), error.path().map(Path::to_owned))
    };
    assert_eq!(of_file(&file), (ErrorKind::PermissionDenied, Some(path)));
    let elsewhere = File::open("/proc/self/exe").expect("this program");
    assert_eq!(of_file(&elsewhere).0, ErrorKind::CrossesDevices);
    // Paths stay below the directory.
    std::os::unix::fs::symlink("/f", served.mountpoint().join("link")).expect("a link");
    let linked = mounted.map("link", .., shared).expect("it maps");
    assert_eq!(bytes(&linked, 0, 3), [3; 3]);
    drop((linked, file, mounted));
    drop(served);
    let served = Served::new("rw,writeback");
    served.file("f", &[3; PAGE]);
    refused(served.mountpoint(), ErrorKind::Unsupported, "-o writeback");
    let memory = Served::in_memory();
    refused(
        memory.mountpoint(),
        ErrorKind::Unsupported,
        "a file system in memory",
    );
    let read_only = Served::read_only();
    let mounted = Volume::connect(read_only.mountpoint()).expect("it serves maps");
    assert_eq!(
        mounted.map("f", .., shared).expect_err("no").kind(),
        ErrorKind::ReadOnlyFilesystem
    );
    let map = mounted
        .map("f", .., MapOptions::private())
        .expect("it maps");
    assert_eq!(bytes(&map, 0, 3), [3; 3]);
}
