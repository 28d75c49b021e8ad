//! Direct reads and writes on a device that holds and fails what the test names.

use pagefence_block_io::Device as _;
use pagefence_block_io::device::Operation;
use pagefence_lock_order::primitives::Arc;
use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_lock_order::primitives::thread::{JoinHandle, spawn};
use pagefence_vfs::{FileSystem as _, InodeId, Result, WriteMode};

use crate::failures::{
    BLOCK, create, drop_cache, formatted, inode, open, place, punch, read, set_size, unreserved,
    wait_for, write,
};
use crate::filesystem::{File, FileSystem};

const BYTES: usize = BLOCK as usize;

/// Long enough for who is not held up.
const SHORTLY: std::time::Duration = std::time::Duration::from_millis(200);

struct World {
    device: Arc<crate::failures::TestDevice>,
    fs: Arc<FileSystem>,
    id: InodeId,
    file: Arc<File>,
}

impl World {
    /// A file of so many blocks, each of its own byte, none in the cache.
    fn new(blocks: u8) -> Self {
        let device = formatted();
        let fs = Arc::new(open(&device));
        let id = create(&fs, "file");
        let file = Arc::new(fs.open(id, true).expect("it opens"));
        for block in 0..blocks {
            write(&fs, &file, u64::from(block) * BLOCK, &[b'a' + block; BYTES]);
        }
        fs.sync().expect("nothing fails");
        drop_cache(&fs);
        Self {
            device,
            fs,
            id,
            file,
        }
    }

    fn direct(&self, offset: u64, data: &[u8]) -> Result<usize> {
        self.fs.write(&self.file, offset, data, WriteMode::DIRECT)
    }

    fn start<T: Send + 'static>(
        &self,
        body: impl FnOnce(&FileSystem, &File) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let (fs, file) = (Arc::clone(&self.fs), Arc::clone(&self.file));
        spawn("test", move || body(&fs, &file)).expect("a thread")
    }

    fn start_direct(&self, offset: u64, byte: u8) -> JoinHandle<Result<usize>> {
        self.start(move |fs, file| fs.write(file, offset, &[byte; BYTES], WriteMode::DIRECT))
    }

    fn unreserved(&self) -> u64 {
        unreserved(&self.fs)
    }

    fn direct_bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0xEE; length];
        let read = self.fs.read_direct(&self.file, offset, &mut bytes);
        bytes.truncate(read.expect("it is read"));
        bytes
    }

    fn end(self) {
        self.fs.sync().expect("nothing fails");
        self.fs.shut_down().expect("nothing fails");
    }
}

fn is_over_shortly<T>(thread: &JoinHandle<T>) -> bool {
    std::thread::sleep(SHORTLY);
    thread.is_finished()
}

/// RACES B4: a hole punched below a direct read that is in flight waits for it. The mutant reads what
/// the new owner of the block has written.
#[test]
fn b4_a_punch_waits_for_direct_reads_in_flight() {
    for is_undrained in [false, true] {
        let world = World::new(2);
        let data = world.file.mapping.backing();
        data.is_undrained.store(is_undrained, Ordering::Release);
        let block = place(&world.fs, world.id, 0);
        world.device.hold(Operation::Read, block.clone());
        let reader = world.start(|fs, file| {
            let mut bytes = vec![0xEE; BYTES];
            let read = fs.read_direct(file, 0, &mut bytes);
            read.map(|_| bytes)
        });
        world.device.wait_held();
        let puncher = world.start(|fs, file| punch(fs, file, 0..BLOCK));
        if is_undrained {
            wait_for("the punch", || puncher.is_finished());
            let owner = [b'!'; BYTES];
            world.device.write(block.start, &owner).expect("written");
        } else {
            assert!(!is_over_shortly(&puncher));
        }
        world.device.heal();
        let bytes = reader.join().expect("no panic").expect("it is read");
        let is_foreign = bytes != vec![b'a'; BYTES];
        assert_eq!(is_foreign, is_undrained);
        puncher.join().expect("no panic").expect("it is punched");
        assert_eq!(world.direct_bytes(0, BYTES), vec![0; BYTES]);
        world.end();
    }
}

/// What changes nothing but data inside the file runs side by side; what takes blocks away, or makes
/// the file longer, waits.
#[test]
fn direct_overwrites_run_side_by_side_and_changes_wait() {
    let world = World::new(4);
    world
        .device
        .hold(Operation::Write, place(&world.fs, world.id, 0));
    let held = world.start_direct(0, b'X');
    world.device.wait_held();
    let beside = world.start_direct(BLOCK, b'Y').join().expect("no panic");
    assert_eq!(beside.expect("it is written"), BYTES);
    assert_eq!(world.direct_bytes(2 * BLOCK, BYTES), [b'c'; BYTES]);
    assert_eq!(
        read(&world.fs, &world.file, BLOCK..BLOCK + 2).expect("it is read"),
        *b"YY"
    );
    let longer = world.start_direct(4 * BLOCK, b'Z');
    let punch = world.start(|fs, file| punch(fs, file, 3 * BLOCK..4 * BLOCK));
    let reader = world.start(|fs, file| read(fs, file, 0..BLOCK));
    assert!(!is_over_shortly(&longer) && !punch.is_finished() && !reader.is_finished());
    world.device.heal();
    assert_eq!(held.join().expect("no panic").expect("written"), BYTES);
    assert_eq!(longer.join().expect("no panic").expect("written"), BYTES);
    punch.join().expect("no panic").expect("it is punched");
    let seen = reader.join().expect("no panic").expect("it is read");
    assert_eq!(seen, [b'X'; BYTES], "never old data after new");
    let expected = [b'X', b'Y', b'c', 0, b'Z'].map(|byte| [byte; BYTES]);
    assert_eq!(world.direct_bytes(0, 8 * BYTES), expected.concat());
    world.end();
}

