//! Tests of the fault model, clause by clause.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::random::Random;
use super::{Fault, FaultDevice, POISON, Times};
use crate::device::{Device, Operation};
use crate::memory_device::MemoryDevice;

const SECTOR: usize = 512;

fn device(sectors: usize) -> FaultDevice {
    FaultDevice::new(&MemoryDevice::new((sectors * SECTOR) as u64), 1)
}

/// The first byte of each sector.
fn firsts(image: &MemoryDevice) -> Vec<u8> {
    image.to_vec().chunks(SECTOR).map(|s| s[0]).collect()
}

fn outcomes(device: &FaultDevice) -> BTreeSet<Vec<u8>> {
    let states = device.crash_states();
    states
        .all()
        .map(|state| firsts(&states.image(&state)))
        .collect()
}

fn put(device: &FaultDevice, sector: u64, byte: u8) {
    device.write(sector * 512, &[byte; SECTOR]).unwrap();
}

#[test]
fn an_unflushed_write_may_tear_and_a_flushed_one_stays() {
    let device = device(3);
    device.write(0, &[1; 2 * SECTOR]).unwrap();
    let expected: BTreeSet<_> = [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]
        .map(Vec::from)
        .into();
    assert_eq!(outcomes(&device), expected);
    device.flush().unwrap();
    assert_eq!(outcomes(&device), [vec![1, 1, 0]].into());
    assert_eq!(device.crash_states().count(), Some(1));
}

#[test]
fn any_version_since_the_durable_one_may_come_back() {
    let device = device(1);
    put(&device, 0, 1);
    device.flush().unwrap();
    for byte in [2, 3, 3, 1] {
        put(&device, 0, byte);
    }
    assert_eq!(outcomes(&device), [vec![1], vec![2], vec![3]].into());
    assert_eq!(firsts(&device.live()), [1]);
}

#[test]
fn a_partial_write_is_a_version_of_its_whole_sector() {
    let device = device(2);
    put(&device, 0, 5);
    device.flush().unwrap();
    device.write(500, &[9; 24]).unwrap();
    let states = device.crash_states();
    assert_eq!(states.free_units(), 2);
    for state in states.all() {
        let image = states.image(&state).to_vec();
        assert!(image[..500].iter().all(|byte| *byte == 5));
        assert!([5, 9].contains(&image[500]));
        assert!(image[500..512].iter().all(|byte| *byte == image[500]));
        assert!(image[512..524].iter().all(|byte| *byte == image[512]));
    }
}

#[test]
fn an_atomic_range_does_not_tear() {
    let device = device(4);
    device.set_atomic(512..1536);
    device.write(0, &[1; 4 * SECTOR]).unwrap();
    let states = outcomes(&device);
    assert_eq!(states.len(), 8);
    assert!(states.iter().all(|image| image[1] == image[2]));
    // A write of a part of it is a version of all of it.
    device.flush().unwrap();
    put(&device, 2, 7);
    put(&device, 1, 8);
    assert_eq!(
        outcomes(&device),
        [vec![1, 1, 1, 1], vec![1, 1, 7, 1], vec![1, 8, 7, 1]].into()
    );
}

#[test]
fn a_failed_flush_leaves_things_open_for_good() {
    let device = device(2);
    put(&device, 0, 1);
    put(&device, 1, 1);
    device.fail(Fault {
        operation: Operation::Flush,
        call: 0,
        times: Times::Once,
        errno: 5,
    });
    let error = device.flush().unwrap_err();
    assert_eq!(error.source.raw_os_error(), Some(5));
    // Reported once; but what was lost is not durable by the next flush's success.
    device.flush().unwrap();
    assert_eq!(outcomes(&device).len(), 4);
    put(&device, 0, 2);
    assert_eq!(outcomes(&device).len(), 6);
    device.flush().unwrap();
    assert_eq!(outcomes(&device), [vec![2, 0], vec![2, 1]].into());
}

#[test]
fn faults_strike_the_chosen_call() {
    let device = device(2);
    for operation in [Operation::Read, Operation::Write, Operation::Discard] {
        device.fail(Fault {
            operation,
            call: 1,
            times: if operation == Operation::Write {
                Times::Forever
            } else {
                Times::Once
            },
            errno: 28,
        });
    }
    let mut bytes = [7];
    device.read(0, &mut bytes).unwrap();
    assert!(device.read(0, &mut bytes).is_err());
    assert_eq!(bytes, [POISON]);
    device.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0]);
    device.write(0, b"a").unwrap();
    assert!(device.write(0, b"b").is_err());
    assert!(device.write(0, b"c").is_err());
    device.discard(0, 512).unwrap();
    assert!(device.discard(0, 512).is_err());
    device.discard(0, 512).unwrap();
    assert_eq!(device.calls(Operation::Write), 3);
    device.clear_faults();
    device.write(0, b"d").unwrap();
    assert!(device.write(1024, b"e").is_err());
    assert!(device.write_zeroes(0, u64::MAX).is_err());
    assert!(device.write_zeroes(1, u64::MAX).is_err());
}

