//! Contents: written, cut off, copied, allocated, made durable.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use pagefence_vfs::{InodeId, WriteMode};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::common::Mounted;
use crate::support::{drop_caches, dropping_caches_until, in_both_modes, shell};

/// A new file, open for reading and writing, and its inode.
fn create(mounted: &Mounted, name: &str) -> (File, InodeId) {
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true);
    let file = file.open(mounted.join(name)).expect("a new file");
    (file, mounted.counters.named(name).expect("it was made"))
}

fn stored(mounted: &Mounted, id: InodeId) -> Vec<u8> {
    mounted.counters.with(id, |node| node.bytes.clone())
}

#[test]
fn what_is_written_arrives_where_it_belongs() {
    in_both_modes(|mounted, writeback| {
        let (mut file, id) = create(mounted, "file");
        let long: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        file.write_all(&long).expect("it is written");
        file.write_all_at(b"in the middle", 1_234_567)
            .expect("it is written");
        file.write_all_at(b"far away", 5_000_000)
            .expect("it is written");
        let mut expected = long.clone();
        expected[1_234_567..1_234_580].copy_from_slice(b"in the middle");
        expected.resize(5_000_000, 0);
        expected.extend_from_slice(b"far away");
        assert_eq!(file.metadata().expect("it is open").len(), 5_000_008);
        assert_eq!(
            fs::read(mounted.join("file")).expect("it is read"),
            expected
        );
        file.sync_all().expect("fsync");
        assert_eq!(stored(mounted, id), expected);
        assert_eq!(mounted.counters.with(id, |node| node.attr.size), 5_000_008);
        // Root writes, which may keep what it likes and take what is kept back.
        let mut mode = WriteMode::USE_RESERVE;
        mode.set(WriteMode::WRITEBACK, writeback);
        assert_eq!(mounted.counters.tree.lock().written, mode);
    });
}

#[test]
fn appending_is_at_the_end_also_past_the_kernels_cache() {
    in_both_modes(|mounted, _| {
        let (first, id) = create(mounted, "file");
        first.write_all_at(b"one\n", 0).expect("it is written");
        let open = |flags| {
            let flags = OFlags::WRONLY | OFlags::APPEND | flags;
            File::from(rustix::fs::open(mounted.join("file"), flags, Mode::empty()).expect("opens"))
        };
        let mut one = open(OFlags::empty());
        let mut other = open(OFlags::SYNC);
        one.write_all(b"two\n").expect("it is written");
        other.write_all(b"three\n").expect("it is written");
        one.write_all_at(b"four\n", 0)
            .expect("pwrite appends, too, on Linux");
        first.sync_all().expect("fsync");
        assert_eq!(stored(mounted, id), b"one\ntwo\nthree\nfour\n");
        // A direct write of many requests, which are sent at once.
        first.set_len(0).expect("it is cut off");
        let mut direct = open(OFlags::DIRECT);
        let long: Vec<u8> = (0..4u32 << 20).map(|n| (n >> 12) as u8).collect();
        for _ in 0..3 {
            direct.write_all(&long).expect("it is written");
        }
        first.sync_all().expect("fsync");
        assert!(stored(mounted, id) == [&long[..]; 3].concat());
    });
}

#[test]
fn what_is_opened_for_writing_alone_is_changed_in_part() {
    in_both_modes(|mounted, _| {
        let id = mounted.counters.plant("file", &[b'x'; 10_000]);
        let mut options = File::options();
        let file = options
            .write(true)
            .open(mounted.join("file"))
            .expect("it opens");
        file.write_all_at(b"part", 5000).expect("it is written");
        file.sync_data().expect("fdatasync");
        let mut expected = vec![b'x'; 10_000];
        expected[5000..5004].copy_from_slice(b"part");
        assert_eq!(stored(mounted, id), expected);
        let (all, data_only) = mounted.counters.tree.lock().syncs;
        assert_eq!((all, data_only), (1, 1));
    });
}

#[test]
fn o_sync_is_followed_by_a_sync() {
    in_both_modes(|mounted, _| {
        let (_, _) = create(mounted, "file");
        // What rustix calls DSYNC is O_SYNC.
        let dsync = OFlags::from_bits_retain(0o10_000);
        for (flag, syncs) in [(dsync, (1, 1)), (OFlags::SYNC, (2, 1))] {
            let flags = OFlags::WRONLY | flag;
            let open = rustix::fs::open(mounted.join("file"), flags, Mode::empty());
            let mut file = File::from(open.expect("it opens"));
            file.write_all(b"durable").expect("it is written");
            assert_eq!(mounted.counters.tree.lock().syncs, syncs);
        }
    });
}

#[test]
fn files_are_cut_off_and_lengthened() {
    in_both_modes(|mounted, _| {
        let (file, id) = create(mounted, "file");
        file.write_all_at(&[7; 9000], 0).expect("it is written");
        file.set_len(5000).expect("it is cut off");
        file.set_len(6000).expect("it is lengthened");
        assert!(shell(mounted.path(), "truncate -s 7000 file"));
        let mut expected = vec![7; 5000];
        expected.resize(7000, 0);
        assert_eq!(
            fs::read(mounted.join("file")).expect("it is read"),
            expected
        );
        file.sync_all().expect("fsync");
        assert_eq!(stored(mounted, id), expected);
        File::create(mounted.join("file")).expect("O_TRUNC");
        assert_eq!(file.metadata().expect("it is open").len(), 0);
        assert_eq!(stored(mounted, id), []);
        // Also for who only reads.
        file.write_all_at(b"again", 0).expect("it is written");
        let flags = OFlags::RDONLY | OFlags::TRUNC;
        let open = rustix::fs::open(mounted.join("file"), flags, Mode::empty());
        drop(open.expect("it opens"));
        assert_eq!(stored(mounted, id), []);
    });
}

