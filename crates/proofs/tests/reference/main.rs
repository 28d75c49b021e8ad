//! Random operations on the library and on the model of a file system, compared after each; and on
//! the kernel's own mount of the same image.

mod kernel;
mod model;
mod operations;
mod seen;