#[test]
fn a_failed_write_lets_any_sectors_through() {
    let mut seen = BTreeSet::new();
    for seed in 0..64 {
        let device = FaultDevice::new(&MemoryDevice::new(1024), seed);
        device.fail(Fault {
            operation: Operation::Write,
            call: 0,
            times: Times::Once,
            errno: 5,
        });
        assert!(device.write(0, &[1; 1024]).is_err());
        seen.insert(firsts(&device.live()));
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn discarded_sectors_hold_something_undefined() {
    let mut live = BTreeSet::new();
    for seed in 0..64 {
        let device = FaultDevice::new(&MemoryDevice::from_bytes(&[1; 2048]), seed);
        // The first and the last sector are not covered wholly.
        device.discard(1, 2046).unwrap();
        let now = firsts(&device.live());
        assert_eq!((now[0], now[3]), (1, 1));
        live.insert(now[1]);
        for image in outcomes(&device) {
            assert_eq!((image[0], image[3]), (1, 1));
            assert!([0, 1, POISON].contains(&image[1]));
        }
        device.write_zeroes(512, 1024).unwrap();
        device.flush().unwrap();
        assert_eq!(outcomes(&device), [vec![1, 0, 0, 1]].into());
    }
    assert_eq!(live, [0, 1, POISON].into());
}

#[test]
fn few_states_are_all_tried_and_many_at_their_borders() {
    let device = device(200);
    for sector in 0..12 {
        put(&device, sector, 1);
    }
    let states = device.crash_states();
    assert!(states.is_exhaustive());
    assert_eq!(states.explore(0, 5).len(), 4096);
    for sector in 12..200 {
        put(&device, sector, 1);
    }
    let states = device.crash_states();
    assert!(!states.is_exhaustive());
    assert_eq!(states.count(), None);
    let explored = states.explore(3, 100);
    assert!(explored.len() > 3 * 60 + 90, "{}", explored.len());
    let images: BTreeSet<Vec<u8>> = explored
        .iter()
        .map(|state| firsts(&states.image(state)))
        .collect();
    assert!(images.contains(&vec![0; 200]));
    assert!(images.contains(&vec![1; 200]));
    let ones = |image: &[u8]| image.iter().filter(|byte| **byte == 1).count();
    assert!(images.iter().filter(|image| ones(image) == 1).count() >= 60);
    assert!(images.iter().filter(|image| ones(image) == 199).count() >= 60);
    // In order up to a moment.
    let prefix = |image: &&Vec<u8>| image.is_sorted_by(|a, b| a >= b);
    assert!(images.iter().filter(prefix).count() >= 60);
}

#[test]
fn a_seed_repeats_its_crash() {
    let device = device(64);
    for sector in 0..64 {
        put(&device, sector, 1);
    }
    let first = firsts(&device.crash(5));
    assert_eq!(first, firsts(&device.crash(5)));
    let different: BTreeSet<_> = (0..20).map(|seed| firsts(&device.crash(seed))).collect();
    assert!(different.len() > 10);
}

#[test]
fn a_trace_walks_through_every_moment() {
    let device = device(4);
    put(&device, 3, 9);
    device.start_trace();
    assert_eq!(device.trace_position(), 0);
    put(&device, 0, 1);
    put(&device, 1, 2);
    assert_eq!(device.trace_position(), 2);
    device.flush().unwrap();
    put(&device, 0, 3);
    let trace = device.take_trace().unwrap();
    assert!(device.take_trace().is_none());
    assert_eq!(trace.len(), 4);
    assert!(!trace.is_empty());
    let mut counts = Vec::new();
    let mut newest = Vec::new();
    trace.walk(|point| {
        let states = point.crash_states();
        counts.push((states.count().unwrap(), point.is_before_flush()));
        newest.push(firsts(&states.image(&states.everything())));
        assert_eq!(point.position() + 1, counts.len());
    });
    assert_eq!(
        counts,
        [(2, false), (4, false), (8, true), (1, false), (2, true)]
    );
    assert_eq!(
        newest,
        [
            [0, 0, 0, 9],
            [1, 0, 0, 9],
            [1, 2, 0, 9],
            [1, 2, 0, 9],
            [3, 2, 0, 9]
        ]
    );
    assert_eq!(newest.last().unwrap(), &firsts(&device.live()));
}

proptest! {
    /// Whatever is done: the live image is a vector, and each crash shows per sector a version
    /// since the last flush that succeeded.
    #[test]
    fn crashes_show_only_versions_that_were(
        steps in prop::collection::vec((0_u8..8, 0_u64..8, 1_u8..=255, any::<bool>()), 1..60),
        seed in any::<u64>(),
    ) {
        let device = device(8);
        let mut live = [0_u8; 8];
        // Per sector the durable byte, then each later one and whether a flush failed since.
        let mut versions: Vec<Vec<(u8, bool)>> = vec![vec![(0, false)]; 8];
        let mut flushes = 0;
        for (kind, sector, byte, fail) in steps {
            if kind > 1 {
                put(&device, sector, byte);
                live[sector as usize] = byte;
                versions[sector as usize].push((byte, false));
            } else {
                if fail {
                    device.fail(Fault {
                        operation: Operation::Flush,
                        call: flushes,
                        times: Times::Once,
                        errno: 5,
                    });
                }
                flushes += 1;
                prop_assert_eq!(device.flush().is_err(), fail);
                for versions in &mut versions {
                    let newest = *versions.last().unwrap();
                    if fail {
                        versions[1..].iter_mut().for_each(|version| version.1 = true);
                    } else if !newest.1 {
                        *versions = vec![newest];
                    }
                }
            }
            prop_assert_eq!(firsts(&device.live()), live);
        }
        let states = device.crash_states();
        let mut random = Random::new(seed);
        for _ in 0..20 {
            let image = firsts(&states.image(&states.random(&mut random)));
            for (sector, byte) in image.iter().enumerate() {
                prop_assert!(versions[sector].iter().any(|version| version.0 == *byte));
            }
        }
        prop_assert_eq!(firsts(&states.image(&states.everything())), live);
        let choices: u64 = versions
            .iter()
            .map(|versions| {
                let mut bytes: Vec<u8> = versions.iter().map(|version| version.0).collect();
                bytes.dedup();
                bytes.len() as u64
            })
            .product();
        prop_assert_eq!(states.count(), Some(choices));
    }
}
