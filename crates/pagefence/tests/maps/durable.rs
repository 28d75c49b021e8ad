//! What was stored through a map is on disk when it is said to be.

use std::time::{Duration, SystemTime};

use pagefence::{ExtentState, Kind, MapOptions};

use crate::kit::{FORMATS, Image, Watchdog, file, loaded, pattern};

#[test]
fn what_was_flushed_survives_a_power_cut() {
    let _watchdog = Watchdog::new("what_was_flushed_survives_a_power_cut");
    for format in FORMATS {
        let image = Image::new(format);
        let volume = image.open();
        let file = file(&volume, "/f", b"");
        // All holes, which get their blocks when they are flushed.
        file.set_len(40_000).expect("its size");
        file.sync_all().expect("durable");
        let bytes = pattern(7, 40_000);
        let map = file.map(.., MapOptions::shared()).expect("it maps");
        map.write_at(0, &bytes).expect("inside");
        map.flush().expect("durable");
        let cut = image.cut();
        assert!(
            cut.open().read("/f").expect("it reads") == bytes,
            "{format:?}"
        );
        cut.check();

        map.write_at(20_000, b"again").expect("inside");
        map.write_at(3, b"not this").expect("inside");
        map.flush_range(20_000..20_005).expect("durable");
        let cut = image.cut().open().read("/f").expect("it reads");
        assert_eq!(&cut[20_000..20_005], b"again");

        drop((map, file));
        volume.close().expect("nobody has it");
        image.check();
        let stored = image.open().read("/f").expect("it reads");
        assert_eq!(&stored[3..11], b"not this");
        assert!(stored[5000..20_000] == bytes[5000..20_000], "{format:?}");
    }
}

#[test]
fn stores_change_the_times_of_the_file() {
    let image = Image::new((Kind::Ext4, 4096));
    let volume = image.open();
    let file = file(&volume, "/f", &[1; 5000]);
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    volume.set_times("/f", Some(old), Some(old)).expect("times");
    let map = file.map(.., MapOptions::shared()).expect("it maps");
    let mut byte = [0];
    map.read_at(4500, &mut byte).expect("inside");
    let modified = || volume.metadata("/f").expect("it").modified();
    assert_eq!(modified(), old, "a load changes nothing");
    map.write_at(4500, b"x").expect("inside");
    let stored = modified();
    assert!(stored > old, "a store does");
    map.flush().expect("durable");
    std::thread::sleep(Duration::from_millis(20));
    map.write_at(4500, b"y").expect("inside");
    assert!(
        modified() > stored,
        "so does the first store after each flush"
    );
    drop((map, file));
    volume.close().expect("nobody has it");
    let volume = image.open();
    let on_disk = volume.metadata("/f").expect("it").modified();
    assert!(on_disk > stored, "and it is on disk");
}

#[test]
fn data_in_the_inode_leaves_it_for_stores_alone() {
    let _watchdog = Watchdog::new("data_in_the_inode_leaves_it_for_stores_alone");
    let tree = tempfile::tempdir().expect("a directory");
    std::fs::write(tree.path().join("small"), "small enough for an inode").expect("a file");
    let Some(image) = Image::of_mke2fs(&["-O", "inline_data", "-I", "256"], tree.path()) else {
        return;
    };
    let is_inline = |volume: &pagefence::Volume| {
        let file = volume.open_file("/small").expect("it opens");
        let extent = file.extents().next().expect("it has data");
        extent.expect("it is sound").state == ExtentState::Inline
    };

    let volume = image.open_with(pagefence::Options::new());
    let reading = volume.open_file("/small").expect("it opens");
    let map = reading.map(.., MapOptions::shared().read_only());
    let map = map.expect("it maps");
    assert_eq!(loaded(&map, 25), b"small enough for an inode");
    drop((map, reading));
    volume.close().expect("nobody has it");

    let volume = image.open();
    assert!(is_inline(&volume), "made so");
    let file = file(&volume, "/small", b"S");
    let reading = file.map(.., MapOptions::private()).expect("it maps");
    assert_eq!(loaded(&reading, 25), b"Small enough for an inode");
    assert!(is_inline(&volume), "a private map needs no block");
    file.write_all_at(6, b"ENOUGH").expect("it writes");
    assert_eq!(loaded(&reading, 25), b"Small ENOUGH for an inode");

    let map = file.map(.., MapOptions::shared()).expect("it maps");
    assert!(!is_inline(&volume), "stores need one");
    map.write_at(0, b"N").expect("inside");
    assert_eq!(loaded(&reading, 25), b"Nmall ENOUGH for an inode");
    drop((map, reading, file));
    volume.close().expect("nobody has it");
    image.check();
    let stored = image.open().read("/small").expect("it reads");
    assert_eq!(stored, b"Nmall ENOUGH for an inode");
}
