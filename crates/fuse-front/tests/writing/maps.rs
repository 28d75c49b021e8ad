//! Tickets for maps in other processes, and what the kernel shows of files that are mapped so. The
//! door is one of the tests; what maps store is written to the file system past the kernel.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use pagefence_fuse_front::map_door::{MAP_TICKET, TICKET_BYTES};
use pagefence_fuse_front::{MapDoor, MapRights, ServeOptions, unmount};
use pagefence_host_memory::FileMap;
use pagefence_lock_order::primitives::atomic::{AtomicBool, AtomicUsize, Ordering};
use pagefence_lock_order::primitives::{Arc, Mutex, thread};
use pagefence_vfs::{
    Credentials, FileSystem as _, InodeId, SetAttr, SetTime, Timestamp, WriteMode,
};

use crate::common::{Mounted, mount_behind};
use crate::memory_fs::{Counters, MemoryFs};

const PAGE: usize = 4096;

/// Flags of an inode, as FS_IOC_GETFLAGS has them.
const APPEND_ONLY: u32 = 0x20;

/// A door that keeps no maps, and tells what it was asked.
struct Door {
    mapped: Mutex<HashSet<InodeId>>,
    is_shut: AtomicBool,
    shared: Arc<Counters>,
    /// Whether it was closed before the file system was shut down.
    closed: Mutex<Vec<bool>>,
}

impl MapDoor for Door {
    fn ticket(&self, inode: InodeId, rights: MapRights) -> Option<[u8; TICKET_BYTES]> {
        if self.is_shut.load(Ordering::SeqCst) {
            return None;
        }
        self.mapped.lock().insert(inode);
        Some(ticket_of(inode, rights))
    }

    fn is_mapped(&self, inode: InodeId) -> bool {
        self.mapped.lock().contains(&inode)
    }

    fn close(&self) {
        let ended = self.shared.tree.lock().open_at_the_end;
        self.closed.lock().push(ended.is_none());
    }
}

/// What the door answers: whatever tells them all apart.
fn ticket_of(inode: InodeId, rights: MapRights) -> [u8; TICKET_BYTES] {
    let mut ticket = [0xa5; TICKET_BYTES];
    ticket[..8].copy_from_slice(&inode.0.to_ne_bytes());
    ticket[8..10].copy_from_slice(&[rights.reads.into(), rights.writes.into()]);
    ticket
}

/// A mount with a door, and its file system.
struct Maps {
    fs: Arc<MemoryFs>,
    door: Arc<Door>,
    mounted: Mounted,
}

impl Maps {
    fn mount(options: &ServeOptions) -> Option<Self> {
        let fs = Arc::new(MemoryFs::new());
        let door = Arc::new(Door {
            mapped: Mutex::default(),
            is_shut: AtomicBool::new(false),
            shared: fs.counters(),
            closed: Mutex::default(),
        });
        let for_others: Arc<dyn MapDoor> = door.clone();
        let mounted = mount_behind(Arc::clone(&fs), Some(for_others), options, |_| {})?;
        Some(Self { fs, door, mounted })
    }

    /// Stores to the file as a map does: past the kernel.
    fn store(&self, inode: InodeId, offset: u64, bytes: &[u8]) {
        let file = self.fs.open(inode, true).expect("it opens");
        let stored = self.fs.write(&file, offset, bytes, WriteMode::empty());
        assert_eq!(stored.expect("it is written"), bytes.len());
    }
}

fn ask(file: &File) -> Result<[u8; TICKET_BYTES], i32> {
    let mut ticket = [0; TICKET_BYTES];
    match pagefence_host_memory::fuse_ioctl(file, MAP_TICKET, &mut ticket) {
        Ok(()) => Ok(ticket),
        Err(error) => Err(error.raw_os_error().expect("a number")),
    }
}

fn open(path: &Path, reads: bool, writes: bool) -> File {
    let mut how = File::options();
    how.read(reads).write(writes).open(path).expect("it opens")
}

