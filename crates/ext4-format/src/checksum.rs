//! To be filled: checksum.
