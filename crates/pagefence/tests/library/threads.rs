//! Many threads on one volume.

use std::sync::Arc;

use pagefence::{Kind, Mkfs, Options, Volume};
use pagefence_lock_order::primitives::thread;

/// Each 8 bytes of a file tell the file and the offset.
fn pattern(number: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64 / 8)
        .flat_map(|word| ((number << 40) | (word * 8)).to_le_bytes())
        .collect()
}

#[test]
fn what_is_open_can_be_shared() {
    fn shared<T: Send + Sync + 'static>() {}
    fn sent<T: Send + 'static>() {}
    shared::<Volume>();
    shared::<pagefence::File>();
    shared::<pagefence::Error>();
    shared::<pagefence::Metadata>();
    shared::<pagefence::DirEntry>();
    shared::<pagefence::WalkEntry>();
    shared::<Options>();
    sent::<pagefence::ReadDir>();
    sent::<pagefence::Walk>();
}

/// More data than the least cache holds, read by eight threads at once in every way.
#[test]
fn eight_readers_and_a_small_cache() {
    const FILES: u64 = 8;
    const BYTES: usize = 3 << 20;
    let mut mkfs = Mkfs::new(Kind::Ext4);
    for number in 0..FILES {
        mkfs = mkfs.file(format!("/d/{number}"), pattern(number, BYTES));
        for small in 0..50 {
            mkfs = mkfs.file(format!("/d/s{number}/{small}"), small.to_string());
        }
    }
    let device = pagefence::device::MemoryDevice::new(64 << 20);
    mkfs.format_device(&device).expect("it is made");
    let volume = Volume::open_device(Arc::new(device), Options::new().cache(0)).expect("it opens");
    let shared = Arc::new(volume.open_file("/d/0").expect("it opens"));
    let readers: Vec<_> = (0..8u64)
        .map(|reader| {
            let (volume, shared) = (volume.clone(), Arc::clone(&shared));
            thread::spawn("reader", move || read_everything(&volume, &shared, reader))
                .expect("a thread")
        })
        .collect();
    for reader in readers {
        reader.join().expect("no reader fails");
    }

    fn read_everything(volume: &Volume, shared: &pagefence::File, reader: u64) {
        let due = pattern(0, BYTES);
        let mut random = reader + 1;
        let mut buffer = vec![0; 10_000];
        for round in 0..60 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let offset = (random >> 33) as usize % BYTES;
            let read = shared
                .read_at(offset as u64, &mut buffer)
                .expect("it reads");
            assert_eq!(read, buffer.len().min(BYTES - offset));
            assert!(buffer[..read] == due[offset..offset + read], "at {offset}");
            let number = (reader + round) % FILES;
            if round % 20 == 0 {
                let whole = volume.read(format!("/d/{number}")).expect("it reads");
                assert!(whole == pattern(number, BYTES), "file {number}");
                assert_eq!(
                    volume.walk("/d").filter_map(Result::ok).count(),
                    1 + 8 + 8 + 400
                );
            }
            let small = volume.read(format!("/d/s{number}/{}", round % 50));
            assert_eq!(
                small.expect("it reads"),
                (round % 50).to_string().as_bytes()
            );
            assert!(volume.metadata(format!("/d/{}", 100 + round)).is_err());
        }
    }
}
