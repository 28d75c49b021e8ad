//! Single operations, looked at closely.

use pagefence_vfs::{Error, ExtentState, FallocateMode, FileSystem as _, Whence, WriteMode};

use crate::support::{Image, KINDS, create, find, read_all, set_size, write_all};

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
    let shift = fs.allocate(&file, 0, 4096, FallocateMode::COLLAPSE_RANGE);
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
            .copy_range(&source, 1000, &target, 77, u64::MAX / 4)
            .unwrap();
        assert_eq!(copied, 2_499_000, "{}", kind.name);
        let bytes = read_all(&fs, to);
        assert!(bytes[..77].iter().all(|byte| *byte == 0));
        assert!(bytes[77..] == data[1000..], "{}", kind.name);
        let overlap = fs.copy_range(&source, 0, &source, 100, 1000);
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
