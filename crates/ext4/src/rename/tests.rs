//! Tests of renames.
