//! Sizes, holes, extent trees, block maps and unwritten ranges.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, fallocate};

use super::fill::Plan;

const PAGE_BYTES: u64 = 4096;
/// Blocks written and skipped in turn: more extents than a tree of one level holds, in any block
/// size.
const ALTERNATING_BLOCKS: u64 = 1500;

/// Fills in everything that is about contents.
pub(crate) fn fill(plan: &mut Plan<'_>) -> Result<()> {
    sizes(plan)?;
    holes(plan)?;
    alternating(plan)?;
    far_offsets(plan)?;
    unwritten(plan)?;
    punched(plan)
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot make {}", path.display()))
}

/// Sizes around every edge: inode, inline data, block, page, cluster, direct blocks.
fn sizes(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("sizes")?;
    let block = plan.block_bytes;
    let addresses_per_block = block / 4;
    let edges = [
        60,
        128,
        156,
        160,
        416,
        512,
        block,
        2 * block,
        PAGE_BYTES,
        2 * PAGE_BYTES,
        12 * block,
        (12 + addresses_per_block) * block,
        65_536,
        131_072,
        1 << 20,
    ];
    let mut sizes: BTreeSet<u64> = (0..=4).collect();
    for edge in edges {
        sizes.extend([edge - 1, edge, edge + 1]);
    }
    for size in sizes {
        let bytes = plan.random.bytes(usize::try_from(size)?);
        let path = directory.join(format!("size-{size}"));
        std::fs::write(&path, &bytes)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A name, the ranges that are written, and the length; in blocks.
type Shape = (&'static str, &'static [(u64, u64)], u64);

/// Holes at the start, in the middle, at the end; nothing but a hole.
fn holes(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("holes")?;
    let block = plan.block_bytes;
    let shapes: [Shape; 6] = [
        ("at-start", &[(20, 30)], 30),
        ("in-middle", &[(0, 5), (40, 50)], 50),
        ("at-end", &[(0, 5)], 90),
        ("everywhere", &[(7, 8), (9, 10), (33, 40), (80, 81)], 100),
        ("only", &[], 64),
        ("one-block-at-end", &[(1000, 1001)], 1001),
    ];
    for (name, written, length) in shapes {
        let file = create(&directory.join(name))?;
        for &(start, end) in written {
            let bytes = plan.random.bytes(usize::try_from((end - start) * block)?);
            file.write_all_at(&bytes, start * block)?;
        }
        file.set_len(length * block)?;
    }
    let ragged = create(&directory.join("ragged"))?;
    ragged.write_all_at(b"not at a block's start", 3 * block + 17)?;
    ragged.set_len(11 * block + 5)?;
    Ok(())
}

/// A deep extent tree, or a well-used block map.
fn alternating(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("alternating")?;
    let file = create(&directory.join("every-other-block"))?;
    for index in 0..ALTERNATING_BLOCKS {
        let bytes = plan.random.bytes(usize::try_from(plan.block_bytes)?);
        file.write_all_at(&bytes, 2 * index * plan.block_bytes)?;
    }
    // Writing backwards makes the tree grow at its left edge.
    let backwards = create(&directory.join("backwards"))?;
    for index in (0..200).rev() {
        let bytes = plan.random.bytes(usize::try_from(plan.block_bytes)?);
        backwards.write_all_at(&bytes, 3 * index * plan.block_bytes)?;
        if index % 20 == 0 {
            backwards.sync_all()?;
        }
    }
    Ok(())
}

/// Blocks at the offsets where each level of a block map starts, and past 4 GiB.
fn far_offsets(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("far")?;
    let block = plan.block_bytes;
    let per_block = block / 4;
    let double = 12 + per_block;
    let triple = double + per_block * per_block;
    let file = create(&directory.join("block-map-levels"))?;
    for index in [
        0,
        11,
        12,
        double - 1,
        double,
        double + per_block,
        triple - 1,
        triple,
        triple + 9,
    ] {
        let bytes = plan.random.bytes(usize::try_from(block)?);
        // 4k blocks reach the third level past 4 GiB, which every type can hold.
        file.write_all_at(&bytes, index * block)?;
    }
    let file = create(&directory.join("five-gibibytes"))?;
    for offset in [0, (1 << 32) - block, 1 << 32, (5 << 30) - block] {
        let bytes = plan.random.bytes(usize::try_from(block)?);
        file.write_all_at(&bytes, offset)?;
    }
    let file = create(&directory.join("empty-but-long"))?;
    let result = file.set_len((15 << 30) + 1);
    plan.attempt("a file of 15 GiB", result)?;
    Ok(())
}

/// Ranges allocated and not written, within and beyond the size.
fn unwritten(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("unwritten")?;
    let block = plan.block_bytes;
    let what = "fallocated ranges";
    let file = create(&directory.join("whole"))?;
    let result = fallocate(&file, FallocateFlags::empty(), 0, 64 * block);
    if plan.attempt(what, result)?.is_none() {
        return Ok(());
    }
    let file = create(&directory.join("written-in-the-middle"))?;
    fallocate(&file, FallocateFlags::empty(), 0, 256 * block)?;
    let bytes = plan.random.bytes(usize::try_from(3 * block)?);
    file.write_all_at(&bytes, 100 * block)?;
    file.write_all_at(b"a few bytes", 200 * block + 7)?;
    let file = create(&directory.join("beyond-the-size"))?;
    file.write_all_at(&bytes, 0)?;
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 128 * block)?;
    let file = create(&directory.join("hole-then-unwritten"))?;
    fallocate(&file, FallocateFlags::empty(), 50 * block, 10 * block)?;
    file.write_all_at(&bytes, 80 * block)?;
    let file = create(&directory.join("zeroed"))?;
    let bytes = plan.random.bytes(usize::try_from(64 * block)?);
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    let result = fallocate(&file, FallocateFlags::ZERO_RANGE, 16 * block, 16 * block);
    plan.attempt("a zeroed range", result)?;
    // More than one extent's 32,768 written blocks, or 32,767 unwritten ones, in small blocks.
    let file = create(&directory.join("longer-than-an-extent"))?;
    fallocate(
        &file,
        FallocateFlags::empty(),
        0,
        (33_000 * 1024_u64).next_multiple_of(block),
    )?;
    Ok(())
}

/// Holes made in what was written.
fn punched(plan: &mut Plan<'_>) -> Result<()> {
    let directory = plan.directory("punched")?;
    let block = plan.block_bytes;
    let file = create(&directory.join("punched"))?;
    let bytes = plan.random.bytes(usize::try_from(64 * block)?);
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let result = fallocate(&file, flags, 10 * block + 100, 20 * block);
    plan.attempt("a punched hole", result)?;
    let file = create(&directory.join("collapsed"))?;
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    let result = fallocate(
        &file,
        FallocateFlags::COLLAPSE_RANGE,
        16 * block,
        16 * block,
    );
    plan.attempt("a collapsed range", result)?;
    let file = create(&directory.join("inserted"))?;
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    let result = fallocate(&file, FallocateFlags::INSERT_RANGE, 16 * block, 16 * block);
    plan.attempt("an inserted range", result)?;
    let file = create(&directory.join("truncated"))?;
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    file.set_len(7 * block + 3)?;
    Ok(())
}
