//! Names: made, moved, removed.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use pagefence_lock_order::primitives::thread;
use pagefence_vfs::WriteMode;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::common::{Mounted, mount};
use crate::memory_fs::{MemoryFs, PANIC, SHUT};
use crate::support::{as_nobody, in_both_modes, shell};

/// The names in a directory, in order.
fn listed(mounted: &Mounted, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(mounted.join(directory)).expect("it is a directory");
    let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("text");
    let mut names: Vec<_> = entries
        .map(|entry| name(entry.expect("entries are read")))
        .collect();
    names.sort();
    names
}

#[test]
fn every_kind_of_inode_is_made_and_removed() {
    in_both_modes(|mounted, _| {
        let at = |name: &str| mounted.join(name);
        fs::create_dir(at("directory")).expect("a directory");
        fs::write(at("directory/file"), b"12345").expect("a file");
        std::os::unix::fs::symlink("directory/file", at("link")).expect("a link");
        let mode = Mode::from_raw_mode(0o640);
        let mknod = |name: &str, kind, device| {
            rustix::fs::mknodat(CWD, at(name), kind, mode, device).expect("a node");
        };
        let device = rustix::fs::makedev(0x123, 0x4_5678);
        mknod("fifo", FileType::Fifo, 0);
        mknod("socket", FileType::Socket, 0);
        mknod("plain", FileType::RegularFile, 0);
        mknod("chars", FileType::CharacterDevice, device);
        mknod("blocks", FileType::BlockDevice, device);
        let all = [
            "blocks",
            "chars",
            "directory",
            "fifo",
            "link",
            "plain",
            "socket",
        ];
        assert_eq!(listed(mounted, ""), all);
        assert_eq!(fs::read(at("link")).expect("it leads there"), b"12345");
        assert_eq!(fs::metadata(mounted.path()).expect("the root").nlink(), 3);
        for (name, major, minor) in [("chars", 0x123, 0x4_5678), ("blocks", 0x123, 0x4_5678)] {
            let meta = fs::metadata(at(name)).expect("a device");
            assert_eq!(rustix::fs::major(meta.rdev()), major);
            assert_eq!(rustix::fs::minor(meta.rdev()), minor);
        }
        let kind = |name: &str| fs::metadata(at(name)).expect("it is there").file_type();
        assert!(kind("fifo").is_fifo() && kind("socket").is_socket());
        assert!(kind("chars").is_char_device() && kind("blocks").is_block_device());
        assert!(kind("plain").is_file());

        assert_eq!(rustix::fs::rmdir(at("directory")), Err(Errno::NOTEMPTY));
        assert_eq!(rustix::fs::unlink(at("directory")), Err(Errno::ISDIR));
        assert_eq!(rustix::fs::rmdir(at("link")), Err(Errno::NOTDIR));
        assert_eq!(rustix::fs::unlink(at("missing")), Err(Errno::NOENT));
        let again = rustix::fs::mkdir(at("directory"), Mode::RWXU);
        assert_eq!(again, Err(Errno::EXIST));
        fs::remove_file(at("directory/file")).expect("it goes");
        fs::remove_dir(at("directory")).expect("it is empty");
        for name in ["blocks", "chars", "fifo", "link", "plain", "socket"] {
            fs::remove_file(at(name)).expect("it goes");
        }
        assert_eq!(listed(mounted, ""), [""; 0]);
        assert_eq!(fs::metadata(mounted.path()).expect("the root").nlink(), 2);
    });
}

#[test]
fn links_share_an_inode() {
    in_both_modes(|mounted, _| {
        fs::write(mounted.join("one"), b"shared").expect("a file");
        fs::hard_link(mounted.join("one"), mounted.join("two")).expect("a link");
        let stat = |name: &str| fs::metadata(mounted.join(name)).expect("it is there");
        assert_eq!(stat("one").ino(), stat("two").ino());
        assert_eq!((stat("one").nlink(), stat("two").nlink()), (2, 2));
        let taken = fs::hard_link(mounted.join("one"), mounted.join("two"));
        let taken = taken.expect_err("the name is taken").raw_os_error();
        assert_eq!(taken, Some(Errno::EXIST.raw_os_error()));
        fs::remove_file(mounted.join("one")).expect("it goes");
        assert_eq!(stat("two").nlink(), 1);
        assert_eq!(fs::read(mounted.join("two")).expect("it stays"), b"shared");
    });
}

