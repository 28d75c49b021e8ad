//! Random traces of one file against plain bytes, for every kind of file system, with remounts;
//! through the cache and past it.

use pagefence_ext4::{File, FileSystem};
use pagefence_vfs::{Error, FallocateMode, FileSystem as _, InodeId, Whence, WriteMode};

use crate::support::{
    Image, KINDS, Kind, Random, create, find, read_all, set_size, write_all, write_all_as,
};

/// Bytes that a file has at most.
const SPAN: u64 = 900 << 10;

/// Through the cache, or past it.
type Read = fn(&FileSystem, &File, u64, &mut [u8]) -> pagefence_vfs::Result<usize>;

struct Trace<'a> {
    kind: &'a Kind,
    image: &'a Image,
    /// None for a moment: two systems on one image would be one too many.
    fs: Option<FileSystem>,
    id: InodeId,
    model: Vec<u8>,
    random: Random,
    log: Vec<String>,
}

impl Trace<'_> {
    fn fs(&self) -> &FileSystem {
        self.fs.as_ref().unwrap()
    }

    fn fail(&self, what: &str) -> ! {
        panic!("{}: {what}\n{}", self.kind.name, self.log.join("\n"));
    }

    fn range(&mut self) -> (u64, u64) {
        let start = match self.random.below(4) {
            0 => self.random.below(SPAN / 4096) * 4096,
            1 => self.random.below(SPAN / 1024) * 1024,
            _ => self.random.below(SPAN),
        };
        let most = match self.random.below(3) {
            0 => 200,
            1 => 9000,
            _ => 120_000,
        };
        let len = 1 + self.random.below(most.min(SPAN - start));
        (start, len)
    }

    /// A range for what goes past the cache: mostly whole blocks.
    fn direct_range(&mut self) -> (u64, u64) {
        let (start, len) = self.range();
        match [0, 1024, 4096, 4096][self.random.below(4) as usize] {
            0 => (start, len),
            unit => (start / unit * unit, len.next_multiple_of(unit)),
        }
    }

    fn write_direct(&mut self, file: &File) {
        let (start, len) = self.direct_range();
        let byte = 1 + (self.random.next() % 255) as u8;
        self.log.push(format!("write direct {start} {len} {byte}"));
        let data = vec![byte; len as usize];
        let (written, error) = write_all_as(self.fs(), file, start, &data, WriteMode::DIRECT);
        if written as u64 != len {
            self.fail(&format!("{written} written: {error:?}"));
        }
        let (from, to) = (start as usize, (start + len) as usize);
        if self.model.len() < to {
            self.model.resize(to, 0);
        }
        self.model[from..to].fill(byte);
    }

    fn step(&mut self, file: &File) {
        let size = self.model.len() as u64;
        if self.random.below(4) == 0 {
            if self.random.below(3) == 0 {
                let (start, len) = self.direct_range();
                self.log.push(format!("read direct {start} {len}"));
                self.read(file, start, len, FileSystem::read_direct);
            } else {
                self.write_direct(file);
            }
            return;
        }
        let (start, len) = self.range();
        let (from, to) = (start as usize, (start + len) as usize);
        let what = self.random.below(100);
        match what {
            0..45 => {
                let byte = 1 + (self.random.next() % 255) as u8;
                self.log.push(format!("write {start} {len} {byte}"));
                let data = vec![byte; len as usize];
                let (written, error) = write_all(self.fs(), file, start, &data);
                if written as u64 != len {
                    self.fail(&format!("{written} written: {error:?}"));
                }
                if self.model.len() < to {
                    self.model.resize(to, 0);
                }
                self.model[from..to].fill(byte);
            }
            45..50 => {
                self.log.push(format!("append {}", len.min(5000)));
                let data = vec![0xa5; len.min(5000) as usize];
                let written = self.fs().write(file, 0, &data, WriteMode::APPEND).unwrap();
                assert_eq!(written, data.len());
                self.model.extend(data);
            }
            50..62 => {
                let size = if self.random.below(3) == 0 {
                    start
                } else {
                    start.min(size)
                };
                self.log.push(format!("truncate {size}"));
                if let Err(error) = set_size(self.fs(), self.id, size) {
                    self.fail(&format!("{error:?}"));
                }
                self.model.resize(size as usize, 0);
            }
            62..70 => {
                self.log.push("fsync".to_owned());
                if let Err(error) = self.fs().sync_file(file, what.is_multiple_of(2)) {
                    self.fail(&format!("{error:?}"));
                }
            }
            70..78 => {
                self.log.push(format!("punch {start} {len}"));
                let mode = FallocateMode::PUNCH_HOLE | FallocateMode::KEEP_SIZE;
                if let Err(error) = self.fs().allocate(file, start, len, mode) {
                    self.fail(&format!("{error:?}"));
                }
                let to = to.min(self.model.len());
                if from < to {
                    self.model[from..to].fill(0);
                }
            }
            78..84 => {
                self.log.push(format!("zero {start} {len}"));
                let done = self
                    .fs()
                    .allocate(file, start, len, FallocateMode::ZERO_RANGE);
                match done {
                    Err(Error::Unsupported(_)) if !self.kind.has_extents => return,
                    Err(error) => self.fail(&format!("{error:?}")),
                    Ok(()) => {}
                }
                if self.model.len() < to {
                    self.model.resize(to, 0);
                }
                self.model[from..to].fill(0);
            }
            84..92 => {
                let keeps = self.random.below(2) == 0;
                self.log.push(format!("allocate {start} {len} {keeps}"));
                let mode = if keeps {
                    FallocateMode::KEEP_SIZE
                } else {
                    FallocateMode::empty()
                };
                let done = self.fs().allocate(file, start, len, mode);
                match done {
                    Err(Error::Unsupported(_)) if !self.kind.has_extents && to as u64 > size => {
                        return;
                    }
                    Err(error) => self.fail(&format!("{error:?}")),
                    Ok(()) => {}
                }
                if !keeps && self.model.len() < to {
                    self.model.resize(to, 0);
                }
            }
            92..97 => self.read(file, start, len, FileSystem::read),
            _ => self.seek(file, start),
        }
        let attr = self.fs().attr(self.id).unwrap();
        if attr.size != self.model.len() as u64 {
            self.fail(&format!(
                "size {} instead of {}",
                attr.size,
                self.model.len()
            ));
        }
    }

    fn read(&self, file: &File, start: u64, len: u64, how: Read) {
        let mut bytes = vec![0xee; len as usize];
        let read = how(self.fs(), file, start, &mut bytes).unwrap();
        let from = (start as usize).min(self.model.len());
        let to = ((start + len) as usize).min(self.model.len());
        if bytes[..read] != self.model[from..to] {
            self.fail(&format!("read {start} {len}"));
        }
    }

    /// What is said to be a hole reads as zeros.
    fn seek(&self, file: &File, start: u64) {
        let size = self.model.len() as u64;
        let hole = self.fs().seek(file, start, Whence::Hole);
        let data = self.fs().seek(file, start, Whence::Data);
        if start >= size {
            assert!(matches!(hole, Err(Error::NoData)), "{hole:?}");
            return;
        }
        assert!(hole.unwrap() >= start);
        let end = match data {
            Ok(data) => data.min(size),
            Err(Error::NoData) => size,
            Err(error) => self.fail(&format!("{error:?}")),
        };
        let skipped = &self.model[start as usize..end as usize];
        if skipped.iter().any(|byte| *byte != 0) {
            self.fail(&format!(
                "data between {start} and {end} is said to be a hole"
            ));
        }
    }

    fn compare(&self) {
        let bytes = read_all(self.fs(), self.id);
        if bytes != self.model {
            let at = bytes.iter().zip(&self.model).position(|(a, b)| a != b);
            self.fail(&format!(
                "{} bytes instead of {}, another from {at:?} on",
                bytes.len(),
                self.model.len()
            ));
        }
    }

    /// Closes it all, has it judged, and opens it again.
    fn remount(&mut self) {
        self.log.push("remount".to_owned());
        if let Err(error) = self.fs().shut_down() {
            self.fail(&format!("{error:?}"));
        }
        self.fs = None;
        self.image
            .assert_clean(&format!("{}\n{}", self.kind.name, self.log.join("\n")));
        self.fs = Some(self.image.open());
        self.id = find(self.fs(), "file");
    }
}

fn trace(kind: &Kind, seed: u64, steps: u64) {
    let image = Image::new(kind.options, "12M");
    let fs = image.open();
    let id = create(&fs, "file");
    let mut trace = Trace {
        kind,
        image: &image,
        fs: Some(fs),
        id,
        model: Vec::new(),
        random: Random::new(seed),
        log: vec![format!("seed {seed}")],
    };
    for _ in 0..3 {
        let file = trace.fs().open(trace.id, true).unwrap();
        for _ in 0..steps {
            trace.step(&file);
        }
        trace.compare();
        drop(file);
        trace.remount();
        trace.compare();
    }
    set_size(trace.fs(), trace.id, 0).unwrap();
    trace.model.clear();
    trace.compare();
    assert_eq!(
        trace.fs().attr(trace.id).unwrap().blocks_512,
        0,
        "{}",
        kind.name
    );
    trace.remount();
}

#[test]
fn random_traces_give_what_plain_bytes_give() {
    let seeds = std::env::var("PAGEFENCE_TRACES").map_or(3, |count| count.parse().unwrap());
    for seed in 0..seeds {
        for kind in &KINDS {
            trace(kind, seed, 60);
        }
    }
}
