//! Moving what a block map maps.