#[test]
fn names_move_replace_and_change_places() {
    in_both_modes(|mounted, _| {
        let at = |name: &str| mounted.join(name);
        fs::create_dir(at("from")).expect("a directory");
        fs::create_dir(at("to")).expect("a directory");
        fs::write(at("from/a"), b"a").expect("a file");
        fs::write(at("to/b"), b"b").expect("a file");
        let rename = |old: &str, new: &str, flags| {
            rustix::fs::renameat_with(CWD, at(old), CWD, at(new), flags)
        };
        let read = |name: &str| fs::read_to_string(at(name)).ok();
        let no_replace = rename("from/a", "to/b", RenameFlags::NOREPLACE);
        assert_eq!(no_replace, Err(Errno::EXIST));
        assert_eq!(rename("from/a", "to/c", RenameFlags::NOREPLACE), Ok(()));
        assert_eq!((read("from/a"), read("to/c")), (None, Some("a".into())));
        assert_eq!(rename("to/c", "to/b", RenameFlags::EXCHANGE), Ok(()));
        assert_eq!(
            (read("to/b"), read("to/c")),
            (Some("a".into()), Some("b".into()))
        );
        assert_eq!(rename("from", "to/b", RenameFlags::EXCHANGE), Ok(()));
        assert_eq!(read("from"), Some("a".into()));
        assert_eq!(listed(mounted, "to"), ["b", "c"]);
        assert_eq!(rename("to/c", "from", RenameFlags::empty()), Ok(()));
        assert_eq!(read("from"), Some("b".into()));
        let whiteout = rename("from", "there", RenameFlags::WHITEOUT);
        assert_eq!(whiteout, Err(Errno::INVAL));
        let into_itself = rename("to", "to/b/c", RenameFlags::empty());
        assert_eq!(into_itself, Err(Errno::INVAL));
        let over_full = rename("to/b", "to", RenameFlags::empty());
        assert_eq!(over_full, Err(Errno::NOTEMPTY));
    });
}

#[test]
fn a_name_that_turns_up_is_opened_as_what_it_is() {
    in_both_modes(|mounted, _| {
        let path = mounted.join("turned up");
        let missing = fs::metadata(&path).expect_err("it is missing, as the kernel now knows");
        assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
        let id = mounted.counters.plant("turned up", b"long contents");
        mounted
            .counters
            .with(id, |node| node.attr.permissions = 0o600);
        // Not by whoever may not, though who makes a file may do anything with it.
        let refused = as_nobody(mounted.path(), ": > 'turned up'");
        assert!(refused.is_none_or(|(succeeded, _)| !succeeded));
        assert_eq!(mounted.counters.with(id, |node| node.attr.size), 13);

        fs::metadata(mounted.join("other")).expect_err("it is missing");
        let other = mounted.counters.plant("other", b"long contents");
        let exclusive = File::create_new(mounted.join("other")).expect_err("O_EXCL fails");
        assert_eq!(exclusive.raw_os_error(), Some(Errno::EXIST.raw_os_error()));
        let third = mounted.join("third");
        fs::metadata(&third).expect_err("it is missing");
        let planted = mounted.counters.plant("third", b"long contents");
        File::create(&third).expect("it can be opened");
        assert_eq!(mounted.counters.with(planted, |node| node.attr.size), 0);
        assert_eq!(mounted.counters.with(other, |node| node.attr.size), 13);
        let fourth = mounted.join("fourth");
        fs::metadata(&fourth).expect_err("it is missing");
        mounted.counters.plant("fourth", b"contents");
        let mut options = File::options();
        let kept = options.write(true).create(true).open(&fourth);
        drop(kept.expect("it can be opened"));
        assert_eq!(fs::read(&fourth).expect("it is read"), b"contents");
    });
}

