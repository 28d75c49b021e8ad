//! Space: what is promised, punched, cut off, and lives on without a name.

use pagefence_memfs::MemFs;
use pagefence_vfs::{
    Error, FallocateMode, FileSystem as _, InodeId, NewKind, SetAttr, Whence, WriteMode,
};

use crate::{fresh, make, root};

const PAGE: u64 = 4096;

fn file(fs: &MemFs) -> (InodeId, pagefence_memfs::File) {
    let id = make(fs, fs.root(), "f", NewKind::Regular);
    let file = fs.open(id, true).expect("it opens");
    (id, file)
}

fn free(fs: &MemFs) -> u64 {
    fs.stat_fs().expect("it tells").blocks_free
}

fn set_size(fs: &MemFs, id: InodeId, size: u64) {
    let change = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    fs.set_attr(id, &change, &root()).expect("it is set");
}

fn read(fs: &MemFs, file: &pagefence_memfs::File) -> Vec<u8> {
    let mut bytes = vec![0xee; 1 << 20];
    let count = fs.read(file, 0, &mut bytes).expect("it is read");
    bytes.truncate(count);
    bytes
}

#[test]
fn what_is_promised_is_a_hole_that_can_be_written() {
    let fs = fresh(10 * PAGE);
    let (id, file) = file(&fs);
    let keep = FallocateMode::KEEP_SIZE;
    fs.allocate(&file, 100, 9 * PAGE, keep)
        .expect("there is room");
    assert_eq!(free(&fs), 0, "it touches ten pages");
    assert_eq!(fs.attr(id).expect("there").size, 0);
    assert_eq!(fs.attr(id).expect("there").blocks_512, 80);
    let other = make(&fs, fs.root(), "other", NewKind::Regular);
    let other = fs.open(other, true).expect("it opens");
    let refused = fs.write(&other, 0, b"x", WriteMode::default());
    assert!(matches!(refused, Err(Error::NoSpace)), "{refused:?}");
    let refused = fs.allocate(&other, 0, 1, FallocateMode::default());
    assert!(matches!(refused, Err(Error::NoSpace)), "{refused:?}");
    let data = vec![7; 10 * PAGE as usize];
    let written = fs.write(&file, 0, &data, WriteMode::default());
    assert_eq!(written.expect("it was promised"), data.len());
    assert_eq!(read(&fs, &file), data);
    // What goes past the promise is cut short.
    let written = fs.write(&file, 9 * PAGE, &data, WriteMode::default());
    assert_eq!(written.expect("in part"), PAGE as usize);
}

#[test]
fn fallocate_without_room_changes_nothing() {
    let fs = fresh(10 * PAGE);
    let (id, file) = file(&fs);
    fs.write(&file, 0, &[1; 5000], WriteMode::default())
        .expect("there is room");
    let before = fs.attr(id).expect("there");
    for mode in [FallocateMode::default(), FallocateMode::ZERO_RANGE] {
        let refused = fs.allocate(&file, 0, 11 * PAGE, mode);
        assert!(matches!(refused, Err(Error::NoSpace)), "{refused:?}");
    }
    let too_far = fs.allocate(&file, i64::MAX as u64, 1, FallocateMode::KEEP_SIZE);
    assert!(matches!(too_far, Err(Error::FileTooLarge)), "{too_far:?}");
    assert_eq!(fs.attr(id).expect("there"), before);
    assert_eq!(read(&fs, &file), [1; 5000]);
    assert_eq!(free(&fs), 8);
}

