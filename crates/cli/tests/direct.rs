//! O_DIRECT on mounts: what goes past the caches and what goes through them is one file.

#[expect(dead_code, reason = "nothing fails here")]
mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use common::{Bench, can_mount};
use pagefence::{Options, Volume};
use rustix::fs::{Mode, OFlags};

/// Bytes of the files.
const SIZE: usize = 3 << 20;
const BLOCK: usize = 4096;

fn dd(bench: &Bench, operands: &str) {
    let output = Command::new("dd")
        .args(operands.split_whitespace())
        .current_dir(bench.join(""))
        .output()
        .expect("dd can be run");
    assert!(output.status.success(), "dd {operands}: {output:?}");
}

/// Bytes of which no two blocks are alike.
fn pattern(seed: u32) -> Vec<u8> {
    let words = (0..SIZE as u32 / 4).map(|at| at.wrapping_mul(0x9E37_79B1) ^ seed);
    words.flat_map(u32::to_le_bytes).collect()
}

/// `length` bytes of `buffer` at an address that a device can use.
fn aligned(buffer: &mut [u8], length: usize) -> &mut [u8] {
    let start = buffer.as_ptr().align_offset(BLOCK);
    &mut buffer[start..start + length]
}

#[test]
fn direct_and_buffered_io_on_a_mount_agree_with_the_image() {
    if !can_mount() {
        return;
    }
    for (kind, writeback) in [("ext4", false), ("ext4", true), ("ext3", false)] {
        let bench = Bench::new();
        bench.run(&format!("mkfs -q -t {kind} --size 32M a.img"));
        std::fs::create_dir(bench.join("mnt")).expect("a directory");
        let options = if writeback { "rw,writeback" } else { "rw" };
        bench.run(&format!("mount -o {options} a.img mnt"));
        let source = pattern(1);
        std::fs::write(bench.join("source"), &source).expect("a file");
        dd(
            &bench,
            "if=source of=mnt/copy bs=64K oflag=direct conv=fsync",
        );
        dd(&bench, "if=mnt/copy of=back bs=128K iflag=direct");
        assert!(std::fs::read(bench.join("back")).expect("a file") == source);
        assert!(std::fs::read(bench.join("mnt/copy")).expect("a file") == source);
        let mixed = mix(&bench, source.clone());
        bench.run("umount mnt");
        let volume = Volume::open(bench.join("a.img"), Options::new()).expect("an image");
        assert!(volume.read("/copy").expect("it is there") == source);
        assert!(
            volume.read("/mixed").expect("it is there") == mixed,
            "{kind}"
        );
        volume.close().expect("it closes");
        let checked = Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(bench.join("a.img"))
            .output()
            .expect("e2fsck can be run");
        assert!(checked.status.success(), "{checked:?}");
    }
}

/// Writes a file by two descriptors, one of them direct, reading it by both all along; what it is.
fn mix(bench: &Bench, mut model: Vec<u8>) -> Vec<u8> {
    let path = bench.join("mnt/mixed");
    std::fs::write(&path, &model).expect("there is room");
    let open = |flags| {
        let opened = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC | flags, Mode::empty());
        File::from(opened.expect("it opens"))
    };
    let (direct, plain) = (open(OFlags::DIRECT), open(OFlags::empty()));
    let mut memory = vec![0; 20 * BLOCK];
    let mut random = 12345_usize;
    for step in 0..300_usize {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let length = (1 + (random >> 33) % 16) * BLOCK;
        let mut at = (random >> 40) % (SIZE / BLOCK - 16) * BLOCK;
        let by_direct = step % 3 != 0;
        let mut buffer = vec![step as u8; length];
        if by_direct {
            let buffer = aligned(&mut memory, length);
            buffer.fill(step as u8);
            direct.write_all_at(buffer, at as u64).expect("written");
        } else {
            // Anywhere.
            at += random % BLOCK;
            plain.write_all_at(&buffer, at as u64).expect("written");
        }
        model[at..at + length].fill(step as u8);
        let seen = at / BLOCK * BLOCK;
        if step % 2 == 0 {
            let buffer = aligned(&mut memory, length);
            direct.read_exact_at(buffer, seen as u64).expect("read");
            assert!(*buffer == model[seen..seen + length], "step {step}");
        } else {
            plain.read_exact_at(&mut buffer, seen as u64).expect("read");
            assert!(buffer == model[seen..seen + length], "step {step}");
        }
    }
    plain.sync_all().expect("fsync");
    model
}
