//! Ranges taken out of files and put into them: random operations against plain bytes and a map of
//! holes, with dirty pages and no sync between, for every kind of file system.

mod crash;
mod damage;
mod deep;
mod failures;
mod kernel;
mod kit;
mod rules;

use pagefence_ext4::{File, FileSystem};
use pagefence_vfs::{Error, FallocateMode, FileSystem as _, InodeId, Result, Whence};

use crate::support::{Image, KINDS, Kind, Random, create, find, read_all, set_size, write_all};

/// Bytes that a file has at most, about.
const SPAN: u64 = 600 << 10;

pub(crate) const COLLAPSE: FallocateMode = FallocateMode::COLLAPSE_RANGE;
pub(crate) const INSERT: FallocateMode = FallocateMode::INSERT_RANGE;
pub(crate) const PUNCH: FallocateMode = FallocateMode::PUNCH_HOLE.union(FallocateMode::KEEP_SIZE);

/// A file as it should be: its bytes, and which of its blocks have data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) bytes: Vec<u8>,
    /// Blocks past the last one here are holes.
    data: Vec<bool>,
    block: usize,
}

impl Model {
    pub(crate) fn new(block: usize) -> Self {
        Self {
            block,
            ..Self::default()
        }
    }

    fn mark(&mut self, blocks: std::ops::Range<usize>, is_data: bool) {
        if self.data.len() < blocks.end {
            self.data.resize(blocks.end, false);
        }
        self.data[blocks].fill(is_data);
    }

    pub(crate) fn write(&mut self, from: usize, data: &[u8]) {
        let to = from + data.len();
        if self.bytes.len() < to {
            self.bytes.resize(to, 0);
        }
        self.bytes[from..to].copy_from_slice(data);
        self.mark(from / self.block..to.div_ceil(self.block), true);
    }

    pub(crate) fn set_size(&mut self, size: usize) {
        self.bytes.resize(size, 0);
        self.data.truncate(size.div_ceil(self.block));
    }

    /// Zeros; whole blocks are holes.
    pub(crate) fn clear(&mut self, from: usize, to: usize) {
        let inside = to.min(self.bytes.len());
        if from < inside {
            self.bytes[from..inside].fill(0);
        }
        // Past the end only what its last page reaches.
        let (first, end) = (from.div_ceil(self.block), to / self.block);
        if first < end {
            self.mark(first..end, false);
        }
    }

    pub(crate) fn collapse(&mut self, from: usize, to: usize) {
        self.bytes.drain(from..to);
        let blocks = from / self.block..to / self.block;
        if self.data.len() < blocks.end {
            self.data.resize(blocks.end, false);
        }
        self.data.drain(blocks);
    }

    pub(crate) fn insert(&mut self, from: usize, to: usize) {
        let zeros = std::iter::repeat_n(0, to - from);
        self.bytes.splice(from..from, zeros);
        let at = from / self.block;
        if at < self.data.len() {
            let holes = std::iter::repeat_n(false, (to - from) / self.block);
            self.data.splice(at..at, holes);
        }
    }

    /// The runs of data in bytes, cut at the end of the file.
    pub(crate) fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let size = self.bytes.len() as u64;
        for (at, _) in self.data.iter().enumerate().filter(|(_, data)| **data) {
            let (from, to) = (at * self.block, (at + 1) * self.block);
            let (from, to) = (from as u64, (to as u64).min(size));
            match runs.last_mut() {
                Some(last) if last.1 == from => last.1 = to,
                _ if from < size => runs.push((from, to)),
                _ => {}
            }
        }
        runs
    }
}

/// The runs of data as lseek tells them.
pub(crate) fn runs_of(fs: &FileSystem, file: &File) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut at = 0;
    loop {
        let start = match fs.seek(file, at, Whence::Data) {
            Ok(start) => start,
            Err(Error::NoData) => return runs,
            Err(error) => panic!("{error:?}"),
        };
        at = fs.seek(file, start, Whence::Hole).unwrap();
        runs.push((start, at));
    }
}

