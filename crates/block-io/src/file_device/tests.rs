//! Tests of host files as devices, with and without O_DIRECT.

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;

use proptest::prelude::*;

use super::{FileDevice, Lock, Locked, OpenError, OpenOptions};
use crate::aligned::AlignedBytes;
use crate::device::{Device, Operation};

fn file(size: usize) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..size).map(|at| (at / 512) as u8).collect();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn open(path: &Path, write: bool, direct: bool) -> FileDevice {
    FileDevice::open(
        path,
        OpenOptions {
            write,
            direct,
            ..OpenOptions::default()
        },
    )
    .unwrap()
}

#[test]
fn what_is_no_device_is_refused_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        FileDevice::open(dir.path(), OpenOptions::default()),
        Err(OpenError::NotABlockDevice { .. })
    ));
    assert!(matches!(
        FileDevice::open(Path::new("/dev/null"), OpenOptions::default()),
        Err(OpenError::NotABlockDevice { .. })
    ));
    assert!(matches!(
        FileDevice::open(&dir.path().join("missing"), OpenOptions::default()),
        Err(OpenError::Open { .. })
    ));
    let small = file(1000);
    let range = |offset_bytes, length_bytes| {
        FileDevice::open(
            small.path(),
            OpenOptions {
                offset_bytes,
                length_bytes,
                ..OpenOptions::default()
            },
        )
    };
    assert!(matches!(range(1001, None), Err(OpenError::Range { .. })));
    assert!(matches!(range(1, Some(1000)), Err(OpenError::Range { .. })));
    assert!(matches!(
        range(u64::MAX, Some(u64::MAX)),
        Err(OpenError::Range { .. })
    ));
    assert_eq!(range(1000, None).unwrap().size(), 0);
    assert_eq!(range(10, Some(20)).unwrap().size(), 20);
}

#[test]
fn a_window_stays_inside_its_range() {
    let image = file(8192);
    let device = FileDevice::open(
        image.path(),
        OpenOptions {
            write: true,
            direct: false,
            offset_bytes: 1024,
            length_bytes: Some(2048),
        },
    )
    .unwrap();
    let mut bytes = [0; 2048];
    device.read(0, &mut bytes).unwrap();
    assert_eq!((bytes[0], bytes[2047]), (2, 5));
    assert!(device.read(1, &mut bytes).is_err());
    assert!(device.write(2047, b"ab").is_err());
    assert!(device.write_zeroes(0, 2049).is_err());
    assert!(device.discard(u64::MAX, 2).is_err());
    device.write(2047, b"a").unwrap();
    device.write_zeroes(0, 1).unwrap();
    device.flush().unwrap();
    let all = std::fs::read(image.path()).unwrap();
    assert_eq!((all[1023], all[1024], all[1025]), (1, 0, 2));
    assert_eq!((all[3070], all[3071], all[3072]), (5, b'a', 6));
}

#[test]
fn read_only_refuses_each_change() {
    let image = file(4096);
    let device = open(image.path(), false, false);
    assert!(device.capabilities().read_only);
    for (operation, outcome) in [
        (Operation::Write, device.write(0, b"x")),
        (Operation::Discard, device.discard(0, 512)),
        (Operation::WriteZeroes, device.write_zeroes(0, 512)),
    ] {
        let error = outcome.unwrap_err();
        assert_eq!(error.operation, operation);
        assert_eq!(
            error.source.kind(),
            std::io::ErrorKind::ReadOnlyFilesystem,
            "{error}"
        );
    }
    device.flush().unwrap();
}

#[test]
fn more_buffers_than_one_call_takes_and_empty_ones() {
    let image = file(0);
    std::fs::File::options()
        .write(true)
        .open(image.path())
        .unwrap()
        .set_len(10_000)
        .unwrap();
    let device = open(image.path(), true, false);
    let pieces: Vec<Vec<u8>> = (0..3000_usize).map(|at| vec![at as u8; at % 3]).collect();
    let expected: Vec<u8> = pieces.concat();
    let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    device.write_vectored(7, &slices).unwrap();
    let mut back: Vec<Vec<u8>> = pieces.iter().map(|piece| vec![0xff; piece.len()]).collect();
    let mut slices: Vec<IoSliceMut<'_>> = back
        .iter_mut()
        .map(|piece| IoSliceMut::new(piece))
        .collect();
    device.read_vectored(7, &mut slices).unwrap();
    assert_eq!(back.concat(), expected);
    device.read_vectored(0, &mut []).unwrap();
    device.write_vectored(0, &[IoSlice::new(&[])]).unwrap();
}

