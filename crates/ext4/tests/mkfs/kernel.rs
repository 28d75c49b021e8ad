//! The kernel's judgement, where it may be asked: loop devices need root.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use pagefence_ext4::mkfs::{Kind, MkfsError, Parameters, Target, Tree, format_path};

use crate::contents::varied_tree;
use crate::judges::{MIB, assert_clean, make, parameters, sparse_file};

/// A loop mount that ends with it.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts, or nothing where mounting isn't possible at all.
    fn new(image: &Path, at: PathBuf, kind: &str) -> Option<Self> {
        std::fs::create_dir_all(&at).expect("a mount point");
        if !can_loop() {
            return None;
        }
        for attempt in 1.. {
            let output = Command::new("mount")
                .args(["-t", kind, "-o", "loop,rw"])
                .arg(image)
                .arg(&at)
                .output()
                .expect("mount runs");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                break;
            }
            // Two that look for a free loop device at once may find the same.
            let is_race = text.contains("loop device") && attempt < 10;
            assert!(is_race, "{kind}: {text}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A child that another test is just starting has the files open that this one had.
        let is_done = (0..50).any(|_| {
            let status = Command::new("umount").arg(&self.0).status();
            let is_done = status.is_ok_and(|status| status.success());
            if !is_done {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            is_done
        });
        assert!(
            is_done || std::thread::panicking(),
            "umount {}",
            self.0.display()
        );
    }
}

/// Says so if not.
fn can_loop() -> bool {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    let can = is_root && Path::new("/dev/loop-control").exists();
    if !can {
        eprintln!("skipped: the kernel's part needs root and loop devices");
    }
    can
}

#[test]
fn the_kernel_mounts_reads_and_writes_and_leaves_it_clean() {
    let cases = [
        (Kind::Ext2, "ext2", 1024, ""),
        (Kind::Ext2, "ext2", 4096, ""),
        (Kind::Ext3, "ext3", 1024, ""),
        (Kind::Ext3, "ext3", 2048, ""),
        (Kind::Ext4, "ext4", 1024, ""),
        (Kind::Ext4, "ext4", 2048, "meta_bg"),
        (Kind::Ext4, "ext4", 4096, ""),
        (Kind::Ext4, "ext4", 1024, "uninit_bg,^metadata_csum"),
        (Kind::Ext4, "ext4", 1024, "fast_commit,sparse_super2"),
        (Kind::Ext4, "ext4", 4096, "^has_journal,inline_data"),
        (Kind::Ext4, "ext4", 1024, "^extent,^flex_bg"),
    ];
    for (kind, name, block_size, features) in cases {
        let context = format!("{name}, {block_size}, {features:?}");
        let dir = tempfile::tempdir().expect("a directory");
        let path = sparse_file(dir.path(), 64 * MIB);
        make(
            &path,
            &parameters(kind, block_size, features),
            &varied_tree(),
        )
        .unwrap_or_else(|error| panic!("{context}: {error}"));
        let Some(mounted) = Mounted::new(&path, dir.path().join("mnt"), name) else {
            return;
        };
        check_contents(&mounted.0, 300, &context);
        write(&mounted.0);
        drop(mounted);
        assert_clean(&path, &context);
        let mounted = Mounted::new(&path, dir.path().join("mnt"), name).expect("as before");
        check_contents(&mounted.0, 600, &context);
        drop(mounted);
    }
}

#[test]
fn resize2fs_grows_it_into_its_reserved_descriptors() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = sparse_file(dir.path(), 64 * MIB);
    make(&path, &parameters(Kind::Ext4, 1024, ""), &Tree::new()).expect("it fits");
    let file = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("the image opens");
    file.set_len(512 * MIB).expect("the image grows");
    let output = Command::new("resize2fs")
        .arg(&path)
        .output()
        .expect("resize2fs runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert_clean(&path, "grown");
}

/// A loop device that is detached with it.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(image: &Path) -> Option<Self> {
        if !can_loop() {
            return None;
        }
        let output = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(image)
            .output()
            .expect("losetup runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        let name = String::from_utf8(output.stdout).expect("a path");
        Some(Self(name.trim_end().into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let status = Command::new("losetup").arg("-d").arg(&self.0).status();
        let is_done = status.is_ok_and(|status| status.success());
        assert!(
            is_done || std::thread::panicking(),
            "losetup -d {}",
            self.0.display()
        );
    }
}

#[test]
fn block_devices_are_used_whole_or_in_part_and_not_overwritten_unasked() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    std::fs::write(&image, vec![0xA5; 40 << 20]).expect("40 MiB of rubbish");
    let Some(device) = LoopDevice::new(&image) else {
        return;
    };
    let mut target = Target {
        path: &device.0,
        size_bytes: None,
        overwrite: false,
    };
    let parameters = Parameters::new(Kind::Ext4);
    let made = format_path(&target, &parameters, &varied_tree()).expect("it fits");
    assert_eq!(made.superblock.blocks_count(), 40 << 10);
    assert_clean(&device.0, "the whole device");
    let again = format_path(&target, &parameters, &Tree::new());
    assert!(matches!(again, Err(MkfsError::Holds { .. })));
    target.overwrite = true;
    target.size_bytes = Some(41 << 20);
    let larger = format_path(&target, &parameters, &Tree::new());
    assert!(matches!(larger, Err(MkfsError::DeviceSize { .. })));
    assert_clean(&device.0, "what was refused changed nothing");
    target.size_bytes = Some(20 << 20);
    let made = format_path(&target, &parameters, &varied_tree()).expect("it fits");
    assert_eq!(made.superblock.blocks_count(), 20 << 10);
    assert_clean(&device.0, "a part of the device");
}

/// What `varied_tree` put there; `/many` has so many names by now.
fn check_contents(root: &Path, names: usize, context: &str) {
    let read = |name: &str| {
        std::fs::read(root.join(name)).unwrap_or_else(|error| panic!("{context}: {name}: {error}"))
    };
    assert_eq!(read("short"), b"pagefence\n", "{context}");
    assert!(read("empty").is_empty(), "{context}");
    let large = read("large");
    assert_eq!(large.len(), 3 << 20, "{context}");
    let is_right =
        (large.iter().enumerate()).all(|(at, byte)| *byte == (at / 512 + at % 251) as u8 | 1);
    assert!(is_right, "{context}: the bytes of /large");
    let sparse = read("sparse");
    assert_eq!(sparse.len(), 2 << 20, "{context}");
    for piece in sparse.chunks(16 << 10) {
        let rest = &piece[5..];
        assert!(
            piece.starts_with(b"data\n") && rest.iter().all(|byte| *byte == 0),
            "{context}"
        );
    }
    let blocks = |name: &str| {
        std::fs::metadata(root.join(name))
            .expect("it is there")
            .blocks()
    };
    assert!(
        blocks("sparse") * 512 < 1 << 20,
        "{context}: holes take no space"
    );
    assert_eq!(blocks("zeros"), 0, "{context}");
    let target = std::fs::read_link(root.join("long")).expect("a link");
    assert_eq!(target.as_os_str().len(), 900, "{context}");
    let many = std::fs::read_dir(root.join("many")).expect("a directory");
    assert_eq!(many.count(), names, "{context}");
    let name = "many/a file whose name is rather long, number 299";
    assert_eq!(read(name), format!("/{name}").into_bytes(), "{context}");

    let owned = std::fs::metadata(root.join("owned")).expect("it is there");
    assert_eq!((owned.uid(), owned.gid()), (70_000, 80_000), "{context}");
    assert_eq!(owned.mode() & 0o7777, 0o4750, "{context}");
    assert_eq!(
        (owned.mtime(), owned.mtime_nsec()),
        (1 << 32, 123_456_789),
        "{context}"
    );
    let directory = std::fs::metadata(root.join("a/b/c/d")).expect("it is there");
    assert_eq!(directory.mode() & 0o7777, 0o1777, "{context}");
    let output = Command::new("getfattr")
        .args(["--absolute-names", "-d", "-m", "-", "-e", "hex"])
        .arg(root.join("owned"))
        .output()
        .expect("getfattr of the package attr is needed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in [
        "user.colour=0x677265656e",
        "user.empty",
        "trusted.t=0xffffffffffffff",
    ] {
        assert!(text.contains(line), "{context}: {text}");
    }
}

/// Uses all that a new file system offers: new groups, directories, a file of many blocks.
fn write(root: &Path) {
    for number in 0..200 {
        let directory = root.join(format!("new/{number}"));
        std::fs::create_dir_all(&directory).expect("a directory");
        std::fs::write(directory.join("file"), vec![b'n'; 100 * number]).expect("a file");
    }
    std::fs::write(root.join("new/large"), vec![b'l'; 9 << 20]).expect("a large file");
    symlink("new/large", root.join("link")).expect("a link");
    std::fs::write(root.join("lost+found/found"), b"found").expect("lost+found takes files");
    let many = root.join("many");
    for number in 300..600 {
        std::fs::write(
            many.join(format!("another long name, number {number}")),
            b"x",
        )
        .expect("the directory grows into a tree");
    }
    std::fs::remove_dir_all(root.join("new/7")).expect("a directory goes");
    let file = std::fs::File::open(root.join("new/large")).expect("it is there");
    file.sync_all().expect("it is written");
}
