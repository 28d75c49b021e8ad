//! Logs that the running journal left behind, read by e2fsck and by the kernel.

use pagefence_block_io::{BufferCache, Device, DeviceError};
use pagefence_ext4_format::BlockNo;
use pagefence_jbd2::{
    Client, Emptied, Journal, JournalError, Options, Sealing, Tid, recover, write_back,
};
use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::{Arc, Weak};

use crate::support::{Oracle, compare, locate, open, run};
use crate::{KINDS, mounted};

struct Quiet;

impl Client for Quiet {
    fn seal(&self, _: &mut Sealing<'_>) {}
    fn committed(&self, _: Tid) {}
    fn aborted(&self, error: &JournalError) {
        panic!("{error}");
    }
}

/// Contents that differ by block and round; some begin with the journal's magic number.
fn contents(block: u64, round: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![(block * 31 + round) as u8; size];
    if (block + round).is_multiple_of(5) {
        bytes[..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
    }
    bytes
}

/// Uses the journal of an image, which needs recovery, for some rounds, and lets go of it.
fn use_journal(image: &std::path::Path, rounds: u64, close: bool) {
    let location = locate(image);
    let device = open(image, true);
    let recovery = recover(&*device, &location).unwrap();
    write_back(&*device, &location, &recovery, Emptied::Clean).unwrap();
    let size = location.block_size();
    let blocks = device.size() / u64::from(size);
    let buffers = Arc::new(BufferCache::new(device, size, 4 << 20));
    let client = Arc::new(Quiet);
    let weak: Weak<Quiet> = Arc::downgrade(&client);
    let journal = Journal::open(buffers, location.clone(), weak, Options::default()).unwrap();
    // Blocks that nobody uses: the journal of an image like this lies in the middle.
    let first = (0..300)
        .map(|back| blocks - 1000 + back)
        .find(|block| location.may_change(BlockNo(*block)))
        .unwrap();
    for round in 0..rounds {
        let mut entry = Held::at_entry();
        let (mut handle, held) = journal.start(&mut entry, 100).unwrap();
        for at in 0..50 {
            let block = first + (round * 17 + at * 3) % 200;
            let bytes = contents(block, round, size as usize);
            handle
                .change(BlockNo(block), |old| {
                    old.copy_from_slice(&bytes);
                    Ok::<(), DeviceError>(())
                })
                .unwrap();
        }
        for at in 0..20 {
            handle.forget(BlockNo(first + (round * 29 + at * 7) % 200));
        }
        let tid = handle.tid();
        drop((handle, held));
        if round % 3 != 0 {
            journal.commit(tid).unwrap();
        }
    }
    if close {
        journal.close().unwrap();
    }
}

#[test]
fn logs_of_the_running_journal_recover_as_others_recover_them() {
    let (mut revoked, mut wrapped, mut tried) = (0, 0, 0);
    for (what, mke2fs, mount) in KINDS {
        let small = [mke2fs, &["-J", "size=4"]].concat();
        let Some(mounted) = mounted(&small, "64M", mount) else {
            continue;
        };
        mounted.synced("before");
        let copy = mounted.copy();
        drop(mounted);
        // A round takes some 50 of 1,024 or 4,096 blocks.
        let lap = if mke2fs.contains(&"1024") { 80 } else { 20 };
        use_journal(copy.path(), 2 * lap + 3 * tried, false);
        for oracle in [Oracle::E2fsck, Oracle::Kernel] {
            let again = tempfile::NamedTempFile::new().unwrap();
            std::fs::copy(copy.path(), again.path()).unwrap();
            let what = format!("ours: {what}, {oracle:?}");
            let found = compare(again.path(), oracle, &what);
            assert!(found.transactions > 0, "{what}");
            revoked += found.revoked;
            wrapped += u32::from(found.wrapped);
        }
        tried += 1;
    }
    assert!(tried == 0 || (revoked > 0 && wrapped > 0));
}

#[test]
fn a_journal_that_was_closed_is_clean_for_e2fsck() {
    let Some(mounted) = mounted(
        &["-t", "ext4", "-b", "1024", "-J", "size=1"],
        "64M",
        "defaults",
    ) else {
        return;
    };
    mounted.synced("before");
    let copy = mounted.copy();
    drop(mounted);
    use_journal(copy.path(), 40, true);
    let location = locate(copy.path());
    assert!(
        recover(&*open(copy.path(), false), &location)
            .unwrap()
            .is_clean()
    );
    let path = copy.path().to_str().unwrap();
    let e2fsck = run("e2fsck", &["-E", "journal_only", "-y", path]).unwrap();
    assert!(!String::from_utf8_lossy(&e2fsck.stderr).contains("recovering"));
    let logdump = run("debugfs", &["-R", "logdump -S", path]).unwrap();
    let logdump = String::from_utf8_lossy(&logdump.stdout).into_owned();
    assert!(logdump.contains("Journal start:            0"), "{logdump}");
}
