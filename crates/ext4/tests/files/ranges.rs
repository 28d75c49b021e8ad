//! Single operations, looked at closely.

use pagefence_vfs::{
    Error, ExtentState, FallocateMode, FileSystem as _, SetAttr, Whence, WriteMode, XattrMode,
};

use crate::support::{Image, KINDS, Random, create, find, read_all, root, set_size, write_all};

/// What lies behind the end of a file never shows, however it grows again.
#[test]
fn a_file_cut_and_grown_reads_as_zeros_behind_the_cut() {
    for kind in &KINDS {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        write_all(&fs, &file, 0, &[7; 20_000]);
        fs.sync_file(&file, false).unwrap();
        let mut expected = vec![7; 20_000];
        for (cut, grown) in [
            (17_000_u64, 19_500),
            (9_000, 40_000),
            (4_097, 4_099),
            (1, 10_000),
        ] {
            set_size(&fs, id, cut).unwrap();
            expected.truncate(cut as usize);
            set_size(&fs, id, grown).unwrap();
            expected.resize(grown as usize, 0);
            assert!(read_all(&fs, id) == expected, "{} {cut} {grown}", kind.name);
            write_all(&fs, &file, grown + 3000, &[9; 10]);
            expected.resize(grown as usize + 3000, 0);
            expected.extend([9; 10]);
            assert!(read_all(&fs, id) == expected, "{} {cut} {grown}", kind.name);
        }
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
        let fs = image.open();
        assert!(
            read_all(&fs, find(&fs, "file")) == expected,
            "{}",
            kind.name
        );
    }
}

