//! How long files, volumes and maps live.

use std::io::ErrorKind;

use pagefence::{Kind, MapOptions, Options};

use crate::kit::{FORMATS, Image, Watchdog, file, loaded, pattern};

#[test]
fn a_map_outlives_its_file_and_keeps_what_was_removed() {
    let _watchdog = Watchdog::new("a_map_outlives_its_file_and_keeps_what_was_removed");
    for format in FORMATS {
        let image = Image::new(format);
        let volume = image.open();
        let free = volume.usage().expect("it").free;
        let mut bytes = pattern(3, 30_000);
        let file = file(&volume, "/f", &bytes);
        let map = file.map(.., MapOptions::shared()).expect("it maps");
        drop(file);
        volume.remove_file("/f").expect("it goes");
        // Others come and go, so that the inode would be deleted if it could be.
        for round in 0..3 {
            let path = format!("/other{round}");
            volume
                .write(&path, pattern(round, 9000))
                .expect("it writes");
            volume.remove_file(&path).expect("it goes");
        }
        volume.sync().expect("durable");
        map.write_at(10_000, b"still here").expect("inside");
        bytes[10_000..10_010].copy_from_slice(b"still here");
        map.flush().expect("durable");
        assert!(loaded(&map, 30_000) == bytes, "{format:?}");
        assert!(
            volume.usage().expect("it").free < free,
            "its blocks are its own"
        );

        let clone = volume.clone();
        let error = clone.close().expect_err("a map is there");
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        drop(map);
        volume.sync().expect("durable");
        assert_eq!(volume.usage().expect("it").free, free, "{format:?}");
        volume.close().expect("nobody has it");
        image.check();
    }
}

/// The last map closes the volume.
#[test]
fn a_map_outlives_its_volume() {
    let image = Image::new((Kind::Ext4, 4096));
    let map = {
        let volume = image.open();
        let file = file(&volume, "/f", &[1; 10_000]);
        file.map(.., MapOptions::shared()).expect("it maps")
    };
    map.write_at(9_000, b"the last").expect("inside");
    drop(map);
    image.check();
    let bytes = image.open().read("/f").expect("it reads");
    assert_eq!(&bytes[9_000..9_008], b"the last");
}

#[test]
fn two_volumes_are_mapped_side_by_side() {
    let _watchdog = Watchdog::new("two_volumes_are_mapped_side_by_side");
    let images = FORMATS.map(Image::new);
    let volumes: Vec<_> = images.iter().map(Image::open).collect();
    let maps: Vec<_> = (1..)
        .zip(&volumes)
        .map(|(seed, volume)| {
            let file = file(volume, "/f", &pattern(seed, 50_000));
            file.map(.., MapOptions::shared()).expect("it maps")
        })
        .collect();
    // Each takes over a half of the one before it.
    for pair in maps.windows(2) {
        let half = pair[0].slice(..25_000).expect("inside");
        pair[1]
            .write_at(0, &half.to_vec().expect("inside"))
            .expect("inside");
    }
    drop(maps);
    for (seed, volume) in (1..).zip(volumes) {
        let bytes = volume.read("/f").expect("it reads");
        assert!(bytes[..25_000] == pattern(1, 25_000));
        assert!(bytes[25_000..] == pattern(seed, 50_000)[25_000..]);
        volume.close().expect("nobody has it");
    }
    images.iter().for_each(Image::check);
}

/// More than the cache holds, several times, in a map and beside it.
#[test]
fn more_is_mapped_than_there_is_memory() {
    const BYTES: usize = 40 << 20;
    let _watchdog = Watchdog::new("more_is_mapped_than_there_is_memory");
    let image = Image::made(pagefence::Mkfs::new(Kind::Ext4).block_size(4096), 96);
    let volume = image.open_with(Options::new().write(true));
    let file = file(&volume, "/large", b"");
    file.set_len(BYTES as u64).expect("its size");
    let map = file.map(.., MapOptions::shared()).expect("it maps");
    for page in 0..BYTES / 4096 {
        let at = page * 4096;
        map.write_at(at + page % 4088, &(page as u64).to_ne_bytes())
            .expect("inside");
    }
    for page in (0..BYTES / 4096).rev() {
        let mut number = [0; 8];
        map.read_at(page * 4096 + page % 4088, &mut number)
            .expect("inside");
        assert_eq!(u64::from_ne_bytes(number), page as u64);
    }
    map.populate(..).expect("it is read");
    drop((map, file));
    volume.close().expect("nobody has it");
    image.check();
    let volume = image.open();
    let file = volume.open_file("/large").expect("it opens");
    for page in 0..BYTES / 4096 {
        let mut number = [0; 8];
        file.read_at((page * 4096 + page % 4088) as u64, &mut number)
            .expect("it reads");
        assert_eq!(u64::from_ne_bytes(number), page as u64);
    }
}
