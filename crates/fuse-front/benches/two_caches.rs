//! What WRITEBACK_CACHE gains: buffered writes to a server that is nothing but memory, in
//! writethrough and with the writeback cache, in turn.
//!
//! `cargo bench -p pagefence-fuse-front --bench two_caches`, as root. Prints medians and the
//! quartiles of the gain; once as fuser serves (the kernel asks for `security.capability` before
//! each write(2), and is answered), once with that request refused, as a transport with
//! HANDLE_KILLPRIV_V2 has it. `docs/adr/0009-two-page-caches.md` holds what they were. Without
//! `--bench` it tries everything once, in small.

#[path = "../tests/two_caches/server.rs"]
mod server;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::Ordering;

use crate::server::{Mode, Served, Xattrs};

/// Rounds. In each every case runs on every mount in turn, so that a gain compares neighbours in
/// time; of the rounds' gains the quartiles are shown.
const ROUNDS: usize = 15;

/// The longest write.
const LONGEST: usize = 1 << 20;

/// Where the writes of a case go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pattern {
    /// One after the other, to an empty file.
    Sequential,
    /// Anywhere in a file that is there, and in the kernel's cache.
    Random,
    /// Each to a file of its own, created and closed.
    Files,
}

/// What is timed.
struct Case {
    name: &'static str,
    pattern: Pattern,
    bytes: usize,
    count: usize,
}

/// One mount, and the seconds that each case took in each round: writes alone, and with fsync.
struct Contender {
    mode: Mode,
    xattrs: Xattrs,
    served: Served,
    times: Vec<Vec<[f64; 2]>>,
    /// WRITE, GETXATTR and SETATTR requests of a case, in the last round.
    requests: Vec<[u64; 3]>,
}

const CASES: [Case; 5] = [
    Case {
        name: "4 KiB sequential",
        pattern: Pattern::Sequential,
        bytes: 4 << 10,
        count: 16_384,
    },
    Case {
        name: "4 KiB random",
        pattern: Pattern::Random,
        bytes: 4 << 10,
        count: 16_384,
    },
    Case {
        name: "64 KiB sequential",
        pattern: Pattern::Sequential,
        bytes: 64 << 10,
        count: 2048,
    },
    Case {
        name: "1 MiB sequential",
        pattern: Pattern::Sequential,
        bytes: LONGEST,
        count: 256,
    },
    Case {
        name: "create, write 4 KiB, close",
        pattern: Pattern::Files,
        bytes: 4 << 10,
        count: 2000,
    },
];

fn main() {
    let in_earnest = std::env::args().any(|argument| argument == "--bench");
    let (rounds, divisor) = if in_earnest { (ROUNDS, 1) } else { (1, 64) };
    let mut contenders = Vec::new();
    for xattrs in [Xattrs::Answered, Xattrs::Refused] {
        for mode in [Mode::Writethrough, Mode::Writeback] {
            let Some(served) = Served::mount(mode, xattrs, Arc::new(|_, _, _| {})) else {
                return;
            };
            contenders.push(Contender {
                mode,
                xattrs,
                served,
                times: CASES.iter().map(|_| Vec::new()).collect(),
                requests: vec![[0; 3]; CASES.len()],
            });
        }
    }
    // Round 0 warms up: the server's memory, the kernel's. It counts only if it is the only one.
    for round in 0..=rounds {
        for (index, case) in CASES.iter().enumerate() {
            for turn in 0..contenders.len() {
                let turn = (turn + round) % contenders.len();
                let contender = &mut contenders[turn];
                let before = contender.counts();
                let times = contender.run(case, case.count / divisor);
                let after = contender.counts();
                contender.requests[index] = [0, 1, 2].map(|which| after[which] - before[which]);
                if round > 0 {
                    contender.times[index].push(times);
                }
            }
        }
    }
    for pair in contenders.chunks(2) {
        report(&pair[0], &pair[1]);
    }
}

impl Contender {
    fn counts(&self) -> [u64; 3] {
        let requests = &self.served.requests;
        [&requests.writes, &requests.xattrs, &requests.setattrs]
            .map(|count| count.load(Ordering::Relaxed))
    }