#[test]
fn a_file_cut_behind_our_back_is_an_error() {
    let image = file(8192);
    let device = open(image.path(), true, false);
    image.as_file().set_len(100).unwrap();
    let error = device.read(0, &mut [0; 512]).unwrap_err();
    assert_eq!(error.source.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn zeroes_and_discards() {
    for fallback in [false, true] {
        let image = file(3 << 20);
        let device = open(image.path(), true, false);
        if fallback {
            device.no_write_zeroes.store(true, super::Ordering::Release);
        }
        device.write_zeroes(513, 2 << 20).unwrap();
        let all = std::fs::read(image.path()).unwrap();
        assert!(all[513..][..2 << 20].iter().all(|byte| *byte == 0));
        assert_eq!((all[512], all[513 + (2 << 20)]), (1, 0x01));
        device.discard(0, 3 << 20).unwrap();
        assert_eq!(device.size(), 3 << 20);
        assert_eq!(image.as_file().metadata().unwrap().len(), 3 << 20);
    }
}

#[test]
fn locks_exclude_each_other() {
    let image = file(512);
    let first = open(image.path(), true, false);
    let second = open(image.path(), false, false);
    assert_eq!(first.lock(Lock::Shared).unwrap(), Locked::Yes);
    assert_eq!(second.lock(Lock::Shared).unwrap(), Locked::Yes);
    assert_eq!(first.lock(Lock::Exclusive).unwrap(), Locked::HeldElsewhere);
    drop(second);
    assert_eq!(first.lock(Lock::Exclusive).unwrap(), Locked::Yes);
    let third = open(image.path(), false, false);
    assert_eq!(third.lock(Lock::Shared).unwrap(), Locked::HeldElsewhere);
    drop(first);
    assert_eq!(third.lock(Lock::Exclusive).unwrap(), Locked::Yes);
    assert_eq!(third.identity().unwrap(), {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(image.path()).unwrap();
        (metadata.dev(), metadata.ino())
    });
}

/// As a child has one that is forked and has not run its program yet.
#[test]
fn a_copy_of_the_descriptor_holds_no_lock() {
    let image = file(512);
    let first = open(image.path(), true, false);
    assert_eq!(first.lock(Lock::Exclusive).unwrap(), Locked::Yes);
    let _copy = first.file.try_clone().unwrap();
    drop(first);
    let second = open(image.path(), true, false);
    assert_eq!(second.lock(Lock::Exclusive).unwrap(), Locked::Yes);
}

#[test]
fn a_file_that_ends_within_a_unit_is_not_direct() {
    let image = file(4096 + 100);
    let device = open(image.path(), true, true);
    assert!(!device.is_direct());
    let mut tail = [0; 100];
    device.read(4096, &mut tail).unwrap();
    assert_eq!(tail, [8; 100]);
}

#[test]
fn direct_neighbours_in_one_unit_keep_each_others_bytes() {
    let image = file(64 << 10);
    let device = open(image.path(), true, true);
    if !device.is_direct() {
        println!("skipped: no O_DIRECT under the temporary directory");
        return;
    }
    let device = &device;
    pagefence_lock_order::primitives::thread::scope(|scope| {
        for thread in 0..4_u64 {
            scope.spawn(move || {
                for round in 1..=50_u8 {
                    device.write(thread * 100, &[round; 100]).unwrap();
                }
            });
        }
    });
    let mut bytes = [0; 401];
    device.read(0, &mut bytes).unwrap();
    assert_eq!(bytes[..400], [50; 400]);
    assert_eq!(bytes[400], 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Any position, length and memory, buffered or direct, through an offset or not: the same
    /// bytes as in a vector.
    #[test]
    fn behaves_as_a_vector(
        direct in any::<bool>(),
        window in prop::sample::select(vec![0_usize, 512, 4096, 77]),
        steps in prop::collection::vec(
            (0_usize..80_000, 0_usize..40_000, 0_usize..3, any::<bool>(), any::<u8>()),
            1..16,
        ),
    ) {
        let image = file(96 << 10);
        let device = FileDevice::open(image.path(), OpenOptions {
            write: true,
            direct,
            offset_bytes: window as u64,
            length_bytes: None,
        }).unwrap();
        let mut model = std::fs::read(image.path()).unwrap().split_off(window);
        for (offset, length, split, aligned, byte) in steps {
            let (offset, length) = if aligned {
                (offset & !4095, length & !4095)
            } else {
                (offset, length)
            };
            let length = length.min(model.len().saturating_sub(offset));
            let mut data = AlignedBytes::zeroed(length, 4096);
            for (at, target) in data.iter_mut().enumerate() {
                *target = byte.wrapping_add(at as u8);
            }
            let (head, tail) = data.split_at((length / 3 * split).min(length));
            device.write_vectored(offset as u64, &[IoSlice::new(head), IoSlice::new(tail)]).unwrap();
            model[offset..offset + length].copy_from_slice(&data);
            let mut back = vec![0; length];
            let (head, tail) = back.split_at_mut(length / 2);
            device.read_vectored(
                offset as u64,
                &mut [IoSliceMut::new(head), IoSliceMut::new(tail)],
            ).unwrap();
            prop_assert_eq!(&back[..], &data[..]);
        }
        let mut all = vec![0; model.len()];
        device.read(0, &mut all).unwrap();
        prop_assert_eq!(all, model);
    }
}