#[test]
fn a_direct_read_sees_what_is_dirty_and_nothing_past_the_end() {
    let world = World::new(3);
    write(&world.fs, &world.file, 5000, b"dirty");
    // A hole, and an end inside a block.
    set_size(&world.fs, world.id, 6 * BLOCK + 100).expect("it grows");
    write(&world.fs, &world.file, 6 * BLOCK, &[b'z'; 100]);
    let bytes = world.direct_bytes(BLOCK, 8 * BYTES);
    assert!(world.file.mapping.is_idle(), "it was written first");
    assert_eq!(bytes.len(), 5 * BYTES + 100);
    assert_eq!(bytes[..5000 - BYTES], vec![b'b'; 5000 - BYTES]);
    assert_eq!(bytes[5000 - BYTES..][..5], *b"dirty");
    assert!(bytes[2 * BYTES..5 * BYTES].iter().all(|&byte| byte == 0));
    assert_eq!(bytes[5 * BYTES..], [b'z'; 100]);
    assert!(world.direct_bytes(7 * BLOCK, BYTES).is_empty());
    // The buffer gets nothing of what lies behind the end on the device.
    let end = place(&world.fs, world.id, 6 * BLOCK).start;
    let secret = [b'!'; 1000];
    world.device.write(end + 3000, &secret).expect("written");
    let mut buffer = vec![0xEE; 2 * BYTES];
    let read = world.fs.read_direct(&world.file, 6 * BLOCK, &mut buffer);
    assert_eq!(read.expect("it is read"), 100);
    assert!(!buffer.contains(&b'!'));
    world.end();
}

#[test]
fn a_direct_write_that_fails_costs_no_space_and_no_size() {
    let world = World::new(1);
    let (before, size) = (world.unreserved(), BLOCK);
    world.device.fail(Operation::Write, 0..u64::MAX);
    assert!(world.direct(BLOCK, &[b'n'; 3 * BYTES]).is_err(), "longer");
    assert!(world.direct(0, &[b'n'; BYTES]).is_err(), "in place");
    world.device.heal();
    let attr = world.fs.attr(world.id).expect("it is there");
    assert_eq!((attr.size, world.unreserved()), (size, before));
    assert_eq!(world.direct_bytes(0, BYTES), [b'a'; BYTES]);
    assert_eq!(
        world.direct(BLOCK, &[b'n'; 3 * BYTES]).expect("written"),
        3 * BYTES
    );
    assert_eq!(world.direct_bytes(BLOCK, BYTES), [b'n'; BYTES]);
    world.end();
}

#[test]
fn who_may_not_keep_privileges_loses_them_by_a_direct_write() {
    let world = World::new(2);
    let change = pagefence_vfs::SetAttr {
        permissions: Some(0o4755),
        ..pagefence_vfs::SetAttr::default()
    };
    let root = pagefence_vfs::Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    };
    let set = world.fs.set_attr(world.id, &change, &root);
    set.expect("it is set");
    let mode = WriteMode::DIRECT | WriteMode::KILL_PRIVILEGES;
    let written = world.fs.write(&world.file, 0, &[1; BYTES], mode);
    assert_eq!(written.expect("it is written"), BYTES);
    let kept = inode(&world.fs, world.id).disk().record.mode() & 0o7777;
    assert_eq!(kept, 0o755);
    world.end();
}

/// An overwrite in place changes no metadata, so it begins no transaction; what is not of whole
/// blocks goes through the cache, and on to the device.
#[test]
fn an_overwrite_in_place_is_data_alone() {
    let world = World::new(2);
    let block = place(&world.fs, world.id, BLOCK);
    let tid = inode(&world.fs, world.id).core.sync_tid(false);
    assert_eq!(world.direct(BLOCK, &[b'D'; BYTES]).expect("written"), BYTES);
    assert_eq!(inode(&world.fs, world.id).core.sync_tid(false), tid);
    assert_eq!(world.direct(BLOCK + 10, b"odd").expect("written"), 3);
    assert!(world.file.mapping.is_idle(), "it is with the device");
    let mut bytes = vec![0; BYTES];
    world.device.read(block.start, &mut bytes).expect("read");
    assert_eq!(bytes[..14], *b"DDDDDDDDDDoddD");
    world.end();
}
