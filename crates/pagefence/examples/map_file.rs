//! One file of an image in memory, and three threads: two count in it, each by a map of its own, the third
//! stores, punches holes and truncates elsewhere in the file and looks for a byte that should be gone.
//!
//! `cargo run --release -p pagefence --example map_file [-- SECONDS]`
//!
//! Nothing is mounted, nothing needs root. The last line says what was checked; the exit status is 1 if a
//! byte was stale or a count lost.

use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pagefence::{File, Kind, Map, MapOptions, Mkfs, OpenOptions, Options, Volume};

const PAGE: usize = 4096;
/// Pages that the third thread has for itself, behind those with the counters.
const PAGES: usize = 1024;
/// Where its pages begin.
const BEHIND: usize = 16 * PAGE;
const SIZE: u64 = (BEHIND + PAGES * PAGE) as u64;

/// What the third thread has done.
#[derive(Default)]
struct Checked {
    holes: u64,
    cuts: u64,
    bytes: u64,
}

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok());
    match run(Duration::from_secs(seconds.unwrap_or(5))) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("map_file: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(time: Duration) -> Result<String, Box<dyn Error + Send + Sync>> {
    let image = std::env::temp_dir().join(format!("pagefence-map-{}.img", std::process::id()));
    Mkfs::new(Kind::Ext4).size(64 << 20).format(&image)?;
    let told = count_and_punch(&image, time);
    std::fs::remove_file(&image)?;
    told
}

fn count_and_punch(
    image: &std::path::Path,
    time: Duration,
) -> Result<String, Box<dyn Error + Send + Sync>> {
    let volume = Volume::open(image, Options::new().write(true))?;
    let options = OpenOptions::new().read(true).write(true).create_new(true);
    let file = options.open(&volume, "/counters")?;
    file.set_len(SIZE)?;
    let over = AtomicBool::new(false);
    let (counts, checked) = std::thread::scope(|scope| {
        let counters = [0, 1].map(|which| {
            let (file, over) = (&file, &over);
            scope.spawn(move || count(file, which, over))
        });
        let checked = punch(&file, Instant::now() + time);
        over.store(true, Ordering::Relaxed);
        let counts = counters.map(|counter| counter.join().expect("it does not panic"));
        (counts, checked)
    });
    let [first, second] = counts;
    let (first, second, checked) = (first?, second?, checked?);
    drop(file);
    volume.close()?;

    // What they counted is on disk.
    let volume = Volume::open(image, Options::new())?;
    let mut bytes = [0; 24];
    volume.open_file("/counters")?.read_at(0, &mut bytes)?;
    for (at, due) in [(0, first + second), (8, first), (16, second)] {
        let count = u64::from_ne_bytes(bytes[at..at + 8].try_into()?);
        if count != due {
            return Err(format!("{count} of {due} counts are on disk at byte {at}").into());
        }
    }
    Ok(format!(
        "map_file: {} counts by two threads in one page, none lost; {} holes punched and {} cuts \
         made beside them, {} bytes looked at: none stale",
        first + second,
        checked.holes,
        checked.cuts,
        checked.bytes
    ))
}

/// Counts in two words: the one of all, and its own.
fn count(file: &File, which: usize, over: &AtomicBool) -> pagefence::Result<u64> {
    let map = file.map(..PAGE as u64, MapOptions::shared())?;
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        map.fetch_add(0, 1_u64, Ordering::Relaxed)?;
        map.fetch_add(8 + which * 8, 1_u64, Ordering::Relaxed)?;
        count += 1;
    }
    Ok(count)
}

/// Stores stamps to some pages, punches some of them or cuts them off, and looks at all.
fn punch(file: &File, end: Instant) -> Result<Checked, Box<dyn Error + Send + Sync>> {
    let map = file.map(BEHIND as u64..SIZE, MapOptions::shared())?;
    let mut checked = Checked::default();
    let mut random = 1_u64;
    let mut below = |end: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) as usize % end
    };
    // Above 0, so that no page is told from a hole by chance.
    for stamp in 1_u64.. {
        if Instant::now() > end {
            break;
        }
        let (at, count) = (below(PAGES - 64), 1 + below(64));
        for page in at..at + count {
            map.write_at(page * PAGE, &stamp.to_ne_bytes().repeat(PAGE / 8))?;
        }
        let gone = at + below(count);
        let left = if stamp % 4 == 0 {
            file.set_len((BEHIND + gone * PAGE) as u64)?;
            file.set_len(SIZE)?;
            checked.cuts += 1;
            0
        } else {
            let length = 1 + below(at + count - gone);
            file.punch_hole((BEHIND + gone * PAGE) as u64, (length * PAGE) as u64)?;
            checked.holes += 1;
            at + count - gone - length
        };
        for page in at..at + count {
            let is_left = page < gone || page >= at + count - left;
            let due = if is_left { stamp } else { 0 };
            look(&map, page, due)?;
            checked.bytes += PAGE as u64;
        }
    }
    Ok(checked)
}

fn look(map: &Map, page: usize, due: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut bytes = [0; PAGE];
    map.read_at(page * PAGE, &mut bytes)?;
    let (words, _) = bytes.as_chunks::<8>();
    match words.iter().find(|word| **word != due.to_ne_bytes()) {
        None => Ok(()),
        Some(word) => {
            let found = u64::from_ne_bytes(*word);
            Err(format!("stale: page {page} has stamp {found} and should have {due}").into())
        }
    }
}
