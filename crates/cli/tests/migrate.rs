//! `migrate`, on files in images and on mounts.

mod common;

use common::{Bench, can_mount};
use pagefence::{OpenOptions, Options, Volume};
use rustix::fs::IFlags;

const PIECE: usize = 4096;
/// FS_EXTENT_FL.
const EXTENTS: IFlags = IFlags::from_bits_retain(0x8_0000);

/// An image of ext4 with the file `/f`, in pieces with holes between them.
fn with_image(test: impl Fn(&Bench)) {
    let bench = Bench::new();
    bench.run("mkfs -q -t ext4 --size 32M a.img");
    let volume = Volume::open(bench.join("a.img"), Options::new().write(true));
    let volume = volume.expect("it was made");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .open(&volume, "/f");
    let file = file.expect("there is room");
    for piece in 0..100 {
        let byte = [u8::try_from(piece).expect("small"); PIECE];
        let written = file.write_all_at(2 * piece * PIECE as u64, &byte);
        written.expect("there is room");
    }
    drop(file);
    volume.close().expect("it closes");
    test(&bench);
}

/// What the file holds; whether it has extents.
fn state(bench: &Bench) -> (Vec<u8>, bool) {
    let volume = Volume::open(bench.join("a.img"), Options::new()).expect("it is an image");
    let file = volume.open_file("/f").expect("it is there");
    let flags = file.metadata().expect("it is there").flags();
    let bytes = volume.read("/f").expect("it can be read");
    (bytes, flags & EXTENTS.bits() != 0)
}

#[test]
fn files_in_images_are_migrated() {
    with_image(|bench| {
        let (bytes, has_extents) = state(bench);
        assert!(has_extents);
        for (line, extents) in [
            ("migrate --to blocks a.img:/f", false),
            ("migrate --to blocks a.img:/f", false),
            ("migrate a.img:/f", true),
        ] {
            assert_eq!(bench.run(line), "");
            assert_eq!(state(bench), (bytes.clone(), extents), "{line}");
        }
        let told = bench.fail("migrate a.img:/none");
        assert!(told.contains("none"), "{told}");
    });
}

#[test]
fn files_on_mounts_are_migrated() {
    if !can_mount() {
        return;
    }
    with_image(|bench| {
        let (bytes, _) = state(bench);
        std::fs::create_dir(bench.join("mnt")).expect("a directory");
        bench.run("mount a.img mnt");
        let path = bench.join("mnt/f");
        let has_extents = || {
            let file = std::fs::File::open(&path).expect("it opens");
            let flags = rustix::fs::ioctl_getflags(&file).expect("it has flags");
            flags.contains(EXTENTS)
        };
        for (line, extents) in [
            ("migrate --to blocks mnt/f", false),
            ("migrate --to extents mnt/f", true),
            ("migrate --to blocks mnt/f", false),
        ] {
            assert_eq!(bench.run(line), "");
            assert_eq!(has_extents(), extents, "{line}");
            assert!(std::fs::read(&path).expect("it can be read") == bytes);
        }
        for line in ["migrate --to blocks mnt", "migrate --to extents mnt"] {
            assert_eq!(bench.run(line), "");
            assert!(std::fs::read(&path).expect("it is found") == bytes);
        }
        let told = bench.fail("migrate --to blocks mnt/none");
        assert!(told.contains("mnt/none"), "{told}");
        bench.run("umount mnt");
        assert_eq!(state(bench), (bytes, false));
    });
}
