//! Attributes, extended attributes, times and statfs, beside what the kernel says.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use pagefence_ext4::FileSystem;
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_vfs::{Attr, Error, FileSystem as _};

use crate::common::edit::Kind;
use crate::common::kernel::{KernelMount, run};
use crate::common::{Image, Recipe, at, id, open};
use crate::exploits::{inode_of, put32};

/// The image as it lies in the file now.
fn reopened(image: &Path) -> FileSystem {
    let bytes = std::fs::read(image).expect("the image");
    open(Image::from_bytes(&bytes).device()).expect("it opens")
}

/// What of an inode the kernel and we must agree on.
type Stat = (u64, u64, u32, u32, u32, u64, u64, [i64; 6]);

fn of_kernel(path: &Path) -> Stat {
    let stat = std::fs::symlink_metadata(path).expect("a file");
    let times = [
        stat.atime(),
        stat.atime_nsec(),
        stat.mtime(),
        stat.mtime_nsec(),
        stat.ctime(),
        stat.ctime_nsec(),
    ];
    let kind_and_mode = stat.mode();
    (
        stat.ino(),
        stat.nlink(),
        kind_and_mode & 0o7777,
        stat.uid(),
        stat.gid(),
        stat.size(),
        stat.blocks(),
        times,
    )
}

fn of_ours(attr: &Attr) -> Stat {
    let time = |time: pagefence_vfs::Timestamp| [time.seconds, i64::from(time.nanoseconds)];
    let [a, m, c] = [attr.accessed, attr.modified, attr.changed].map(time);
    (
        attr.id.0,
        u64::from(attr.links),
        u32::from(attr.permissions),
        attr.uid,
        attr.gid,
        attr.size,
        attr.blocks_512,
        [a[0], a[1], m[0], m[1], c[0], c[1]],
    )
}

#[test]
fn attributes_and_times_are_the_kernels() {
    for arguments in [
        "-t ext4 -b 1024",
        "-t ext4 -b 4096 -O inline_data",
        "-t ext3 -b 1024 -I 128",
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        Recipe::new(32, arguments).make_at(&image);
        let Some(mount) = KernelMount::new(&image, "noatime") else {
            return;
        };
        let name = |name: &str| mount.path(name).display().to_string();
        std::fs::write(mount.path("file"), vec![1; 5000]).expect("a file");
        std::fs::write(mount.path("tiny"), "tiny").expect("a file");
        std::fs::create_dir_all(mount.path("d/e/f")).expect("directories");
        run("ln", &["-s", "a/target", &name("link")]);
        run("ln", &[&name("file"), &name("d/hard")]);
        run("mkfifo", &[&name("fifo")]);
        run("chown", &["70000:80000", &name("file")]);
        run("chmod", &["4751", &name("file")]);
        let old = if arguments.contains("128") {
            "1901-12-14"
        } else {
            "2400-02-29"
        };
        run(
            "touch",
            &[
                "-m",
                "-d",
                &format!("{old} 12:34:56.789012345 UTC"),
                &name("file"),
            ],
        );
        run("touch", &["-d", "1930-01-01 00:00:00.5 UTC", &name("tiny")]);
        let paths = [
            "",
            "file",
            "tiny",
            "d",
            "d/e/f",
            "link",
            "fifo",
            "d/hard",
            "lost+found",
        ];
        run("sync", &["-f", &name("")]);
        let mut kernel = BTreeMap::new();
        for path in paths {
            kernel.insert(path, of_kernel(&mount.path(path)));
        }
        drop(mount);
        let fs = reopened(&image);
        for path in paths {
            let attr = at(&fs, path).expect(path);
            assert_eq!(of_ours(&attr), kernel[path], "{arguments}: {path:?}");
            assert_eq!(attr.created.is_some(), !arguments.contains("128"));
        }
    }
}

#[test]
fn statfs_is_the_kernels() {
    for arguments in [
        "-t ext2 -b 1024",
        "-t ext3 -b 1024 -m 10",
        "-t ext4 -b 1024",
        "-t ext4 -b 4096 -m 0",
        "-t ext4 -b 1024 -O meta_bg,^resize_inode",
        "-t ext4 -b 4096 -O ^has_journal,sparse_super2 -m 1",
        "-t ext4 -b 1024 -O bigalloc -C 16384",
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        Recipe::new(40, arguments)
            .file("f", vec![3; 300_000])
            .make_at(&image);
        let stat = reopened(&image).stat_fs().expect("it counts");
        let Some(mount) = KernelMount::new(&image, "ro") else {
            return;
        };
        let root = mount.path("").display().to_string();
        let said = run("stat", &["-f", "-c", "%S %b %f %a %c %d %l", &root]);
        let ours = format!(
            "{} {} {} {} {} {} {}\n",
            stat.block_size,
            stat.blocks,
            stat.blocks_free,
            stat.blocks_available,
            stat.inodes,
            stat.inodes_free,
            stat.name_length
        );
        assert_eq!(ours, said, "{arguments}");
    }
}

