//! Files in memory: maps agree with everything else that is done to their files, keep POSIX's rules, and
//! lose nothing. All with real page faults.

mod children;
mod coherence;
mod descriptors;
mod durable;
mod failing;
mod full;
mod kit;
mod lives;
mod nested;
mod pointers;
mod private;
mod rules;
mod slices;
