//! What mkfs makes, before the judges: `e2fsck -fn` must find nothing, `dumpe2fs` must tell the
//! same as of what mke2fs makes, and the kernel must mount it, find what was put there, write to
//! it and leave it clean.

mod contents;
mod crash;
mod judges;
mod kernel;
mod like_mke2fs;
