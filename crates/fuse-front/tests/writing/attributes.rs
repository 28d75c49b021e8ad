//! Attributes: mode, owner, times, extended ones, flags.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use pagefence_fuse_front::ServeOptions;
use pagefence_vfs::WriteMode;
use rustix::fs::{
    AtFlags, CWD, Gid, IFlags, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::common::mount_with;
use crate::memory_fs::MemoryFs;
use crate::support::{as_nobody, in_both_modes, ioctl};

#[test]
fn mode_and_owner_are_set() {
    in_both_modes(|mounted, _| {
        let path = mounted.join("file");
        fs::write(&path, b"").expect("a file");
        let id = mounted.counters.named("file").expect("it was made");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o4751)).expect("chmod");
        let stat = || fs::metadata(&path).expect("it is there");
        assert_eq!(stat().mode(), 0o10_4751);
        let (uid, gid) = (Some(Uid::from_raw(12)), Some(Gid::from_raw(0xffff_0001)));
        rustix::fs::chown(&path, uid, gid).expect("chown");
        assert_eq!((stat().uid(), stat().gid()), (12, 0xffff_0001));
        assert_eq!(stat().mode(), 0o10_0751, "chown takes set-uid off");
        rustix::fs::chown(&path, None, Some(Gid::from_raw(7))).expect("chown");
        assert_eq!((stat().uid(), stat().gid()), (12, 7));
        let stored = |node: &mut crate::tree::Node| (node.attr.uid, node.attr.permissions);
        assert_eq!(mounted.counters.with(id, stored), (12, 0o751));
    });
}

#[test]
fn writing_takes_set_uid_off_unless_root_writes() {
    in_both_modes(|mounted, _| {
        let path = mounted.join("file");
        let set = || {
            fs::set_permissions(&path, PermissionsExt::from_mode(0o6777)).expect("chmod");
        };
        let mode = || fs::metadata(&path).expect("it is there").mode() & 0o7777;
        fs::write(&path, b"").expect("a file");
        set();
        let append = |text: &str| {
            let mut options = File::options();
            let mut file = options.append(true).open(&path).expect("it opens");
            std::io::Write::write_all(&mut file, text.as_bytes()).expect("it is written");
        };
        append("by root");
        assert_eq!(mode(), 0o6777);
        let Some((written, _)) = as_nobody(mounted.path(), "echo by nobody >> file") else {
            return;
        };
        assert!(written);
        assert_eq!(mode(), 0o777);
        let modes = mounted.counters.tree.lock().written;
        assert!(modes.contains(WriteMode::USE_RESERVE | WriteMode::KILL_PRIVILEGES));
        set();
        let (cut, _) = as_nobody(mounted.path(), ": > file").expect("as before");
        assert!(cut);
        assert_eq!(mode(), 0o777);
        set();
        let (allocated, _) =
            as_nobody(mounted.path(), "fallocate -l 10000 file").expect("as before");
        assert!(allocated);
        assert_eq!(mode(), 0o777);
        set();
        fs::write(mounted.join("other"), [7; 5000]).expect("a file");
        // Python calls copy_file_range(2) as it is asked to.
        let copy = "python3 -c 'import os; os.copy_file_range(os.open(\"other\", 0), \
                    os.open(\"file\", os.O_WRONLY), 5000)'";
        let (copied, said) = as_nobody(mounted.path(), copy).expect("as before");
        assert!(copied, "{said}");
        assert_eq!(mode(), 0o777);
        set();
        let file = File::options().write(true).open(&path).expect("it opens");
        file.set_len(100).expect("root cuts it off");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 20_000)
            .expect("root allocates");
        assert_eq!(mode(), 0o6777);
    });
}

