//! fsx: once as it is, or with every operation that it has until the time is over.
//!
//! It has no O_DIRECT; `cargo xtask ranges` writes with that.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Outcome, Place, run_in, text, tool};

/// Runs fsx once, or for the time that is asked for.
pub(super) fn run(place: &Place<'_>) -> Result<Outcome> {
    let program = match tool(place, "fsx") {
        Ok(program) => program,
        Err(skipped) => return Ok(skipped),
    };
    let operations = place.arguments.fsx_operations.to_string();
    let artifacts = text(place.elsewhere)?;
    let once = |seed: u64, more: &[&str]| {
        let seed = seed.to_string();
        let flags = ["-N", &operations, "-S", &seed, "-P", artifacts];
        run_in(place.directory, &program, &[&flags, more].concat())
            .with_context(|| format!("seed {seed}"))
    };
    let first = place.arguments.seed;
    let Some(minutes) = place.arguments.minutes else {
        once(first, &["fsx.bin"])?;
        return Ok(Outcome::Done(format!("{operations} operations")));
    };
    let end = Instant::now() + Duration::try_from_secs_f64(minutes * 60.0)?;
    let mut seed = first;
    while seed == first || Instant::now() < end {
        let variant = &FSX[(seed % FSX.len() as u64) as usize];
        let file = place.directory.join("fsx.bin");
        if variant.size > 0 {
            std::fs::write(&file, vec![0; variant.size])?;
        }
        let configuration = place.elsewhere.join("fsx.toml");
        std::fs::write(&configuration, variant.configuration)?;
        once(seed, &["-f", text(&configuration)?, "fsx.bin"])?;
        std::fs::remove_file(&file)?;
        seed += 1;
    }
    let runs = seed - first;
    Ok(Outcome::Done(format!(
        "{runs} runs of {operations} operations, seeds from {first} on"
    )))
}

/// How fsx is run for a time. Operations have a byte at least: for none at all posix_fallocate fails by its
/// own rules, and fsx with it.
struct Fsx {
    /// Of the file when it begins; 0 if it makes the file.
    size: usize,
    configuration: &'static str,
}

/// All operations, in small and in large pieces; without msync behind a store; and those that
/// leave the size as it is, in whole sectors.
const FSX: [Fsx; 3] = [
    Fsx {
        size: 0,
        configuration: "\
[opsize]
min = 1
[weights]
close_open = 2
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 2
truncate = 6
fsync = 1
fdatasync = 1
posix_fallocate = 4
punch_hole = 8
sendfile = 4
posix_fadvise = 2
copy_file_range = 6
",
    },
    Fsx {
        size: 0,
        configuration: "\
flen = 2097152
nomsyncafterwrite = true
[opsize]
min = 1
max = 262144
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 14
truncate = 6
fsync = 1
fdatasync = 1
posix_fallocate = 4
punch_hole = 8
sendfile = 4
posix_fadvise = 2
copy_file_range = 6
",
    },
    Fsx {
        size: 1 << 20,
        configuration: "\
blockmode = true
nosizechecks = true
flen = 1048576
[opsize]
align = 512
[weights]
close_open = 0
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 2
truncate = 0
fsync = 1
fdatasync = 1
posix_fallocate = 0
punch_hole = 8
sendfile = 4
posix_fadvise = 2
copy_file_range = 6
",
    },
];
