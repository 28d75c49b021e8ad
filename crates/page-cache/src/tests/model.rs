//! The cache against the plain bytes, one step at a time.

use pagefence_lock_order::Held;
use pagefence_lock_order::primitives::Arc;
use proptest::prelude::*;

use super::device::{Device, TestMapping};
use super::{SMALL, config, read_with};
use crate::backing::PAGE_SIZE;
use crate::{Evict, Hint, PageCache, Readahead};

/// More than the smallest cache holds.
const PAGES: u64 = 80;
const BYTES: u64 = PAGES * PAGE_SIZE as u64;

#[derive(Clone, Debug)]
enum Step {
    Read { offset: u64, len: usize },
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

fn run(block_size: usize, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let cache: Arc<PageCache> = PageCache::new(config(SMALL)).expect("a cache");
    let pages = usize::try_from(PAGES).expect("small");
    let mapping: Arc<TestMapping> = Device::stamped(pages, block_size).mapped(&cache);
    let block = block_size as u64;
    let readahead = Readahead::new();
    let mut failing = false;
    for step in steps {
        let mut entry = Held::at_entry();
        match step {
            Step::Read { offset, len } => {
                let all = mapping.backing().contents();
                let start = usize::try_from(offset).expect("small").min(all.len());
                let expected = &all[start..(start + len).min(all.len())];
                match read_with(&mapping, &readahead, offset, len) {
                    Ok(bytes) if failing => prop_assert!(expected.starts_with(&bytes)),
                    Ok(bytes) => prop_assert_eq!(bytes.as_slice(), expected),
                    Err(_) => prop_assert!(failing),
                }
            }
            Step::Punch { start, len } => {
                let (mut fence, mut held) = mapping.fence(&mut entry, start..start + len);
                Device::punch(&fence.evict(&mut held, Evict::Discard));
            }
            Step::Replace {
                block: at,
                blocks,
                byte,
            } => {
                let start = (at * block).min(BYTES);
                let end = (start + blocks * block).min(BYTES);
                let (mut fence, mut held) = mapping.fence(&mut entry, start..end);
                let evicted = fence.evict(&mut held, Evict::Discard);
                let len = usize::try_from(end - start).expect("small");
                Device::replace(&evicted, &vec![byte; len]);
            }
            Step::Truncate { size } => {
                let from = size.min(crate::Backing::size(mapping.backing()));
                let (mut fence, mut held) = mapping.fence(&mut entry, from..u64::MAX);
                Device::truncate(&fence.evict(&mut held, Evict::Discard), size);
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
        prop_assert!(cache.usage().used_bytes <= SMALL);
        prop_assert_eq!(mapping.backing().violations(), 0);
    }
    // At last, all of it.
    mapping.backing().fail_reads(0);
    mapping.backing().fail_segments(0);
    let all = read_with(
        &mapping,
        &Readahead::new(),
        0,
        2 * usize::try_from(BYTES).expect("small"),
    );
    prop_assert_eq!(all.expect("read"), mapping.backing().contents());
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
