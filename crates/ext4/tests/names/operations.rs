//! Each operation, and each reason for it to fail.

use pagefence_ext4::mkfs::Kind;
use pagefence_vfs::{FileKind, FileSystem as _, NewKind, RenameMode};

use crate::kit::{self, FLAVOURS, Paths, close, fails, new, open, root};

const MIB: u64 = 1 << 20;

/// One of each kind comes, is seen, is seen again after the next mount, and goes.
#[test]
fn all_kinds_are_made_and_removed() {
    for (kind, block_size, features) in FLAVOURS {
        let device = kit::device(kind, block_size, features, 16 * MIB);
        let fs = open(&device);
        let long = "t".repeat(block_size as usize - 1);
        let dev = (0x123, 0x4_5678);
        let kinds = [
            ("file", NewKind::Regular, FileKind::Regular),
            ("dir", NewKind::Directory, FileKind::Directory),
            ("fast", NewKind::Symlink(b"over there"), FileKind::Symlink),
            (
                "59",
                NewKind::Symlink(&long.as_bytes()[..59]),
                FileKind::Symlink,
            ),
            (
                "60",
                NewKind::Symlink(&long.as_bytes()[..60]),
                FileKind::Symlink,
            ),
            ("slow", NewKind::Symlink(long.as_bytes()), FileKind::Symlink),
            ("fifo", NewKind::Fifo, FileKind::Fifo),
            ("socket", NewKind::Socket, FileKind::Socket),
            (
                "block",
                NewKind::BlockDevice { major: 8, minor: 1 },
                FileKind::BlockDevice,
            ),
            (
                "char",
                NewKind::CharDevice {
                    major: dev.0,
                    minor: dev.1,
                },
                FileKind::CharDevice,
            ),
        ];
        let free = fs.stat_fs().unwrap();
        for (name, new, kind) in kinds {
            let made = fs.make(name, new).unwrap();
            assert_eq!(made.kind, kind, "{name}");
            assert_eq!(fs.look(name).unwrap(), made);
            fails(fs.make(name, new), "Exists");
        }
        assert_eq!(fs.look("").unwrap().links, 4, "root, lost+found, dir");
        let before: Vec<_> = kinds.map(|(name, ..)| fs.look(name).unwrap()).into();
        close(fs, &device);
        let fs = open(&device);
        let after: Vec<_> = kinds.map(|(name, ..)| fs.look(name).unwrap()).into();
        assert_eq!(before, after, "{kind:?} {block_size} {features}");
        let target = |name: &str| fs.read_link(fs.look(name).unwrap().id).unwrap();
        assert_eq!(target("fast"), b"over there");
        assert_eq!(target("59").len(), 59);
        assert_eq!(target("60").len(), 60);
        assert_eq!(target("slow"), long.as_bytes());
        let device_of = |name: &str| {
            let attr = fs.look(name).unwrap();
            (attr.device_major, attr.device_minor)
        };
        assert_eq!((device_of("block"), device_of("char")), ((8, 1), dev));
        for (name, _, kind) in kinds {
            if kind == FileKind::Directory {
                fails(fs.rm(name), "IsDirectory");
                fs.rmd(name).unwrap();
            } else {
                fails(fs.rmd(name), "NotDirectory");
                fs.rm(name).unwrap();
            }
            fails(fs.look(name), "NotFound");
        }
        fs.sync().unwrap();
        let now = fs.stat_fs().unwrap();
        assert_eq!(now.inodes_free, free.inodes_free);
        assert_eq!(now.blocks_free, free.blocks_free);
        close(fs, &device);
    }
}

