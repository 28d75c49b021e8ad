//! Files: positions, sizes, holes, directories.

use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::process::Command;
use std::sync::Arc;

use pagefence::device::{MemoryDevice, Operation};
use pagefence::{Attributes, ExtentState, Kind, Mkfs, Options, Volume};

use pagefence_block_io::fault_device::{Fault, FaultDevice, Times};

use crate::volume;

#[test]
fn read_and_seek_keep_a_position_of_their_own() {
    let bytes: Vec<u8> = (0..3_000_000u32).map(|at| (at / 3) as u8).collect();
    let volume = volume(
        Mkfs::new(Kind::Ext4)
            .file("/f", bytes.clone())
            .file("/empty", ""),
    );
    assert!(volume.read("/f").expect("it reads") == bytes);
    assert_eq!(volume.read("/empty").expect("it reads"), b"");
    let mut file = volume.open_file("/f").expect("it opens");
    let mut piece = [0; 1000];
    file.seek(SeekFrom::Start(1_000_000)).expect("a position");
    file.read_exact(&mut piece).expect("it reads");
    assert_eq!(piece[..], bytes[1_000_000..1_001_000]);
    assert_eq!(file.read_at(5, &mut piece).expect("it reads"), 1000);
    assert_eq!(file.stream_position().expect("a position"), 1_001_000);
    assert_eq!(file.seek(SeekFrom::End(-1)).expect("a position"), 2_999_999);
    assert_eq!(file.read(&mut piece).expect("it reads"), 1);
    assert_eq!(file.read(&mut piece).expect("the end"), 0);
    assert_eq!(
        file.seek(SeekFrom::Current(100)).expect("past the end"),
        3_000_100
    );
    assert_eq!(file.read(&mut piece).expect("the end"), 0);
    let before = file
        .seek(SeekFrom::Current(-4_000_000))
        .expect_err("before the start");
    assert_eq!(before.kind(), ErrorKind::InvalidInput);
    assert_eq!(
        file.read_at(u64::MAX, &mut piece)
            .expect("far past the end"),
        0
    );
    assert!(file.read_all().expect("it reads") == bytes);
}

#[test]
fn holes_and_extents() {
    let mut bytes = vec![0; 1 << 20];
    bytes[..3].copy_from_slice(b"abc");
    bytes[700_000] = b'x';
    let with_holes = Attributes::new().holes(true);
    let volume = volume(Mkfs::new(Kind::Ext4).file_with("/sparse", bytes.clone(), with_holes));
    let file = volume.open_file("/sparse").expect("it opens");
    assert!(file.read_all().expect("it reads") == bytes);
    let block = 700_000 / 1024 * 1024;
    assert_eq!(file.seek_hole(0).expect("a hole"), Some(1024));
    assert_eq!(file.seek_data(1024).expect("data"), Some(block));
    assert_eq!(file.seek_data(block + 1024).expect("none"), None);
    assert_eq!(file.seek_hole(1 << 20).expect("past the end"), None);
    let extents: Vec<_> = file
        .extents()
        .map(|extent| extent.expect("sound"))
        .collect();
    let places: Vec<_> = extents
        .iter()
        .map(|extent| (extent.logical, extent.length))
        .collect();
    assert_eq!(places, [(0, 1024), (block, 1024)]);
    assert!(
        extents
            .iter()
            .all(|extent| extent.state == ExtentState::Written)
    );
    assert_eq!(volume.metadata("/sparse").expect("it").blocks(), 4);
}

/// More extents than are asked for at a time.
#[test]
fn many_extents() {
    let mut bytes = vec![0; 700 * 2048];
    for piece in bytes.chunks_mut(2048) {
        piece[0] = 1;
    }
    let with_holes = Attributes::new().holes(true);
    let volume = volume(Mkfs::new(Kind::Ext2).file_with("/f", bytes.clone(), with_holes));
    let file = volume.open_file("/f").expect("it opens");
    let starts: Vec<_> = file
        .extents()
        .map(|extent| extent.expect("sound").logical)
        .collect();
    assert_eq!(
        starts,
        (0..700).map(|number| number * 2048).collect::<Vec<_>>()
    );
    assert!(file.read_all().expect("it reads") == bytes);
}

