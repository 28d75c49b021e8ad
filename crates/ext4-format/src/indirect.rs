//! To be filled: indirect.
