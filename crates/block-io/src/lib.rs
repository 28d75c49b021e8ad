//! Block devices, and the buffer cache of metadata blocks.

pub mod device;

pub use device::{Capabilities, Device, DeviceError, Operation};
