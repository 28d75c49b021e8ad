//! A power cut or a failing device on the way: there is the old file system or the whole new one,
//! or none, but never a part of the new one that looks like a whole.

use pagefence_block_io::device::{Device, Operation};
use pagefence_block_io::fault_device::{Fault, FaultDevice, Times};
use pagefence_block_io::memory_device::MemoryDevice;
use pagefence_ext4::mkfs::{Kind, MkfsError, NodeMeta, Parameters, Tree, format};
use pagefence_ext4_format::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock};

use crate::contents::pattern;
use crate::judges::MIB;

const OLD: [u8; 16] = [1; 16];
const NEW: [u8; 16] = [2; 16];
/// Outcomes by chance that are tried at each moment.
const RANDOM_STATES: usize = 8;

/// A device that holds a file system already.
fn used_device() -> MemoryDevice {
    let device = MemoryDevice::new(4 * MIB);
    make(&device, OLD).expect("it fits");
    device
}

fn make(device: &dyn Device, uuid: [u8; 16]) -> Result<(), MkfsError> {
    let mut parameters = Parameters::new(Kind::Ext4);
    parameters.uuid = uuid;
    let mut tree = Tree::new();
    tree.file(b"/f", pattern(200_000), false, NodeMeta::default())?;
    format(device, &parameters, &tree).map(drop)
}

/// Whose valid superblock is there.
fn owner(image: &MemoryDevice) -> Option<[u8; 16]> {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    image
        .read(SUPERBLOCK_OFFSET, &mut bytes)
        .expect("memory is read");
    Superblock::parse(&bytes, None).ok().map(|sb| sb.uuid())
}

#[test]
fn a_power_cut_leaves_the_old_one_the_whole_new_one_or_none() {
    let device = FaultDevice::new(&used_device(), 1);
    device.start_trace();
    make(&device, NEW).expect("nothing fails");
    let whole = device.live().to_vec();
    let trace = device.take_trace().expect("it was started");
    let (mut old, mut new, mut none, mut flushes) = (0, 0, 0, 0);
    trace.walk(|point| {
        if !point.is_before_flush() {
            return;
        }
        let states = point.crash_states();
        for state in states.explore(point.position() as u64, RANDOM_STATES) {
            let image = states.image(&state);
            match owner(&image) {
                Some(OLD) => {
                    assert_eq!(
                        flushes, 0,
                        "the old superblock is gone before anything else"
                    );
                    old += 1;
                }
                Some(NEW) => {
                    assert!(
                        image.to_vec() == whole,
                        "a new superblock on a part of the rest"
                    );
                    new += 1;
                }
                Some(other) => panic!("a superblock of nobody: {other:?}"),
                None => none += 1,
            }
        }
        flushes += 1;
    });
    assert!(old > 0 && new > 0 && none > 0, "{old} {new} {none}");
}

#[test]
fn a_device_that_fails_on_the_way_is_an_error_and_no_file_system() {
    for operation in [Operation::Write, Operation::Flush, Operation::WriteZeroes] {
        for call in 0.. {
            let device = FaultDevice::new(&used_device(), 1);
            device.fail(Fault {
                operation,
                call,
                times: Times::Forever,
                errno: 5,
            });
            match make(&device, NEW) {
                Ok(()) => {
                    assert!(device.calls(operation) <= call, "every failure is told");
                    assert!(call > 0, "there was a call to fail");
                    break;
                }
                Err(MkfsError::Device(error)) => assert_eq!(error.operation, operation),
                Err(other) => panic!("{other}"),
            }
            // The last flush may fail behind the superblock: it is there, perhaps not durably.
            let is_last_flush = operation == Operation::Flush && call == 2;
            assert!(
                owner(&device.live()) != Some(NEW) || is_last_flush,
                "{operation} {call}"
            );
        }
    }
}