/// Delayed blocks are data to lseek, and counted by stat; so they are when they have a place.
#[test]
fn dirty_pages_are_seen_by_seek_and_stat() {
    for kind in &KINDS {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        write_all(&fs, &file, 65_536, &[7; 4096]);
        write_all(&fs, &file, 200_000, &[7; 1]);
        for _ in 0..2 {
            assert_eq!(fs.seek(&file, 0, Whence::Data).unwrap(), 65_536);
            assert_eq!(fs.seek(&file, 0, Whence::Hole).unwrap(), 0);
            assert_eq!(fs.seek(&file, 66_000, Whence::Hole).unwrap(), 65_536 + 4096);
            let last = fs.seek(&file, 80_000, Whence::Data).unwrap();
            assert!((196_000..=200_000).contains(&last), "{}: {last}", kind.name);
            let blocks = fs.attr(id).unwrap().blocks_512;
            assert!((10..=40).contains(&blocks), "{}: {blocks}", kind.name);
            fs.sync_file(&file, false).unwrap();
        }
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}

#[test]
fn preallocated_blocks_read_as_zeros_until_they_are_written() {
    for kind in KINDS.iter().filter(|kind| kind.has_extents) {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        fs.allocate(&file, 0, 1 << 20, FallocateMode::empty())
            .unwrap();
        assert_eq!(fs.attr(id).unwrap().size, 1 << 20);
        assert!(
            read_all(&fs, id).iter().all(|byte| *byte == 0),
            "{}",
            kind.name
        );
        assert!(matches!(
            fs.seek(&file, 0, Whence::Data),
            Err(Error::NoData)
        ));
        let extents = fs.extents(id, 0, u64::MAX, 100).unwrap();
        assert!(
            extents
                .iter()
                .all(|extent| extent.state == ExtentState::Unwritten)
        );
        write_all(&fs, &file, 500_000, &[7; 10_000]);
        fs.sync_file(&file, true).unwrap();
        let extents = fs.extents(id, 0, u64::MAX, 100).unwrap();
        assert_eq!(extents.len(), 3, "{}: {extents:?}", kind.name);
        assert_eq!(extents[1].state, ExtentState::Written);
        let mut expected = vec![0; 1 << 20];
        expected[500_000..510_000].fill(7);
        assert!(read_all(&fs, id) == expected, "{}", kind.name);
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}

/// A file written in order, by many small writes, is one piece.
#[test]
fn files_are_contiguous() {
    for kind in KINDS.iter().filter(|kind| kind.has_extents) {
        let image = Image::new(kind.options, "16M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        for piece in 0..250_u64 {
            write_all(&fs, &file, piece * 4096, &[7; 4096]);
        }
        fs.sync_file(&file, true).unwrap();
        let extents = fs.extents(id, 0, u64::MAX, 100).unwrap();
        assert_eq!(extents.len(), 1, "{}: {extents:?}", kind.name);
    }
}

#[test]
fn what_can_not_be_written_is_refused() {
    let image = Image::new(KINDS[2].options, "8M");
    let fs = image.open();
    let id = create(&fs, "file");
    let file = fs.open(id, true).unwrap();
    let most = u64::from(u32::MAX) * 4096;
    let late = fs.write(&file, most, &[7], WriteMode::empty());
    assert!(matches!(late, Err(Error::FileTooLarge)), "{late:?}");
    let short = fs
        .write(&file, most - 3, &[7; 10], WriteMode::empty())
        .unwrap();
    assert_eq!(short, 3);
    assert!(matches!(
        set_size(&fs, id, most + 1),
        Err(Error::FileTooLarge)
    ));
    let both = FallocateMode::COLLAPSE_RANGE | FallocateMode::KEEP_SIZE;
    let shift = fs.allocate(&file, 0, 4096, both);
    assert!(matches!(shift, Err(Error::Unsupported(_))), "{shift:?}");
    set_size(&fs, id, 0).unwrap();
    drop(file);
    fs.shut_down().unwrap();
    drop(fs);
    image.assert_clean("too large");
}

#[test]
fn a_range_is_copied_through_the_cache() {
    for kind in &KINDS {
        let image = Image::new(kind.options, "12M");
        let fs = image.open();
        let (from, to) = (create(&fs, "from"), create(&fs, "to"));
        let (source, target) = (fs.open(from, true).unwrap(), fs.open(to, true).unwrap());
        let data: Vec<u8> = (0..2_500_000_u32).map(|at| (at % 251) as u8).collect();
        write_all(&fs, &source, 0, &data);
        let copied = fs
            .copy_range(&source, 1000, &target, 77, u64::MAX / 4, WriteMode::empty())
            .unwrap();
        assert_eq!(copied, 2_499_000, "{}", kind.name);
        let bytes = read_all(&fs, to);
        assert!(bytes[..77].iter().all(|byte| *byte == 0));
        assert!(bytes[77..] == data[1000..], "{}", kind.name);
        let overlap = fs.copy_range(&source, 0, &source, 100, 1000, WriteMode::empty());
        assert!(matches!(overlap, Err(Error::InvalidArgument)));
        drop((source, target));
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}

/// What is punched was never written to disk, and is the end of the file: the size stays.
#[test]
fn a_punched_end_keeps_the_size() {
    for kind in &KINDS {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        write_all(&fs, &file, 50_000, &[7; 100]);
        let mode = FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE;
        fs.allocate(&file, 40_000, 20_000, mode).unwrap();
        assert_eq!(fs.attr(id).unwrap().size, 50_100);
        assert_eq!(fs.attr(id).unwrap().blocks_512, 0, "{}", kind.name);
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
        let fs = image.open();
        assert_eq!(
            read_all(&fs, find(&fs, "file")),
            [0; 50_100],
            "{}",
            kind.name
        );
    }
}

/// Times: a write changes both, a read the access time by relatime's rule; all are on disk in the
/// end.
#[test]
fn times_follow_writes_and_reads() {
    let image = Image::new(KINDS[2].options, "8M");
    let fs = image.open();
    let id = create(&fs, "file");
    let file = fs.open(id, true).unwrap();
    let before = fs.attr(id).unwrap();
    // The clock goes by ticks.
    let tick = || std::thread::sleep(std::time::Duration::from_millis(20));
    tick();
    write_all(&fs, &file, 0, &[7; 10]);
    let written = fs.attr(id).unwrap();
    assert!(written.modified > before.modified);
    assert_eq!(written.modified, written.changed);
    assert_eq!(written.accessed, before.accessed);
    tick();
    read_all(&fs, id);
    let read = fs.attr(id).unwrap();
    assert!(read.accessed > written.modified);
    assert_eq!(read.modified, written.modified);
    tick();
    read_all(&fs, id);
    assert_eq!(fs.attr(id).unwrap().accessed, read.accessed, "not again");
    let cached = WriteMode::WRITEBACK;
    fs.write(&file, 0, &[8; 5], cached).unwrap();
    assert_eq!(fs.attr(id).unwrap().modified, read.modified);
    drop(file);
    fs.shut_down().unwrap();
    drop(fs);
    let fs = image.open();
    let again = fs.attr(find(&fs, "file")).unwrap();
    assert_eq!(
        (again.accessed, again.modified, again.changed),
        (read.accessed, read.modified, read.changed)
    );
}

/// Set-uid and set-group-id go when it is asked for, the latter only where the group may execute.
#[test]
fn writes_take_privileges_off_when_asked_to() {
    let image = Image::new(KINDS[2].options, "8M");
    let fs = image.open();
    for (mode, kept) in [(0o6755, 0o755), (0o6744, 0o2744), (0o755, 0o755)] {
        let id = create(&fs, &format!("file{mode}"));
        fs.set_xattr(id, b"security.capability", &[1; 20], XattrMode::Set)
            .unwrap();
        let change = SetAttr {
            permissions: Some(mode),
            ..SetAttr::default()
        };
        fs.set_attr(id, &change, &root()).unwrap();
        let file = fs.open(id, true).unwrap();
        fs.write(&file, 0, &[7], WriteMode::empty()).unwrap();
        assert_eq!(fs.attr(id).unwrap().permissions, mode);
        assert!(fs.xattr(id, b"security.capability").is_ok());
        fs.write(&file, 0, &[7], WriteMode::KILL_PRIVILEGES)
            .unwrap();
        assert_eq!(fs.attr(id).unwrap().permissions, kept, "{mode:o}");
        let gone = fs.xattr(id, b"security.capability");
        assert!(matches!(gone, Err(Error::NoAttribute)), "{gone:?}");
    }
    fs.shut_down().unwrap();
    drop(fs);
    image.assert_clean("privileges");
}

/// Files inside their inodes grow there as far as they can, then move into blocks.
#[test]
fn inline_files_are_written_in_place_until_they_outgrow_their_inodes() {
    let options = ["-t", "ext4", "-b", "1024", "-O", "inline_data", "-I", "256"];
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c", "d"] {
        std::fs::write(dir.path().join(name), [7; 40]).unwrap();
    }
    let options = [&options[..], &["-d", dir.path().to_str().unwrap()]].concat();
    let image = Image::new(&options, "8M");
    let fs = image.open();
    let mut expected = Vec::new();
    for (name, offset, len, size) in [
        ("a", 10_u64, 20, None),
        ("b", 30, 50, Some(70_u64)),
        ("c", 0, 3000, None),
        ("d", 5000, 10, Some(5005)),
    ] {
        let id = find(&fs, name);
        assert_eq!(
            fs.extents(id, 0, 1, 1).unwrap()[0].state,
            ExtentState::Inline
        );
        let file = fs.open(id, true).unwrap();
        write_all(&fs, &file, offset, &vec![9; len]);
        let mut contents = vec![7; 40];
        let end = offset as usize + len;
        contents.resize(end.max(40), 0);
        contents[offset as usize..end].fill(9);
        if let Some(size) = size {
            set_size(&fs, id, size).unwrap();
            contents.resize(size as usize, 0);
        }
        assert!(read_all(&fs, id) == contents, "{name}");
        expected.push((name, contents));
    }
    let inline = |name| {
        let extents = fs.extents(find(&fs, name), 0, 1, 1).unwrap();
        extents
            .iter()
            .any(|extent| extent.state == ExtentState::Inline)
    };
    assert_eq!(["a", "b", "c", "d"].map(inline), [true, true, false, false]);
    fs.shut_down().unwrap();
    drop(fs);
    image.assert_clean("inline data");
    let fs = image.open();
    for (name, contents) in expected {
        let id = find(&fs, name);
        assert!(read_all(&fs, id) == contents, "{name}");
        set_size(&fs, id, 3).unwrap();
        assert!(read_all(&fs, id) == contents[..3], "{name}");
    }
    fs.shut_down().unwrap();
    drop(fs);
    image.assert_clean("inline data, cut");
}

#[test]
fn without_large_file_sizes_end_at_two_gibibytes() {
    let image = Image::new(
        &[
            "-t",
            "ext2",
            "-b",
            "4096",
            "-O",
            "^large_file,^resize_inode",
        ],
        "8M",
    );
    let fs = image.open();
    let id = create(&fs, "file");
    set_size(&fs, id, 0x7fff_ffff).unwrap();
    let late = set_size(&fs, id, 0x8000_0000);
    assert!(matches!(late, Err(Error::FileTooLarge)), "{late:?}");
    fs.shut_down().unwrap();
    drop(fs);
    image.assert_clean("two gibibytes");
}

/// Holes punched, ranges made zero and space asked for anywhere, with dirty pages and no sync between:
/// the bytes are those of a plain array, before and after the next mount.
#[test]
fn ranges_of_every_kind_leave_the_bytes_that_they_should() {
    const SPAN: u64 = 300 << 10;
    for (seed, kind) in (1..).zip(&KINDS) {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let mut random = Random::new(seed);
        let mut bytes: Vec<u8> = Vec::new();
        for step in 0..400_u64 {
            let offset = random.below(SPAN);
            let length = 1 + random.below(if step % 3 == 0 { SPAN / 2 } else { 9000 });
            let (start, end) = (offset as usize, (offset + length) as usize);
            let size = bytes.len();
            let clear = |bytes: &mut Vec<u8>, end: usize| {
                let end = end.min(bytes.len());
                bytes[start.min(end)..end].fill(0);
            };
            let what = format!("{}, step {step}: {offset}+{length}", kind.name);
            let allocate = |mode| fs.allocate(&file, offset, length, mode);
            let fits = kind.has_extents || end <= size;
            match random.below(8) {
                0 | 1 => {
                    let data = vec![step as u8 | 1; length as usize];
                    let (done, error) = write_all(&fs, &file, offset, &data);
                    assert!(error.is_none() && done == data.len(), "{what}: {error:?}");
                    bytes.resize(size.max(end), 0);
                    bytes[start..end].copy_from_slice(&data);
                }
                2 | 3 => {
                    allocate(FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE).expect(&what);
                    clear(&mut bytes, end);
                }
                4 => {
                    let done = allocate(FallocateMode::ZERO_RANGE);
                    assert_eq!(done.is_ok(), fits, "{what}: {done:?}");
                    if fits {
                        bytes.resize(size.max(end), 0);
                        clear(&mut bytes, end);
                    }
                }
                5 => {
                    let done = allocate(FallocateMode::ZERO_RANGE | FallocateMode::KEEP_SIZE);
                    assert_eq!(done.is_ok(), fits, "{what}: {done:?}");
                    if fits {
                        clear(&mut bytes, end);
                    }
                }
                6 => {
                    let keeps = random.below(2) == 0;
                    let mode = if keeps {
                        FallocateMode::KEEP_SIZE
                    } else {
                        FallocateMode::empty()
                    };
                    assert_eq!(allocate(mode).is_ok(), fits, "{what}");
                    if fits && !keeps {
                        bytes.resize(size.max(end), 0);
                    }
                }
                _ => {
                    set_size(&fs, id, offset).expect(&what);
                    bytes.resize(start, 0);
                }
            }
            if step % 16 == 0 {
                assert!(read_all(&fs, id) == bytes, "{what}");
            }
        }
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
        let fs = image.open();
        assert!(read_all(&fs, find(&fs, "file")) == bytes, "{}", kind.name);
    }
}

/// In a block map zeros stand for space: a range of it that was made zero has all its blocks, and
/// past the end of the file there can be none.
#[test]
fn zeros_stand_for_space_in_block_maps() {
    const KEEP: FallocateMode = FallocateMode::KEEP_SIZE;
    const ZERO: FallocateMode = FallocateMode::ZERO_RANGE;
    for kind in KINDS.iter().filter(|kind| !kind.has_extents) {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let block = u64::from(fs.stat_fs().unwrap().block_size);
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let size = 40 * block + 100;
        write_all(&fs, &file, 0, &vec![7; 10 * block as usize]);
        set_size(&fs, id, size).unwrap();
        fs.sync_file(&file, false).unwrap();
        let (start, end) = (3 * block + 5, 30 * block + 7);
        fs.allocate(&file, start, end - start, ZERO | KEEP).unwrap();
        let mut expected = vec![0; size as usize];
        expected[..start as usize].fill(7);
        assert!(read_all(&fs, id) == expected, "{}", kind.name);
        fs.sync_file(&file, false).unwrap();
        let has_data = |from: u64, to: u64| {
            fs.seek(&file, from, Whence::Data).ok() == Some(from)
                && fs.seek(&file, from, Whence::Hole).unwrap() == to
        };
        assert!(has_data(0, 31 * block), "{}", kind.name);
        for mode in [ZERO, ZERO | KEEP, KEEP, FallocateMode::empty()] {
            for offset in [size - 1, size, size + 100 * block] {
                let done = fs.allocate(&file, offset, 2, mode);
                assert!(
                    matches!(done, Err(Error::Unsupported(_))),
                    "{}: {mode:?}: {done:?}",
                    kind.name
                );
            }
        }
        assert!(read_all(&fs, id) == expected, "{}", kind.name);
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}