#[test]
fn attributes_of_every_place_and_length() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    Recipe::new(32, "-t ext4 -b 1024 -O ea_inode").make_at(&image);
    let Some(mount) = KernelMount::new(&image, "acl,user_xattr") else {
        return;
    };
    std::fs::write(mount.path("f"), "x").expect("a file");
    std::fs::write(mount.path("g"), "x").expect("a file");
    let file = mount.path("f").display().to_string();
    let lengths = [0usize, 1, 3, 60, 700, 1500, 20_000];
    for length in lengths {
        let value = format!("0x{}", "61".repeat(length));
        let name = format!("user.of-{length}");
        run(
            "setfattr",
            &[
                "-n",
                &name,
                "-v",
                if length == 0 { "" } else { &value },
                &file,
            ],
        );
    }
    run("setfattr", &["-n", "trusted.t", "-v", "t", &file]);
    run("setfattr", &["-n", "security.s", "-v", "s", &file]);
    run("setfacl", &["-m", "u:1001:rw-,g:2002:r--", &file]);
    drop(mount);
    let fs = reopened(&image);
    let inode = id(&fs, "f");
    for length in lengths {
        let value = fs
            .xattr(inode, format!("user.of-{length}").as_bytes())
            .expect("a value");
        assert_eq!(value, vec![b'a'; length]);
    }
    assert_eq!(fs.xattr(inode, b"trusted.t").expect("a value"), b"t");
    assert_eq!(fs.xattr(inode, b"security.s").expect("a value"), b"s");
    let acl = fs.xattr(inode, b"system.posix_acl_access").expect("a list");
    // Version 2, then six entries of 8 bytes: owner, a user, group, a group, mask, others.
    assert_eq!((acl.len(), &acl[..4]), (4 + 6 * 8, &[2, 0, 0, 0][..]));
    let names = fs.xattr_names(inode).expect("names");
    assert_eq!(names.len(), lengths.len() + 3);
    assert!(matches!(
        fs.xattr(inode, b"user.nothing"),
        Err(Error::NoAttribute)
    ));
    assert!(matches!(
        fs.xattr(inode, b"user."),
        Err(Error::NoAttribute | Error::Unsupported(_))
    ));
    assert!(matches!(
        fs.xattr(inode, b"none.of"),
        Err(Error::Unsupported(_))
    ));
    assert!(matches!(fs.xattr(inode, b""), Err(Error::Unsupported(_))));
    let other = id(&fs, "g");
    assert!(matches!(
        fs.xattr(other, b"system.posix_acl_access"),
        Err(Error::NoAttribute)
    ));
}

#[test]
fn flags_and_projects_are_read() {
    let image = Recipe::new(8, "-t ext4 -b 1024 -I 256 -O ^has_journal,project,quota")
        .file("f", "x")
        .make();
    let number = inode_of(&image, "f");
    image.set_inode(number, |inode| {
        inode.set_flags(
            inode.flags() | InodeFlags::IMMUTABLE | InodeFlags::NODUMP | InodeFlags::DAX,
        );
        assert!(inode.set_project(4711));
    });
    let fs = open(image.device()).expect("it opens");
    let fsxattr = fs.fsxattr(id(&fs, "f")).expect("attributes");
    assert_eq!(
        (fsxattr.xflags, fsxattr.project),
        (0x8 | 0x80 | 0x8000, 4711)
    );
    let flags = at(&fs, "f").expect("it is there").flags;
    assert_eq!(flags & 0x50, 0x50);
}

/// The format has room for values that no interface carries.
#[test]
fn a_value_of_more_than_64_kib_is_not_handed_out() {
    let image = Recipe::new(8, "-t ext4 -b 1024 -O ^has_journal,ea_inode")
        .file("f", "x")
        .file("value", vec![b'v'; 100_000])
        .run(format!("ea_set f user.big {}", "v".repeat(700)))
        .run("ea_set f user.small small")
        .make();
    let (owner, value) = (inode_of(&image, "f"), inode_of(&image, "value"));
    image.set_inode(value, |inode| {
        inode.set_flags(inode.flags() | InodeFlags::EA_INODE);
    });
    let block = image.inode(owner).file_acl().expect("a block");
    image.edit_block(owner, block, Kind::Xattrs, |block| {
        put32(block, 32 + 4, value.0);
        put32(block, 32 + 8, 100_000);
    });
    let fs = open(image.device()).expect("it opens");
    let inode = id(&fs, "f");
    assert_eq!(fs.xattr_names(inode).expect("names").len(), 2);
    let big = fs.xattr(inode, b"user.big");
    assert!(matches!(big, Err(Error::Unsupported(_))), "{big:?}");
    assert_eq!(fs.xattr(inode, b"user.small").expect("a value"), b"small");
}
