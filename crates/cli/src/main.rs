//! The command pagefence.

fn main() {}
