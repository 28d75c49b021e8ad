//! Page frames, copies of shared memory, and system calls that no safe library makes: the only crate
//! of the workspace with unsafe code.
//!
//! - [`arena`] is one reservation of page frames; its size is the hard budget of a page cache.
//! - [`frame`] is what an arena hands out: [`FrameMut`], which one owner sees and which is plain
//!   memory to it, and [`Frame`], which many threads see and which is only ever copied in and out.
//! - [`copy`] are the copies that bear a concurrent writer.
//! - [`file_map`] is a file that is mapped shared, stored to and loaded from by copies.
//! - [`memory`] is the memory of one mapped file, a memfd; [`view`] is a user's mapping of it, and
//!   [`userfault`] tells of the faults in a view and answers them.
//! - [`fuse_ioctl`] asks the server of a FUSE mount something that has no system call.
//! - [`fd_passing`] hands descriptors from process to process; [`close_on_exec_from`] keeps those that were
//!   left open from the programs that come next.
//!
//! Invariant: no `&[u8]` of a published frame exists, anywhere. A reader of the page cache may
//! copy a page out while another thread stores to it; with references that would be undefined
//! behaviour, with these copies the reader gets some mixture of old and new bytes, as POSIX
//! allows.

pub mod arena;
pub mod copy;
mod descriptors;
pub mod fd_passing;
pub mod file_map;
pub mod frame;
mod free_map;
mod fuse_ioctl;
mod mapped;
pub mod memory;
pub mod page_buffer;
pub mod raw_bytes;
pub mod userfault;
pub mod view;

pub use arena::Arena;
pub use descriptors::close_on_exec_from;
pub use file_map::FileMap;
pub use frame::{Frame, FrameCell, FrameMut};
pub use fuse_ioctl::fuse_ioctl;
pub use memory::FileMemory;
pub use page_buffer::PageBuffer;
pub use raw_bytes::RawBytes;
pub use userfault::{Continue, Event, FaultKind, RangeError, Userfault, UserfaultError, Woken};
pub use view::{View, ViewKind};

#[cfg(all(test, sanitized))]
mod sanitized;
#[cfg(all(test, not(shuttle)))]
mod test_child;

/// Bytes of a page frame.
pub const FRAME_SIZE: usize = 4096;
