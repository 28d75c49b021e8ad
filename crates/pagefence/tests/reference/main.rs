//! Random operations on the library and on the model of a file system, compared after each; and on
//! the kernel's own mount of the same image.

#[path = "../common/mod.rs"]
mod common;
mod kernel;
mod model;
mod operations;
mod seen;
