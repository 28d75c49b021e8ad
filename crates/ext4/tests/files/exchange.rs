//! Ranges that change places: random operations on two files against plain bytes, with dirty pages
//! and no sync between, for every kind of file system.

mod crash;
mod failures;
mod moved;
mod races;
mod rules;

use pagefence_ext4::{File, FileSystem};
use pagefence_vfs::{Error, FallocateMode, FileSystem as _, InodeId};

use crate::shift::PUNCH;
use crate::support::{Image, KINDS, Kind, Random, create, find, read_all, set_size, write_all};

/// Bytes that a file has at most, about.
const SPAN: u64 = 400 << 10;

/// What an exchange makes of plain bytes; nothing if it is to be refused.
fn exchange(files: &mut [Vec<u8>; 2], sides: [usize; 2], at: [usize; 2], len: usize) -> bool {
    let is_same = sides[0] == sides[1];
    if is_same && at[0].abs_diff(at[1]) < len {
        return false;
    }
    let piece = |which: usize| {
        let file = &files[sides[which]];
        let mut bytes: Vec<u8> = file.iter().copied().skip(at[which]).take(len).collect();
        bytes.resize(len, 0);
        bytes
    };
    let pieces = [piece(0), piece(1)];
    let mut changed = files.clone();
    for which in [0, 1] {
        let file = &mut changed[sides[which]];
        for (offset, byte) in pieces[1 - which].iter().enumerate() {
            match file.get_mut(at[which] + offset) {
                Some(slot) => *slot = *byte,
                None if *byte == 0 => {}
                None => return false,
            }
        }
    }
    *files = changed;
    true
}

struct Trace<'a> {
    kind: &'a Kind,
    image: &'a Image,
    fs: Option<FileSystem>,
    ids: [InodeId; 2],
    block: usize,
    model: [Vec<u8>; 2],
    random: Random,
    log: Vec<String>,
    exchanged: usize,
}

const NAMES: [&str; 2] = ["first", "second"];

