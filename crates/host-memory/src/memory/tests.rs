//! Pages lie at their offsets, holes cost nothing, and nobody can cut the memory.

use std::io::{ErrorKind, IoSlice};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::*;
use crate::test_child::{DONE, in_child};

const LAST: u64 = FileMemory::PAGES - 1;

#[test]
fn bytes_are_read_where_they_were_written() {
    let memory = FileMemory::new().expect("memory");
    memory.write(3, 4000, &[7; 200]);
    let mut found = [9; 300];
    memory.read(3, 3950, &mut found);
    assert_eq!(&found[..50], &[0; 50]);
    assert_eq!(&found[50..250], &[7; 200]);
    assert_eq!(&found[250..], &[0; 50]);
    assert_eq!(memory.allocated_pages(), 2);
}

#[test]
fn new_memory_is_holes_that_reading_does_not_fill() {
    let memory = FileMemory::new().expect("memory");
    assert_eq!(memory.allocated_pages(), 0);
    let mut found = vec![1; 100 * FRAME_SIZE];
    memory.read(0, 0, &mut found);
    assert!(found.iter().all(|&byte| byte == 0));
    memory.read(LAST, 0, &mut found[..FRAME_SIZE]);
    assert_eq!(memory.allocated_pages(), 0);
}

#[test]
fn a_punched_page_reads_as_zeros_and_its_neighbours_stay() {
    let memory = FileMemory::new().expect("memory");
    memory.write(10, 0, &[5; 3 * FRAME_SIZE]);
    memory.punch(11..12);
    assert_eq!(memory.allocated_pages(), 2);
    let mut found = [9; 3 * FRAME_SIZE];
    memory.read(10, 0, &mut found);
    for (page, byte) in [5, 0, 5].into_iter().enumerate() {
        let page = &found[page * FRAME_SIZE..][..FRAME_SIZE];
        assert!(page.iter().all(|&found| found == byte));
    }
}

#[test]
fn holes_are_told_from_pages_also_of_zeros() {
    let memory = FileMemory::new().expect("memory");
    memory.write(3, 0, &[0; FRAME_SIZE]);
    memory.write(5, 7, &[1]);
    memory.write(LAST, 0, &[1]);
    let pages = [0, 2, 3, 4, 5, 6, LAST - 1, LAST];
    let has = |page: &u64| memory.has_page(*page);
    assert_eq!(
        pages.iter().copied().filter(has).collect::<Vec<_>>(),
        [3, 5, LAST]
    );
    memory.punch(3..4);
    memory.punch(LAST..LAST + 1);
    assert_eq!(pages.iter().copied().filter(has).collect::<Vec<_>>(), [5]);
    let mut found = [1; 1];
    memory.read(3, 0, &mut found);
    assert!(!memory.has_page(3), "reading fills nothing");
}

#[test]
fn runs_of_pages_are_found_between_holes() {
    let memory = FileMemory::new().expect("memory");
    assert_eq!(memory.next_run(0), None);
    memory.write(3, 0, &[0; 2 * FRAME_SIZE]);
    memory.write(9, 7, &[1]);
    memory.write(LAST, 0, &[1]);
    assert_eq!(memory.next_run(0), Some(3..5));
    assert_eq!(memory.next_run(4), Some(4..5));
    assert_eq!(memory.next_run(5), Some(9..10));
    assert_eq!(memory.next_run(10), Some(LAST..LAST + 1));
    assert_eq!(memory.next_run(LAST + 1), None);
    assert_eq!(memory.next_run(u64::MAX), None);
}

#[test]
fn the_last_page_is_one_like_others_and_punches_are_clipped() {
    let memory = FileMemory::new().expect("memory");
    for page in [0, 1 << 32, LAST] {
        memory.write(page, 0, &[3; FRAME_SIZE]);
    }
    assert_eq!(memory.allocated_pages(), 3);
    let mut found = [0; 1];
    memory.read(LAST, FRAME_SIZE - 1, &mut found);
    assert_eq!(found, [3]);
    memory.punch(u64::MAX - 1..u64::MAX);
    memory.punch(5..5);
    assert_eq!(memory.allocated_pages(), 3);
    memory.punch(1..u64::MAX);
    assert_eq!(memory.allocated_pages(), 1);
    memory.punch(0..u64::MAX);
    assert_eq!(memory.allocated_pages(), 0);
}

#[test]
fn slices_are_written_one_after_the_other() {
    let memory = FileMemory::new().expect("memory");
    let bytes: Vec<u8> = (0..=255).cycle().take(5 * FRAME_SIZE).collect();
    let mut slices: Vec<IoSlice<'_>> = vec![IoSlice::new(&[])];
    slices.extend(bytes.chunks(3000).map(IoSlice::new));
    memory.write_pages(1 << 40, &mut slices);
    let mut found = vec![0; bytes.len()];
    memory.read(1 << 40, 0, &mut found);
    assert_eq!(found, bytes);
    assert_eq!(memory.allocated_pages(), 5);
}

#[test]
fn more_slices_than_one_call_takes_are_written() {
    let memory = FileMemory::new().expect("memory");
    let bytes = vec![8; (2 * MAX_SLICES + 1) * 4];
    let mut slices: Vec<IoSlice<'_>> = bytes.chunks(4).map(IoSlice::new).collect();
    memory.write_pages(0, &mut slices);
    let mut found = vec![0; bytes.len() + 1];
    memory.read(0, 0, &mut found);
    assert_eq!(found.iter().filter(|&&byte| byte == 8).count(), bytes.len());
}

#[test]
#[should_panic(expected = "2 bytes at 4095 of page 2251799813685246 of a file")]
fn nothing_is_written_past_the_last_page() {
    let memory = FileMemory::new().expect("memory");
    memory.write(LAST, FRAME_SIZE - 1, &[1; 2]);
}

#[test]
fn nobody_with_a_descriptor_can_change_the_size_or_the_seals() {
    let memory = FileMemory::new().expect("memory");
    let other = memory.fd().try_clone_to_owned().expect("a descriptor");
    let size = FileMemory::PAGES * PAGE;
    for size in [0, size - PAGE, size + 1] {
        assert_eq!(ftruncate(&other, size), Err(Errno::PERM), "to {size}");
    }
    let sealed = rustix::fs::fcntl_add_seals(&other, SealFlags::WRITE);
    assert_eq!(sealed, Err(Errno::PERM));
    let stat = fstat(&other).expect("a size");
    assert_eq!(u64::try_from(stat.st_size), Ok(size));
}

#[test]
fn a_limit_of_file_sizes_is_told_before_it_would_be_hit() {
    let status = in_child(
        "memory::tests::a_limit_of_file_sizes_is_told_before_it_would_be_hit",
        || {
            let limit = Rlimit {
                current: Some(1 << 40),
                maximum: None,
            };
            setrlimit(Resource::Fsize, limit).expect("a limit");
            let refused = FileMemory::new().expect_err("refused");
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
            assert!(refused.to_string().contains("ulimit -f"));
        },
    );
    assert_eq!(status.code(), Some(DONE));
}

#[test]
fn huge_pages_are_refused() {
    assert!(refuse_huge(1).is_ok());
    let refused = refuse_huge(512).expect_err("refused");
    assert!(refused.to_string().contains("shmem_enabled"));
}
