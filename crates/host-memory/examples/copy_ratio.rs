//! How long copying a published frame takes, against copying plain memory.
//!
//! Prints the ratio of the medians, for a whole page and for smaller pieces. Run with
//! `cargo run --release -p pagefence-host-memory --example copy_ratio`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use pagefence_host_memory::{Arena, FRAME_SIZE};

const ROUNDS: usize = 51;
const COPIES: usize = 2000;

fn median(mut copy: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..COPIES {
                copy();
            }
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

fn main() -> std::io::Result<()> {
    let arena = Arena::new(2)?;
    let frames = arena.allocate_batch(2);
    let [plain, shared] =
        <[_; 2]>::try_from(frames).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    let shared = shared.publish();
    let mut target = vec![0_u8; FRAME_SIZE];
    println!("bytes  copy_out / memcpy");
    for len in [64, 512, 1024, FRAME_SIZE] {
        let out = median(|| shared.copy_out(0, black_box(&mut target[..len])));
        let memcpy =
            median(|| black_box(&mut target[..len]).copy_from_slice(black_box(&plain[..len])));
        println!("{len:5}  {:.2}", out.as_secs_f64() / memcpy.as_secs_f64());
    }
    Ok(())
}
