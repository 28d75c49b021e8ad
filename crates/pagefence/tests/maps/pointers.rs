//! What only programs can do that go by pointers: give a map's memory to the library's own calls, and
//! load where the file has ended.
#![expect(
    unsafe_code,
    reason = "slices of mapped memory, for whose contract each test answers"
)]

use std::sync::Arc;

use pagefence::{Advice, File, Kind, Map, MapOptions, OpenOptions, Options, Volume};
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread;

use crate::full::{ends_by_sigbus, host_file, image_of_child};
use crate::kit::{FORMATS, Image, Watchdog, file, loaded, pattern};

const PAGE: usize = 4096;
const PAGES: usize = 32;
/// Pages that are punched meanwhile; none of them is looked at.
const PUNCHED: std::ops::Range<usize> = 24..32;

/// A thread that punches holes into files, as fast as it can: a fence is waiting whenever anybody holds
/// the lock that faults take.
struct Puncher {
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<u64>>,
}

impl Puncher {
    fn of(files: Vec<Arc<File>>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let punch = move || {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                for file in &files {
                    let (at, end) = (PUNCHED.start * PAGE, PUNCHED.end * PAGE);
                    file.punch_hole(at as u64, (end - at) as u64)
                        .expect("a hole");
                    count += 1;
                }
            }
            count
        };
        let thread = Some(thread::spawn("puncher", punch).expect("a thread"));
        Self { over, thread }
    }

    fn end(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("it punches")
    }
}

fn open(volume: &Volume, path: &str, direct: bool) -> Arc<File> {
    let options = OpenOptions::new().read(true).write(true).direct(direct);
    Arc::new(options.open(volume, path).expect("it opens"))
}

/// A new map, of which no page is mapped yet.
fn map(file: &File) -> Map {
    file.map(.., MapOptions::shared()).expect("it maps")
}

/// T21: what is written lies in a map of the file itself, at the same place and elsewhere, or of another file,
/// or of another volume; buffered and direct, while a fence waits all the time.
#[test]
fn t21_a_map_is_written_to_files() {
    let _watchdog = Watchdog::new("t21_a_map_is_written_to_files");
    for format in FORMATS {
        let images = [Image::new(format), Image::new(format)];
        let volumes = [images[0].open(), images[1].open()];
        for (volume, path) in [(0, "/a"), (0, "/b"), (1, "/c")] {
            file(
                &volumes[volume],
                path,
                &pattern(volume as u64, PAGES * PAGE),
            );
        }
        for direct in [false, true] {
            let files = [(0, "/a"), (0, "/b"), (1, "/c")]
                .map(|(volume, path)| open(&volumes[volume], path, direct));
            let puncher = Puncher::of(files.to_vec());
            for round in 0..8u64 {
                for from in &files {
                    let bytes = pattern(round + 9, 3 * PAGE);
                    from.write_all_at(0, &bytes).expect("it writes");
                    for (number, to) in (0..).zip(&files) {
                        let source = map(from);
                        // SAFETY: nobody writes to these pages but the next line, which writes what they
                        // hold where it is these; they are inside the file.
                        let data =
                            unsafe { source.slice(..3 * PAGE).expect("inside").raw().as_bytes() };
                        // Its own place first.
                        let at = [0, 4, 8][number] * PAGE as u64;
                        to.write_all_at(at, data).expect("it writes");
                        assert!(
                            loaded(&map(to), u64::MAX >> 1)[at as usize..][..3 * PAGE] == bytes
                        );
                        // Not whole blocks, and the ends of two pages.
                        to.write_all_at(17 * PAGE as u64 - 100, &data[5..PAGE + 300])
                            .expect("it writes");
                        let mut written = vec![0; PAGE + 295];
                        to.read_at(17 * PAGE as u64 - 100, &mut written)
                            .expect("it reads");
                        assert!(written == bytes[5..PAGE + 300], "{format:?}");
                    }
                }
            }
            assert!(puncher.end() > 0);
        }
        volumes
            .into_iter()
            .for_each(|volume| volume.close().expect("nobody has it"));
        images.iter().for_each(Image::check);
    }
}

