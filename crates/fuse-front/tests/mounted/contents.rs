//! What programs see of a mount: names, attributes, data.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use crate::common::{mount, mount_with};
use crate::memory_fs::{MemoryFs, ROOT, SPARSE_DATA, byte};
use pagefence_fuse_front::{ServeOptions, ServerId, UnmountError};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicU64, Ordering};
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

#[test]
fn stat_shows_what_the_inode_says() {
    let mut fs = MemoryFs::new();
    let file = fs.bytes(ROOT, "file", b"12345");
    fs.attr_mut(file).permissions = 0o4711;
    fs.attr_mut(file).links = 3;
    (fs.attr_mut(file).uid, fs.attr_mut(file).gid) = (1234, 0xffff_0001);
    fs.device(ROOT, "device", 0xabc, 0x1_2345);
    fs.symlink(ROOT, "link", "file");
    let Some(mounted) = mount(fs) else { return };

    let root = fs::metadata(mounted.path()).expect("the root answers");
    assert!(root.is_dir());
    assert_eq!(root.ino(), 2, "the number on disk, not FUSE's");

    let meta = fs::metadata(mounted.join("file")).expect("the file is there");
    assert_eq!(meta.mode(), 0o10_4711);
    assert_eq!((meta.nlink(), meta.len(), meta.blocks()), (3, 5, 1));
    assert_eq!((meta.uid(), meta.gid()), (1234, 0xffff_0001));
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec()),
        (5_000_000_000, 123_456_789)
    );
    assert_eq!((meta.ctime(), meta.ctime_nsec()), (-1, 500_000_000));
    assert_eq!((meta.atime(), meta.atime_nsec()), (1_000_000_000, 1));

    let device = fs::metadata(mounted.join("device")).expect("the device is there");
    assert!(device.file_type().is_char_device());
    assert_eq!(rustix::fs::major(device.rdev()), 0xabc);
    assert_eq!(rustix::fs::minor(device.rdev()), 0x1_2345);
    let opened = File::open(mounted.join("device")).expect_err("the mount is nodev");
    assert_eq!(opened.raw_os_error(), Some(Errno::ACCESS.raw_os_error()));

    let target = fs::read_link(mounted.join("link")).expect("the link is there");
    assert_eq!(target, Path::new("file"));
    assert_eq!(
        fs::read(mounted.join("link")).expect("it leads somewhere"),
        b"12345"
    );
}

#[test]
fn overrides_show_other_owners_and_hide_acls() {
    let mut fs = MemoryFs::new();
    let file = fs.bytes(ROOT, "file", b"");
    fs.set_xattr(file, "system.posix_acl_access", b"x");
    fs.set_xattr(file, "user.a", b"x");
    let options = ServeOptions {
        uid: Some(11),
        gid: Some(12),
        umask: Some(0o022),
        posix_acl: true,
        threads: None,
        ..ServeOptions::default()
    };
    let Some(mounted) = mount_with(fs, &options, |request| request.default_permissions = false)
    else {
        return;
    };
    let path = mounted.join("file");
    let meta = fs::metadata(&path).expect("the file is there");
    assert_eq!((meta.uid(), meta.gid(), meta.mode()), (11, 12, 0o10_0755));
    let mut names = [0; 100];
    let length = rustix::fs::listxattr(&path, &mut names[..]).expect("a list");
    assert_eq!(&names[..length], b"user.a\0");
    let acl = rustix::fs::getxattr(&path, "system.posix_acl_access", &mut names[..]);
    assert_eq!(acl, Err(Errno::OPNOTSUPP));
}

