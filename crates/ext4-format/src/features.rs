//! To be filled: features.