#[test]
fn ranges_are_allocated_punched_and_zeroed() {
    in_both_modes(|mounted, _| {
        let (file, id) = create(mounted, "file");
        let stat = || file.metadata().expect("it is open");
        let fallocate = |flags, from, length| rustix::fs::fallocate(&file, flags, from, length);
        assert_eq!(fallocate(FallocateFlags::empty(), 0, 8192), Ok(()));
        assert_eq!((stat().len(), stat().blocks()), (8192, 16));
        assert_eq!(fallocate(FallocateFlags::KEEP_SIZE, 0, 16_384), Ok(()));
        assert_eq!((stat().len(), stat().blocks()), (8192, 32));
        file.write_all_at(&[9; 16_384], 0).expect("it is written");
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert_eq!(fallocate(punch, 4000, 5000), Ok(()));
        assert_eq!(fallocate(FallocateFlags::ZERO_RANGE, 16_000, 1000), Ok(()));
        let mut expected = vec![9; 16_000];
        expected[4000..9000].fill(0);
        expected.resize(17_000, 0);
        assert_eq!(stat().len(), 17_000);
        assert_eq!(
            fs::read(mounted.join("file")).expect("it is read"),
            expected
        );
        file.sync_all().expect("fsync");
        assert_eq!(stored(mounted, id), expected);
        for flags in [
            FallocateFlags::COLLAPSE_RANGE,
            FallocateFlags::INSERT_RANGE,
            FallocateFlags::UNSHARE_RANGE,
        ] {
            assert_eq!(fallocate(flags, 0, 4096), Err(Errno::OPNOTSUPP));
        }
        assert_eq!(stored(mounted, id), expected);
    });
}

#[test]
fn a_range_is_copied() {
    in_both_modes(|mounted, _| {
        let (from, _) = create(mounted, "from");
        let (to, id) = create(mounted, "to");
        let long: Vec<u8> = (0..3_000_000u32).map(|n| (n % 241) as u8).collect();
        from.write_all_at(&long, 0).expect("it is written");
        to.write_all_at(&[1; 1000], 0).expect("it is written");
        let (mut at, mut there, mut left) = (100u64, 10u64, 2_500_000usize);
        while left > 0 {
            let copied =
                rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut there), left);
            let copied = copied.expect("it is copied");
            assert!(copied > 0 && copied <= left);
            left -= copied;
        }
        let mut expected = vec![1; 10];
        expected.extend_from_slice(&long[100..2_500_100]);
        assert!(fs::read(mounted.join("to")).expect("it is read") == expected);
        to.sync_all().expect("fsync");
        assert!(stored(mounted, id) == expected);
    });
}

#[test]
fn no_data_is_taken_for_a_hole() {
    in_both_modes(|mounted, writeback| {
        let (file, _) = create(mounted, "file");
        file.set_len(1 << 20).expect("it is lengthened");
        file.write_all_at(&[5; 4096], 65_536)
            .expect("it is written");
        // Nothing was flushed: with a writeback cache only the kernel knows of the data.
        let seek = |to| rustix::fs::seek(&file, to);
        let data = seek(rustix::fs::SeekFrom::Data(0)).expect("there is data");
        let hole = seek(rustix::fs::SeekFrom::Hole(65_536)).expect("there is an end");
        let sparse = (65_536, 69_632);
        let full = (0, 1 << 20);
        assert_eq!((data, hole), if writeback { full } else { sparse });
        let past = seek(rustix::fs::SeekFrom::Data(1 << 20));
        assert_eq!(past, Err(Errno::NXIO));
        assert_eq!(seek(rustix::fs::SeekFrom::End(-6)), Ok((1 << 20) - 6));
    });
}

#[test]
fn a_file_without_a_name_lives_as_long_as_it_is_open() {
    in_both_modes(|mounted, _| {
        let (mut file, id) = create(mounted, "file");
        file.write_all(b"still here").expect("it is written");
        fs::remove_file(mounted.join("file")).expect("it goes");
        drop_caches();
        file.write_all(b", and on").expect("it is written");
        file.seek(SeekFrom::Start(0)).expect("it is open");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("it is read");
        assert_eq!(text, "still here, and on");
        assert_eq!(file.metadata().expect("it is open").nlink(), 0);
        file.set_len(5).expect("it is cut off");
        assert_eq!(mounted.counters.with(id, |node| node.attr.size), 5);
        assert_eq!(mounted.counters.tree.lock().forgotten.get(&id.0), None);
        drop(file);
        let gone = || !mounted.counters.tree.lock().nodes.contains_key(&id.0);
        dropping_caches_until("it is deleted", gone);
        assert_eq!(mounted.counters.tree.lock().forgotten.get(&id.0), Some(&1));
    });
}
