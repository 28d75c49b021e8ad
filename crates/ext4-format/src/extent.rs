//! To be filled: extent.
