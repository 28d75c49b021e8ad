//! Whatever is done to a file is seen through its maps, and the other way round.

use std::sync::Arc;

use pagefence::{File, Kind, Map, MapFormat, MapOptions, OpenOptions, Volume};
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_lock_order::primitives::thread;

use crate::kit::{FORMATS, Image, Random, Watchdog, file, loaded, pattern};

#[test]
fn stores_are_read_and_writes_are_loaded() {
    let _watchdog = Watchdog::new("stores_are_read_and_writes_are_loaded");
    for format in FORMATS {
        let image = Image::new(format);
        let volume = image.open();
        let mut bytes = pattern(1, 5 * 4096 + 123);
        let file = file(&volume, "/f", &bytes);
        let map = file.map(.., MapOptions::shared()).expect("it maps");
        assert_eq!((map.len(), map.offset()), (bytes.len(), 0));
        assert!(loaded(&map, u64::MAX >> 1) == bytes, "{format:?}");

        map.write_at(4090, b"across the end of a page")
            .expect("inside");
        bytes[4090..4114].copy_from_slice(b"across the end of a page");
        assert!(file.read_all().expect("it reads") == bytes, "{format:?}");
        let direct = OpenOptions::new().read(true).write(true).direct(true);
        let direct = direct.open(&volume, "/f").expect("it opens");
        assert!(direct.read_all().expect("it reads") == bytes, "{format:?}");

        file.write_all_at(8190, b"written").expect("it writes");
        bytes[8190..8197].copy_from_slice(b"written");
        direct.write_all_at(12288, &[7; 4096]).expect("it writes");
        bytes[12288..16384].fill(7);
        assert!(loaded(&map, u64::MAX >> 1) == bytes, "{format:?}");

        // Another map, of a part that begins inside a page.
        let part = file.map(4000..9001, MapOptions::shared()).expect("it maps");
        assert!(
            loaded(&part, u64::MAX >> 1) == bytes[4000..9001],
            "{format:?}"
        );
        part.write_at(96, b"from the other").expect("inside");
        let mut there = [0; 14];
        map.read_at(4096, &mut there).expect("inside");
        assert_eq!(&there, b"from the other");

        drop((map, part, file, direct));
        volume.close().expect("nobody has it");
        image.check();
    }
}

/// The file as it should be, and three views of it.
struct Model {
    bytes: Vec<u8>,
    file: File,
    direct: File,
    map: Map,
    other: Map,
}

const PAGES: u64 = 24;
/// Where the second map begins: nowhere in particular.
const OTHER: u64 = 4096 * 3 + 517;

impl Model {
    fn new(volume: &Volume, name: &str, seed: u64) -> Self {
        let bytes = pattern(seed, (PAGES * 2048) as usize);
        let file = file(volume, name, &bytes);
        let direct = OpenOptions::new().read(true).write(true).direct(true);
        let direct = direct.open(volume, name).expect("it opens");
        let end = PAGES * 4096;
        Self {
            map: file.map(0..end, MapOptions::shared()).expect("it maps"),
            other: file.map(OTHER..end, MapOptions::shared()).expect("it maps"),
            file,
            direct,
            bytes,
        }
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// A range inside of the file, at multiples of `unit`.
    fn range(&self, random: &mut Random, unit: u64) -> (u64, u64) {
        let units = self.size() / unit;
        let at = random.below(units);
        let most = (units - at).min(5 * 4096 / unit).max(1);
        (at * unit, (1 + random.below(most)) * unit)
    }

    fn step(&mut self, random: &mut Random, block: u64, step: u64) {
        let tag = step as u8 | 1;
        match random.below(12) {
            0..=2 if self.size() > 0 => {
                let (at, length) = self.range(random, 1);
                let data = vec![tag; length as usize];
                self.map.write_at(at as usize, &data).expect("inside");
                self.put(at, &data);
            }
            3 if self.size() > OTHER + 8 => {
                let at = random.below((self.size() - OTHER) / 8 - 1) * 8 + (8 - OTHER % 8);
                let number = u64::from(tag) << 8 | step;
                let before = self.other.fetch_add(at as usize, number, Ordering::SeqCst);
                let sum = before.expect("aligned").wrapping_add(number);
                self.put(OTHER + at, &sum.to_ne_bytes());
            }
            4 => {
                let at = random.below(PAGES * 4096 - 9000);
                let data = vec![tag; random.below(9000) as usize];
                self.file.write_all_at(at, &data).expect("it writes");
                self.put(at, &data);
            }
            5 => {
                let at = random.below(PAGES - 2) * 4096;
                let data = vec![tag; (1 + random.below(2) as usize) * 4096];
                self.direct.write_all_at(at, &data).expect("it writes");
                self.put(at, &data);
            }
            6 if self.size() > 0 => {
                let (at, length) = self.range(random, 1);
                self.file.punch_hole(at, length).expect("a hole");
                self.bytes[at as usize..(at + length) as usize].fill(0);
            }
            7 if self.size() > 0 => {
                let (at, length) = self.range(random, 1);
                self.file.zero_range(at, length).expect("zeros");
                self.bytes[at as usize..(at + length) as usize].fill(0);
            }
            8 if self.size() > 2 * block => {
                let (at, length) = self.range(random, block);
                if at + length < self.size() {
                    self.file.collapse_range(at, length).expect("less");
                    self.bytes.drain(at as usize..(at + length) as usize);
                }
            }
            9 if self.size() > block => {
                let (at, length) = self.range(random, block);
                if self.size() + length <= PAGES * 4096 && at < self.size() {
                    self.file.insert_range(at, length).expect("more");
                    let zeros = vec![0; length as usize];
                    self.bytes.splice(at as usize..at as usize, zeros);
                }
            }
            10 => {
                let size = random.below(PAGES * 4096);
                self.file.set_len(size).expect("its size");
                self.bytes.resize(size as usize, 0);
            }
            11 => self.map.flush().expect("durable"),
            _ => {}
        }
    }

    fn put(&mut self, at: u64, data: &[u8]) {
        let end = at as usize + data.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at as usize..end].copy_from_slice(data);
    }