struct Trace<'a> {
    kind: &'a Kind,
    image: &'a Image,
    /// None for a moment: two systems on one image would be one too many.
    fs: Option<FileSystem>,
    id: InodeId,
    model: Model,
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

    fn expect(&self, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.fail(&format!("{error:?}"));
        }
    }

    fn range(&mut self, unit: u64) -> (u64, u64) {
        let start = self.random.below(SPAN / unit) * unit;
        let most = [3, 20, 200][self.random.below(3) as usize];
        let len = (1 + self.random.below(most)) * unit;
        (start, len)
    }

    fn step(&mut self, file: &File) {
        let block = self.model.block as u64;
        let size = self.model.bytes.len() as u64;
        let what = self.random.below(100);
        let unit = if what < 40 { 512 } else { block };
        let (start, len) = self.range(unit);
        let (from, to) = (start as usize, (start + len) as usize);
        match what {
            0..30 => {
                let byte = 1 + (self.random.next() % 255) as u8;
                self.log.push(format!("write {start} {len} {byte}"));
                let data: Vec<u8> = (from..to).map(|at| byte ^ (at >> 9) as u8).collect();
                let (written, error) = write_all(self.fs(), file, start, &data);
                if written != data.len() {
                    self.fail(&format!("{written} written: {error:?}"));
                }
                self.model.write(from, &data);
            }
            30..36 => {
                // Some time it has to become shorter.
                let size = start.min(size + 3000);
                self.log.push(format!("truncate {size}"));
                self.expect(set_size(self.fs(), self.id, size));
                self.model.set_size(size as usize);
            }
            36..40 => {
                self.log.push(format!("punch {start} {len}"));
                self.expect(self.fs().allocate(file, start, len, PUNCH));
                if start < size {
                    let reach = self.model.bytes.len().next_multiple_of(4096);
                    self.model.clear(from, to.min(reach));
                }
            }
            40..64 => {
                self.log.push(format!("collapse {start} {len}"));
                let done = self.fs().allocate(file, start, len, COLLAPSE);
                if start + len >= size {
                    if !matches!(done, Err(Error::InvalidArgument)) {
                        self.fail(&format!("{done:?}"));
                    }
                } else {
                    self.expect(done);
                    self.model.collapse(from, to);
                }
            }
            64..84 => {
                if size > 2 * SPAN {
                    return;
                }
                self.log.push(format!("insert {start} {len}"));
                let done = self.fs().allocate(file, start, len, INSERT);
                if start >= size {
                    if !matches!(done, Err(Error::InvalidArgument)) {
                        self.fail(&format!("{done:?}"));
                    }
                } else {
                    self.expect(done);
                    self.model.insert(from, to);
                }
            }
            84..90 if self.kind.has_extents => {
                let keeps = self.random.below(2) == 0;
                self.log.push(format!("allocate {start} {len} {keeps}"));
                let mode = if keeps {
                    FallocateMode::KEEP_SIZE
                } else {
                    FallocateMode::empty()
                };
                self.expect(self.fs().allocate(file, start, len, mode));
                if !keeps && self.model.bytes.len() < to {
                    self.model.bytes.resize(to, 0);
                }
            }
            90..93 => {
                self.log.push("fsync".to_owned());
                self.expect(self.fs().sync_file(file, false));
            }
            93..95 => self.compare(file),
            _ => {
                let mut bytes = vec![0xee; len as usize];
                let read = self.fs().read(file, start, &mut bytes).unwrap();
                let end = self.model.bytes.len();
                if bytes[..read] != self.model.bytes[from.min(end)..to.min(end)] {
                    self.fail(&format!("read {start} {len}"));
                }
            }
        }
        let attr = self.fs().attr(self.id).unwrap();
        if attr.size != self.model.bytes.len() as u64 {
            self.fail(&format!("size {}", attr.size));
        }
    }

    fn compare(&self, file: &File) {
        let bytes = read_all(self.fs(), self.id);
        if bytes != self.model.bytes {
            let at = bytes
                .iter()
                .zip(&self.model.bytes)
                .position(|(a, b)| a != b);
            let due = self.model.bytes.len();
            self.fail(&format!("{} of {due} bytes, other at {at:?}", bytes.len()));
        }
        let (found, due) = (runs_of(self.fs(), file), self.model.runs());
        if found != due {
            self.fail(&format!("data {found:?}\n instead of {due:?}"));
        }
    }

    /// Closes it all, has it judged, and opens it again.
    fn remount(&mut self) {
        self.log.push("remount".to_owned());
        self.expect(self.fs().shut_down());
        self.fs = None;
        self.image
            .assert_clean(&format!("{}\n{}", self.kind.name, self.log.join("\n")));
        self.fs = Some(self.image.open());
        self.id = find(self.fs(), "file");
        let file = self.fs().open(self.id, true).unwrap();
        self.compare(&file);
    }
}

fn trace(kind: &Kind, seed: u64, steps: u64) {
    let image = Image::new(kind.options, "12M");
    let fs = image.open();
    let id = create(&fs, "file");
    let block = fs.stat_fs().unwrap().block_size as usize;
    let mut trace = Trace {
        kind,
        image: &image,
        fs: Some(fs),
        id,
        model: Model::new(block),
        random: Random::new(seed),
        log: vec![format!("seed {seed}")],
    };
    let free = trace.fs().stat_fs().unwrap().blocks_free;
    for _ in 0..3 {
        let file = trace.fs().open(trace.id, true).unwrap();
        for _ in 0..steps {
            trace.step(&file);
        }
        trace.compare(&file);
        drop(file);
        trace.remount();
    }
    trace.expect(set_size(trace.fs(), trace.id, 0));
    trace.expect(trace.fs().sync());
    let left = trace.fs().attr(trace.id).unwrap().blocks_512;
    assert_eq!(left, 0, "{}", kind.name);
    assert_eq!(trace.fs().stat_fs().unwrap().blocks_free, free);
    trace.model.set_size(0);
    trace.remount();
}

#[test]
fn random_traces_with_shifts_give_what_plain_bytes_give() {
    let seeds = std::env::var("PAGEFENCE_TRACES").map_or(3, |count| count.parse().unwrap());
    for seed in 0..seeds {
        for kind in &KINDS {
            trace(kind, seed, 80);
        }
    }
}
