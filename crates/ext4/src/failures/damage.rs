//! Damage that an operation meets: it is found before anything changes, and costs nobody but who
//! asked. (What fails half way ends all writing.)

use pagefence_block_io::device::Operation;
use pagefence_block_io::{Device as _, MemoryDevice};
use pagefence_ext4_format::dir_entry::EntryName;
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_ext4_format::{FileBlock, GroupNo, InodeNo};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use pagefence_vfs::{Error, FileSystem as _, InodeId, New, NewKind, RenameMode, XattrMode};

use super::{
    BLOCK, TestDevice, create, find, formatted, formatted_with, inode, open, place, root, write,
};
use crate::change::change_dir::{Directory, Room};
use crate::change::ea_inode;
use crate::filesystem::FileSystem;
use crate::live::Need;
use crate::mkfs::{Contents, Kind, Parameters, Tree, format};

fn make_dir(fs: &FileSystem, name: &str) -> InodeId {
    let new = New {
        kind: NewKind::Directory,
        permissions: 0o755,
        umask: 0,
    };
    let made = fs.create(fs.root(), name.as_bytes(), &new, &root());
    made.expect("it is made").attr.id
}

fn garble(device: &Arc<TestDevice>, at: u64) {
    let block = vec![0x5A; BLOCK as usize];
    device
        .memory()
        .write(at, &block)
        .expect("memory is written");
}

fn is_corrupt<T>(result: pagefence_vfs::Result<T>) -> bool {
    matches!(result, Err(Error::Corrupt { .. }))
}

#[test]
fn a_damaged_directory_can_not_be_moved() {
    let device = formatted();
    let fs = open(&device);
    let (moving, into) = (make_dir(&fs, "moving"), make_dir(&fs, "into"));
    let block = place(&fs, moving, 0);
    fs.shut_down().expect("nothing fails");
    drop(fs);
    garble(&device, block.start);
    let fs = open(&device);
    let none = RenameMode::empty();
    assert!(is_corrupt(fs.rename(
        fs.root(),
        b"moving",
        into,
        b"moved",
        none
    )));
    let both = RenameMode::EXCHANGE;
    make_dir(&fs, "other");
    let other = find(&fs, "into");
    let new = New {
        kind: NewKind::Directory,
        permissions: 0o755,
        umask: 0,
    };
    fs.create(other, b"below", &new, &root())
        .expect("it is made");
    assert!(is_corrupt(fs.rename(
        other,
        b"below",
        fs.root(),
        b"moving",
        both
    )));
    fs.instance.live().expect("no journal is aborted");
    // In its directory it can have another name.
    fs.rename(fs.root(), b"moving", fs.root(), b"moved", none)
        .expect("its own block has no say");
    fs.shut_down().expect("all is written");
}

#[test]
fn a_name_beside_a_damaged_one_can_not_be_moved() {
    let device = formatted_with("^metadata_csum,^dir_index");
    let fs = open(&device);
    let into = make_dir(&fs, "into");
    create(&fs, "name");
    create(&fs, "behind");
    let block = place(&fs, fs.root(), 0);
    fs.shut_down().expect("nothing fails");
    drop(fs);
    let mut bytes = vec![0; BLOCK as usize];
    device
        .memory()
        .read(block.start, &mut bytes)
        .expect("it is read");
    let at = bytes
        .windows(6)
        .position(|name| name == b"behind")
        .expect("it is there");
    // The length of the record, which then does not even hold its own head.
    let record = block.start + at as u64 - 4;
    device
        .memory()
        .write(record, &[4, 0])
        .expect("memory is written");
    let fs = open(&device);
    let none = RenameMode::empty();
    assert!(is_corrupt(fs.rename(
        fs.root(),
        b"name",
        into,
        b"name",
        none
    )));
    fs.instance.live().expect("no journal is aborted");
    assert!(matches!(fs.lookup(into, b"name"), Err(Error::NotFound)));
    find(&fs, "name");
    fs.shut_down().expect("all is written");
}

