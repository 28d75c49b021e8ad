//! Devices that a [`Volume`](crate::Volume) can be opened on: a file, memory, or one's own.

pub use pagefence_block_io::device::{Capabilities, Device, DeviceError, Operation};
pub use pagefence_block_io::{FileDevice, MemoryDevice};
