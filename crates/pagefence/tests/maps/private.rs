//! What a private map is.

use pagefence::{MapOptions, Options};

use crate::kit::{FORMATS, Image, Watchdog, file, loaded, pattern};

#[test]
fn stores_stay_with_a_private_map() {
    let _watchdog = Watchdog::new("stores_stay_with_a_private_map");
    for format in FORMATS {
        let image = Image::new(format);
        let volume = image.open();
        let bytes = pattern(1, 20_000);
        let file = file(&volume, "/f", &bytes);
        let private = file.map(.., MapOptions::private()).expect("it maps");
        let shared = file.map(.., MapOptions::shared()).expect("it maps");
        private.write_at(100, b"mine").expect("inside");
        assert!(loaded(&shared, 20_000) == bytes, "{format:?}");
        assert!(file.read_all().expect("it reads") == bytes, "{format:?}");
        let mut own = bytes.clone();
        own[100..104].copy_from_slice(b"mine");
        assert!(loaded(&private, 20_000) == own, "{format:?}");

        // What has no copy is the file's, what has one is not.
        shared.write_at(9000, b"ours").expect("inside");
        shared.write_at(200, b"theirs").expect("inside");
        own[9000..9004].copy_from_slice(b"ours");
        assert!(loaded(&private, 20_000) == own, "{format:?}");
        private.flush().expect("nothing to do");

        // A punch leaves copies alone (S4.14), and shows where there are none.
        file.punch_hole(0, 12_288).expect("a hole");
        own[4096..12_288].fill(0);
        assert!(loaded(&private, 20_000) == own, "{format:?}");

        // A truncate takes them, but for the page that the file ends in.
        private.write_at(4096, b"mine too").expect("inside");
        file.set_len(50).expect("shorter");
        file.set_len(20_000).expect("and longer");
        own[4096..].fill(0);
        assert!(loaded(&private, 20_000) == own, "{format:?}");
        file.set_len(0).expect("nothing");
        file.set_len(20_000).expect("and longer");
        assert!(loaded(&private, 20_000) == vec![0; 20_000], "{format:?}");
        drop((private, shared, file));
        volume.close().expect("nobody has it");
        image.check();
        assert!(image.open().read("/f").expect("it reads") == vec![0; 20_000]);
    }
}

#[test]
fn a_read_only_volume_is_mapped_and_privately_stored_to() {
    for format in FORMATS {
        let image = Image::new(format);
        let volume = image.open();
        let bytes = pattern(9, 30_000);
        drop(file(&volume, "/f", &bytes));
        volume.close().expect("nobody has it");
        let before = image.cut();

        let volume = image.open_with(Options::new());
        let file = volume.open_file("/f").expect("it opens");
        let shared = MapOptions::shared().read_only();
        let shared = file.map(.., shared).expect("it maps");
        let private = file.map(1000.., MapOptions::private()).expect("it maps");
        assert!(loaded(&shared, 30_000) == bytes, "{format:?}");
        private.write_at(0, b"mine").expect("inside");
        assert_eq!(
            private
                .slice(..6)
                .expect("inside")
                .to_vec()
                .expect("inside")[..4],
            b"mine"[..]
        );
        assert!(loaded(&shared, 30_000) == bytes, "{format:?}");
        shared.flush().expect("nothing to do");
        drop((shared, private, file));
        volume.close().expect("nobody has it");
        assert!(
            image.has_same_bytes(&before),
            "not a byte of the image changes"
        );
    }
}
