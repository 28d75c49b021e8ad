//! Makes many empty files in one directory and prints how fast each hundredth of them came.
//!
//! `cargo run --release -p pagefence --example crowd -- IMAGE FILES`

use std::process::ExitCode;
use std::time::Instant;

use pagefence::{OpenOptions, Options, Volume};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(image), Some(files)) = (args.next(), args.next()) else {
        eprintln!("usage: crowd IMAGE FILES");
        return ExitCode::FAILURE;
    };
    let files = files.to_string_lossy().parse().unwrap_or(1_000_000);
    match crowd(image.as_ref(), files) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Seconds that this thread ran, and that it waited for a core.
fn schedule() -> (f64, f64) {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let mut fields = text
        .split(' ')
        .map(|field| field.parse::<f64>().unwrap_or(0.0) / 1e9);
    (fields.next().unwrap_or(0.0), fields.next().unwrap_or(0.0))
}

fn crowd(image: &std::path::Path, files: u32) -> pagefence::Result<()> {
    let volume = Volume::open(image, Options::new().write(true))?;
    volume.create_dir("/crowd")?;
    let sample = files / 100;
    let mut parts = Vec::new();
    for part in 0..100 {
        let (start, (ran, queued)) = (Instant::now(), schedule());
        for number in part * sample..(part + 1) * sample {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&volume, format!("/crowd/file-{number}"))?;
        }
        let wall = start.elapsed().as_secs_f64() * 1e6 / f64::from(sample);
        let (ran_now, queued_now) = schedule();
        let ran = (ran_now - ran) * 1e6 / f64::from(sample);
        let queued = (queued_now - queued) * 1e6 / f64::from(sample);
        parts.push((wall, ran, wall - queued));
        if part < 3 || part % 10 == 9 || part > 96 {
            println!(
                "@{1} {part:3}: {wall:6.2} us, ran {ran:6.2}, waited for a core {queued:6.2}, else {0:6.2}",
                wall - ran - queued,
                std::fs::read_to_string("/proc/uptime")
                    .unwrap()
                    .split(' ')
                    .next()
                    .unwrap()
            );
        }
    }
    let mean = |from: usize, to: usize| {
        let n = (to - from) as f64;
        let s = &parts[from..to];
        (
            s.iter().map(|p| p.0).sum::<f64>() / n,
            s.iter().map(|p| p.1).sum::<f64>() / n,
            s.iter().map(|p| p.2).sum::<f64>() / n,
        )
    };
    for (first, last) in [(mean(0, 1), mean(99, 100)), (mean(0, 5), mean(95, 100))] {
        println!(
            "last against first: {:.3} in time, {:.3} in CPU, {:.3} in time but for waits for a core",
            first.0 / last.0,
            first.1 / last.1,
            first.2 / last.2
        );
    }
    Ok(())
}
