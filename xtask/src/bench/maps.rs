//! Files in memory: what a fault costs, and a scan, beside the kernel's own maps.
//!
//! The library maps a file of an image, and one of a mount. Beside it, in turn: a userfaultfd whose handler does nothing
//! but map pages that are there, under which nobody gets; the kernel's mmap of the same file on a loop
//! mount; its mmap of a file on tmpfs; and read(2) through fuse2fs.

use std::fs::File;
use std::hint::black_box;
use std::ops::Bound;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use pagefence::{Advice, Map, MapOptions, OpenOptions, Options, Volume};
use pagefence_host_memory::{FileMap, FileMemory, Userfault, View, ViewKind};
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, thread};
use rustix::event::{EventfdFlags, eventfd};

use super::prepare::{self, DATA_FILE};
use super::table::{Better, Table};
use crate::mounts::{Access, KernelMount, ServedMount, Server, drop_caches};
use crate::random::Random;
use crate::scratch::Scratch;

const PAGE: usize = pagefence_host_memory::FRAME_SIZE;
/// Bytes that a scan copies at a time.
const CHUNK: usize = 256 << 10;
/// Faults of one measurement; they are so far apart that none maps a page for another.
const FAULTS: usize = 4096;
/// Loads of one cold random measurement.
const RANDOM_LOADS: usize = 2000;
/// Stores that are waited for.
const STORES: u64 = 20_000;
/// What the library may have cached, beside the file.
const SLACK: u64 = 512 << 20;

const OURS: &str = "map";
const MOUNTED: &str = "map of a mount";
const FLOOR: &str = "bare userfaultfd";
const KERNEL: &str = "kernel mmap";
const TMPFS: &str = "tmpfs mmap";
const FUSE2FS: &str = "fuse2fs read";

/// Bytes that can be copied from any place, faulted in as need be.
trait Bytes: Sync {
    fn load(&self, at: usize, target: &mut [u8]) -> Result<()>;

    fn touch(&self, page: usize) -> Result<()> {
        let mut byte = [0];
        self.load(page * PAGE, &mut byte)?;
        black_box(byte);
        Ok(())
    }
}

impl Bytes for Map {
    fn load(&self, at: usize, target: &mut [u8]) -> Result<()> {
        Ok(self.read_at(at, target)?)
    }
}

impl Bytes for FileMap {
    fn load(&self, at: usize, target: &mut [u8]) -> Result<()> {
        FileMap::load(self, at, target);
        Ok(())
    }
}

impl Bytes for View {
    fn load(&self, at: usize, target: &mut [u8]) -> Result<()> {
        View::load(self, at, target);
        Ok(())
    }
}

impl Bytes for File {
    fn load(&self, at: usize, target: &mut [u8]) -> Result<()> {
        Ok(self.read_exact_at(target, at as u64)?)
    }
}

/// Where the figures of one system go.
struct Column<'a> {
    table: &'a mut Table,
    system: &'static str,
    len: usize,
    round: usize,
}

impl<'a> Column<'a> {
    fn of(table: &'a mut Table, system: &'static str, (len, round): (usize, usize)) -> Self {
        Self {
            table,
            system,
            len,
            round,
        }
    }

    fn cold_loads(&mut self, bytes: &impl Bytes) -> Result<()> {
        let rate = cold_loads(bytes, self.len, self.round)?;
        self.table
            .record(COLD_LOADS, Better::More, self.system, rate);
        Ok(())
    }

    fn cold_scan(&mut self, bytes: &impl Bytes) -> Result<()> {
        let mib = self.len as f64 / f64::from(1 << 20);
        let rate = mib / scan(bytes, self.len)?;
        self.table
            .record(COLD_SCAN, Better::More, self.system, rate);
        Ok(())
    }

    /// Of what is cached: once with mapping it, and once more.
    fn warm_scans<B: Bytes>(&mut self, map: impl FnOnce() -> Result<B>) -> Result<()> {
        let pages = (self.len / PAGE) as f64;
        let begun = Instant::now();
        let bytes = map()?;
        scan(&bytes, self.len)?;
        let first = begun.elapsed().as_secs_f64();
        let second = scan(&bytes, self.len)?;
        for (row, seconds) in [(FIRST_SCAN, first), (SECOND_SCAN, second)] {
            let micros = seconds * 1e6 / pages;
            self.table.record(row, Better::Less, self.system, micros);
        }
        Ok(())
    }

