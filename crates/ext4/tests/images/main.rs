//! The file system on images that mke2fs, debugfs and the kernel made, sound and damaged.

mod attributes;
mod check;
mod check_damages;
mod common;
mod contents;
mod damage_fields;
mod damage_list;
mod damage_quotas;
mod directories;
mod exploits;
mod exploits_names;
mod legacy_names;
mod opening;
mod permissions;
mod sweep;