    fn check(&self, what: &str) {
        let size = self.size();
        assert_eq!(self.file.metadata().expect("it").len(), size, "{what}");
        assert!(loaded(&self.map, size) == self.bytes, "{what}: mapped");
        let part = self.bytes.get(OTHER as usize..).unwrap_or(&[]);
        assert!(loaded(&self.other, size) == part, "{what}: mapped twice");
        let read = self.file.read_all().expect("it reads");
        assert!(read == self.bytes, "{what}: read");
    }
}

/// Stores, adds, writes, direct writes, punches, zeroed ranges, collapses, inserts and truncates, one after the
/// other; all maps and reads agree after each, and the image at the end.
#[test]
fn maps_and_ranges_of_every_kind_agree() {
    let _watchdog = Watchdog::new("maps_and_ranges_of_every_kind_agree");
    for (number, format) in (1..).zip(FORMATS) {
        let image = Image::new(format);
        let volume = image.open();
        let free = volume.usage().expect("it").free;
        let mut random = Random::new(number);
        let mut model = Model::new(&volume, "/f", number);
        for step in 0..150 {
            model.step(&mut random, u64::from(format.1), step);
            model.check(&format!("{format:?}, step {step}"));
        }
        let bytes = model.bytes.clone();
        drop(model);
        assert!(volume.read("/f").expect("it reads") == bytes, "{format:?}");
        volume.close().expect("nobody has it");
        image.check();

        let volume = image.open();
        assert!(
            volume.read("/f").expect("it reads") == bytes,
            "{format:?}: on disk"
        );
        // Nothing is promised to anybody any more.
        volume.remove_file("/f").expect("it goes");
        volume.sync().expect("durable");
        assert_eq!(volume.usage().expect("it").free, free, "{format:?}");
        volume.close().expect("nobody has it");
        image.check();
    }
}

/// Four threads count in words of their own, by two maps, while one migrates the file to and fro and
/// one punches, writes and flushes what lies between.
#[test]
fn nothing_that_is_counted_is_lost() {
    const ROUNDS: u64 = 3000;
    let _watchdog = Watchdog::new("nothing_that_is_counted_is_lost");
    let image = Image::new((Kind::Ext4, 1024));
    let volume = image.open();
    let file = Arc::new(file(&volume, "/f", &vec![0; 16 * 4096]));
    let counters: Vec<_> = (0..4u64)
        .map(|counter| {
            let file = Arc::clone(&file);
            thread::spawn("counter", move || {
                let map = file.map(.., MapOptions::shared()).expect("it maps");
                // Two of them share a page, in which the next one's neighbour is punched.
                let at = (counter as usize / 2) * 3 * 4096 + (counter as usize % 2) * 8;
                for round in 0..ROUNDS {
                    let before = map.fetch_add(at, 1u64, Ordering::Relaxed);
                    assert_eq!(before.expect("inside"), round, "counter {counter}");
                }
            })
            .expect("a thread")
        })
        .collect();
    let disturber = {
        let file = Arc::clone(&file);
        thread::spawn("disturber", move || {
            for round in 0..60u64 {
                for page in [0u64, 3] {
                    file.punch_hole(page * 4096 + 1024, 3072).expect("a hole");
                    file.write_all_at(page * 4096 + 2000, &[round as u8; 500])
                        .expect("it writes");
                }
                match round % 3 {
                    0 => file.sync_data().expect("durable"),
                    _ => {
                        let to = [MapFormat::Blocks, MapFormat::Extents][round as usize % 2];
                        // Somebody else's data got blocks meanwhile, or the map can't be so.
                        let _ = file.migrate(to);
                    }
                }
            }
        })
        .expect("a thread")
    };
    for counter in counters {
        counter.join().expect("it counts");
    }
    disturber.join().expect("it disturbs");
    drop(file);
    volume.close().expect("nobody has it");
    image.check();
    let bytes = image.open().read("/f").expect("it reads");
    for at in [0, 8, 3 * 4096, 3 * 4096 + 8] {
        let count = u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight"));
        assert_eq!(count, ROUNDS, "at {at}");
    }
}
