//! What a program can't do with a map's memory: hand it to a child, or store to what is for reading only.
#![expect(
    unsafe_code,
    reason = "loads and stores by pointers, which end the process that makes them"
)]

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::Command;

use pagefence::{Kind, Map, MapOptions};

use crate::full::{Child, host_file, image_of_child};
use crate::kit::{Image, Watchdog, file, loaded, pattern};

const PAGE: usize = 4096;
const SIGSEGV: i32 = 11;

/// Children of fork(2) have no map; who has forked notices nothing.
#[test]
fn children_of_a_fork_have_no_map() {
    let _watchdog = Watchdog::new("children_of_a_fork_have_no_map");
    let image = Image::new((Kind::Ext4, 4096));
    let volume = image.open();
    let mut bytes = pattern(1, 3 * PAGE);
    let file = file(&volume, "/f", &bytes);
    for options in [MapOptions::shared(), MapOptions::private()] {
        let map = file.map(.., options).expect("it maps");
        // One page that was loaded from, one that was stored to, and one that nobody has touched.
        let mut byte = [0];
        map.read_at(0, &mut byte).expect("inside");
        map.write_at(PAGE, b"mine").expect("inside");
        for page in 0..3 {
            let place = map.as_ptr().wrapping_add(page * PAGE).expose_provenance();
            let mut command = Command::new("true");
            // SAFETY: a load, which no other thread of the child's is needed for.
            let command = unsafe {
                command.pre_exec(move || {
                    std::ptr::with_exposed_provenance::<u8>(place).read_volatile();
                    // It has the map.
                    std::process::abort()
                })
            };
            let ended = command.spawn().and_then(|mut child| child.wait());
            let signal = ended.expect("a child").signal();
            assert_eq!(signal, Some(SIGSEGV), "page {page}");
        }
        let mut found = [0; 4];
        map.read_at(PAGE, &mut found).expect("inside");
        assert_eq!(&found, b"mine");
        map.write_at(2 * PAGE, b"goes on").expect("inside");
    }
    bytes[PAGE..][..4].copy_from_slice(b"mine");
    bytes[2 * PAGE..][..7].copy_from_slice(b"goes on");
    assert!(file.read_all().expect("it reads") == bytes);
    drop(file);
    volume.close().expect("nobody has it");
    image.check();
}

fn read_only(image: &std::path::Path) -> (pagefence::Volume, pagefence::File, Map) {
    let options = pagefence::Options::new().write(true).cache(0);
    let volume = pagefence::Volume::open(image, options).expect("it opens");
    let file = file(&volume, "/f", &pattern(1, 3 * PAGE));
    file.sync_all().expect("durable");
    let map = file.map(.., MapOptions::shared().read_only());
    let map = map.expect("it maps");
    (volume, file, map)
}

#[test]
fn child_that_stores_to_what_is_for_reading() {
    let Some(image) = image_of_child() else {
        return;
    };
    let (_volume, file, map) = read_only(&image);
    // What others do shows, in pages that were loaded from and in others.
    assert!(loaded(&map, 3 * PAGE as u64) == pattern(1, 3 * PAGE));
    file.write_all_at(10, b"changed").expect("it writes");
    file.punch_hole(PAGE as u64, PAGE as u64).expect("a hole");
    let mut expected = pattern(1, 3 * PAGE);
    expected[10..17].copy_from_slice(b"changed");
    expected[PAGE..2 * PAGE].fill(0);
    assert!(loaded(&map, 3 * PAGE as u64) == expected);
    file.sync_all().expect("durable");
    eprintln!("it stores");
    // SAFETY: what is mapped; that it ends this process is what is tested.
    unsafe { map.as_ptr().write_volatile(0) };
    eprintln!("it has stored");
}

#[test]
fn a_map_for_reading_is_not_stored_to() {
    let image = host_file(8 << 20);
    pagefence::Mkfs::new(Kind::Ext4)
        .overwrite(true)
        .format(&image)
        .expect("it is made");
    let name = "children::child_that_stores_to_what_is_for_reading";
    let child = Child::run(name, &image);
    assert!(child.is_ended_by(SIGSEGV), "{name}: {child:?}");
    assert!(child.said().contains("it stores"), "{child:?}");
    assert!(!child.said().contains("it has stored"), "{child:?}");
    let options = pagefence::Options::new().write(true);
    let volume = pagefence::Volume::open(&image, options).expect("it opens");
    let bytes = volume.read("/f").expect("it reads");
    assert_eq!(&bytes[10..17], b"changed");
    assert_eq!(bytes[0], pattern(1, 1)[0], "it was not stored");
}
