//! To be filled: dir_entry.
