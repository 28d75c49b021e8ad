//! To be filled: group_desc.
