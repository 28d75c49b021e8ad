//! O_DIRECT: which requests go past the file system's cache.

use std::fs::File;
use std::os::unix::fs::FileExt;

use pagefence_vfs::WriteMode;
use rustix::fs::{Mode, OFlags};

use crate::common::Mounted;
use crate::support::in_both_modes;

/// What writes were, and how many reads were direct, since the last call.
fn asked(mounted: &Mounted) -> (WriteMode, usize) {
    let mut tree = mounted.counters.tree.lock();
    let written = std::mem::replace(&mut tree.written, WriteMode::empty());
    (written, std::mem::take(&mut tree.direct_reads))
}

#[test]
fn what_is_opened_direct_goes_past_the_cache() {
    in_both_modes(|mounted, writeback| {
        let id = mounted.counters.plant("file", &[b'x'; 64 << 10]);
        let path = mounted.join("file");
        let open = |flags| {
            let opened = rustix::fs::open(&path, OFlags::RDWR | flags, Mode::empty());
            File::from(opened.expect("it opens"))
        };
        let (direct, plain) = (open(OFlags::DIRECT), open(OFlags::empty()));
        asked(mounted);
        let mut bytes = [0; 4096];
        plain.read_exact_at(&mut bytes, 0).expect("it is read");
        assert_eq!(asked(mounted), (WriteMode::empty(), 0));
        direct.read_exact_at(&mut bytes, 8192).expect("it is read");
        assert_eq!(asked(mounted), (WriteMode::empty(), 1));
        direct.write_all_at(&[b'd'; 4096], 4096).expect("written");
        let written = WriteMode::DIRECT | WriteMode::USE_RESERVE;
        assert_eq!(asked(mounted), (written, 0));
        // The kernel had the page, and has the new one now.
        plain.read_exact_at(&mut bytes, 4096).expect("it is read");
        assert_eq!(bytes, [b'd'; 4096]);
        plain.write_all_at(b"plain", 0).expect("it is written");
        plain.sync_all().expect("fsync");
        let mut written = WriteMode::USE_RESERVE;
        written.set(WriteMode::WRITEBACK, writeback);
        assert_eq!(asked(mounted).0, written);
        // What is in the kernel's cache comes as from there, before it is read past it.
        plain.write_all_at(b"again", 0).expect("it is written");
        direct.read_exact_at(&mut bytes, 0).expect("it is read");
        assert_eq!(bytes[..8], *b"againxxx");
        assert_eq!(asked(mounted), (written, 1));
        // By fcntl(2) as well, and no more when it is taken off.
        rustix::fs::fcntl_setfl(&plain, OFlags::DIRECT).expect("it is set");
        plain.read_exact_at(&mut bytes, 0).expect("it is read");
        assert_eq!(asked(mounted).1, 1);
        rustix::fs::fcntl_setfl(&direct, OFlags::empty()).expect("it is taken off");
        direct.write_all_at(b"end", 0).expect("it is written");
        direct.sync_all().expect("fsync");
        assert_eq!(asked(mounted).0, written);
        let stored = mounted.counters.with(id, |node| node.bytes.clone());
        assert_eq!(stored[..8], *b"endinxxx");
        assert_eq!(stored[4096..8192], [b'd'; 4096]);
    });
}