#[test]
fn a_new_file_that_can_not_be_opened_is_not_left_behind() {
    in_both_modes(|mounted, _| {
        let name = std::str::from_utf8(SHUT).expect("text");
        let error = File::create(mounted.join(name)).expect_err("it can't be opened");
        assert_eq!(error.raw_os_error(), Some(Errno::NOKEY.raw_os_error()));
        assert_eq!(mounted.counters.named(name), None);
        assert_eq!(mounted.counters.tree.lock().nodes.len(), 1, "it is deleted");
        assert_eq!(listed(mounted, ""), [""; 0]);
    });
}

#[test]
fn permissions_are_those_asked_for_without_the_umask() {
    for posix_acl in [false, true] {
        let options = pagefence_fuse_front::ServeOptions {
            posix_acl,
            ..Default::default()
        };
        let mounted = crate::common::mount_with(MemoryFs::new(), &options, |_| {});
        let Some(mounted) = mounted else { return };
        assert!(shell(
            mounted.path(),
            "umask 027; : > file; mkdir directory; mkfifo fifo"
        ));
        let mode = |name: &str| {
            let id = mounted.counters.named(name).expect("it was made");
            mounted.counters.with(id, |node| node.attr.permissions)
        };
        assert_eq!(
            (mode("file"), mode("directory"), mode("fifo")),
            (0o640, 0o750, 0o640)
        );
        if let Some((made, _)) = as_nobody(mounted.path(), ": > theirs") {
            assert!(made);
            let id = mounted.counters.named("theirs").expect("it was made");
            let owner = mounted
                .counters
                .with(id, |node| (node.attr.uid, node.attr.gid));
            assert_eq!(owner, (65_534, 65_534));
        }
    }
}

#[test]
fn nothing_is_made_in_a_removed_directory() {
    in_both_modes(|mounted, _| {
        fs::create_dir(mounted.join("gone")).expect("a directory");
        let line = "cd gone && rmdir ../gone && ! touch file 2>&- && ls -a >&- && cd /";
        assert!(shell(mounted.path(), line));
        fs::create_dir(mounted.join("gone")).expect("the name is free");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let open = rustix::fs::open(mounted.join("gone"), flags, Mode::empty());
        let directory = open.expect("it opens");
        fs::remove_dir(mounted.join("gone")).expect("it is empty");
        let made = rustix::fs::openat(&directory, "file", OFlags::CREATE, Mode::RUSR);
        assert_eq!(made.map(drop), Err(Errno::NOENT));
        let meta = rustix::fs::fstat(&directory).expect("it is open");
        assert_eq!(meta.st_nlink, 0);
        rustix::fs::fsync(&directory).expect("fsync");
        assert_eq!(mounted.counters.tree.lock().dir_syncs, 1);
        let missing = rustix::fs::statat(CWD, mounted.join("gone"), AtFlags::empty());
        assert_eq!(missing.map(drop), Err(Errno::NOENT));
    });
}

#[test]
fn after_a_panic_in_a_change_nothing_more_is_changed() {
    let Some(mounted) = mount(MemoryFs::new()) else {
        return;
    };
    fs::write(mounted.join("file"), b"before").expect("a file");
    let name = std::str::from_utf8(PANIC).expect("text");
    let error = File::create(mounted.join(name)).expect_err("it panics");
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    // The error may come before the file system is told.
    let start = std::time::Instant::now();
    while !mounted.counters.tree.lock().read_only {
        assert!(start.elapsed().as_secs() < 60, "it is told");
        thread::yield_now();
    }
    let error = fs::write(mounted.join("file"), b"after").expect_err("it is read-only");
    assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    let mut options = File::options();
    let error = options.create(true).append(true).mode(0o600);
    let error = error
        .open(mounted.join("new"))
        .expect_err("it is read-only");
    assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    assert_eq!(
        fs::read(mounted.join("file")).expect("it is read"),
        b"before"
    );
    let written = mounted.counters.tree.lock().written;
    assert_eq!(written, WriteMode::USE_RESERVE);
    pagefence_fuse_front::unmount(mounted.path(), true).expect("it is mounted");
    mounted.finish().expect("the server ends well");
}
