//! Opening: what can't be opened is told in one clear sentence.

use std::path::Path;

use pagefence_ext4::{FileSystem, MountError, MountOptions};
use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::features::Incompat;
use pagefence_vfs::FileSystem as _;

use crate::common::kernel::run;
use crate::common::{Recipe, contents, open};

fn options() -> MountOptions {
    MountOptions {
        cache: Some(0),
        ..MountOptions::default()
    }
}

/// The sentence of an image that does not open.
fn refusal(path: &Path, options: &MountOptions) -> String {
    match FileSystem::open_image(path, options) {
        Ok(_) => panic!("{} opens", path.display()),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
            text
        }
    }
}

fn image_in(dir: &Path, arguments: &str) -> std::path::PathBuf {
    let path = dir.join("image");
    Recipe::new(32, arguments).file("f", "data").make_at(&path);
    path
}

/// Opens an image that this process has just written: a program that another test starts at that
/// moment has it open for writing, too, until it is really started.
fn open_patiently(path: &std::path::Path, options: &MountOptions) -> FileSystem {
    let mut tries = 0;
    loop {
        match FileSystem::open_image(path, options) {
            Err(MountError::InUse { .. }) if tries < 500 => tries += 1,
            opened => return opened.expect("it opens"),
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn at_an_offset() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image_in(dir.path(), "-t ext4 -b 1024 -O ^has_journal");
    let bytes = std::fs::read(&path).expect("the image");
    let disk = dir.path().join("disk");
    for offset in [512u64, 1 << 20, 4097] {
        let mut all = vec![0xAA; usize::try_from(offset).expect("small")];
        all.extend(&bytes);
        std::fs::write(&disk, all).expect("a disk");
        let at = MountOptions {
            offset,
            ..options()
        };
        let fs = open_patiently(&disk, &at);
        assert_eq!(contents(&fs, "f"), b"data");
        drop(fs);
        let text = refusal(&disk, &options());
        assert!(
            text.contains("offset=") && text.contains("no ext2, ext3 or ext4"),
            "{text}"
        );
    }
    let at = MountOptions {
        offset: 1 << 40,
        ..options()
    };
    assert!(refusal(&disk, &at).contains("past its end"));
    let at = MountOptions {
        offset: u64::MAX,
        ..options()
    };
    refusal(&disk, &at);
}

#[test]
fn by_a_backup_superblock_with_its_descriptors() {
    for (arguments, backup, lost) in [
        ("-t ext4 -b 1024 -O ^has_journal", 8193, 200 << 10),
        (
            "-t ext4 -b 4096 -g 2048 -O ^has_journal",
            2048 * 4,
            16 << 10,
        ),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = image_in(dir.path(), arguments);
        let by_backup = MountOptions {
            superblock: Some(backup),
            ..options()
        };
        let fs = FileSystem::open_image(&path, &by_backup).expect("a sound one opens");
        assert_eq!(contents(&fs, "f"), b"data");
        drop(fs);
        // Superblock and descriptors are gone; bitmaps and inodes lie behind them.
        let image = crate::common::Image::from_bytes(&std::fs::read(&path).expect("it"));
        let first = image.superblock.first_data_block();
        let end = image
            .superblock
            .reserved_descriptor_blocks(pagefence_ext4_format::GroupNo(0))
            .start;
        let size = u64::from(image.superblock.block_size());
        assert!((end.0 - first.0) * size <= lost);
        let mut bytes = std::fs::read(&path).expect("the image");
        bytes[..usize::try_from(end.0 * size).expect("small")].fill(0);
        std::fs::write(&path, bytes).expect("the image");
        let text = refusal(&path, &options());
        // It is looked for where groups of the usual size begin.
        let usual = backup == 8193;
        assert_eq!(text.contains(&format!("sb={backup}")), usual, "{text}");
        let fs = FileSystem::open_image(&path, &by_backup).expect("the backup opens");
        assert_eq!(contents(&fs, "f"), b"data");
        fs.stat_fs().expect("it counts");
        drop(fs);
        let nowhere = MountOptions {
            superblock: Some(77),
            ..options()
        };
        refusal(&path, &nowhere);
        let far = MountOptions {
            superblock: Some(u64::MAX),
            ..options()
        };
        refusal(&path, &far);
    }
}

#[test]
fn what_can_not_be_opened() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image_in(dir.path(), "-t ext4 -b 4096");
    let bytes = std::fs::read(&path).expect("the image");
    let other = dir.path().join("other");
    assert!(refusal(&other, &options()).contains("no such image"));
    assert!(refusal(dir.path(), &options()).contains("directory"));
    let text = refusal(Path::new("/dev/null"), &options());
    assert!(text.contains("neither a file nor a block"), "{text}");
    let pipe = dir.path().join("pipe");
    run("mkfifo", &[&pipe.display().to_string()]);
    assert!(refusal(&pipe, &options()).contains("neither a file nor a block"));
    std::fs::write(&other, &bytes[..bytes.len() / 2]).expect("half of it");
    assert!(refusal(&other, &options()).contains("cut off"));
    std::fs::write(&other, "no file system at all".repeat(1000)).expect("text");
    assert!(refusal(&other, &options()).contains("no ext2, ext3 or ext4"));
    let mut damaged = bytes.clone();
    damaged[1024 + 30] ^= 1;
    std::fs::write(&other, &damaged).expect("a damaged one");
    assert!(refusal(&other, &options()).contains("superblock is damaged"));
    let huge = MountOptions {
        cache: Some(u64::MAX),
        ..options()
    };
    assert!(refusal(&path, &huge).contains("cache="));
}

#[test]
fn features_that_are_not_served_are_named() {
    let image = Recipe::new(8, "-t ext4 -b 1024 -O ^has_journal").make();
    for (bits, name) in [
        (Incompat::COMPRESSION, "compression"),
        (Incompat::DIRDATA, "dirdata"),
        (Incompat::from_bits_retain(0x4000_0000), "feature_i30"),
    ] {
        let image = image.fork();
        image.edit_superblock(|superblock| {
            let at = 96;
            let old = u32::from_le_bytes(superblock[at..at + 4].try_into().expect("4 bytes"));
            superblock[at..at + 4].copy_from_slice(&(old | bits.bits()).to_le_bytes());
        });
        match open(image.device()) {
            Err(error @ MountError::Unsupported(_)) => {
                assert!(error.to_string().to_lowercase().contains(name), "{error}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    // An unknown read-only-compatible one is no hindrance to reading.
    let image = image.fork();
    image.edit_superblock(|superblock| superblock[100 + 3] |= 0x40);
    open(image.device()).expect("it opens");
    let write = MountOptions {
        write: true,
        ..options()
    };
    let fs = FileSystem::open(image.device(), &write).expect("it opens");
    assert!(
        fs.notes().iter().any(|note| note.contains("read-only")),
        "{:?}",
        fs.notes()
    );
    let image = Recipe::new(8, "-O journal_dev -b 1024").make_bytes();
    let device = pagefence_block_io::MemoryDevice::from_bytes(&image);
    let opened = open(pagefence_lock_order::primitives::Arc::new(device));
    assert!(
        matches!(opened, Err(MountError::JournalDevice)),
        "{opened:?}"
    );
}

/// Nobody asks the block of mmp, since nothing is written: whether it says that the file system is
/// free, that another host or e2fsck has it, or nonsense, it is as it was.
#[test]
fn with_mmp_nothing_is_written_whoever_has_it() {
    let image = Recipe::new(8, "-t ext4 -b 1024 -O mmp").make();
    let mut place = [0; 8];
    image.edit_superblock(|superblock| {
        place.copy_from_slice(&superblock[0x168..0x170]);
        // Who may write it would recover it.
        superblock[96] |= 4;
    });
    let block = BlockNo(u64::from_le_bytes(place));
    let sound = image.read_block(block);
    assert_eq!(sound[..4], 0x004D_4D50_u32.to_le_bytes());
    let write = MountOptions {
        write: true,
        ..options()
    };
    let sequence = |sequence: u32| {
        let mut bytes = sound.clone();
        bytes[4..8].copy_from_slice(&sequence.to_le_bytes());
        bytes
    };
    let (clean, fsck) = (0xFF4D_4D50, 0xE24D_4D50);
    for bytes in [
        sound.clone(),
        sequence(clean),
        sequence(fsck),
        sequence(1),
        vec![0xFF; 1024],
    ] {
        image.write_block(block, &bytes);
        let before = image.device().to_vec();
        let fs = FileSystem::open(image.device(), &write).expect("it opens");
        let because = "opened read-only, because writing with mmp is not supported";
        assert_eq!(fs.notes(), [because]);
        assert!(fs.read_only_because().is_some());
        drop(fs);
        assert!(image.device().to_vec() == before, "not a byte changed");
    }
}

#[test]
fn an_image_that_others_write_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image_in(dir.path(), "-t ext4 -b 1024 -O ^has_journal");
    let reader = std::fs::File::open(&path).expect("it opens");
    drop(FileSystem::open_image(&path, &options()).expect("a reader disturbs nobody"));
    drop(reader);
    // By another process: this one's own files are no danger to it.
    let mut child = std::process::Command::new("sh")
        .args(["-c", "exec 3<>\"$1\"; echo open; read line", "sh"])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut byte = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut byte).expect("open");
    let text = refusal(&path, &options());
    assert!(
        text.contains("open for writing") && text.contains("close it"),
        "{text}"
    );
    drop(child.stdin.take());
    child.wait().expect("it ends");
    let first = FileSystem::open_image(&path, &options()).expect("two readers");
    drop(FileSystem::open_image(&path, &options()).expect("two readers"));
    let write = MountOptions {
        write: true,
        ..options()
    };
    assert!(refusal(&path, &write).contains("locked"));
    drop(first);
}

#[test]
fn an_image_on_a_loop_device_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = image_in(dir.path(), "-t ext4 -b 1024 -O ^has_journal");
    let output = std::process::Command::new("losetup")
        .args(["--find", "--show"])
        .arg(&path)
        .output()
        .expect("losetup (util-linux) runs");
    if !output.status.success() {
        eprintln!("skipped, for there is no loop device");
        return;
    }
    let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let text = refusal(&path, &options());
    run("losetup", &["-d", &device]);
    assert!(text.contains("loop") && text.contains("detach"), "{text}");
    let Some(mount) = crate::common::kernel::KernelMount::new(&path, "rw") else {
        return;
    };
    let text = refusal(&path, &options());
    let place = mount.path("").display().to_string();
    drop(mount);
    assert!(
        text.contains(place.trim_end_matches('/')) && text.contains("unmount"),
        "{text}"
    );
    FileSystem::open_image(&path, &options()).expect("now it is free");
}

#[test]
fn a_file_that_may_not_be_written_opens_for_reading() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let path = image_in(dir.path(), "-t ext4 -b 1024 -O ^has_journal");
    let mode = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, permissions).expect("it is ours");
    };
    mode(0o444);
    let fs = FileSystem::open_image(&path, &options()).expect("it opens");
    assert_eq!(contents(&fs, "f"), b"data");
    drop(fs);
    let write = MountOptions {
        write: true,
        ..options()
    };
    match FileSystem::open_image(&path, &write) {
        Err(error) => assert!(error.to_string().contains("mount it ro"), "{error}"),
        Ok(_) => eprintln!("skipped in part: this user may write whatever the mode says"),
    }
}
