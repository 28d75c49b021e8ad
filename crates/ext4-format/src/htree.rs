//! To be filled: htree.
