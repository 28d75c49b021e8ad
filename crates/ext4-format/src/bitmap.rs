//! To be filled: bitmap.