#[test]
fn a_large_directory_is_listed_whole_with_small_buffers() {
    let mut fs = MemoryFs::new();
    let directory = fs.directory(ROOT, "directory");
    for index in 0..10_000 {
        fs.bytes(directory, &format!("nokind-or-kind-{index}"), b"");
    }
    let Some(mounted) = mount(fs) else { return };
    let fd = open_directory(&mounted.join("directory"));
    let mut buffer = [MaybeUninit::uninit(); 512];
    let mut names = BTreeSet::new();
    let mut cookies = Vec::new();
    let mut entries = RawDir::new(&fd, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.expect("entries are read");
        assert!(
            names.insert(entry.file_name().to_bytes().to_vec()),
            "a name came twice"
        );
        cookies.push((
            entry.next_entry_cookie(),
            entry.file_name().to_owned(),
            entry.ino(),
        ));
    }
    assert_eq!(names.len(), 10_002);
    assert!(names.contains(b".".as_slice()) && names.contains(b"..".as_slice()));
    assert_eq!(
        cookies[1].2, ROOT.0,
        "the parent is the root, under its number on disk"
    );

    // telldir and seekdir: after an entry comes the one that came after it.
    for at in [0, 1, 77, 5_000, 9_999] {
        rustix::fs::seek(&fd, SeekFrom::Start(cookies[at].0)).expect("a position to go to");
        let mut entries = RawDir::new(&fd, &mut buffer);
        let next = entries
            .next()
            .expect("not the end")
            .expect("entries are read");
        assert_eq!(next.file_name(), cookies[at + 1].1.as_c_str());
    }
    rustix::fs::seek(&fd, SeekFrom::Start(cookies[10_001].0)).expect("the end can be gone to");
    assert!(RawDir::new(&fd, &mut buffer).next().is_none());

    // The kernel keeps the entries: reading again asks nothing.
    drop(fd);
    let listed = || {
        fs::read_dir(mounted.join("directory"))
            .expect("it is a directory")
            .count()
    };
    assert_kept(&mounted.counters.read_dirs, || assert_eq!(listed(), 10_000));
}

#[test]
fn who_lists_all_names_first_gets_all_attributes_with_them() {
    const FILES: usize = 3000;
    let mut fs = MemoryFs::new();
    let directory = fs.directory(ROOT, "directory");
    for number in 0..FILES {
        fs.bytes(directory, &format!("file-{number}"), b"x");
    }
    let Some(mounted) = mount(fs) else { return };
    let path = mounted.join("directory");
    let lookups = || mounted.counters.lookups.load(Ordering::Relaxed);
    // More than one buffer full, and no name is looked up before all are listed.
    let listed: Vec<_> = fs::read_dir(&path)
        .expect("it is a directory")
        .map(|entry| entry.expect("entries are read").path())
        .collect();
    assert_eq!(listed.len(), FILES);
    let before = lookups();
    for file in &listed {
        assert_eq!(fs::symlink_metadata(file).expect("it is there").len(), 1);
    }
    // A kernel that drops its caches meanwhile asks for some again.
    let asked = lookups() - before;
    assert!(asked < FILES as u64 / 2, "{asked} of {FILES} looked up");
}

#[test]
fn an_entry_whose_inode_is_damaged_is_listed_and_nothing_else() {
    let mut fs = MemoryFs::new();
    let bad = fs.unreadable(ROOT, "bad");
    fs.bytes(ROOT, "good", b"");
    fs.link(ROOT, "reserved", pagefence_vfs::InodeId(1));
    fs.link(ROOT, "loop", ROOT);
    let Some(mounted) = mount(fs) else { return };
    // The first reading is by READDIRPLUS.
    let mut listed: Vec<(Vec<u8>, u64)> = Vec::new();
    let fd = open_directory(mounted.path());
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&fd, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.expect("entries are read");
        listed.push((entry.file_name().to_bytes().to_vec(), entry.ino()));
    }
    let number = |name: &str| {
        let found = listed.iter().find(|(listed, _)| listed == name.as_bytes());
        found.map(|(_, number)| *number)
    };
    assert_eq!(number("."), Some(2));
    assert_eq!(number("bad"), Some(bad.0));
    assert!(number("good").is_some_and(|number| number > 2));
    assert_eq!(number("reserved"), Some(1));
    assert_eq!(number("loop"), Some(2));

    let euclean = Some(Errno::UCLEAN.raw_os_error());
    let error = |name: &str| {
        fs::metadata(mounted.join(name))
            .err()
            .and_then(|e| e.raw_os_error())
    };
    assert_eq!(error("bad"), euclean);
    assert_eq!(error("good"), None);
    assert!(error("reserved").is_some(), "inode 1 is out of reach");
    assert_eq!(error("loop"), euclean, "the root is in no directory");
    assert_eq!(
        fs::metadata(mounted.path())
            .expect("the root is well")
            .ino(),
        2
    );
}

#[test]
fn a_missing_name_is_asked_for_once() {
    let Some(mounted) = mount(MemoryFs::new()) else {
        return;
    };
    assert_kept(&mounted.counters.missing, || {
        let error = fs::metadata(mounted.join("missing")).expect_err("it is missing");
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    });
    assert!(
        mounted.counters.missing.load(Ordering::Relaxed) > 0,
        "it was asked for once"
    );
}

