//! Ranges taken out of a file, or put in, past the kernel and its pages.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use pagefence_fuse_front::ioctl::fallocate;

use crate::support::in_both_modes;

const PAGE: u64 = 4096;
const COLLAPSE: u32 = 8;
const INSERT: u32 = 0x20;

/// Page `n` of the file is full of `n`.
fn pages(numbers: &[u8]) -> Vec<u8> {
    numbers.iter().flat_map(|n| [*n; PAGE as usize]).collect()
}

/// What each page of the file is full of; 255 for one that is not of one kind.
fn numbers(bytes: &[u8]) -> Vec<u8> {
    let kind = |page: &[u8]| match page.iter().all(|byte| *byte == page[0]) {
        true => page[0],
        false => 255,
    };
    bytes.chunks(PAGE as usize).map(kind).collect()
}

#[test]
fn pages_move_with_what_the_file_holds() {
    in_both_modes(|mounted, writeback| {
        let path = mounted.join("file");
        fs::write(&path, pages(&[1, 2, 3, 4])).expect("a file");
        let open = || File::options().read(true).write(true).open(&path);
        let file = open().expect("it opens");
        file.sync_all().expect("nothing is dirty in the kernel");
        // The kernel has all pages now.
        let shown = || numbers(&fs::read(&path).expect("it is read"));
        assert_eq!(shown(), [1, 2, 3, 4]);
        let reader = File::open(&path).expect("it opens");
        let refused = fallocate(&reader, COLLAPSE, PAGE, PAGE).expect_err("not for writing");
        assert_eq!(refused.raw_os_error(), Some(9));
        let done = fallocate(&file, COLLAPSE, PAGE, PAGE);
        if writeback {
            let refused = done.expect_err("the kernel knows better");
            assert_eq!(refused.raw_os_error(), Some(95));
            return;
        }
        done.expect("collapsed");
        assert_eq!(fs::metadata(&path).expect("it is there").size(), 3 * PAGE);
        assert_eq!(shown(), [1, 3, 4]);
        fallocate(open().expect("it opens"), INSERT, 0, 2 * PAGE).expect("inserted");
        assert_eq!(
            fs::read(&path).expect("it is read"),
            pages(&[0, 0, 1, 3, 4])
        );
        // Who had it open all the time sees it, too, before long.
        let begin = Instant::now();
        let mut bytes = vec![9; 5 * PAGE as usize];
        while reader.read_at(&mut bytes, 0).expect("it is read") != bytes.len()
            || numbers(&bytes) != [0, 0, 1, 3, 4]
        {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "stale pages stay"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn other_file_systems_are_not_asked() {
    let file = tempfile::tempfile().expect("a file");
    let refused = fallocate(&file, COLLAPSE, 0, PAGE).expect_err("not a mount of ours");
    assert_eq!(refused.raw_os_error(), Some(25));
}