#[test]
fn times_are_set_before_1970_and_after_2038() {
    in_both_modes(|mounted, _| {
        let path = mounted.join("file");
        fs::write(&path, b"x").expect("a file");
        let stat = || fs::metadata(&path).expect("it is there");
        let set = |access: (i64, i64), modification: (i64, i64)| {
            let spec = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
            let times = Timestamps {
                last_access: spec(access),
                last_modification: spec(modification),
            };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).expect("times are set");
        };
        set((-5, 700_000_000), (1 << 33, 999_999_999));
        assert_eq!((stat().atime(), stat().atime_nsec()), (-5, 700_000_000));
        assert_eq!(
            (stat().mtime(), stat().mtime_nsec()),
            (1 << 33, 999_999_999)
        );
        set((0, UTIME_OMIT), (-1, 1));
        assert_eq!((stat().atime(), stat().atime_nsec()), (-5, 700_000_000));
        assert_eq!((stat().mtime(), stat().mtime_nsec()), (-1, 1));
        let id = mounted.counters.named("file").expect("it was made");
        let stored = mounted.counters.with(id, |node| node.attr.modified);
        assert_eq!((stored.seconds, stored.nanoseconds), (-1, 1));
        set((0, UTIME_NOW), (0, UTIME_NOW));
        assert!(stat().mtime() > 1_600_000_000 && stat().atime() > 1_600_000_000);
        // What the kernel keeps of times comes down with fsync.
        let mut options = File::options();
        let file = options.write(true).open(&path).expect("it opens");
        set((1, 0), (1, 0));
        std::os::unix::fs::FileExt::write_all_at(&file, b"y", 0).expect("it is written");
        file.sync_all().expect("fsync");
        let stored = mounted.counters.with(id, |node| node.attr.modified);
        assert!(stored.seconds > 1_600_000_000);
        assert_eq!(stat().mtime(), stored.seconds);
        assert_eq!(stat().mtime_nsec(), i64::from(stored.nanoseconds));
    });
}

#[test]
fn extended_attributes_are_set_and_removed() {
    in_both_modes(|mounted, _| {
        let path = mounted.join("file");
        fs::write(&path, b"").expect("a file");
        let set = |value: &[u8], flags| rustix::fs::setxattr(&path, "user.name", value, flags);
        let mut buffer = [0; 100];
        let mut get = || {
            rustix::fs::getxattr(&path, "user.name", &mut buffer[..])
                .map(|length| buffer[..length].to_vec())
        };
        assert_eq!(set(b"x", XattrFlags::REPLACE), Err(Errno::NODATA));
        assert_eq!(set(b"one", XattrFlags::CREATE), Ok(()));
        assert_eq!(set(b"two", XattrFlags::CREATE), Err(Errno::EXIST));
        assert_eq!(get(), Ok(b"one".to_vec()));
        assert_eq!(set(b"three", XattrFlags::REPLACE), Ok(()));
        assert_eq!(get(), Ok(b"three".to_vec()));
        assert_eq!(set(b"", XattrFlags::empty()), Ok(()));
        assert_eq!(get(), Ok(Vec::new()));
        assert_eq!(rustix::fs::removexattr(&path, "user.name"), Ok(()));
        assert_eq!(get(), Err(Errno::NODATA));
        let again = rustix::fs::removexattr(&path, "user.name");
        assert_eq!(again, Err(Errno::NODATA));
    });
}

