//! What is refused, and how.

use std::io::ErrorKind;

use pagefence::{Advice, Kind, Map, MapOptions, OpenOptions, Options};
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_vfs::{Credentials, FileSystem as _};

use crate::kit::{Image, file, loaded, pattern};

const SHARED: fn() -> MapOptions = MapOptions::shared;

fn image() -> Image {
    Image::new((Kind::Ext4, 4096))
}

#[test]
fn a_map_is_safe_to_share() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Map>();
    fn copied<T: Copy + Send + Sync>() {}
    copied::<pagefence::MapSlice<'_>>();
}

#[test]
fn ranges_are_of_bytes_and_not_empty() {
    let volume = image().open();
    let file = file(&volume, "/f", &pattern(1, 10_000));
    let refused = |range: (std::ops::Bound<u64>, std::ops::Bound<u64>)| {
        file.map(range, SHARED()).expect_err("no such range")
    };
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let empty = refused((Included(5), Excluded(5)));
    assert_eq!(empty.kind(), ErrorKind::InvalidInput);
    assert_eq!(
        empty.to_string(),
        "/f: there is nothing to map: the range is empty"
    );
    // Nothing is left of the file behind its end.
    assert_eq!(
        refused((Included(10_000), Unbounded)).to_string(),
        empty.to_string()
    );
    assert_eq!(
        refused((Included(20_000), Unbounded)).to_string(),
        empty.to_string()
    );
    assert_eq!(
        refused((Included(9), Excluded(5))).kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        refused((Included(0), Included(u64::MAX))).kind(),
        ErrorKind::FileTooLarge
    );
    assert_eq!(
        refused((Included(0), Excluded(1 << 63))).kind(),
        ErrorKind::FileTooLarge
    );
    assert_eq!(
        refused((Excluded(u64::MAX), Unbounded)).kind(),
        ErrorKind::FileTooLarge
    );

    let map = file.map(4095..=4096, SHARED()).expect("two bytes");
    assert_eq!((map.len(), map.offset(), map.is_empty()), (2, 4095, false));
    assert_eq!(loaded(&map, 10_000), pattern(1, 10_000)[4095..4097]);
    let map = file
        .map((Excluded(4095), Included(8191)), SHARED())
        .expect("a page");
    assert_eq!((map.len(), map.offset()), (4096, 4096));
}

#[test]
fn accesses_stay_inside_the_map_and_the_file() {
    let volume = image().open();
    let file = file(&volume, "/f", b"0123456789");
    let map = file.map(2..100_000, SHARED()).expect("past the end");
    let mut bytes = [0; 8];
    map.read_at(0, &mut bytes).expect("inside");
    assert_eq!(&bytes, b"23456789");
    let kind = |at, len| {
        let mut bytes = vec![0; len];
        let loads = map.read_at(at, &mut bytes).expect_err("not there").kind();
        let stores = map.write_at(at, &bytes).expect_err("not there").kind();
        assert_eq!(loads, stores);
        loads
    };
    assert_eq!(kind(1, 8), ErrorKind::UnexpectedEof);
    assert_eq!(kind(50_000, 1), ErrorKind::UnexpectedEof);
    assert_eq!(kind(99_998, 1), ErrorKind::InvalidInput);
    assert_eq!(kind(99_990, 9), ErrorKind::InvalidInput);
    assert_eq!(kind(usize::MAX, 1), ErrorKind::InvalidInput);
    assert_eq!(kind(1, usize::MAX >> 40), ErrorKind::InvalidInput);
    map.read_at(99_998, &mut []).expect("nothing");
    let text = map
        .read_at(1, &mut bytes)
        .expect_err("past the end")
        .to_string();
    assert_eq!(
        text,
        "/f: byte 11 is past the end of the file, which has 10 now"
    );

    // The end moves, and what may be accessed with it.
    file.set_len(60_000).expect("longer");
    map.read_at(50_000, &mut bytes).expect("inside");
    assert_eq!(bytes, [0; 8]);
    map.write_at(50_000, b"there").expect("inside");
    file.set_len(50_000).expect("shorter");
    assert_eq!(kind(50_000, 1), ErrorKind::UnexpectedEof);
    map.populate(..).expect("what there is");
    map.advise(Advice::Random);
    map.advise(Advice::WillNeed);
    assert_eq!(
        map.populate(5..100_000).expect_err("outside").kind(),
        ErrorKind::InvalidInput
    );
    assert_eq!(
        map.flush_range(..=99_998).expect_err("outside").kind(),
        ErrorKind::InvalidInput
    );
}

