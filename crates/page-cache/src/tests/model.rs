//! The cache against the plain bytes, one step at a time.

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use proptest::prelude::*;

use super::device::{Device, TestMapping};
use super::{SMALL, config, read_with, sync, write, write_direct};
use crate::backing::PAGE_SIZE;
use crate::{Evict, Hint, PageCache, Readahead, WaitFor};

/// More than the smallest cache holds.
const PAGES: u64 = 80;
const PAGE: u64 = PAGE_SIZE as u64;
const BYTES: u64 = PAGES * PAGE;

#[derive(Clone, Debug)]
enum Step {
    Read { offset: u64, len: usize },
    Write { offset: u64, len: usize, byte: u8 },
    WriteDirect { block: u64, blocks: u64, byte: u8 },
    WriteBack { start: u64, len: u64 },
    Flush,
    Sync,
    Punch { start: u64, len: u64 },
    Replace { block: u64, blocks: u64, byte: u8 },
    Truncate { size: u64 },
    Fail { reads: usize, segments: usize },
    Shrink { bytes: u64 },
    Readahead,
    Hint { code: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let offset = 0..BYTES + 10_000;
    prop_oneof![
        8 => (offset.clone(), 0_usize..60_000).prop_map(|(offset, len)| Step::Read { offset, len }),
        6 => (offset.clone(), 0_usize..30_000, 1_u8..200)
            .prop_map(|(offset, len, byte)| Step::Write { offset, len, byte }),
        3 => (0..BYTES / 1024 + 8, 1_u64..40, 1_u8..200)
            .prop_map(|(block, blocks, byte)| Step::WriteDirect { block, blocks, byte }),
        1 => (offset.clone(), 0_u64..50_000)
            .prop_map(|(start, len)| Step::WriteBack { start, len }),
        1 => Just(Step::Flush),
        1 => Just(Step::Sync),
        2 => (offset.clone(), 0_u64..50_000).prop_map(|(start, len)| Step::Punch { start, len }),
        2 => (0_u64..PAGES * 4, 1_u64..40, 1_u8..200)
            .prop_map(|(block, blocks, byte)| Step::Replace { block, blocks, byte }),
        1 => offset.prop_map(|size| Step::Truncate { size }),
        1 => (0_usize..2, 0_usize..2).prop_map(|(reads, segments)| Step::Fail { reads, segments }),
        1 => (0_u64..100_000).prop_map(|bytes| Step::Shrink { bytes }),
        2 => Just(Step::Readahead),
        1 => (0_u8..3).prop_map(|code| Step::Hint { code }),
    ]
}

/// The bytes `range` of a file that ends somewhere.
fn part(file: &[u8], start: u64, len: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(start).expect("small").min(file.len());
    start..(start + len).min(file.len())
}

fn run(block_size: usize, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let cache: Arc<PageCache> = PageCache::new(config(SMALL)).expect("a cache");
    let pages = usize::try_from(PAGES).expect("small");
    let errors = cache.error_cursor();
    let mapping: Arc<TestMapping> = Device::stamped(pages, block_size).mapped(&cache);
    mapping.backing().let_holes_be_read();
    // What reads must give.
    let mut file = mapping.backing().contents();
    let block = block_size as u64;
    let readahead = Readahead::new();
    let mut failing = false;
    for step in steps {
        let mut entry = Held::at_entry();
        match step {
            Step::Read { offset, len } => {
                let expected = &file[part(&file, offset, len)];
                match read_with(&mapping, &readahead, offset, len) {
                    Ok(bytes) if failing => prop_assert!(expected.starts_with(&bytes)),
                    Ok(bytes) => prop_assert!(bytes.as_slice() == expected),
                    Err(_) => prop_assert!(failing),
                }
            }
            Step::Write { offset, len, byte } => {
                let written = match write(&mapping, offset, &vec![byte; len]) {
                    Ok(written) => written,
                    Err(_) => {
                        prop_assert!(failing);
                        0
                    }
                };
                prop_assert!(failing || written == len);
                let end = usize::try_from(offset).expect("small") + written;
                if written > 0 && end > file.len() {
                    file.resize(end, 0);
                }
                let range = part(&file, offset, written);
                file[range].fill(byte);
            }
            Step::WriteDirect {
                block: at,
                blocks,
                byte,
            } => {
                // In units of 1 KiB, as whole blocks.
                let offset = at * 1024 / block * block;
                let len = usize::try_from(blocks * block).expect("small");
                let written = write_direct(&mapping, offset, &vec![byte; len]);
                prop_assert_eq!(written, Ok(len));
                let pages = offset / PAGE..(offset + blocks * block).div_ceil(PAGE);
                let mut left = pages.filter(|&page| mapping.pages().get(page).is_some());
                prop_assert_eq!(left.next(), None);
                let end = usize::try_from(offset).expect("small") + len;
                file.resize(file.len().max(end), 0);
                let range = part(&file, offset, len);
                file[range].fill(byte);
            }
            Step::WriteBack { start, len } => {
                let range = start..start + len;
                let result = mapping.write_back(&mut entry, range.clone(), WaitFor::All);
                prop_assert!(result.is_ok());
            }
            Step::Flush => {
                cache.run_flusher(&mut entry);
            }
            Step::Sync => {
                cache.sync_all(&mut entry);
                prop_assert!(!cache.has_failed_since(&errors));
                prop_assert!(mapping.is_idle());
                prop_assert!(mapping.backing().contents() == file);
                prop_assert_eq!(mapping.backing().reserved(), 0);
                prop_assert!(mapping.backing().disk_size() <= file.len() as u64);
            }
            Step::Punch { start, len } => {
                let (mut fence, mut held) = mapping.fence(&mut entry, start..start + len);
                let evicted = fence.evict(&mut held, Evict::Discard);
                prop_assert!(failing || evicted.is_ok());
                // One that fails has done nothing.
                if let Ok(evicted) = evicted {
                    Device::punch(&evicted);
                    let range = part(&file, start, usize::try_from(len).expect("small"));
                    file[range].fill(0);
                }
            }
            Step::Replace {
                block: at,
                blocks,
                byte,
            } => {
                let inside = file.len() as u64 / block * block;
                let start = (at * block).min(inside);
                let end = (start + blocks * block).min(inside);
                let (mut fence, mut held) = mapping.fence(&mut entry, start..end);
                let evicted = fence.evict(&mut held, Evict::WriteFirst).expect("evicted");
                let len = usize::try_from(end - start).expect("small");
                Device::replace(&evicted, &vec![byte; len]);
                let range = part(&file, start, len);
                file[range].fill(byte);
            }
            Step::Truncate { size } => {
                let from = size.min(crate::Backing::size(mapping.backing()));
                mapping.backing().fail_reads(0);
                mapping.backing().fail_segments(0);
                let (mut fence, mut held) = mapping.fence(&mut entry, from..u64::MAX);
                mapping.backing().set_size(size);
                Device::truncate(&fence.evict(&mut held, Evict::Discard).expect("evicted"));
                file.resize(usize::try_from(size).expect("small"), 0);
            }
            Step::Fail { reads, segments } => {
                mapping.backing().fail_reads(reads);
                mapping.backing().fail_segments(segments);
                failing = true;
                continue;
            }
            Step::Shrink { bytes } => {
                cache.shrink(bytes);
            }
            Step::Readahead => {
                cache.run_readahead(&mut entry);
            }
            Step::Hint { code } => readahead.set_hint(match code {
                0 => Hint::Normal,
                1 => Hint::Sequential,
                _ => Hint::Random,
            }),
        }
        if failing {
            mapping.backing().fail_reads(0);
            mapping.backing().fail_segments(0);
            failing = false;
        }
        let usage = cache.usage();
        prop_assert!(usage.used_bytes <= SMALL);
        // A fifth, and half of that again that one writer adds.
        prop_assert!(usage.dirty_bytes <= SMALL / 3, "{usage:?}");
        prop_assert_eq!(mapping.backing().violations(), 0);
    }
    mapping.backing().fail_reads(0);
    mapping.backing().fail_segments(0);
    // At last, all of it: from the cache, and from the device alone.
    for _ in 0..2 {
        let all = read_with(&mapping, &Readahead::new(), 0, file.len() + 1);
        prop_assert!(all.expect("read") == file);
        prop_assert_eq!(sync(&mapping), Ok(()));
        cache.shrink(u64::MAX);
    }
    prop_assert!(mapping.backing().contents() == file);
    prop_assert_eq!(mapping.backing().reserved(), 0);
    prop_assert_eq!(mapping.backing().violations(), 0);
    drop(mapping);
    prop_assert_eq!(cache.usage().used_bytes, 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn blocks_of_a_page(steps in prop::collection::vec(step(), 1..60)) {
        run(PAGE_SIZE, steps)?;
    }

    #[test]
    fn blocks_smaller_than_a_page(steps in prop::collection::vec(step(), 1..60)) {
        run(1024, steps)?;
    }
}