    /// Of pages that are cached and not mapped.
    fn one_fault(&mut self, bytes: &impl Bytes) -> Result<()> {
        let pages = far_pages(self.len, self.round);
        let begun = Instant::now();
        pages.iter().try_for_each(|&page| bytes.touch(page))?;
        let micros = begun.elapsed().as_secs_f64() * 1e6 / pages.len() as f64;
        self.table
            .record(ONE_FAULT, Better::Less, self.system, micros);
        Ok(())
    }
}

/// Measures, and says whether what is to be reached was: see the end.
pub(super) fn measure(server: &Server, scratch: &Scratch, rounds: usize, mib: u64) -> Result<bool> {
    let image = scratch.join("maps.img");
    prepare::filled(&image, scratch, 0, mib)?;
    let len = usize::try_from(mib << 20)?;
    let mut table = Table::new(vec![OURS, MOUNTED, FLOOR, KERNEL, TMPFS, FUSE2FS]);
    let memory = FileMemory::new()?;
    fill(&memory, len);
    for round in 0..rounds {
        let size = (len, round);
        library(&image, Column::of(&mut table, OURS, size)).context("the library")?;
        mounted(
            &image,
            scratch,
            server,
            Column::of(&mut table, MOUNTED, size),
        )
        .context("maps of a mount")?;
        floor(&memory, Column::of(&mut table, FLOOR, size)).context("the bare userfaultfd")?;
        kernel(&image, scratch, Column::of(&mut table, KERNEL, size)).context("the kernel")?;
        tmpfs(Column::of(&mut table, TMPFS, size)).context("tmpfs")?;
        fuse2fs(&image, scratch, Column::of(&mut table, FUSE2FS, size)).context("fuse2fs")?;
    }
    println!("{}", table.render());
    Ok(verdict(&table))
}

/// What is to be reached, and whether it was.
fn verdict(table: &Table) -> bool {
    let goals = [
        (ONE_FAULT, OURS, FLOOR, 1.3),
        (FIRST_SCAN, OURS, TMPFS, 2.5),
        (SECOND_SCAN, OURS, KERNEL, 1.0 / 0.95),
    ];
    let mut reached = true;
    for (row, ours, theirs, most) in goals {
        if let (Some(ours), Some(other)) = (table.median(row, ours), table.median(row, theirs)) {
            let times = ours / other;
            reached &= times <= most;
            println!("{row}: {times:.2} times {theirs}, {most:.2} at most");
        }
    }
    let per_second = |threads| table.median(&many_faults(threads, 1), OURS);
    let two_maps = table.median(&many_faults(2, 2), OURS);
    if let (Some(one), Some(two)) = (per_second(1), two_maps) {
        let times = two / one;
        reached &= times >= 1.7;
        println!("faults by two threads on two maps: {times:.2} times one, 1.7 at least");
    }
    reached
}

const ONE_FAULT: &str = "a fault on a cached page, µs";
const FIRST_SCAN: &str = "first scan of cached pages, map included, µs a page";
const SECOND_SCAN: &str = "second scan, µs a page";
const COLD_SCAN: &str = "cold scan, MiB/s";
const COLD_LOADS: &str = "cold loads at random, a second";
const VISIBLE: &str = "a store seen through another map, µs";

fn many_faults(threads: usize, maps: usize) -> String {
    format!("faults on cached pages a second, {threads} threads on {maps} maps")
}

/// Maps a file from its front: so many bytes, or all.
type MapIt<'a> = dyn Fn(Option<u64>) -> Result<Map> + 'a;

/// Of the library, in the process that has the volume.
fn library(image: &Path, column: Column<'_>) -> Result<()> {
    let cache = column.len as u64 * 2 + SLACK;
    maps(column, |measured| {
        let volume = Volume::open(image, Options::new().write(true).cache(cache))?;
        let options = OpenOptions::new().read(true).write(true);
        let file = options.open(&volume, Path::new("/").join(DATA_FILE))?;
        measured(&|len| {
            let end = len.map_or(Bound::Unbounded, Bound::Excluded);
            Ok(file.map((Bound::Unbounded, end), MapOptions::shared())?)
        })?;
        drop(file);
        Ok(volume.close()?)
    })
}

/// Of a mount that another process serves.
fn mounted(image: &Path, scratch: &Scratch, server: &Server, column: Column<'_>) -> Result<()> {
    let directory = scratch.directory(&format!("mounted-{}", column.round))?;
    let options = format!("cache={}", column.len as u64 * 2 + SLACK);
    maps(column, |measured| {
        let mount = ServedMount::new(server, image, &directory, &options)?;
        let volume = Volume::connect(&directory)?;
        let done = measured(&|len| {
            let end = len.map_or(Bound::Unbounded, Bound::Excluded);
            let range = (Bound::Unbounded, end);
            Ok(volume.map(DATA_FILE, range, MapOptions::shared())?)
        });
        drop(volume);
        mount.unmount()?;
        done
    })
}