#[test]
fn reads_give_the_bytes_of_the_file() {
    const SIZE: u64 = 64 << 20;
    let mut fs = MemoryFs::new();
    fs.pattern(ROOT, "file", SIZE + 5);
    let Some(mounted) = mount(fs) else { return };
    let path = mounted.join("file");
    let check = |file: &File, offset: u64, length: usize| {
        let mut buffer = vec![0xee; length];
        let got = file.read_at(&mut buffer, offset).expect("reads succeed");
        assert_eq!(
            got as u64,
            (SIZE + 5).saturating_sub(offset).min(length as u64)
        );
        for (at, &found) in (offset..).zip(&buffer[..got]) {
            assert_eq!(found, byte(at), "at {at}");
        }
        got
    };
    let file = File::open(&path).expect("it opens");
    let mut offset = 0;
    while offset < SIZE + 5 {
        offset += check(&file, offset, 3 << 20) as u64;
    }
    let asked = mounted.counters.reads.load(Ordering::Relaxed);
    assert!(
        asked <= 64 * 8 + 8,
        "requests are at least 128 KiB long, there were {asked}"
    );
    for offset in [1, 4095, 4097, SIZE - 1, SIZE + 4, SIZE + 5, SIZE + 5000] {
        check(&file, offset, 10_000);
    }
    // The kernel keeps the pages, also when the file is opened again.
    assert_kept(&mounted.counters.reads, || {
        check(&File::open(&path).expect("it opens"), 1 << 20, 1 << 20);
    });

    let asked = mounted.counters.reads.load(Ordering::Relaxed);
    let direct = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECT, Mode::empty());
    let direct = File::from(direct.expect("direct reads are possible"));
    check(&direct, 1 << 20, 4 << 20);
    // 1 MiB a request, and one more as the buffer lies across pages.
    let asked = mounted.counters.reads.load(Ordering::Relaxed) - asked;
    assert!((4..=5).contains(&asked), "{asked} requests");
}

#[test]
fn many_readers_at_once() {
    let mut fs = MemoryFs::new();
    for file in 0..8 {
        fs.pattern(ROOT, &format!("file{file}"), 1 << 20);
    }
    let Some(mounted) = mount(fs) else { return };
    pagefence_lock_order::primitives::thread::scope(|scope| {
        for thread in 0..8u64 {
            let mounted = &mounted;
            scope.spawn(move || {
                let mut buffer = vec![0; 10_000];
                for round in 0..200u64 {
                    let name = format!("file{}", (thread + round) % 8);
                    let file = File::open(mounted.join(name)).expect("it opens");
                    let offset = (round * 7919 + thread * 104_729) % (1 << 20);
                    let got = file.read_at(&mut buffer, offset).expect("reads succeed");
                    assert!(got > 0);
                    assert!((offset..).zip(&buffer[..got]).all(|(at, &b)| b == byte(at)));
                }
            });
        }
    });
}

#[test]
fn data_and_holes_are_told_apart() {
    let mut fs = MemoryFs::new();
    fs.sparse(ROOT, "sparse");
    let Some(mounted) = mount(fs) else { return };
    let file = File::open(mounted.join("sparse")).expect("it opens");
    let seek = |to| rustix::fs::seek(&file, to);
    assert_eq!(seek(SeekFrom::Data(0)), Ok(SPARSE_DATA.start));
    assert_eq!(
        seek(SeekFrom::Hole(SPARSE_DATA.start + 1)),
        Ok(SPARSE_DATA.end)
    );
    assert_eq!(seek(SeekFrom::Hole(0)), Ok(0));
    assert_eq!(seek(SeekFrom::Data(SPARSE_DATA.end)), Err(Errno::NXIO));
    assert_eq!(seek(SeekFrom::Data(1 << 20)), Err(Errno::NXIO));
    assert_eq!(seek(SeekFrom::Hole(1 << 21)), Err(Errno::NXIO));
}

#[test]
fn statfs_shows_blocks_and_names() {
    let Some(mounted) = mount(MemoryFs::new()) else {
        return;
    };
    let found = rustix::fs::statvfs(mounted.path()).expect("the mount answers");
    assert_eq!(
        (found.f_blocks, found.f_bfree, found.f_bavail),
        (1000, 300, 200)
    );
    assert_eq!(
        (found.f_files, found.f_ffree, found.f_namemax),
        (500, 400, 255)
    );
    assert_eq!((found.f_bsize, found.f_frsize), (4096, 4096));
}

#[test]
fn the_kernel_shows_type_source_and_flags() {
    let Some(mounted) = mount(MemoryFs::new()) else {
        return;
    };
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is there");
    let path = format!(" {} ", mounted.path().display());
    let line = table
        .lines()
        .find(|line| line.contains(&path))
        .expect("it is mounted");
    assert!(line.contains(" fuse.pagefence memory "), "{line}");
    for option in ["nosuid", "nodev", "default_permissions", "allow_other"] {
        assert!(line.contains(option), "{option} in {line}");
    }
}

