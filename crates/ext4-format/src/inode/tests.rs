//! Tests of inodes.
