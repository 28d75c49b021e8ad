//! What changes metadata: each room takes a [`Transaction`], looks before it changes, and leaves a
//! sound file system behind, or one that the caller's next call goes on with.
//!
//! ```text
//! transaction     blocks, inodes and counts that change together
//! extent_tree  remove_extents  remove_block_map  remove_blocks     what maps a file's blocks
//! cut                                                              who may take them away
//! insert_blocks                                                    holes filled, blocks written
//! shift_extents  shift_block_map                                   what lies behind a range moved
//! append_block  change_dir  split_htree                            names put in and taken out
//! free_blocks  free_inode  space                                   what is free, while mounting
//! set_xattr  release_xattrs  ea_inode  shorten_inline              attributes, data in the inode
//! ```

pub(crate) mod append_block;
pub(crate) mod change_dir;
pub(crate) mod cut;
pub(crate) mod ea_inode;
pub(crate) mod extent_tree;
pub(crate) mod free_blocks;
pub(crate) mod free_inode;
pub(crate) mod inline_dir;
pub(crate) mod insert_blocks;
pub(crate) mod release_xattrs;
mod remove_block_map;
pub(crate) mod remove_blocks;
mod remove_extents;
pub(crate) mod set_xattr;
pub(crate) mod shift_block_map;
pub(crate) mod shift_extents;
pub(crate) mod shorten_inline;
pub(crate) mod space;
mod split_extents;
mod split_htree;
pub(crate) mod transaction;

pub(crate) use transaction::Transaction;
