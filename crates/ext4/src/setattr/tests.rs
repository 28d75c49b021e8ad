//! A size that is set together with a mode, an owner and times: the size comes first, the others come
//! all at once, and what can be known to be in the way of these is in the way of the size, too.

use pagefence_block_io::device::Operation;
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_ext4_format::xattr::acl::{Acl, AclEntry, AclTag};
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::{AtomicUsize, Ordering};
use pagefence_vfs::{
    Attr, Error, FileSystem as _, InodeId, SetAttr, SetTime, Timestamp, XattrMode,
};

use crate::failures::{
    BLOCK, TestDevice, create, extents, find, formatted, formatted_with, inode, open, place, read,
    root, write,
};
use crate::filesystem::FileSystem;

const ACCESS: &[u8] = b"system.posix_acl_access";
/// Bytes of the file.
const SIZE: u64 = 4 * BLOCK;

fn stamp(seconds: i64) -> Timestamp {
    Timestamp {
        seconds,
        nanoseconds: 0,
    }
}

/// All at once.
fn all(size: u64) -> SetAttr {
    SetAttr {
        size: Some(size),
        permissions: Some(0o600),
        uid: Some(5),
        gid: Some(6),
        accessed: Some(SetTime::To(stamp(1_000_000))),
        modified: Some(SetTime::To(stamp(2_000_000))),
        ..SetAttr::default()
    }
}

/// Whether everything of [`all`] but the size is so.
fn has_all(attr: &Attr) -> bool {
    (attr.permissions, attr.uid, attr.gid) == (0o600, 5, 6)
        && (attr.accessed, attr.modified) == (stamp(1_000_000), stamp(2_000_000))
}