/// Waits until `done`; the kernel drops pages some time after it was told.
fn before_long(what: &str, mut done: impl FnMut() -> io::Result<bool>) {
    let begin = Instant::now();
    while !done().expect("it answers") {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_ticket_is_for_the_inode_and_what_its_handle_may() {
    let Some(maps) = Maps::mount(&ServeOptions::default()) else {
        return;
    };
    let shared = &maps.mounted.counters;
    let (file, log) = (shared.plant("file", b"x"), shared.plant("log", b"x"));
    let path = maps.mounted.join("file");
    for (reads, writes) in [(true, true), (true, false), (false, true)] {
        let rights = MapRights { reads, writes };
        let ticket = ask(&open(&path, reads, writes));
        assert_eq!(ticket, Ok(ticket_of(file, rights)), "{rights:?}");
    }
    // Who may only append can't store anywhere.
    shared.with(log, |node| node.attr.flags = APPEND_ONLY);
    let mut how = File::options();
    let appends = how.read(true).append(true).open(maps.mounted.join("log"));
    let rights = MapRights {
        reads: true,
        writes: false,
    };
    let ticket = ask(&appends.expect("it opens for appending"));
    assert_eq!(ticket, Ok(ticket_of(log, rights)));
    // A directory's handle has a number of its own kind.
    let directory = File::open(maps.mounted.path()).expect("it opens");
    assert_eq!(ask(&directory), Err(9), "EBADF");
    maps.door.is_shut.store(true, Ordering::SeqCst);
    assert_eq!(ask(&open(&path, true, true)), Err(11), "EAGAIN");
}

#[test]
fn without_maps_or_with_dirty_pages_in_the_kernel_there_are_no_tickets() {
    let fs = Arc::new(MemoryFs::new());
    fs.counters().plant("file", b"x");
    let Some(mounted) = mount_behind(fs, None, &ServeOptions::default(), |_| {}) else {
        return;
    };
    let file = open(&mounted.join("file"), true, true);
    assert_eq!(ask(&file), Err(25), "ENOTTY");
    let directory = File::open(mounted.path()).expect("it opens");
    assert_eq!(ask(&directory), Err(25), "ENOTTY");
    drop((file, directory, mounted));

    let writeback = ServeOptions {
        writeback: true,
        ..ServeOptions::default()
    };
    let Some(maps) = Maps::mount(&writeback) else {
        return;
    };
    maps.mounted.counters.plant("file", b"x");
    let file = open(&maps.mounted.join("file"), true, true);
    assert_eq!(ask(&file), Err(95), "EOPNOTSUPP");
    let directory = File::open(maps.mounted.path()).expect("it opens");
    assert_eq!(ask(&directory), Err(95), "EOPNOTSUPP, not EBADF");
    assert!(maps.door.mapped.lock().is_empty(), "nobody asked the door");
}

#[test]
fn who_opens_a_mapped_file_sees_each_store_at_once() {
    let Some(maps) = Maps::mount(&ServeOptions::default()) else {
        return;
    };
    let inode = maps.mounted.counters.plant("file", &[0; 3 * PAGE]);
    let path = maps.mounted.join("file");
    let old = open(&path, true, true);
    let read = |file: &File| {
        let mut byte = [0xff];
        file.read_exact_at(&mut byte, PAGE as u64).expect("read");
        byte[0]
    };
    assert_eq!(read(&old), 0);
    ask(&old).expect("a ticket");
    let fresh = open(&path, true, true);
    for number in 1..=200 {
        // The kernel has the page, for a moment.
        read(&old);
        maps.store(inode, PAGE as u64, &[number]);
        assert_eq!(read(&fresh), number);
        assert_eq!(read(&open(&path, true, false)), number);
    }
    // Also if open(2) makes it: a number may be used again.
    let next = InodeId(inode.0 + 1);
    maps.door.mapped.lock().insert(next);
    let mut how = File::options();
    let made = how.read(true).write(true).create_new(true);
    let made = made.open(maps.mounted.join("made")).expect("it is made");
    assert_eq!(maps.mounted.counters.named("made"), Some(next));
    made.write_all_at(&[0; 2 * PAGE], 0).expect("written");
    for number in 1..=200 {
        maps.store(next, PAGE as u64, &[number]);
        assert_eq!(read(&made), number);
    }
}

#[test]
fn who_had_a_file_open_before_sees_what_maps_store_before_long() {
    let Some(maps) = Maps::mount(&ServeOptions::default()) else {
        return;
    };
    let inode = maps.mounted.counters.plant("file", &[0; 64 * PAGE]);
    let old = open(&maps.mounted.join("file"), true, true);
    let mut whole = vec![0; 64 * PAGE];
    old.read_exact_at(&mut whole, 0).expect("it is read");
    // What lies in the kernel goes with the ticket.
    maps.store(inode, 0, &[7]);
    ask(&old).expect("a ticket");
    let mut byte = [0];
    let mut read = |offset| old.read_exact_at(&mut byte, offset).map(|()| byte[0]);
    before_long("a page from before the ticket stays", || Ok(read(0)? == 7));
    // And what comes there by reading later,
    for number in 1..=20 {
        for offset in [0, 17 * PAGE as u64 + 5, 64 * PAGE as u64 - 1] {
            read(offset).expect("it is read");
            maps.store(inode, offset, &[number]);
            before_long("a page that was read stays", || Ok(read(offset)? == number));
        }
    }
    // or by writing, which leaves whole pages.
    for number in 30..=50 {
        let page = u64::from(number) * PAGE as u64;
        old.write_all_at(&[number; PAGE], page).expect("written");
        maps.store(inode, page + 1, &[0]);
        before_long("a page that was written stays", || Ok(read(page + 1)? == 0));
        assert_eq!(read(page + 2).expect("it is read"), number);
    }
}

#[test]
fn many_readers_beside_stores_only_go_forward() {
    let Some(maps) = Maps::mount(&ServeOptions::default()) else {
        return;
    };
    let inode = maps.mounted.counters.plant("file", &[0; 64 * PAGE]);
    let path = maps.mounted.join("file");
    let old = open(&path, true, false);
    ask(&old).expect("a ticket");
    let fresh = open(&path, true, false);
    let reading = AtomicUsize::new(6);
    thread::scope(|scope| {
        for reader in 0..6 {
            let (file, reading) = if reader % 3 == 0 {
                (&fresh, &reading)
            } else {
                (&old, &reading)
            };
            scope.spawn(move || {
                let mut whole = vec![0; 64 * PAGE];
                let mut last = 0;
                for _ in 0..150 {
                    file.read_exact_at(&mut whole, 0).expect("it is read");
                    let number = u32::from_ne_bytes(
                        whole[9 * PAGE..9 * PAGE + 4]
                            .try_into()
                            .expect("four bytes"),
                    );
                    assert!(number >= last, "{number} after {last}");
                    last = number;
                }
                reading.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let mut number = 0u32;
        while reading.load(Ordering::SeqCst) > 0 && number < 10_000_000 {
            number += 1;
            maps.store(inode, 9 * PAGE as u64, &number.to_ne_bytes());
        }
    });
}

#[test]
fn the_kernels_own_maps_follow_before_long() {
    let Some(maps) = Maps::mount(&ServeOptions::default()) else {
        return;
    };
    let shared = Arc::clone(&maps.mounted.counters);
    let inode = shared.plant("file", &[0; 2 * PAGE]);
    let path = maps.mounted.join("file");
    let map = |file: &File| FileMap::new(file, 0, 2 * PAGE).expect("a map");
    let load = |map: &FileMap| {
        let mut byte = [0];
        map.load(PAGE, &mut byte);
        byte[0]
    };
    let old = open(&path, true, true);
    let before = map(&old);
    assert_eq!(load(&before), 0);
    ask(&old).expect("a ticket");
    let after = map(&open(&path, true, true));
    for number in 1..=20 {
        maps.store(inode, PAGE as u64, &[number]);
        for map in [&before, &after] {
            before_long("a mapped page stays", || Ok(load(map) == number));
        }
        // What is stored to them gets here as well.
        after.store(0, &[number]);
        let stored = || shared.with(inode, |node| node.bytes[0]);
        before_long("a dirty page stays", || Ok(stored() == number));
    }
}

#[test]
fn times_that_stores_set_show_before_long() {
    let Some(maps) = Maps::mount(&ServeOptions::default()) else {
        return;
    };
    let inode = maps.mounted.counters.plant("file", b"x");
    let path = maps.mounted.join("file");
    // It was at rest for long.
    let at = |seconds| Timestamp {
        seconds,
        nanoseconds: 0,
    };
    let set = |seconds| {
        let change = SetAttr {
            modified: Some(SetTime::To(at(seconds))),
            changed: Some(at(1000)),
            ..SetAttr::default()
        };
        let who = Credentials {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
        };
        maps.fs.set_attr(inode, &change, &who).expect("it is set");
    };
    set(1000);
    let modified = || fs::metadata(&path).map(|found| found.mtime());
    assert_eq!(modified().expect("it is there"), 1000);
    let file = open(&path, true, true);
    set(2000);
    ask(&file).expect("a ticket");
    before_long("times from before the ticket stay", || {
        Ok(modified()? == 2000)
    });
    set(3000);
    before_long("times stay", || Ok(modified()? == 3000));
}

#[test]
fn maps_end_before_the_file_system_does() {
    let Some(maps) = Maps::mount(&ServeOptions::default()) else {
        return;
    };
    let Maps { door, mounted, .. } = maps;
    mounted.counters.plant("file", b"x");
    let file = open(&mounted.join("file"), true, true);
    ask(&file).expect("a ticket");
    drop(file);
    unmount(mounted.path(), false).expect("nobody uses it");
    let shared = Arc::clone(&mounted.counters);
    mounted.finish().expect("the server ends well");
    assert_eq!(*door.closed.lock(), [true], "once, and first");
    assert!(shared.tree.lock().open_at_the_end.is_some());
}