#[test]
fn errors_come_before_changes() {
    let device = kit::device(Kind::Ext4, 4096, "", 16 * MIB);
    let fs = open(&device);
    let top = fs.root();
    let long = "n".repeat(256);
    fs.mkdir("d").unwrap();
    fs.mkdir("d/sub").unwrap();
    fs.touch("f").unwrap();
    fails(fs.touch(&long), "NameTooLong");
    fs.touch(&long[..255]).unwrap();
    fs.rm(&long[..255]).unwrap();
    for bad in [&b""[..], b"a/b", b"a\0b"] {
        let regular = new(NewKind::Regular, 0o644);
        fails(fs.create(top, bad, &regular, &root()), "InvalidArgument");
        fails(fs.unlink(top, bad), "InvalidArgument");
    }
    fails(fs.touch("f/below"), "NotDirectory");
    fails(fs.touch("d/."), "Exists");
    fails(fs.mkdir("d/.."), "Exists");
    fails(fs.make("l", NewKind::Symlink(b"")), "InvalidArgument");
    let target = "t".repeat(4096);
    fails(
        fs.make("l", NewKind::Symlink(target.as_bytes())),
        "NameTooLong",
    );
    let device_number = NewKind::CharDevice {
        major: 1 << 12,
        minor: 0,
    };
    fails(fs.make("c", device_number), "InvalidArgument");
    fails(fs.unlink(top, b"nothing"), "NotFound");
    fails(fs.rmdir(top, b"d"), "NotEmpty");
    fails(fs.rmdir(top, b"."), "InvalidArgument");
    fails(fs.rmdir(top, b".."), "NotEmpty");
    fails(fs.unlink(top, b"."), "IsDirectory");
    fails(fs.ln("d", "d2"), "NotPermitted");
    fails(fs.ln("f", "d"), "Exists");
    fails(fs.ln("f", "d/."), "Exists");
    fails(fs.mv("f", "d/."), "Busy");
    let both = RenameMode::NO_REPLACE | RenameMode::EXCHANGE;
    fails(fs.mv_as("f", "g", both), "InvalidArgument");
    close(fs, &device);
}

/// A directory that is gone takes nothing in, though somebody still has it.
#[test]
fn removed_directories_stay_empty() {
    let device = kit::device(Kind::Ext4, 1024, "", 16 * MIB);
    let fs = open(&device);
    let gone = fs.mkdir("gone").unwrap().id;
    fs.touch("f").unwrap();
    let open_dir = fs.open_dir(gone).unwrap();
    fs.rmd("gone").unwrap();
    let regular = new(NewKind::Regular, 0o644);
    fails(fs.create(gone, b"x", &regular, &root()), "NotFound");
    fails(
        fs.link(fs.look("f").unwrap().id, gone, b"x", &root()),
        "NotFound",
    );
    fails(fs.unlink(gone, b"x"), "NotFound");
    let rename = fs.rename(fs.root(), b"f", gone, b"x", RenameMode::empty());
    fails(rename, "NotFound");
    assert_eq!(fs.attr(gone).unwrap().links, 0);
    drop(open_dir);
    fs.forget(gone);
    fails(fs.attr(gone), "Stale");
    close(fs, &device);
}

#[test]
fn a_file_system_that_was_opened_read_only_stays_so() {
    let device = kit::device(Kind::Ext4, 4096, "", 16 * MIB);
    let before = device.to_vec();
    let fs = kit::open_as(&device, false);
    fails(fs.touch("f"), "ReadOnly");
    fails(fs.rmdir(fs.root(), b"lost+found"), "ReadOnly");
    fails(fs.mv("lost+found", "found"), "ReadOnly");
    fs.forget(fs.root());
    close(fs, &device);
    assert!(before == device.to_vec(), "not a byte changed");
}

/// Immutable and append-only inodes and directories, as `chattr` leaves them.
#[test]
fn flags_that_forbid_changes() {
    let device = kit::device(Kind::Ext4, 4096, "", 16 * MIB);
    let fs = open(&device);
    for name in ["i", "a", "plain"] {
        fs.mkdir(name).unwrap();
        fs.touch(&format!("{name}/f")).unwrap();
    }
    fs.touch("fi").unwrap();
    fs.touch("fa").unwrap();
    close(fs, &device);
    let (immutable, append) = (0x10, 0x20);
    for (path, flag) in [
        ("i", immutable),
        ("a", append),
        ("fi", immutable),
        ("fa", append),
    ] {
        set_flags(&device, path, flag);
    }
    let fs = open(&device);
    let denied = "NotPermitted";
    fails(fs.touch("i/new"), denied);
    fails(fs.rm("i/f"), denied);
    fails(fs.mv("i/f", "plain/g"), denied);
    fails(fs.mv("plain/f", "i/g"), denied);
    fs.touch("a/new").unwrap();
    fails(fs.rm("a/f"), denied);
    fails(fs.mv("a/f", "plain/g"), denied);
    fails(fs.mv("plain/f", "a/f"), denied);
    fs.mv("plain/f", "a/g").unwrap();
    for file in ["fi", "fa"] {
        fails(fs.rm(file), denied);
        fails(fs.ln(file, "other"), denied);
        fails(fs.mv(file, "other"), denied);
        fails(fs.mv("a/new", file), denied);
    }
    close(fs, &device);
}