impl Trace<'_> {
    fn fs(&self) -> &FileSystem {
        self.fs.as_ref().unwrap()
    }

    fn fail(&self, what: &str) -> ! {
        panic!("{}: {what}\n{}", self.kind.name, self.log.join("\n"));
    }

    fn step(&mut self, files: &[File; 2]) {
        let side = self.random.below(2) as usize;
        let most = [5, 40, 150][self.random.below(3) as usize];
        let block = self.block as u64;
        match self.random.below(100) {
            0..35 => {
                let start = self.random.below(SPAN / 512) * 512;
                let len = (1 + self.random.below(most)) * 700;
                let byte = 1 + (self.random.next() % 250) as u8;
                self.log.push(format!("write {side} {start} {len} {byte}"));
                let data: Vec<u8> = (0..len).map(|at| byte ^ (at >> 9) as u8).collect();
                let (written, error) = write_all(self.fs(), &files[side], start, &data);
                if written != data.len() {
                    self.fail(&format!("{written} written: {error:?}"));
                }
                let model = &mut self.model[side];
                let end = start as usize + data.len();
                model.resize(model.len().max(end), 0);
                model[start as usize..end].copy_from_slice(&data);
            }
            35..40 => {
                let size = self.random.below(SPAN);
                self.log.push(format!("truncate {side} {size}"));
                set_size(self.fs(), self.ids[side], size).unwrap();
                self.model[side].resize(size as usize, 0);
            }
            40..46 => {
                let start = self.random.below(SPAN);
                let len = 1 + self.random.below(most * block);
                self.log.push(format!("punch {side} {start} {len}"));
                self.fs().allocate(&files[side], start, len, PUNCH).unwrap();
                let end = ((start + len) as usize).min(self.model[side].len());
                if (start as usize) < end {
                    self.model[side][start as usize..end].fill(0);
                }
            }
            46..52 if self.kind.has_extents => {
                let start = self.random.below(SPAN);
                let len = 1 + self.random.below(most * block);
                self.log.push(format!("allocate {side} {start} {len}"));
                let mode = FallocateMode::KEEP_SIZE;
                self.fs().allocate(&files[side], start, len, mode).unwrap();
            }
            52..55 => {
                self.log.push(format!("fsync {side}"));
                self.fs().sync_file(&files[side], false).unwrap();
            }
            55..60 => self.compare(),
            _ => self.exchange(files, most),
        }
    }

    fn exchange(&mut self, files: &[File; 2], most: u64) {
        let sides = [self.random.below(2) as usize, self.random.below(2) as usize];
        let blocks = sides.map(|side| self.model[side].len().div_ceil(self.block) as u64);
        let at = blocks.map(|blocks| self.random.below(blocks + 1));
        let room = (blocks[0] - at[0]).min(blocks[1] - at[1]);
        let mut len = 1 + self.random.below(most);
        if self.random.below(8) > 0 {
            len = len.min(room);
        }
        let is_inside = len > 0 && len <= room;
        let bytes = |count: u64| count as usize * self.block;
        let (at, len) = (at.map(bytes), bytes(len));
        self.log.push(format!("exchange {sides:?} {at:?} {len}"));
        let outcome = self.fs().exchange_range(
            &files[sides[0]],
            at[0] as u64,
            &files[sides[1]],
            at[1] as u64,
            len as u64,
        );
        let is_due = is_inside && exchange(&mut self.model, sides, at, len);
        match outcome {
            Ok(()) if is_due => self.exchanged += 1,
            Err(Error::InvalidArgument) if !is_due => {}
            other => self.fail(&format!("{other:?}, due: {is_due}")),
        }
    }

    fn compare(&self) {
        for (side, id) in self.ids.iter().enumerate() {
            let (found, due) = (read_all(self.fs(), *id), &self.model[side]);
            if found != *due {
                let at = found.iter().zip(due).position(|(a, b)| a != b);
                let (len, due) = (found.len(), due.len());
                self.fail(&format!("file {side}: {len} of {due}, other at {at:?}"));
            }
        }
    }

    fn remount(&mut self) {
        self.log.push("remount".to_owned());
        self.fs().shut_down().unwrap();
        self.fs = None;
        self.image
            .assert_clean(&format!("{}\n{}", self.kind.name, self.log.join("\n")));
        self.fs = Some(self.image.open());
        self.ids = NAMES.map(|name| find(self.fs(), name));
        self.compare();
    }
}

fn trace(kind: &Kind, seed: u64, steps: u64) {
    let image = Image::new(kind.options, "12M");
    let fs = image.open();
    let ids = NAMES.map(|name| create(&fs, name));
    let block = fs.stat_fs().unwrap().block_size as usize;
    let mut trace = Trace {
        kind,
        image: &image,
        fs: Some(fs),
        ids,
        block,
        model: [Vec::new(), Vec::new()],
        random: Random::new(seed),
        log: vec![format!("seed {seed}")],
        exchanged: 0,
    };
    let free = trace.fs().stat_fs().unwrap().blocks_free;
    for _ in 0..3 {
        let files = trace.ids.map(|id| trace.fs().open(id, true).unwrap());
        for _ in 0..steps {
            trace.step(&files);
        }
        trace.compare();
        drop(files);
        trace.remount();
    }
    for id in trace.ids {
        set_size(trace.fs(), id, 0).unwrap();
    }
    trace.fs().sync().unwrap();
    for id in trace.ids {
        assert_eq!(trace.fs().attr(id).unwrap().blocks_512, 0, "{}", kind.name);
    }
    assert_eq!(trace.fs().stat_fs().unwrap().blocks_free, free);
    assert!(trace.exchanged > 20, "{} exchanges", trace.exchanged);
    trace.model = [Vec::new(), Vec::new()];
    trace.remount();
}

#[test]
fn random_exchanges_give_what_plain_bytes_give() {
    let seeds = std::env::var("PAGEFENCE_TRACES").map_or(3, |count| count.parse().unwrap());
    for seed in 0..seeds {
        for kind in &KINDS {
            trace(kind, seed, 70);
        }
    }
}