/// A size that no memory can hold is an error before any is used.
#[test]
fn a_size_beyond_all_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    Mkfs::new(Kind::Ext4)
        .size(8 << 20)
        .file("/f", "start")
        .format(&path)
        .expect("it is made");
    let status = Command::new("debugfs")
        .args(["-w", "-R", "set_inode_field f size 9223372036854775807"])
        .arg(&path)
        .output()
        .expect("debugfs (e2fsprogs) runs");
    assert!(status.status.success());
    let volume = Volume::open(&path, Options::new().cache(0)).expect("it opens");
    let file = volume.open_file("/f").expect("it opens");
    assert_eq!(file.metadata().expect("it").len(), i64::MAX as u64);
    let error = file.read_all().expect_err("2^63 bytes");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    let mut buffer = [1; 64];
    assert_eq!(file.read_at(0, &mut buffer).expect("it reads"), 64);
    assert!(buffer.starts_with(b"start\0"));
    assert_eq!(file.read_at(1 << 62, &mut buffer).expect("a hole"), 64);
    assert_eq!(buffer, [0; 64]);
}

#[test]
fn entries_of_a_directory() {
    let mut mkfs = Mkfs::new(Kind::Ext4).symlink("/d/link", "nowhere");
    for number in 0..900 {
        mkfs = mkfs.file(format!("/d/{number}"), format!("{number}"));
    }
    let volume = volume(mkfs);
    let entries: Vec<_> = volume
        .read_dir("/d")
        .expect("it opens")
        .map(|entry| entry.expect("a sound directory"))
        .collect();
    assert_eq!(entries.len(), 901);
    for entry in &entries {
        assert_eq!(
            entry.path(),
            std::path::Path::new("/d").join(entry.file_name())
        );
        let metadata = entry.metadata().expect("it");
        assert_eq!(metadata.ino(), entry.ino());
        assert_eq!(metadata.file_type(), entry.file_type().expect("it"));
        assert_eq!(metadata.is_symlink(), entry.file_name() == "link");
    }
    assert_eq!(volume.read_dir("/lost+found").expect("it opens").count(), 0);
}

/// Space of a file that is removed while it is open is free once it is closed.
#[test]
fn a_file_that_is_closed_last_gives_its_space_back() {
    let device = pagefence::device::MemoryDevice::new(16 << 20);
    let mkfs = pagefence::Mkfs::new(pagefence::Kind::Ext4).file("/large", vec![7; 1 << 20]);
    mkfs.format_device(&device).expect("it is made");
    let options = pagefence::Options::new().write(true);
    let volume = pagefence::Volume::open_device(std::sync::Arc::new(device), options);
    let volume = volume.expect("it opens");
    let before = volume.usage().expect("a number");
    let files = [(); 2].map(|()| volume.open_file("/large").expect("it opens"));
    volume.remove_file("/large").expect("it is removed");
    let [first, last] = files;
    drop(first);
    let mut start = [0; 4];
    assert_eq!(last.read_at(0, &mut start).expect("it is there"), 4);
    assert_eq!(start, [7; 4]);
    drop(last);
    volume.sync().expect("durable");
    let after = volume.usage().expect("a number");
    assert_eq!(after.inodes_free, before.inodes_free + 1);
    assert!(after.free >= before.free + (1 << 20));
}

/// A read that fails half way gives what it has, and the error when it is asked again.
#[test]
fn a_file_that_can_not_be_read_to_its_end_is_an_error_and_not_a_shorter_one() {
    let bytes: Vec<u8> = (0..200_000u32).map(|at| (at / 3) as u8).collect();
    let memory = MemoryDevice::new(8 << 20);
    let mkfs = Mkfs::new(Kind::Ext4).file("/f", bytes.clone());
    mkfs.format_device(&memory).expect("it is made");
    let device = Arc::new(FaultDevice::new(&memory, 1));
    let options = Options::new().cache(0).read_ahead(false);
    let volume = Volume::open_device(Arc::clone(&device) as _, options).expect("it opens");
    let file = volume.open_file("/f").expect("it opens");
    let mut start = [0; 5000];
    assert_eq!(file.read_at(0, &mut start).expect("it reads"), start.len());
    // What was read is in memory; nothing else can be had.
    device.fail(Fault {
        operation: Operation::Read,
        call: device.calls(Operation::Read),
        times: Times::Forever,
        errno: 5,
    });
    let mut all = vec![0; bytes.len()];
    let read = file.read_at(0, &mut all).expect("some of it");
    assert!((start.len()..bytes.len()).contains(&read));
    assert_eq!(all[..read], bytes[..read]);
    for error in [
        file.read_all().expect_err("a part is missing"),
        volume.read("/f").expect_err("a part is missing"),
    ] {
        assert!(error.to_string().contains("input/output error"), "{error}");
    }
    device.clear_faults();
    assert!(volume.read("/f").expect("it reads") == bytes);
}
