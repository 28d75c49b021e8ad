//! Tests of group descriptors.
