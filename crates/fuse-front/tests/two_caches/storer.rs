//! The processes that store through mappings (`storer.py`), and what they tell at the end.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::history::{By, History, Seen, Store};
use crate::stamp::{SECTOR, UNIT};

const SCRIPT: &str = include_str!("storer.py");

/// Bytes of a record: five little-endian numbers.
const RECORD: usize = 40;

/// What one is to do.
pub(crate) struct Task<'a> {
    pub(crate) path: &'a Path,
    /// The number in the stamps.
    pub(crate) file: u16,
    /// Length of the file, mapped whole.
    pub(crate) size: u64,
    /// It stores to the blocks of this owner.
    pub(crate) owner: u64,
    pub(crate) owners: u64,
    /// Sectors of a block.
    pub(crate) block: u64,
    pub(crate) seed: u64,
}

/// A storer at work; dropped, it is ended.
pub(crate) struct Storer {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Storer {
    /// Whether there is a Python to run one.
    pub(crate) fn is_possible() -> bool {
        let version = Command::new("python3").arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    }

    /// Starts one, and waits until it has mapped the file.
    pub(crate) fn start(task: &Task<'_>) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT])
            .arg(task.path)
            .args(
                [
                    u64::from(task.file),
                    task.size,
                    task.owner,
                    task.owners,
                    task.block,
                    task.seed,
                ]
                .map(|number| number.to_string()),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let output = child.stdout.take().expect("it was asked for");
        let mut storer = Self {
            child,
            output: BufReader::new(output),
        };
        let mut line = String::new();
        storer.output.read_line(&mut line).expect("it speaks");
        assert_eq!(line, "ready\n", "the storer could not map the file");
        storer
    }

    /// Tells it to stop, without waiting.
    pub(crate) fn stop(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits for its end, and adds what it did and saw.
    pub(crate) fn finish(mut self, history: &mut History) {
        self.stop();
        let mut bytes = Vec::new();
        self.output.read_to_end(&mut bytes).expect("it tells");
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "the storer failed: {status}");
        assert!(bytes.len().is_multiple_of(RECORD), "whole records");
        for record in bytes.chunks_exact(RECORD) {
            let mut numbers = [0; 5];
            for (number, bytes) in numbers.iter_mut().zip(record.chunks_exact(8)) {
                *number = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
            }
            add(history, numbers);
        }
    }
}

impl Drop for Storer {
    fn drop(&mut self) {
        // Of a child that was waited for there is nothing left to kill.
        let _already_ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

fn add(history: &mut History, [kind, place, begin, end, value]: [u64; 5]) {
    let sector = place & 0xffff_ffff;
    let units = [place >> 32 & 0xff, place >> 40 & 0xff];
    match kind {
        0 | 1 => history.stores.push(Store {
            sector,
            by: By::Map,
            begin,
            end,
            done: kind == 0,
        }),
        2 => history.seen.push(Seen {
            from: sector * SECTOR + units[0] * UNIT,
            to: sector * SECTOR + units[1] * UNIT,
            value,
            begin,
            end,
        }),
        3 => history.misplaced += 1,
        _ => panic!("no record of kind {kind}"),
    }
}