#[test]
fn atomics_are_aligned_in_the_file_and_ordered_as_there_is() {
    let volume = image().open();
    let file = file(&volume, "/f", &[0; 100]);
    // Byte 6 of the map is byte 16 of the file.
    let map = file.map(10..100, SHARED()).expect("it maps");
    let relaxed = Ordering::Relaxed;
    assert_eq!(map.fetch_add(6, u64::MAX, relaxed).expect("aligned"), 0);
    assert_eq!(map.fetch_add(6, 3u64, relaxed).expect("aligned"), u64::MAX);
    map.store(14, 0x0102_0304u32, Ordering::Release)
        .expect("aligned");
    assert_eq!(
        map.load::<u8>(14, relaxed).expect("aligned"),
        0x0102_0304u32.to_ne_bytes()[0]
    );
    assert_eq!(map.fetch_add(18, 0xffffu16, relaxed).expect("aligned"), 0);
    assert_eq!(map.fetch_add(20, 0xffu8, relaxed).expect("aligned"), 0);
    assert_eq!(map.fetch_add(20, 2u8, relaxed).expect("aligned"), 0xff);
    let swapped = map.compare_exchange(18, 1u16, 2, Ordering::SeqCst, relaxed);
    assert_eq!(swapped.expect("aligned"), Err(0xffff));
    let swapped = map.compare_exchange(18, 0xffffu16, 2, Ordering::SeqCst, relaxed);
    assert_eq!(swapped.expect("aligned"), Ok(0xffff));
    let bytes = file.read_all().expect("it reads");
    assert_eq!(bytes[16..24], 2u64.to_ne_bytes());
    assert_eq!(bytes[24..28], 0x0102_0304u32.to_ne_bytes());
    assert_eq!(
        bytes[28..31],
        [2u16.to_ne_bytes()[0], 2u16.to_ne_bytes()[1], 1]
    );

    let kind = |result: pagefence::Result<()>| result.expect_err("refused").kind();
    let invalid = ErrorKind::InvalidInput;
    assert_eq!(kind(map.load::<u64>(0, relaxed).map(drop)), invalid);
    assert_eq!(kind(map.store(5, 1u16, relaxed)), invalid);
    assert_eq!(
        kind(map.load::<u64>(6, Ordering::Release).map(drop)),
        invalid
    );
    assert_eq!(
        kind(map.load::<u64>(6, Ordering::AcqRel).map(drop)),
        invalid
    );
    assert_eq!(kind(map.store(6, 1u64, Ordering::Acquire)), invalid);
    let exchanged = map.compare_exchange(6, 1u64, 2, relaxed, Ordering::Release);
    assert_eq!(kind(exchanged.map(drop)), invalid);
    assert_eq!(kind(map.load::<u64>(86, relaxed).map(drop)), invalid);
    file.set_len(20).expect("shorter");
    assert_eq!(
        kind(map.load::<u64>(6, relaxed).map(drop)),
        ErrorKind::UnexpectedEof
    );
    map.load::<u32>(6, relaxed).expect("inside");
}

#[test]
fn rights_are_those_of_mmap() {
    let image = image();
    let volume = image.open();
    let both = file(&volume, "/f", b"some bytes");
    let kind = |file: &pagefence::File, options| match file.map(.., options) {
        Ok(_) => None,
        Err(error) => Some(error.kind()),
    };
    let denied = Some(ErrorKind::PermissionDenied);
    let reading = volume.open_file("/f").expect("it opens");
    let writing = OpenOptions::new()
        .write(true)
        .open(&volume, "/f")
        .expect("it opens");
    assert_eq!(kind(&reading, SHARED()), denied);
    assert_eq!(kind(&reading, SHARED().read_only()), None);
    assert_eq!(kind(&reading, MapOptions::private()), None);
    for options in [SHARED(), SHARED().read_only(), MapOptions::private()] {
        assert_eq!(kind(&writing, options), denied);
        assert_eq!(kind(&both, options), None);
    }
    let appending = OpenOptions::new().read(true).append(true);
    let appending = appending.open(&volume, "/f").expect("it opens");
    assert_eq!(kind(&appending, SHARED()), None);

    let map = both.map(.., SHARED().read_only()).expect("it maps");
    let store = map.write_at(0, b"no").expect_err("for reading only");
    assert_eq!(store.kind(), ErrorKind::PermissionDenied);
    assert_eq!(store.to_string(), "/f: the map is for reading only");
    assert!(map.store(0, 1u8, Ordering::Relaxed).is_err());
    assert!(map.fetch_add(0, 1u8, Ordering::Relaxed).is_err());
    let private = both.map(.., MapOptions::private().read_only());
    let private = private.expect("it maps");
    assert!(private.write_at(0, b"no").is_err());
    drop((map, private, both, reading, writing, appending));
    volume.close().expect("nobody has it");
}

#[test]
fn files_that_cannot_be_changed_are_mapped_for_reading() {
    let image = image();
    for (path, flag) in [
        ("/fixed", InodeFlags::IMMUTABLE),
        ("/log", InodeFlags::APPEND),
    ] {
        let volume = image.open();
        drop(file(&volume, path, b"some bytes"));
        let root = Credentials {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
        };
        let fs = volume.into_file_system().expect("nobody has it");
        let entry = fs
            .lookup(fs.root(), &path.as_bytes()[1..])
            .expect("it is there");
        fs.set_flags(entry.attr.id, (flag | InodeFlags::EXTENTS).bits(), &root)
            .expect("a flag");
        fs.shut_down().expect("it closes");
        drop(fs);

        let volume = image.open();
        let writing = OpenOptions::new().read(true).write(true);
        if let Ok(file) = writing.open(&volume, path) {
            let error = file.map(.., SHARED()).expect_err("it can't be stored to");
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{path}");
        }
        let file = volume.open_file(path).expect("it opens");
        let map = file.map(.., SHARED().read_only()).expect("it maps");
        assert_eq!(loaded(&map, 10), b"some bytes");
        let map = file.map(.., MapOptions::private()).expect("it maps");
        map.write_at(0, b"mine").expect("inside");
        assert_eq!(loaded(&map, 10), b"mine bytes");
    }
}

#[test]
fn a_read_only_volume_takes_no_stores() {
    let image = image();
    let volume = image.open();
    drop(file(&volume, "/f", b"some bytes"));
    volume.close().expect("nobody has it");
    let volume = image.open_with(Options::new());
    let writing = OpenOptions::new().read(true).write(true);
    let error = writing.open(&volume, "/f").expect_err("read-only");
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    let file = volume.open_file("/f").expect("it opens");
    let error = file.map(.., SHARED()).expect_err("not open for writing");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(!error.to_string().is_empty());
}