/// A file of [`SIZE`] bytes that are 7, on the device.
fn file(device: &Arc<TestDevice>) -> (FileSystem, InodeId) {
    let fs = open(device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    write(&fs, &file, 0, &[7; SIZE as usize]);
    fs.sync_file(&file, false).expect("it is written");
    drop(file);
    (fs, id)
}

fn attr(fs: &FileSystem, id: InodeId) -> Attr {
    fs.attr(id).expect("it is there")
}

/// What the file holds from `start` on; its last bytes if that is near its end.
fn bytes(fs: &FileSystem, id: InodeId, start: u64) -> Vec<u8> {
    let file = fs.open(id, false).expect("it opens");
    read(fs, &file, start..2 * SIZE).expect("it can be read")
}

#[test]
fn all_of_it_is_set() {
    for size in [100, 2 * SIZE] {
        let device = formatted();
        let (fs, id) = file(&device);
        let set = fs.set_attr(id, &all(size), &root()).expect("it is set");
        assert!(has_all(&set), "{set:?}");
        assert_eq!(set, attr(&fs, id));
        assert_eq!(set.size, size);
        fs.shut_down().expect("all is written");
        drop(fs);
        let fs = open(&device);
        assert_eq!(attr(&fs, id), set);
    }
}

/// What is refused for one of the others leaves the size, and everything else.
#[test]
fn what_is_refused_leaves_the_size() {
    let device = formatted();
    let (fs, id) = file(&device);
    let nobody = SetAttr {
        uid: Some(u32::MAX),
        ..all(100)
    };
    let no_group = SetAttr {
        gid: Some(u32::MAX),
        ..all(100)
    };
    let no_time = Timestamp {
        seconds: 0,
        nanoseconds: 1_000_000_000,
    };
    let no_time = SetAttr {
        modified: Some(SetTime::To(no_time)),
        ..all(100)
    };
    let too_long = all(u64::MAX);
    let before = attr(&fs, id);
    for (change, why) in [
        (nobody, "no owner"),
        (no_group, "no group"),
        (no_time, "no time"),
        (too_long, "no size"),
    ] {
        let refused = fs.set_attr(id, &change, &root());
        assert!(
            matches!(refused, Err(Error::InvalidArgument | Error::FileTooLarge)),
            "{why}: {refused:?}"
        );
        assert_eq!(attr(&fs, id), before, "{why}");
    }
    for flag in [InodeFlags::IMMUTABLE, InodeFlags::APPEND] {
        let set = |flags| {
            let core = &inode(&fs, id).core;
            core.update(|record| record.set_flags(flags));
        };
        let flags = inode(&fs, id).disk().record.flags();
        set(flags | flag);
        let refused = fs.set_attr(id, &all(100), &root());
        assert!(matches!(refused, Err(Error::NotPermitted)), "{flag:?}");
        set(flags);
        assert_eq!(attr(&fs, id), before, "{flag:?}");
    }
    assert_eq!(bytes(&fs, id, 0), [7; SIZE as usize]);
}

/// The mode changes an access list, which lies among attributes that can't be read.
#[test]
fn damaged_attributes_leave_the_size() {
    let device = formatted();
    let (fs, id) = file(&device);
    let value = vec![9; 2000];
    fs.set_xattr(id, b"user.large", &value, XattrMode::Set)
        .expect("there is room");
    let block = inode(&fs, id).disk().record.file_acl();
    let block = block.expect("too much for the inode").0 * BLOCK;
    fs.shut_down().expect("all is written");
    drop(fs);
    let fs = open(&device);
    let before = attr(&fs, id);
    device.fail(Operation::Read, block..block + BLOCK);
    for size in [100, 2 * SIZE] {
        let failed = fs.set_attr(id, &all(size), &root());
        assert!(matches!(failed, Err(Error::Io(_))), "{failed:?}");
        assert_eq!(attr(&fs, id), before);
    }
    device.heal();
    fs.instance.live().expect("no journal is aborted");
    assert_eq!(bytes(&fs, id, 0), [7; SIZE as usize]);
    let set = fs.set_attr(id, &all(100), &root()).expect("it is set");
    assert!(has_all(&set) && set.size == 100, "{set:?}");
    fs.shut_down().expect("all is written");
}

/// A size that can't be set leaves the others.
#[test]
fn a_size_that_fails_leaves_the_others() {
    let device = formatted();
    let (fs, id) = file(&device);
    let before = attr(&fs, id);
    device.fail(Operation::Write, place(&fs, id, 0));
    let failed = fs.set_attr(id, &all(100), &root());
    assert!(matches!(failed, Err(Error::Io(_))), "{failed:?}");
    assert_eq!(attr(&fs, id), before);
    device.heal();
    fs.instance.live().expect("no journal is aborted");
    assert_eq!(bytes(&fs, id, BLOCK), [7; (SIZE - BLOCK) as usize]);
    fs.sync().expect_err("a write failed");
    let set = fs.set_attr(id, &all(100), &root()).expect("it is set");
    assert!(has_all(&set) && set.size == 100, "{set:?}");
    fs.shut_down().expect("all is written");
}

/// The journal ends between the two: the size is the new one, of the others there is none; and what
/// is on the device is as it was.
#[test]
fn an_end_in_between_leaves_the_size_alone() {
    for size in [BLOCK, 2 * SIZE] {
        let device = formatted();
        let (fs, id) = file(&device);
        fs.sync().expect("all is written");
        let before = attr(&fs, id);
        let (instance, starts) = (Arc::clone(&fs.instance), AtomicUsize::new(0));
        let failing = Arc::clone(&device);
        fs.instance.probe.before_transaction(move || {
            if starts.fetch_add(1, Ordering::SeqCst) == 1 {
                failing.fail(Operation::Write, 0..u64::MAX);
                let live = instance.live().expect("it is written to");
                live.commit(live.journal.running().0)
                    .expect_err("it can't be written");
            }
        });
        let failed = fs.set_attr(id, &all(size), &root());
        assert!(matches!(failed, Err(Error::ReadOnly)), "{failed:?}");
        fs.instance.probe.before_transaction(|| {});
        let after = attr(&fs, id);
        assert_eq!(after.size, size);
        let but_the_size = Attr {
            size: before.size,
            blocks_512: before.blocks_512,
            ..after
        };
        assert_eq!(but_the_size, before);
        drop(fs);
        device.heal();
        let fs = open(&device);
        assert_eq!(attr(&fs, find(&fs, "file")), before);
    }
}

/// The size takes data out of an inode that has an access list as well: the list changes where it
/// lies then.
#[test]
fn attributes_are_looked_at_again_behind_the_size() {
    let device = formatted_with("inline_data");
    let fs = open(&device);
    let id = create(&fs, "file");
    // As Linux makes them; ours have a map from the beginning.
    inode(&fs, id).core.update(|record| {
        let flags = record.flags() - InodeFlags::EXTENTS;
        record.set_flags(flags | InodeFlags::INLINE_DATA);
        record.block_area_mut().fill(0);
    });
    let entry = |tag, perm| AclEntry { tag, perm };
    let list = Acl::new(vec![
        entry(AclTag::UserObj, 6),
        entry(AclTag::User(9), 4),
        entry(AclTag::GroupObj, 4),
        entry(AclTag::Mask, 4),
        entry(AclTag::Other, 4),
    ]);
    let list = list.expect("a list");
    let file = fs.open(id, true).expect("it opens");
    write(&fs, &file, 0, &[7; 50]);
    fs.set_xattr(id, ACCESS, &list.to_xattr(), XattrMode::Set)
        .expect("there is room");
    assert!(inode(&fs, id).disk().has_inline_data());
    fs.set_attr(id, &all(SIZE), &root()).expect("it is set");
    let disk = inode(&fs, id).disk();
    assert!(!disk.has_inline_data());
    // What says that the inode holds data went with the data.
    let region = disk.record.xattr_region().expect("it has one");
    assert!(!region.windows(4).any(|name| name == b"data"), "{region:?}");
    fs.sync_file(&file, false).expect("it is written");
    drop(file);
    fs.shut_down().expect("all is written");
    drop(fs);
    let fs = open(&device);
    let set = attr(&fs, id);
    assert!(has_all(&set) && set.size == SIZE, "{set:?}");
    let names = fs.xattr_names(id).expect("they can be read");
    assert_eq!(names.len(), 1, "{names:?}");
    let found = fs.xattr(id, ACCESS).expect("it can be read");
    assert_eq!(found, list.with_mode(0o600).to_xattr());
    let mut expected = vec![7; 50];
    expected.resize(SIZE as usize, 0);
    assert_eq!(bytes(&fs, id, 0), expected);
    assert_eq!(extents(&fs, id).len(), 1);
}