/// Sets flags of an inode by debugfs.
fn set_flags(device: &std::sync::Arc<pagefence_block_io::MemoryDevice>, path: &str, flags: u32) {
    use pagefence_block_io::Device as _;
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), device.to_vec()).unwrap();
    let stat = |request: &str| {
        let output = std::process::Command::new("debugfs")
            .args(["-w", "-R", request])
            .arg(image.path())
            .output()
            .expect("debugfs (e2fsprogs) runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = stat(&format!("stat /{path}"));
    let before = said.split("Flags: 0x").nth(1).unwrap();
    let before = u32::from_str_radix(before.split_whitespace().next().unwrap(), 16).unwrap();
    stat(&format!(
        "set_inode_field /{path} flags 0x{:x}",
        before | flags
    ));
    device
        .write(0, &std::fs::read(image.path()).unwrap())
        .unwrap();
}

/// An inode that has all the names it can have.
#[test]
fn links_are_counted_and_bounded() {
    let device = kit::device(Kind::Ext4, 4096, "", 64 * MIB);
    let fs = open(&device);
    let id = fs.touch("f").unwrap().id;
    fs.mkdir("d").unwrap();
    let dir = fs.look("d").unwrap().id;
    for number in 1..65_000 {
        fs.link(id, dir, format!("{number}").as_bytes(), &root())
            .unwrap();
    }
    assert_eq!(fs.look("f").unwrap().links, 65_000);
    fails(fs.ln("f", "one too many"), "TooManyLinks");
    fs.rm("d/777").unwrap();
    fs.ln("f", "room again").unwrap();
    close(fs, &device);
}

#[test]
fn times_and_versions_of_what_changes() {
    let device = kit::device(Kind::Ext4, 4096, "", 16 * MIB);
    let fs = open(&device);
    fs.mkdir("d").unwrap();
    // The clock goes by ticks.
    let tick = || std::thread::sleep(std::time::Duration::from_millis(20));
    let before = fs.look("d").unwrap();
    tick();
    let file = fs.touch("d/f").unwrap();
    assert_eq!(file.created, Some(file.modified));
    let after = fs.look("d").unwrap();
    assert!(after.modified > before.modified && after.changed == after.modified);
    assert_eq!(after.accessed, before.accessed);
    tick();
    let linked = fs.ln("d/f", "g").unwrap();
    assert!(linked.changed > file.changed && linked.modified == file.modified);
    tick();
    fs.mv("g", "h").unwrap();
    let renamed = fs.look("h").unwrap();
    assert!(renamed.changed > linked.changed && renamed.modified == file.modified);
    tick();
    fs.rm("h").unwrap();
    assert!(fs.look("d/f").unwrap().changed > renamed.changed);
    close(fs, &device);
}

/// A number that is used again tells that it is another inode.
#[test]
fn generations_differ_between_lives_of_a_number() {
    let device = kit::device(Kind::Ext4, 4096, "", 16 * MIB);
    let fs = open(&device);
    let first = fs.touch("f").unwrap();
    fs.rm("f").unwrap();
    fs.sync().unwrap();
    let again = (0..fs.stat_fs().unwrap().inodes)
        .map(|at| fs.touch(&format!("g{at}")).unwrap())
        .find(|attr| attr.id == first.id);
    let again = again.expect("a number that is free after a commit is used again");
    assert_ne!(again.generation, first.generation);
    close(fs, &device);
}
