//! Tests of the overlay against a flat model of what it must read as.

use std::io::IoSliceMut;

use pagefence_lock_order::primitives::Arc;
use proptest::prelude::*;

use super::{JOURNAL_MAGIC, Overlay, Replacement};
use crate::device::Device;
use crate::memory_device::MemoryDevice;

const BLOCK: usize = 1024;
const BLOCKS: usize = 16;

fn image() -> Vec<u8> {
    (0..BLOCKS * BLOCK)
        .map(|at| (at / BLOCK * 16 + at % 13) as u8)
        .collect()
}

#[test]
fn a_replacement_carries_its_numbers() {
    assert_eq!(size_of::<Replacement>(), 12);
    for block in [0, 1, 0xffff_ffff, 0x1_0000_0000, (1 << 48) - 1] {
        for location in [0, 7, 0xffff_ffff, 0x1_0000_0000, (1 << 47) - 1] {
            for escaped in [false, true] {
                let packed = Replacement::new(block, location, escaped).unwrap();
                assert_eq!(
                    (packed.block(), packed.location(), packed.escaped()),
                    (block, location, escaped)
                );
            }
        }
    }
    assert_eq!(Replacement::new(1 << 48, 0, false), None);
    assert_eq!(Replacement::new(0, 1 << 47, false), None);
}

#[test]
fn nothing_reaches_the_device() {
    let device = Arc::new(MemoryDevice::from_bytes(&image()));
    let overlay = Overlay::new(device.clone(), BLOCK as u32, Vec::new());
    assert!(overlay.capabilities().read_only);
    assert!(overlay.write(0, b"x").is_err());
    assert!(overlay.discard(0, 512).is_err());
    assert!(overlay.write_zeroes(0, 512).is_err());
    overlay.write_block(3, &[1; BLOCK]).unwrap();
    assert!(overlay.write_block(BLOCKS as u64, &[1; BLOCK]).is_err());
    overlay.flush().unwrap();
    assert_eq!(device.to_vec(), image());
    assert!(overlay.read(1, &mut vec![0; BLOCKS * BLOCK]).is_err());
    assert_eq!(overlay.written_blocks(), 1);
    assert_eq!(overlay.take_written().len(), 1);
    let mut back = vec![0; BLOCKS * BLOCK];
    overlay.read(0, &mut back).unwrap();
    assert_eq!(back, image());
}

proptest! {
    #[test]
    fn reads_as_the_model(
        replacements in prop::collection::vec(
            (0..BLOCKS as u64, 0..BLOCKS as u64, any::<bool>()), 0..12),
        written in prop::collection::vec((0..BLOCKS as u64, any::<u8>()), 0..4),
        reads in prop::collection::vec(
            (0..BLOCKS * BLOCK, 0..5 * BLOCK, 0..5 * BLOCK), 1..10),
    ) {
        let image = image();
        let mut model = image.clone();
        let packed: Vec<Replacement> = replacements
            .iter()
            .map(|(block, location, escaped)| {
                let (to, from) = (*block as usize * BLOCK, *location as usize * BLOCK);
                model[to..to + BLOCK].copy_from_slice(&image[from..from + BLOCK]);
                if *escaped {
                    model[to..to + 4].copy_from_slice(&JOURNAL_MAGIC);
                }
                Replacement::new(*block, *location, *escaped).unwrap()
            })
            .collect();
        let device = Arc::new(MemoryDevice::from_bytes(&image));
        let overlay = Overlay::new(device.clone(), BLOCK as u32, packed);
        for (block, byte) in written {
            overlay.write_block(block, &[byte; BLOCK]).unwrap();
            model[block as usize * BLOCK..][..BLOCK].fill(byte);
        }
        for (offset, length, split) in reads {
            let length = length.min(model.len() - offset);
            let mut back = vec![0; length];
            let (head, tail) = back.split_at_mut(split.min(length));
            overlay
                .read_vectored(
                    offset as u64,
                    &mut [IoSliceMut::new(head), IoSliceMut::new(&mut []), IoSliceMut::new(tail)],
                )
                .unwrap();
            prop_assert_eq!(&back[..], &model[offset..offset + length]);
        }
        prop_assert_eq!(device.to_vec(), image);
    }
}