#[test]
fn punching_frees_whole_pages_and_zeroes_the_rest() {
    let fs = fresh(1 << 20);
    let (id, file) = file(&fs);
    let all = free(&fs);
    fs.write(&file, 0, &vec![5; 8 * PAGE as usize], WriteMode::default())
        .expect("there is room");
    let punch = FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE;
    fs.allocate(&file, 100, 3 * PAGE, punch).expect("punched");
    assert_eq!(all - free(&fs), 8 - 2, "pages 1 and 2 lie inside");
    let bytes = read(&fs, &file);
    let expected = |at: usize| {
        if (100..100 + 3 * PAGE as usize).contains(&at) {
            0
        } else {
            5
        }
    };
    assert!(
        bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == expected(at))
    );
    let seek = |from, whence| fs.seek(&file, from, whence).ok();
    assert_eq!(seek(0, Whence::Hole), Some(PAGE));
    assert_eq!(seek(PAGE, Whence::Data), Some(3 * PAGE));
    assert_eq!(seek(3 * PAGE, Whence::Hole), Some(8 * PAGE));
    assert_eq!(seek(8 * PAGE, Whence::Hole), None, "past the end");
    // The whole range of offsets, of which most is a hole: in no time.
    fs.allocate(&file, 0, i64::MAX as u64, punch)
        .expect("punched");
    assert_eq!(free(&fs), all);
    assert_eq!(fs.attr(id).expect("there").size, 8 * PAGE);
    assert_eq!(read(&fs, &file), vec![0; 8 * PAGE as usize]);
    for mode in [FallocateMode::COLLAPSE_RANGE, FallocateMode::INSERT_RANGE] {
        let refused = fs.allocate(&file, 0, PAGE, mode);
        assert!(matches!(refused, Err(Error::Unsupported(_))));
    }
}

#[test]
fn zeroed_ranges_keep_their_space() {
    let fs = fresh(16 * PAGE);
    let (id, file) = file(&fs);
    fs.write(&file, 0, &vec![5; 4 * PAGE as usize], WriteMode::default())
        .expect("there is room");
    fs.allocate(&file, 10, 6 * PAGE, FallocateMode::ZERO_RANGE)
        .expect("zeroed");
    let attr = fs.attr(id).expect("there");
    assert_eq!((attr.size, attr.blocks_512), (6 * PAGE + 10, 7 * 8));
    let bytes = read(&fs, &file);
    assert_eq!(
        (&bytes[..10], bytes[10..].iter().max()),
        (&[5; 10][..], Some(&0))
    );
    assert_eq!(fs.seek(&file, PAGE, Whence::Data).ok(), None);
}

#[test]
fn what_is_cut_off_never_comes_back() {
    let fs = fresh(16 * PAGE);
    let (id, file) = file(&fs);
    let all = free(&fs);
    fs.write(&file, 0, &vec![5; 4 * PAGE as usize], WriteMode::default())
        .expect("there is room");
    fs.allocate(&file, 4 * PAGE, 4 * PAGE, FallocateMode::KEEP_SIZE)
        .expect("there is room");
    set_size(&fs, id, PAGE + 10);
    assert_eq!(all - free(&fs), 2);
    set_size(&fs, id, 3 * PAGE);
    let bytes = read(&fs, &file);
    assert_eq!(bytes.len(), 3 * PAGE as usize);
    let (kept, rest) = bytes.split_at(PAGE as usize + 10);
    assert!(kept.iter().all(|byte| *byte == 5) && rest.iter().all(|byte| *byte == 0));
    // What was promised behind the end goes by a truncate to the same size.
    fs.allocate(&file, 4 * PAGE, 4 * PAGE, FallocateMode::KEEP_SIZE)
        .expect("there is room");
    set_size(&fs, id, 3 * PAGE);
    assert_eq!(all - free(&fs), 2);
}

