//! `fallocate` and `truncate`, on files in images and on mounts.

mod common;

use std::path::Path;

use common::{Bench, can_mount};
use pagefence::{OpenOptions, Options, Volume};

const PIECE: usize = 4096;

/// Pieces of the file, each full of one number.
fn pieces(numbers: &[u8]) -> Vec<u8> {
    numbers.iter().flat_map(|n| [*n; PIECE]).collect()
}

fn numbers(bytes: &[u8]) -> Vec<u8> {
    let kind = |piece: &[u8]| match piece.iter().all(|byte| *byte == piece[0]) {
        true => piece[0],
        false => u8::MAX,
    };
    bytes.chunks(PIECE).map(kind).collect()
}

/// An image with the file `/f`.
fn with_image(kind: &str, test: impl Fn(&Bench)) {
    let bench = Bench::new();
    bench.run(&format!("mkfs -q -t {kind} --size 32M a.img"));
    let options = Options::new().write(true);
    let volume = Volume::open(bench.join("a.img"), options).expect("it was made");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .open(&volume, "/f");
    let file = file.expect("there is room");
    file.write_all_at(0, &pieces(&[1, 2, 3, 4, 5]))
        .expect("there is room");
    drop(file);
    volume.close().expect("it closes");
    test(&bench);
}

fn contents(bench: &Bench) -> Vec<u8> {
    let volume = Volume::open(bench.join("a.img"), Options::new()).expect("it is an image");
    volume.read("/f").expect("it is there")
}

/// What each command makes of the file at `place`, shown by `read`.
fn every_mode(bench: &Bench, place: &str, read: &dyn Fn() -> Vec<u8>) {
    let shown = || numbers(&read());
    bench.run(&format!("fallocate --collapse-range -o 4K -l 8K {place}"));
    assert_eq!(shown(), [1, 4, 5]);
    bench.run(&format!("fallocate -i --offset 4096 --length 4096 {place}"));
    assert_eq!(shown(), [1, 0, 4, 5]);
    bench.run(&format!("fallocate --punch-hole -o 12K -l 4K {place}"));
    assert_eq!(shown(), [1, 0, 4, 0]);
    bench.run(&format!("fallocate -l 16K {place}"));
    assert_eq!(shown(), [1, 0, 4, 0]);
    bench.run(&format!("truncate -s 5000 {place}"));
    assert_eq!(read().len(), 5000);
    let said = bench.fail(&format!("fallocate -c -o 100 -l 4K {place}"));
    assert!(
        said.contains("the range of ") && said.contains("can't be changed"),
        "{said}"
    );
}

#[test]
fn files_in_images_change() {
    for kind in ["ext3", "ext4"] {
        with_image(kind, |bench| {
            every_mode(bench, "a.img:/f", &|| contents(bench));
            let said = bench.fail("truncate -s 1 a.img:/nothing");
            assert!(
                said.contains("the size of a.img:/nothing can't be changed"),
                "{said}"
            );
        });
    }
}

#[test]
fn zeros_and_space_past_the_end() {
    with_image("ext4", |bench| {
        bench.run("fallocate --zero-range -o 4K -l 4K a.img:/f");
        assert_eq!(numbers(&contents(bench)), [1, 0, 3, 4, 5]);
        bench.run("fallocate -z -n -o 16K -l 1M a.img:/f");
        assert_eq!(numbers(&contents(bench)), [1, 0, 3, 4, 0]);
        bench.run("fallocate -n -o 4M -l 1M a.img:/f");
        assert_eq!(contents(bench).len(), 5 * PIECE);
        bench.run("fallocate -l 24K a.img:/f");
        assert_eq!(numbers(&contents(bench)), [1, 0, 3, 4, 0, 0]);
    });
}

/// Maps of ext2 and ext3 know no space without data.
#[test]
fn no_space_past_the_end_of_a_file_of_ext3() {
    with_image("ext3", |bench| {
        let said = bench.fail("fallocate -l 24K a.img:/f");
        assert!(said.contains("not supported"), "{said}");
        assert_eq!(numbers(&contents(bench)), [1, 2, 3, 4, 5]);
    });
}

#[test]
fn files_on_mounts_change() {
    if !can_mount() {
        return;
    }
    for kind in ["ext3", "ext4"] {
        with_image(kind, |bench| {
            std::fs::create_dir(bench.join("mnt")).expect("a directory");
            bench.run("mount a.img mnt");
            let path = bench.join("mnt/f");
            every_mode(bench, "mnt/f", &|| {
                std::fs::read(&path).expect("it is there")
            });
            bench.run("umount mnt");
            assert_eq!(contents(bench).len(), 5000);
        });
    }
}

#[test]
fn what_is_no_target_is_one_sentence() {
    let bench = Bench::new();
    std::fs::write(bench.join("plain"), "a file of the host").expect("a file");
    let said = bench.fail("truncate -s 3 plain");
    assert!(
        said.contains("plain does not lie on a mount of pagefence"),
        "{said}"
    );
    assert!(said.contains("IMAGE:/path"), "{said}");
    let there = std::fs::read(Path::new(&bench.join("plain"))).expect("it is there");
    assert_eq!(there, b"a file of the host");
}
