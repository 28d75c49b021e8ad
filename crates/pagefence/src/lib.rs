//! ext2, ext3 and ext4 images as a library: open an image and use it as `std::fs` uses a disk.
//! Nothing is mounted, and nothing needs root.
//!
//! - [`Volume`] is an open image: paths in, bytes, metadata and entries out.
//! - [`File`] is an open file in it: reads and writes at an offset, [`std::io::Read`],
//!   [`std::io::Write`], [`std::io::Seek`], holes; [`OpenOptions`] says how it is opened.
//! - [`Map`] is a range of a file in memory: shared, coherent with all else, and safe to use.
//! - [`Volume::connect`] leads to a mount that `pagefence mount` serves: its files are mapped in as many
//!   programs as like.
//! - [`Options`] says how an image is opened.
//! - [`Mkfs`] makes file systems, empty or filled; [`info`] tells what an image is.
//! - [`check`] tells whether an image is sound, all of it, without changing a byte.
//!
//! All of it is `Send` and `Sync`: one [`Volume`] serves many threads at once.

/// The example of the README, so that it runs.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}

mod change;
pub mod check;
mod demo;
pub mod device;
mod directory;
mod error;
mod file;
mod image;
mod info;
mod map;
mod map_server;
mod metadata;
mod mkfs;
mod mounted;
mod open_options;
mod options;
mod path;
mod volume;
mod walk;
mod xattr;

pub use change::Node;
pub use demo::demo_image;
#[doc(hidden)]
pub use demo::{DocImage, doc_image};
pub use directory::{DirEntry, ReadDir};
pub use error::{Error, Result};
pub use file::{Extent, Extents, File};
pub use image::Image;
pub use info::{ErrorAt, Errors, Info, Journal, JournalState, Look, info, info_at, info_of_device};
pub use map::Map;
pub use map::atomics::MapInteger;
pub use map::options::{Advice, MapOptions};
pub use map::slice::{Bytes, Chunks, MapReader, MapSlice};
pub use map_server::MapServer;
pub use metadata::{FileType, Metadata};
pub use mkfs::{Attributes, Formatted, Kind, Mkfs, Uuid};
pub use mounted::Mounted;
pub use open_options::OpenOptions;
pub use options::Options;
pub use pagefence_page_mmap::RawBytes;
pub use pagefence_vfs::{ExtentState, MapFormat};
pub use volume::{Usage, Volume};
pub use walk::{Walk, WalkEntry};