/// T21, the other way: what is read comes to lie in a map.
#[test]
fn t21_files_are_read_into_a_map() {
    let _watchdog = Watchdog::new("t21_files_are_read_into_a_map");
    for format in FORMATS {
        let images = [Image::new(format), Image::new(format)];
        let volumes = [images[0].open(), images[1].open()];
        for (volume, path) in [(0, "/a"), (0, "/b"), (1, "/c")] {
            file(&volumes[volume], path, &pattern(7, PAGES * PAGE));
        }
        let bytes = pattern(7, 4 * PAGE);
        for direct in [false, true] {
            let files = [(0, "/a"), (0, "/b"), (1, "/c")]
                .map(|(volume, path)| open(&volumes[volume], path, direct));
            let puncher = Puncher::of(files.to_vec());
            for _ in 0..8 {
                for (from, to) in files
                    .iter()
                    .flat_map(|from| files.iter().map(move |to| (from, to)))
                {
                    let target = map(to);
                    let len = 4 * PAGE;
                    // SAFETY: inside the map and the file; nobody else touches these pages while the
                    // slice lives.
                    let slice = unsafe {
                        std::slice::from_raw_parts_mut(target.as_ptr().add(5 * PAGE), len)
                    };
                    assert_eq!(from.read_at(0, slice).expect("it reads"), len);
                    assert!(slice == bytes, "{format:?}");
                    let mut read = vec![0; len];
                    to.read_at(5 * PAGE as u64, &mut read).expect("it reads");
                    assert!(read == bytes, "{format:?}");
                    to.punch_hole(5 * PAGE as u64, len as u64).expect("a hole");
                }
            }
            assert!(puncher.end() > 0);
        }
        // An attribute's value, which is looked at with the inode locked.
        let source = map(&open(&volumes[0], "/a", false));
        // SAFETY: nobody writes to it any more, and it is inside the file.
        let value = unsafe { source.slice(..20).expect("inside").raw().as_bytes() };
        volumes[0]
            .set_xattr("/a", "user.from", value)
            .expect("it is set");
        let value = volumes[0].xattr("/a", "user.from").expect("it is there");
        assert_eq!(value.as_deref(), Some(&bytes[..20]));
        drop(source);
        volumes
            .into_iter()
            .for_each(|volume| volume.close().expect("nobody has it"));
        images.iter().for_each(Image::check);
    }
}

/// The children: load where the file has ended, and where it has not.
#[test]
fn child_that_loads_past_the_end() {
    let Some(image) = image_of_child() else {
        return;
    };
    let volume = Volume::open(image, Options::new().write(true).cache(0)).expect("it opens");
    let file = file(&volume, "/f", &[1; 5000]);
    let map = file
        .map(0..3 * PAGE as u64, MapOptions::shared())
        .expect("it maps");
    // SAFETY: what is mapped, one byte at a time; the last load is what is tested.
    unsafe {
        assert_eq!(map.as_ptr().add(4999).read_volatile(), 1);
        assert_eq!(map.as_ptr().add(2 * PAGE - 1).read_volatile(), 0);
        file.set_len(3 * PAGE as u64).expect("longer");
        assert_eq!(map.as_ptr().add(2 * PAGE).read_volatile(), 0);
        file.set_len(5000).expect("shorter");
        eprintln!("{}", map.as_ptr().add(2 * PAGE).read_volatile());
    }
}

#[test]
fn a_load_past_the_end_is_a_sigbus() {
    let image = host_file(8 << 20);
    pagefence::Mkfs::new(Kind::Ext4)
        .overwrite(true)
        .format(&image)
        .expect("it is made");
    ends_by_sigbus("pointers::child_that_loads_past_the_end", &image);
}

/// A system call that is given a map's memory: served where that may be, else EFAULT and not a hang.
#[test]
fn system_calls_meet_a_map() {
    let _watchdog = Watchdog::new("system_calls_meet_a_map");
    let image = Image::new((Kind::Ext4, 4096));
    let volume = image.open();
    let file = file(&volume, "/f", &pattern(1, 5 * PAGE));
    let host = tempfile::tempfile().expect("a file");
    let write = |map: &Map| {
        // SAFETY: inside the file, to which nobody writes.
        let bytes = unsafe { map.raw().as_bytes() };
        rustix::io::write(&host, bytes)
    };
    let plain = map(&file);
    assert_eq!(write(&plain), Err(rustix::io::Errno::FAULT));
    plain.populate(..).expect("it is mapped");
    assert_eq!(write(&plain), Ok(5 * PAGE));
    let soon = map(&file);
    soon.advise(Advice::WillNeed);
    while write(&soon) != Ok(5 * PAGE) {
        thread::yield_now();
    }
    match file.map(.., MapOptions::shared().faults_of_system_calls(true)) {
        Ok(served) => {
            assert_eq!(write(&served), Ok(5 * PAGE));
            // What they read comes to lie in pages that are not mapped, some of them not even cached.
            file.punch_hole(PAGE as u64, 2 * PAGE as u64)
                .expect("a hole");
            let read = |map: &Map| {
                rustix::fs::seek(&host, rustix::fs::SeekFrom::Start(100)).expect("a place");
                // SAFETY: inside the map and the file; nobody else touches these pages.
                let target =
                    unsafe { std::slice::from_raw_parts_mut(map.as_ptr().add(500), 3 * PAGE) };
                rustix::io::read(&host, target)
            };
            assert_eq!(read(&served), Ok(3 * PAGE));
            let mut bytes = vec![0; 3 * PAGE];
            file.read_at(500, &mut bytes).expect("it reads");
            assert!(bytes == pattern(1, 5 * PAGE)[100..][..3 * PAGE]);
            let fresh = map(&file);
            assert_eq!(read(&fresh), Err(rustix::io::Errno::FAULT));
        }
        Err(error) => assert!(error.to_string().contains("userfaultfd"), "{error}"),
    }
}
