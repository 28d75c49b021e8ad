//! Block devices, and the buffer cache of metadata blocks.

pub mod aligned;
pub mod buffer_cache;
pub mod device;
pub mod fault_device;
pub mod file_device;
pub mod image_users;
pub mod memory_device;
pub mod overlay;

pub use buffer_cache::{Buffer, BufferCache};
pub use device::{Capabilities, Device, DeviceError, Operation};
pub use fault_device::FaultDevice;
pub use file_device::FileDevice;
pub use memory_device::MemoryDevice;
pub use overlay::{Overlay, Replacement};