#[test]
fn a_file_without_names_lives_until_nobody_has_or_knows_it() {
    let fs = fresh(16 * PAGE);
    let empty = fs.stat_fs().expect("it tells");
    let (id, file) = file(&fs);
    fs.write(&file, 0, &[9; 5000], WriteMode::default())
        .expect("there is room");
    fs.unlink(fs.root(), b"f").expect("it is there");
    assert_eq!(read(&fs, &file), [9; 5000]);
    assert_eq!(fs.attr(id).expect("known").links, 0);
    let again = fs.open(id, true).expect("known");
    assert!(matches!(
        fs.link(id, fs.root(), b"g", &super::root()),
        Err(Error::NotFound)
    ));
    drop(file);
    assert_eq!(fs.attr(id).expect("open").size, 5000, "closed, but known");
    fs.forget(id);
    assert_eq!(read(&fs, &again), [9; 5000], "forgotten, but open");
    assert!(matches!(fs.open(id, true), Err(Error::Stale)));
    drop(again);
    assert!(matches!(fs.attr(id), Err(Error::Stale)));
    assert_eq!(fs.stat_fs().expect("it tells"), empty);
    // The other way round, and its number is not used again.
    let (id, file) = self::file(&fs);
    fs.unlink(fs.root(), b"f").expect("it is there");
    drop(file);
    fs.forget(id);
    assert!(matches!(fs.attr(id), Err(Error::Stale)));
    assert!(make(&fs, fs.root(), "f", NewKind::Regular) > id);
}

/// Inodes, further names and attributes are bounded, and come back.
#[test]
fn what_is_no_data_is_bounded_too() {
    let fs = fresh(PAGE);
    let empty = fs.stat_fs().expect("it tells");
    let first = make(&fs, fs.root(), "f", NewKind::Regular);
    let link = |number: u64| {
        let name = format!("l{number}");
        fs.link(first, fs.root(), name.as_bytes(), &super::root())
    };
    let links = (0..).take_while(|number| link(*number).is_ok()).count();
    assert_eq!(links as u64, empty.inodes_free - 1);
    assert!(matches!(link(u64::MAX), Err(Error::NoSpace)));
    let full = pagefence_vfs::XattrMode::Set;
    let refused = fs.set_xattr(first, b"user.a", b"1", full);
    assert!(matches!(refused, Err(Error::NoSpace)), "{refused:?}");
    fs.unlink(fs.root(), b"l0").expect("it is there");
    fs.set_xattr(first, b"user.a", &[1; 100], full)
        .expect("there is room");
    for number in 1..links {
        fs.unlink(fs.root(), format!("l{number}").as_bytes())
            .expect("it is there");
    }
    fs.unlink(fs.root(), b"f").expect("it is there");
    fs.forget(first);
    assert_eq!(fs.stat_fs().expect("it tells"), empty);
}

#[test]
fn ranges_are_copied_between_files_and_within_one() {
    let fs = fresh(8 << 20);
    let (_, from) = file(&fs);
    let data: Vec<u8> = (0..3_000_000).map(|at| (at % 249) as u8).collect();
    fs.write(&from, 0, &data, WriteMode::default())
        .expect("there is room");
    let to = make(&fs, fs.root(), "to", NewKind::Regular);
    let to = fs.open(to, true).expect("it opens");
    let copy = |source, target, at, length| {
        let mode = WriteMode::default();
        fs.copy_range(source, 1000, target, at, length, mode)
    };
    let copied = copy(&from, &to, 5, u64::MAX).expect("copied");
    assert_eq!(copied, 2_999_000, "up to the end");
    let mut bytes = vec![0xee; data.len()];
    assert_eq!(fs.read(&to, 0, &mut bytes).expect("read"), 2_999_005);
    assert_eq!(bytes[..5], [0; 5]);
    assert_eq!(bytes[5..2_999_005], data[1000..]);
    assert_eq!(copy(&from, &from, 2000, 1000).expect("apart"), 1000);
    let overlapping = copy(&from, &from, 1999, 1000);
    assert!(matches!(overlapping, Err(Error::InvalidArgument)));
    let far = copy(&from, &to, i64::MAX as u64, 10);
    assert!(matches!(far, Err(Error::FileTooLarge)), "{far:?}");
    // As much as there is room for.
    let free = free(&fs) * PAGE;
    let copied = copy(&from, &to, 4 << 20, u64::MAX).expect("in part");
    assert!(copied <= free && copied + PAGE > free, "{copied} of {free}");
}
