//! Serves a [`vfs::FileSystem`](pagefence_vfs::FileSystem) over FUSE.
//!
//! ```text
//! /dev/fuse ──► session (threads, INIT) ──► dispatch ──► namespace · changes · files
//!                            directories · xattrs · ioctl · privileges ──► vfs::FileSystem
//!                                               map_door ──► maps in other processes
//! mount, fusermount: get the descriptor and attach it   attributes, errno, nodes: translate
//! ```
//!
//! Owns: the connection to the kernel, the handles that the kernel holds open, what the kernel may
//! cache and for how long, the numbers of errors. Stays outside: what an inode is, who may read
//! it (the kernel checks; see [`ServeOptions`]), and every byte of the format.
//!
//! Lifecycle: [`mount()`] gives a descriptor, [`Server::start`] answers the kernel's INIT on it,
//! [`Server::run`] serves until the file system is unmounted everywhere, then shuts it down.
//!
//! Invariant: no lock is held while the file system is called, so a request can wait only for the
//! file system itself. (Who hands out an inode that is being forgotten waits for that: `lookups`.)
//! A panic in a request is answered with EIO and logged; the mount goes on, but after one in what
//! may have changed something the file system is told to write nothing more.
//!
//! What the file system refuses to change because it is read-only is answered with EROFS.

mod attributes;
mod changes;
pub mod check;
mod directories;
mod dispatch;
mod errno;
mod files;
mod fusermount;
mod handles;
mod invalidate;
pub mod ioctl;
mod lookups;
pub mod map_door;
pub mod mount;
pub mod move_extents;
mod namespace;
mod nodes;
mod privileges;
pub mod server_id;
mod session;
mod stale_pages;
mod xattrs;

pub use map_door::{MapDoor, MapRights};
pub use mount::{MountError, MountRequest, UnmountError, mount, tune, unmount};
pub use pagefence_host_memory::{close_on_exec_from, fd_passing};
pub use server_id::ServerId;
pub use session::{ServeError, ServeOptions, Server};