#[test]
fn flags_are_set_by_the_owner_and_obeyed() {
    in_both_modes(|mounted, _| {
        let path = mounted.join("file");
        fs::write(&path, b"").expect("a file");
        let file = File::open(&path).expect("it opens");
        let set = |flags| rustix::fs::ioctl_setflags(&file, flags);
        assert_eq!(set(IFlags::NOATIME), Ok(()));
        assert_eq!(rustix::fs::ioctl_getflags(&file), Ok(IFlags::NOATIME));
        assert_eq!(set(IFlags::IMMUTABLE), Ok(()));
        let open = |append| {
            let mut options = File::options();
            let opened = options.write(true).append(append).open(&path).map(drop);
            opened.map_err(|error| error.raw_os_error())
        };
        let refused = Err(Some(Errno::PERM.raw_os_error()));
        assert_eq!((open(false), open(true)), (refused, refused));
        assert_eq!(set(IFlags::APPEND), Ok(()));
        assert_eq!((open(false), open(true)), (refused, Ok(())));
        assert_eq!(set(IFlags::empty()), Ok(()));
        assert_eq!((open(false), open(true)), (Ok(()), Ok(())));

        let line = "perl -e 'open(F, q(<), q(file)); $f = pack(q(L), 128);
            ioctl(F, 0x40086602, $f) and exit 0; print $! + 0'";
        if let Some((_, printed)) = as_nobody(mounted.path(), line)
            && !printed.is_empty()
        {
            assert_eq!(printed, Errno::PERM.raw_os_error().to_string());
        }
        assert_eq!(rustix::fs::ioctl_getflags(&file), Ok(IFlags::empty()));

        let mut fsxattr = vec![0; 28];
        fsxattr[12] = 77;
        let Some(answer) = ioctl(&path, 0x401c_5820, &fsxattr) else {
            return;
        };
        answer.expect("the project is set");
        let answer = ioctl(&path, 0x801c_581f, &[0; 28]).expect("as before");
        assert_eq!(answer.expect("it is told")[12], 77);
        let numbers = |numbers: [u64; 3]| numbers.map(u64::to_ne_bytes).concat();
        let trimmed = ioctl(mounted.path(), 0xc018_5879, &numbers([16, u64::MAX, 4]));
        let told = numbers([16, (1 << 20) - 20, 4]);
        assert_eq!(trimmed, Some(Ok(told)));
        let short = ioctl(mounted.path(), 0xc008_5879, &[0; 8]).expect("as before");
        assert_eq!(short, Err(Errno::NOTTY.raw_os_error()));
    });
}

#[test]
fn owners_that_the_mount_shows_are_not_given_away() {
    let options = ServeOptions {
        uid: Some(65_534),
        umask: Some(0o022),
        ..ServeOptions::default()
    };
    let mounted = mount_with(MemoryFs::new(), &options, |request| {
        request.default_permissions = false;
    });
    let Some(mounted) = mounted else { return };
    let path = mounted.join("file");
    fs::write(&path, b"").expect("a file");
    let id = mounted.counters.named("file").expect("it was made");
    let owner = || {
        mounted
            .counters
            .with(id, |node| (node.attr.uid, node.attr.gid))
    };
    let uid = |number| Some(Uid::from_raw(number));
    assert_eq!(rustix::fs::chown(&path, uid(65_534), None), Ok(()));
    assert_eq!(owner(), (0, 0), "it was shown so before");
    assert_eq!(rustix::fs::chown(&path, uid(5), None), Ok(()));
    assert_eq!(owner(), (5, 0), "root may");
    assert_eq!(fs::metadata(&path).expect("it is there").uid(), 65_534);
    let shown = Mode::from_raw_mode(0o755);
    assert_eq!(rustix::fs::chmod(&path, shown), Ok(()));
    assert_eq!(rustix::fs::chmod(&path, Mode::RUSR), Err(Errno::PERM));
    // Not chown(1), which asks for nothing if it sees nothing to do.
    let line = "perl -e 'print chown(65534, -1, q(file)), chown(-1, 0, q(file)),
        chown(1000, -1, q(file)), chown(65534, 3, q(file)), $! + 0'";
    if let Some((_, printed)) = as_nobody(mounted.path(), line)
        && !printed.is_empty()
    {
        assert_eq!(printed, "11001");
    }
    assert_eq!(owner(), (5, 0));
}

#[test]
fn under_fakeroot_everybody_is_root() {
    let options = ServeOptions {
        fakeroot: true,
        ..ServeOptions::default()
    };
    let mounted = mount_with(MemoryFs::new(), &options, |request| {
        request.default_permissions = false;
    });
    let Some(mounted) = mounted else { return };
    let line = ": > theirs && : > file && chown 12:13 file && chmod 4751 file";
    let Some((made, _)) = as_nobody(mounted.path(), line) else {
        return;
    };
    assert!(made);
    let stored = |name: &str| {
        let id = mounted.counters.named(name).expect("it was made");
        let look =
            |node: &mut crate::tree::Node| (node.attr.uid, node.attr.gid, node.attr.permissions);
        mounted.counters.with(id, look)
    };
    assert_eq!(stored("theirs"), (0, 0, 0o644));
    assert_eq!(stored("file"), (12, 13, 0o4751));
    let meta = fs::metadata(mounted.join("file")).expect("it is there");
    assert_eq!((meta.uid(), meta.gid(), meta.mode()), (12, 13, 0o10_4751));
}
