//! Tests of mkfs.