/// Measures maps; `session` opens the volume and calls what it is given.
fn maps(
    mut column: Column<'_>,
    session: impl Fn(&mut dyn FnMut(&MapIt<'_>) -> Result<()>) -> Result<()>,
) -> Result<()> {
    drop_caches()?;
    session(&mut |map| column.cold_loads(&map(None)?))?;
    drop_caches()?;
    session(&mut |map| {
        column.cold_scan(&map(None)?)?;
        column.warm_scans(|| map(None))?;
        let fresh = || -> Result<Map> {
            let map = map(None)?;
            map.advise(Advice::Random);
            Ok(map)
        };
        column.one_fault(&fresh()?)?;
        let (len, round, system) = (column.len, column.round, column.system);
        for threads in [1, 2, 4] {
            let map = fresh()?;
            let rate = fault_rate(&vec![&map; threads], len, round)?;
            let row = many_faults(threads, 1);
            column.table.record(&row, Better::More, system, rate);
        }
        let maps = [fresh()?, fresh()?];
        let rate = fault_rate(&[&maps[0], &maps[1]], len, round)?;
        let row = many_faults(2, 2);
        column.table.record(&row, Better::More, system, rate);
        drop(maps);
        let (from, to) = (map(Some(1))?, map(Some(1))?);
        let micros = visible(
            |value| Ok(from.write_at(0, &[value])?),
            || {
                let mut byte = [0];
                to.read_at(0, &mut byte)?;
                Ok(byte[0])
            },
        )?;
        column.table.record(VISIBLE, Better::Less, system, micros);
        Ok(())
    })
}

/// A memory all of whose pages are there.
fn fill(memory: &FileMemory, len: usize) {
    let mut random = Random::new(1);
    for page in 0..len / PAGE {
        memory.write(page as u64, 0, &random.bytes(PAGE));
    }
}

/// A handler that maps the page that it is told of, and nothing else.
fn floor(memory: &Arc<FileMemory>, mut column: Column<'_>) -> Result<()> {
    let view = View::new(memory, 0, column.len, ViewKind::Shared)?;
    let mut userfault = Userfault::open()?;
    userfault.register(&view)?;
    let end = eventfd(0, EventfdFlags::CLOEXEC)?;
    thread::scope(|scope| {
        let handler = scope.spawn(|| -> Result<()> {
            let mut events = Vec::with_capacity(32);
            loop {
                events.clear();
                userfault.read_events(&mut events)?;
                for event in &events {
                    let pages = event.page..event.page + 1;
                    userfault.continue_pages(&view, pages, true)?;
                }
                if events.is_empty()
                    && userfault
                        .wait(Some(std::os::fd::AsFd::as_fd(&end)), None)?
                        .until
                {
                    return Ok(());
                }
            }
        });
        let measured = column.one_fault(&view);
        rustix::io::write(&end, &1_u64.to_ne_bytes())?;
        handler
            .join()
            .map_err(|_| anyhow!("the handler panicked"))??;
        measured
    })
}

fn kernel(image: &Path, scratch: &Scratch, mut column: Column<'_>) -> Result<()> {
    let directory = scratch.directory(&format!("kernel-{}", column.round))?;
    let mount = KernelMount::new(image, &directory, Access::ReadWrite, "rw")?;
    let path = directory.join(DATA_FILE);
    let len = column.len;
    let measured = (|| -> Result<()> {
        let file = File::options().read(true).write(true).open(&path)?;
        drop_caches()?;
        column.cold_loads(&FileMap::new(&file, 0, len)?)?;
        drop_caches()?;
        column.cold_scan(&FileMap::new(&file, 0, len)?)?;
        column.warm_scans(|| Ok(FileMap::new(&file, 0, len)?))?;
        column.one_fault(&FileMap::new(&file, 0, len)?)?;
        let (from, to) = (FileMap::new(&file, 0, PAGE)?, FileMap::new(&file, 0, PAGE)?);
        let micros = visible(
            |value| {
                from.store(0, &[value]);
                Ok(())
            },
            || {
                let mut byte = [0];
                FileMap::load(&to, 0, &mut byte);
                Ok(byte[0])
            },
        )?;
        column.table.record(VISIBLE, Better::Less, KERNEL, micros);
        Ok(())
    })();
    mount.unmount()?;
    measured
}

fn tmpfs(mut column: Column<'_>) -> Result<()> {
    let file = rustix::fs::memfd_create("pagefence-bench", rustix::fs::MemfdFlags::CLOEXEC)?;
    let file = File::from(file);
    let (chunk, len) = (vec![1; CHUNK], column.len);
    for at in (0..len).step_by(CHUNK) {
        file.write_all_at(&chunk, at as u64)?;
    }
    column.warm_scans(|| Ok(FileMap::new(&file, 0, len)?))
}

fn fuse2fs(image: &Path, scratch: &Scratch, mut column: Column<'_>) -> Result<()> {
    if crate::command::find("fuse2fs").is_none() {
        println!("skipped: fuse2fs is not installed");
        return Ok(());
    }
    let directory = scratch.directory(&format!("fuse2fs-{}", column.round))?;
    let mounted = || -> Result<(ServedMount, File)> {
        drop_caches()?;
        let mount = ServedMount::new(&Server::Fuse2fs, image, &directory, "ro")?;
        let file = File::open(directory.join(DATA_FILE))?;
        Ok((mount, file))
    };
    let (mount, file) = mounted()?;
    column.cold_loads(&file)?;
    drop(file);
    mount.unmount()?;
    let (mount, file) = mounted()?;
    column.cold_scan(&file)?;
    drop(file);
    mount.unmount()
}

/// Seconds for all bytes, from front to back.
fn scan(bytes: &impl Bytes, len: usize) -> Result<f64> {
    let mut chunk = vec![0; CHUNK];
    let begun = Instant::now();
    for at in (0..len).step_by(CHUNK) {
        bytes.load(at, &mut chunk)?;
        black_box(&chunk);
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// Pages that are far from each other, in no order.
fn far_pages(len: usize, seed: usize) -> Vec<usize> {
    let stride = (len / PAGE / FAULTS).max(1);
    let mut pages: Vec<usize> = (0..FAULTS).map(|at| at * stride).collect();
    let mut random = Random::new(seed as u64 + 1);
    for at in (1..pages.len()).rev() {
        let other = usize::try_from(random.below(at as u64 + 1)).expect("below a usize");
        pages.swap(at, other);
    }
    pages
}

/// Faults a second, by a thread for each of `maps`, none of which faults where another does.
fn fault_rate<B: Bytes>(maps: &[&B], len: usize, seed: usize) -> Result<f64> {
    let pages = far_pages(len, seed);
    let is_ready = AtomicBool::new(false);
    let seconds = thread::scope(|scope| {
        let faulters: Vec<_> = maps
            .iter()
            .zip(pages.chunks(pages.len().div_ceil(maps.len())))
            .map(|(map, pages)| {
                let is_ready = &is_ready;
                scope.spawn(move || -> Result<()> {
                    while !is_ready.load(Ordering::Acquire) {
                        thread::yield_now();
                    }
                    pages.iter().try_for_each(|&page| map.touch(page))
                })
            })
            .collect();
        let begun = Instant::now();
        is_ready.store(true, Ordering::Release);
        for faulter in faulters {
            faulter.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        anyhow::Ok(begun.elapsed().as_secs_f64())
    })?;
    Ok(pages.len() as f64 / seconds)
}

/// Loads of a page at random a second, where nothing is cached.
fn cold_loads(bytes: &impl Bytes, len: usize, seed: usize) -> Result<f64> {
    let mut random = Random::new(seed as u64 + 7);
    let mut page = [0; PAGE];
    let begun = Instant::now();
    for _ in 0..RANDOM_LOADS {
        let at = usize::try_from(random.below((len / PAGE) as u64))? * PAGE;
        bytes.load(at, &mut page)?;
    }
    Ok(RANDOM_LOADS as f64 / begun.elapsed().as_secs_f64())
}

/// Microseconds from a store until another thread has seen it, which answers in a place of its own.
fn visible(
    store: impl Fn(u8) -> Result<()> + Sync,
    load: impl Fn() -> Result<u8> + Sync,
) -> Result<f64> {
    let seen = pagefence_lock_order::primitives::atomic::AtomicU64::new(0);
    store(0)?;
    load()?;
    thread::scope(|scope| {
        let looker = scope.spawn(|| -> Result<()> {
            for count in 1..=STORES {
                while load()? != count as u8 {
                    std::hint::spin_loop();
                }
                seen.store(count, Ordering::Release);
            }
            Ok(())
        });
        let begun = Instant::now();
        for count in 1..=STORES {
            store(count as u8)?;
            while seen.load(Ordering::Acquire) != count && !looker.is_finished() {
                std::hint::spin_loop();
            }
        }
        let micros = begun.elapsed().as_secs_f64() * 1e6 / STORES as f64;
        looker
            .join()
            .map_err(|_| anyhow!("the looker panicked"))??;
        Ok(micros)
    })
}