    /// Runs a case once, and leaves nothing dirty.
    fn run(&self, case: &Case, count: usize) -> [f64; 2] {
        let data = vec![0x5a; case.bytes];
        let seconds = |times: [Duration; 2]| times.map(|time| time.as_secs_f64());
        if case.pattern == Pattern::Files {
            return seconds(self.create_files(&data, count));
        }
        let name = if case.pattern == Pattern::Random {
            "random"
        } else {
            "sequential"
        };
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(case.pattern == Pattern::Sequential)
            .open(self.served.join(name))
            .expect("a file can be created");
        if case.pattern == Pattern::Random {
            let length = file.metadata().expect("it is there").len();
            let missing = (case.bytes * count) as u64;
            for offset in (length..missing).step_by(case.bytes) {
                file.write_all_at(&data, offset).expect("it can be written");
            }
        }
        file.sync_all().expect("fsync");

        let mut place = 0_usize;
        let start = Instant::now();
        for index in 0..count {
            // An odd step goes round a power of two once, without order that helps.
            place = match case.pattern {
                Pattern::Random => (place + 0x9e37_79b1) % count,
                Pattern::Sequential | Pattern::Files => index,
            };
            file.write_all_at(&data, (place * case.bytes) as u64)
                .expect("it can be written");
        }
        let written = start.elapsed();
        file.sync_all().expect("fsync");
        let synced = start.elapsed();
        drop(file);
        let arrived = self.served.contents(name);
        assert_eq!(arrived.len(), case.bytes * count, "everything arrived");
        assert!(
            arrived.iter().all(|&byte| byte == 0x5a),
            "and as it was sent"
        );
        seconds([written, synced])
    }

    /// Twice: files that are closed, then files that are closed after fsync.
    fn create_files(&self, data: &[u8], count: usize) -> [Duration; 2] {
        [false, true].map(|sync| {
            let paths: Vec<_> = (0..count)
                .map(|index| self.served.join(&format!("file-{index}")))
                .collect();
            let start = Instant::now();
            for path in &paths {
                let file = File::create_new(path).expect("a file can be created");
                file.write_all_at(data, 0).expect("it can be written");
                if sync {
                    file.sync_all().expect("fsync");
                }
            }
            let taken = start.elapsed();
            for (index, path) in paths.iter().enumerate() {
                let arrived = self.served.contents(&format!("file-{index}"));
                assert_eq!(arrived, data, "close(2) sends what is dirty");
                std::fs::remove_file(path).expect("it can be removed");
            }
            taken
        })
    }
}

/// The three quartiles.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len() - 1;
    [1, 2, 3].map(|quarter| values[last * quarter / 4])
}

fn report(through: &Contender, back: &Contender) {
    assert_eq!(
        (through.mode, back.mode),
        (Mode::Writethrough, Mode::Writeback)
    );
    let mut gains = [Vec::new(), Vec::new()];
    println!(
        "\nGETXATTR {:?}; median milliseconds; requests of both rows",
        through.xattrs
    );
    println!(
        "{:36} {:>12} {:>12} {:>21}   {:>13} {:>13} {:>11}",
        "", "writethrough", "writeback", "gain (quartiles)", "WRITE", "GETXATTR", "SETATTR"
    );
    for (index, case) in CASES.iter().enumerate() {
        for (which, suffix) in ["", " + fsync"].into_iter().enumerate() {
            let times = |contender: &Contender| -> Vec<f64> {
                let rounds = contender.times[index].iter();
                rounds.map(|pair| pair[which]).collect()
            };
            let (slow, fast) = (times(through), times(back));
            let ratios = slow.iter().zip(&fast).map(|(slow, fast)| slow / fast);
            let [low, gain, high] = quartiles(ratios.collect());
            gains[which].push(gain);
            let median = |times| quartiles(times)[1] * 1e3;
            let count = |which: usize| {
                format!(
                    "{}/{}",
                    through.requests[index][which], back.requests[index][which]
                )
            };
            println!(
                "{:36} {:12.2} {:12.2} {:>5.2}x ({low:.2} to {high:.2})   {:>13} {:>13} {:>11}",
                format!("{}{suffix}", case.name),
                median(slow),
                median(fast),
                gain,
                count(0),
                count(1),
                count(2),
            );
        }
    }
    for (gains, what) in gains.iter().zip(["writes alone", "with fsync"]) {
        let logarithms: f64 = gains.iter().map(|gain| gain.ln()).sum();
        let mean = (logarithms / gains.len() as f64).exp();
        println!("geometric mean of the gains, {what}: {mean:.2}x");
    }
}