/// A file with a block of data and a block of attributes; where that lies, and the bitmap of its
/// inode.
fn with_attributes(device: &Arc<TestDevice>) -> (u64, u64) {
    let fs = open(device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    write(&fs, &file, 0, &[1; BLOCK as usize]);
    drop(file);
    fs.set_xattr(id, b"user.long", &[2; 1000], XattrMode::Set)
        .expect("it has room");
    fs.sync().expect("nothing fails");
    let block = inode(&fs, id).disk().record.file_acl();
    let block = block.expect("it does not fit into the inode");
    let group = fs.instance.group_desc(GroupNo(0)).expect("it is sound");
    fs.shut_down().expect("nothing fails");
    (block.0 * BLOCK, group.inode_bitmap().0 * BLOCK)
}

/// Removes the file, which can't be deleted whole: nobody else has to suffer.
fn remove(device: &Arc<TestDevice>) {
    let fs = open(device);
    let id = find(&fs, "file");
    fs.unlink(fs.root(), b"file").expect("its name goes");
    fs.forget(id);
    fs.instance.live().expect("no journal is aborted");
    fs.sync().expect("all is written");
    fs.shut_down().expect("all is written");
    drop(fs);
    let fs = open(device);
    assert!(matches!(
        fs.lookup(fs.root(), b"file"),
        Err(Error::NotFound)
    ));
}

#[test]
fn a_file_with_damaged_attributes_is_removed_by_name() {
    let device = formatted();
    let (attributes, _) = with_attributes(&device);
    garble(&device, attributes);
    remove(&device);
}

/// Attributes that can't be freed, for the device fails, are still there when it is well again.
#[test]
fn attributes_that_could_not_be_freed_stay() {
    let device = formatted();
    let (attributes, _) = with_attributes(&device);
    let fs = open(&device);
    let id = find(&fs, "file");
    assert_eq!(fs.xattr(id, b"user.long").expect("it is read"), [2; 1000]);
    let group = fs.instance.group_desc(GroupNo(0)).expect("it is sound");
    let bitmap = group.block_bitmap().0 * BLOCK;
    device.fail(Operation::Read, bitmap..bitmap + BLOCK);
    let told = fs.remove_xattr(id, b"user.long");
    assert!(matches!(told, Err(Error::Io(_))), "{told:?}");
    device.heal();
    fs.instance.buffers.invalidate(attributes / BLOCK);
    assert_eq!(fs.xattr(id, b"user.long").expect("it stayed"), [2; 1000]);
    fs.remove_xattr(id, b"user.long").expect("nothing fails");
    fs.shut_down().expect("nothing fails");
}

#[test]
fn a_file_whose_bitmap_is_damaged_is_removed_by_name() {
    let device = formatted();
    let (_, bitmap) = with_attributes(&device);
    garble(&device, bitmap);
    remove(&device);
}

/// An inode that is in use, and free by its bitmap, is not made anew under those who have it.
#[test]
fn an_inode_that_somebody_has_is_not_given_out() {
    let device = formatted_with("^metadata_csum,^uninit_bg");
    let fs = open(&device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    write(&fs, &file, 0, &[1; 100]);
    drop(file);
    let number = u32::try_from(id.0).expect("a number");
    let group = fs.instance.group_desc(GroupNo(0)).expect("it is sound");
    let byte = group.inode_bitmap().0 * BLOCK + u64::from((number - 1) / 8);
    fs.shut_down().expect("nothing fails");
    drop(fs);
    let mut bits = [0];
    device.memory().read(byte, &mut bits).expect("it is read");
    bits[0] &= !(1 << ((number - 1) % 8));
    device
        .memory()
        .write(byte, &bits)
        .expect("memory is written");
    let fs = open(&device);
    let file = fs.open(id, true).expect("it opens");
    let new = New {
        kind: NewKind::Directory,
        permissions: 0o755,
        umask: 0,
    };
    let made = fs.create(fs.root(), b"new", &new, &root());
    assert!(is_corrupt(made));
    fs.instance.live().expect("no journal is aborted");
    let made = fs.create(fs.root(), b"new", &new, &root());
    assert_ne!(made.expect("others are free").attr.id, id);
    assert_eq!(fs.attr(id).expect("it is there").size, 100);
    drop(file);
    fs.shut_down().expect("all is written");
}

/// What is the file system's own is nobody's file, whatever a directory says.
#[test]
fn the_orphan_file_can_not_be_reached() {
    let device = formatted();
    let fs = open(&device);
    let number = fs.instance.superblock.orphan_file_inode();
    let InodeNo(number) = number.expect("it has one");
    let id = InodeId(u64::from(number));
    assert!(matches!(fs.attr(id), Err(Error::Stale)));
    assert!(matches!(fs.open(id, true), Err(Error::Stale)));
}

/// A list of access that only an inode of its own can hold.
fn long_list() -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    let mut add = |tag: u16, permissions: u16, id: u32| {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    };
    add(1, 7, u32::MAX);
    for user in 1000..1200 {
        add(2, 5, user);
    }
    add(4, 5, u32::MAX);
    add(0x10, 7, u32::MAX);
    add(0x20, 5, u32::MAX);
    list
}

/// What was taken for a new inode is given back if what it inherits finds no inode.
#[test]
fn an_inode_that_can_not_inherit_is_given_back() {
    let device = MemoryDevice::new(64 << 20);
    let mut parameters = Parameters::new(Kind::Ext4);
    parameters
        .features
        .edit("ea_inode")
        .expect("known features");
    parameters.block_size = Some(1024);
    parameters.inodes = Some(64);
    parameters.contents = Contents::Zeros;
    format(&device, &parameters, &Tree::new()).expect("a new file system");
    let device = Arc::new(TestDevice::new(device));
    let fs = open(&device);
    let dir = make_dir(&fs, "dir");
    let list = b"system.posix_acl_default";
    fs.set_xattr(dir, list, &long_list(), XattrMode::Set)
        .expect("it has room");
    let holds_value = |number: &u64| {
        let number = InodeNo(u32::try_from(*number).expect("a number"));
        let record = fs.instance.read_inode(number).expect("it is sound");
        record.flags().contains(InodeFlags::EA_INODE)
    };
    let values: Vec<_> = (12..=64).filter(holds_value).collect();
    assert_eq!(values.len(), 1, "the list lies there, and is nobody's file");
    assert!(matches!(fs.inode(InodeId(values[0])), Err(Error::Stale)));
    let free = |fs: &FileSystem| fs.stat_fs().expect("it is known").inodes_free;
    for number in 1..free(&fs) {
        create(&fs, &format!("file {number}"));
    }
    assert_eq!(free(&fs), 1);
    let new = New {
        kind: NewKind::Regular,
        permissions: 0o644,
        umask: 0,
    };
    for _ in 0..2 {
        let made = fs.create(dir, b"file", &new, &root());
        assert!(matches!(made, Err(Error::NoSpace)), "{made:?}");
        assert_eq!(free(&fs), 1);
    }
    fs.sync().expect("no journal is aborted");
    create(&fs, "the last");
    assert_eq!(free(&fs), 0);
    fs.shut_down().expect("all is written");
}

/// Room that was found and is gone when a name is to be put there: nothing but damage takes it.
#[test]
fn a_name_for_which_the_room_is_gone_is_damage() {
    let device = formatted();
    let fs = open(&device);
    let long = "z".repeat(250);
    for at in 0..15 {
        create(&fs, &format!("{at}{long}"));
    }
    let root = inode(&fs, fs.root());
    let disk = root.disk();
    let name = EntryName::new(long.as_bytes()).expect("a name");
    let need = Need {
        credits: 4,
        blocks: 0,
        privileged: true,
    };
    let mut entry = Held::at_entry();
    let (mut transaction, _held) = fs.instance.begin(&mut entry, need).expect("it begins");
    let mut directory = Directory {
        transaction: &mut transaction,
        record: &mut disk.record.clone(),
    };
    let room = Room::Block(FileBlock(0));
    assert!(is_corrupt(directory.insert_at(
        room,
        &name,
        InodeNo(12),
        None
    )));
}

/// An inode that was taken for a value of an attribute and was not needed is free, and says so.
#[test]
fn an_inode_that_was_taken_for_nothing_is_a_deleted_one() {
    let device = formatted();
    let fs = open(&device);
    let free = fs.stat_fs().expect("it tells").inodes_free;
    let number = {
        let need = Need {
            credits: 8,
            blocks: 0,
            privileged: true,
        };
        let mut entry = Held::at_entry();
        let (mut transaction, _held) = fs.instance.begin(&mut entry, need).expect("it begins");
        let new = ea_inode::take(&mut transaction, InodeNo(2)).expect("one is free");
        let number = new.number;
        ea_inode::give_back(&mut transaction, new).expect("it was taken");
        transaction.end();
        number
    };
    assert_eq!(fs.stat_fs().expect("it tells").inodes_free, free);
    let record = fs.instance.read_inode(number).expect("it is readable");
    assert!(record.dtime() > 0 && record.links() == 0, "{number}");
    fs.shut_down().expect("nothing fails");
}

/// A file of a block, closed, and where its record and its block lie on the device.
fn with_a_block(device: &Arc<TestDevice>) -> (u64, u64) {
    let fs = open(device);
    let id = create(&fs, "file");
    let file = fs.open(id, true).expect("it opens");
    write(&fs, &file, 0, &[1; BLOCK as usize]);
    drop(file);
    fs.sync().expect("nothing fails");
    let number = InodeNo(u32::try_from(id.0).expect("a number"));
    let (block, offset) = fs.instance.inode_block(number).expect("it has a place");
    let data = place(&fs, id, 0).start / BLOCK;
    fs.shut_down().expect("nothing fails");
    (block.0 * BLOCK + offset as u64, data)
}

/// The journal's blocks are the journal's: a file that claims one is neither read nor written there.
#[test]
fn a_file_that_claims_a_block_of_the_journal_is_damaged() {
    let device = formatted_with("^metadata_csum");
    let (record, _) = with_a_block(&device);
    let journal = {
        let fs = open(&device);
        let location = crate::recovery::journal_of(&fs.instance).expect("it is sound");
        let (first, _) = location.expect("it has one").physical(3).expect("a block");
        fs.shut_down().expect("nothing fails");
        first
    };
    // The low half of the first extent's block.
    let start = u32::try_from(journal.0).expect("a small image");
    device
        .memory()
        .write(record + 40 + 12 + 8, &start.to_le_bytes())
        .expect("memory is written");
    let fs = open(&device);
    let file = fs.open(find(&fs, "file"), true).expect("it opens");
    assert!(is_corrupt(super::read(&fs, &file, 0..10)));
    let mode = pagefence_vfs::WriteMode::empty();
    assert!(is_corrupt(fs.write(&file, 0, &[2; 100], mode)));
    fs.instance.live().expect("no journal is aborted");
    drop(file);
    fs.shut_down().expect("all is written");
}

/// What is free by the bitmap is the next file's: who has it all the same may not write there.
#[test]
fn a_block_that_is_free_by_the_bitmap_is_not_written() {
    let device = formatted_with("^metadata_csum");
    let (_, data) = with_a_block(&device);
    let (byte, bit, count) = {
        let fs = open(&device);
        let superblock = &fs.instance.superblock;
        let block = pagefence_ext4_format::BlockNo(data);
        let (group, bit) = superblock.group_of_block(block).expect("a block");
        let (index, offset) = superblock.locate_descriptor(group).expect("a group");
        let home = superblock.descriptor_block(index).expect("a group");
        let group = fs.instance.group_desc(group).expect("it is sound");
        fs.shut_down().expect("nothing fails");
        let byte = group.block_bitmap().0 * BLOCK + u64::from(bit / 8);
        (byte, bit % 8, home.0 * BLOCK + offset as u64 + 0x0C)
    };
    let memory = device.memory();
    let mut bits = [0];
    memory.read(byte, &mut bits).expect("it is read");
    bits[0] &= !(1 << bit);
    memory.write(byte, &bits).expect("memory is written");
    // A group whose counts do not agree is left alone: nobody else gets a block of it.
    let mut free = [0; 2];
    memory.read(count, &mut free).expect("it is read");
    let free = u16::from_le_bytes(free) + 1;
    memory
        .write(count, &free.to_le_bytes())
        .expect("memory is written");
    let fs = open(&device);
    let file = fs.open(find(&fs, "file"), true).expect("it opens");
    write(&fs, &file, 0, &[2; 100]);
    assert!(is_corrupt(fs.fsync(&file, false)));
    let mut first = [0];
    device
        .memory()
        .read(data * BLOCK, &mut first)
        .expect("it is read");
    assert_eq!(first, [1]);
    fs.instance.live().expect("no journal is aborted");
    // Nothing keeps the device for data that has nowhere to go, or is half cut off.
    drop(file);
    let shorter = pagefence_vfs::SetAttr {
        size: Some(0),
        ..Default::default()
    };
    assert!(is_corrupt(fs.set_attr(
        find(&fs, "file"),
        &shorter,
        &root()
    )));
    let closed = fs.shut_down();
    assert!(closed.is_err(), "what can't be written is told");
    drop(fs);
    assert_eq!(Arc::strong_count(&device), 1);
}