#[test]
fn unmounting_while_busy_fails_and_lazily_waits_for_the_last_user() {
    let mut fs = MemoryFs::new();
    fs.pattern(ROOT, "file", 1 << 20);
    let Some(mounted) = mount(fs) else { return };
    let file = File::open(mounted.join("file")).expect("it opens");
    let refused = pagefence_fuse_front::unmount(mounted.path(), false);
    assert!(matches!(refused, Err(UnmountError::Busy)), "{refused:?}");
    pagefence_fuse_front::unmount(mounted.path(), true).expect("lazily it works");
    let mut last = [0];
    file.read_at(&mut last, (1 << 20) - 1)
        .expect("who has it open can go on");
    assert_eq!(last[0], byte((1 << 20) - 1));
    let counters = Arc::clone(&mounted.counters);
    assert_eq!(counters.shut_downs.load(Ordering::Relaxed), 0);
    drop(file);
    mounted.finish().expect("the server ends well");
    assert_eq!(counters.shut_downs.load(Ordering::Relaxed), 1);
}

#[test]
fn a_panic_fails_its_request_and_no_other() {
    let mut fs = MemoryFs::new();
    fs.panicking(ROOT, "panic");
    fs.damaged(ROOT, "damaged", 0);
    fs.bytes(ROOT, "well", b"well");
    let options = ServeOptions {
        threads: std::num::NonZeroUsize::new(1),
        ..ServeOptions::default()
    };
    let Some(mounted) = mount_with(fs, &options, |_| {}) else {
        return;
    };
    for _ in 0..3 {
        let error = fs::read(mounted.join("panic")).expect_err("it can't be read");
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
        // The one thread that serves lives on.
        assert_eq!(
            fs::read(mounted.join("well")).expect("the mount lives"),
            b"well"
        );
    }
    // Buffered reads report any failure as EIO (the kernel's page cache knows no other), direct
    // ones report what it was.
    let direct = OFlags::RDONLY | OFlags::DIRECT;
    let file = rustix::fs::open(mounted.join("damaged"), direct, Mode::empty()).expect("it opens");
    let mut buffer = [0; 4096];
    let error = File::from(file)
        .read_at(&mut buffer, 0)
        .expect_err("it is damaged");
    assert_eq!(error.raw_os_error(), Some(Errno::UCLEAN.raw_os_error()));
}

#[test]
fn the_server_tells_who_it_is() {
    let Some(mounted) = mount(MemoryFs::new()) else {
        return;
    };
    assert_eq!(
        ServerId::ask(mounted.path()).expect("the server answers"),
        ServerId::own()
    );
    let mut names = [0; 100];
    assert_eq!(
        rustix::fs::listxattr(mounted.path(), &mut names[..]),
        Ok(0),
        "it is not listed"
    );
}

fn open_directory(path: &Path) -> std::os::fd::OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    rustix::fs::open(path, flags, Mode::empty()).expect("the directory opens")
}

/// Asserts that the kernel can do `action` again without a request of the kind counted. Not each
/// time: it may drop what it keeps whenever it likes, or when someone writes to drop_caches.
fn assert_kept(requests: &AtomicU64, action: impl Fn()) {
    let kept = (0..10).any(|_| {
        action();
        let before = requests.load(Ordering::Relaxed);
        action();
        requests.load(Ordering::Relaxed) == before
    });
    assert!(kept, "the kernel asked again each time");
}

/// The kernel takes an answer that is shorter than its request for the end of the file, and makes zeros of the
/// rest of what it asked for.
#[test]
fn what_cannot_be_read_is_an_error_and_no_end_of_the_file() {
    const SIZE: u64 = 64 << 10;
    const DAMAGED: u64 = 20 << 10;
    let mut fs = MemoryFs::new();
    let file = fs.damaged(ROOT, "file", DAMAGED);
    fs.attr_mut(file).size = SIZE;
    let Some(mounted) = mount(fs) else { return };
    let path = mounted.join("file");
    // Which error it is of the page cache, kernels differ.
    assert!(fs::read(&path).is_err(), "it can't be read to its end");
    let file = File::open(&path).expect("it opens");
    assert_eq!(file.metadata().expect("it is there").len(), SIZE);
    let mut bytes = vec![0; DAMAGED as usize];
    file.read_exact_at(&mut bytes, 0).expect("what is sound");
    assert!((0..).zip(&bytes).all(|(at, found)| byte(at) == *found));
}
