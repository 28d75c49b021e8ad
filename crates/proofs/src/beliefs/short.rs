//! What a lack of space may leave of an operation on a range: what was done before stays, and nothing else
//! changed.

use std::ops::Range;

use pagefence_fs_model::files::{Operation, RangeChange, Tree};

use super::events::size;

/// Takes over what was found in the files that the operation is about.
///
/// # Errors
/// It is not what it may have left.
pub(super) fn adopt(
    tree: &mut Tree,
    operation: &Operation,
    left: &[(String, Vec<u8>)],
) -> Result<(), String> {
    for (path, found) in left {
        adopt_file(tree, operation, path, found).map_err(|error| format!("{path:?}: {error}"))?;
    }
    Ok(())
}

fn adopt_file(
    tree: &mut Tree,
    operation: &Operation,
    path: &str,
    found: &[u8],
) -> Result<(), String> {
    let Ok(node) = tree.node_at(path, true) else {
        return Err("it is not there".to_owned());
    };
    let before_size = size(tree, node).ok_or("it is no file")?;
    let block = u64::from(tree.format().block_size);
    let may = May::of(operation);
    let found_size = found.len() as u64;
    let has_grown = before_size < found_size
        && may.grow_to.is_some_and(|end| {
            found_size == end || (found_size < end && found_size.is_multiple_of(block))
        });
    if found_size != before_size && !has_grown {
        return Err(format!("{before_size} bytes, not {found_size}"));
    }
    if has_grown {
        do_it(
            tree,
            &Operation::SetSize {
                path: path.to_owned(),
                size: found_size,
            },
        )?;
    }
    // Each block of what is cleared is what it was, or is cleared.
    let mut at = may.clear.start;
    while at < may.clear.end.min(found_size) {
        let next = (at / block + 1) * block;
        let piece = at..next.min(may.clear.end).min(found_size);
        if found[piece.start as usize..piece.end as usize]
            .iter()
            .all(|byte| *byte == 0)
        {
            do_it(
                tree,
                &Operation::ChangeRange {
                    path: path.to_owned(),
                    offset: piece.start,
                    length: piece.end - piece.start,
                    how: RangeChange::Punch,
                },
            )?;
        }
        at = next;
    }
    let read = Operation::Read {
        path: path.to_owned(),
        offset: 0,
        length: found.len(),
    };
    let expected = match tree.apply(&read) {
        Ok(pagefence_fs_model::files::Answer::Bytes(bytes)) => bytes,
        other => return Err(format!("{other:.100?}")),
    };
    match (0..found.len()).find(|at| found[*at] != expected[*at]) {
        None => Ok(()),
        Some(at) => Err(format!("byte {at} is not what it was")),
    }
}

fn do_it(tree: &mut Tree, operation: &Operation) -> Result<(), String> {
    tree.apply(operation)
        .map(drop)
        .map_err(|error| format!("{operation:?}: {error:?}"))
}

/// What it may do before it finds that there is no space.
struct May {
    clear: Range<u64>,
    grow_to: Option<u64>,
}

impl May {
    fn of(operation: &Operation) -> Self {
        let (clear, grow_to) = match operation {
            Operation::Allocate { offset, length, .. } => (0..0, Some(offset + length)),
            Operation::ChangeRange {
                offset,
                length,
                how,
                ..
            } => {
                let range = *offset..offset + length;
                match how {
                    RangeChange::Zero => (range.clone(), Some(range.end)),
                    RangeChange::Punch | RangeChange::ZeroInside => (range, None),
                    // All of it, or nothing; or nothing that is seen.
                    RangeChange::Reserve | RangeChange::Collapse | RangeChange::Insert => {
                        (0..0, None)
                    }
                }
            }
            _ => (0..0, None),
        };
        Self { clear, grow_to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagefence_fs_model::files::{Format, contents};

    const BLOCK: u64 = 1024;

    /// What is said to a file of four blocks that is found to hold `found`.
    fn found(how: RangeChange, offset: u64, length: u64, found: Vec<u8>) -> Result<Tree, String> {
        let mut tree = Tree::new(Format {
            block_size: BLOCK as u32,
            has_unwritten: true,
            size_limit: 1 << 40,
        });
        let path = || "f".to_owned();
        let made = [
            Operation::Create { path: path() },
            Operation::Write {
                path: path(),
                offset: 0,
                length: 4096,
                tag: 1,
            },
        ];
        for operation in &made {
            do_it(&mut tree, operation).expect("it can be done");
        }
        let operation = Operation::ChangeRange {
            path: path(),
            offset,
            length,
            how,
        };
        adopt(&mut tree, &operation, &[(path(), found)]).map(|()| tree)
    }

    fn cleared(range: Range<usize>) -> Vec<u8> {
        let mut bytes = contents(1, 0, 4096);
        bytes[range].fill(0);
        bytes
    }

    #[test]
    fn blocks_of_the_range_may_be_cleared_and_no_others() {
        for how in [RangeChange::Punch, RangeChange::ZeroInside] {
            for range in [0..0, 512..1024, 512..2048, 1024..2048] {
                assert!(found(how, 512, 2048, cleared(range)).is_ok(), "{how:?}");
            }
            for range in [480..512, 2560..2592, 1024..1056] {
                assert!(found(how, 512, 2048, cleared(range)).is_err(), "{how:?}");
            }
            let mut foreign = contents(1, 0, 4096);
            foreign[1024..2048].copy_from_slice(&contents(2, 1024, 1024));
            assert!(found(how, 512, 2048, foreign).is_err(), "{how:?}");
        }
        let shift = found(RangeChange::Collapse, 1024, 1024, cleared(1024..2048));
        assert!(shift.is_err(), "nothing changed");
    }

    #[test]
    fn a_file_may_have_grown_by_whole_blocks() {
        let grown = |size| {
            let mut bytes = contents(1, 0, 4096);
            bytes.resize(size, 0);
            bytes
        };
        let zero = |size| found(RangeChange::Zero, 4096, 4000, grown(size));
        for size in [4096, 5120, 7168, 8096] {
            let tree = zero(size).expect("it is possible");
            let node = tree.node_at("f", true).expect("it is there");
            assert_eq!(super::size(&tree, node), Some(size as u64));
        }
        for size in [4000, 4100, 8192] {
            assert!(zero(size).is_err(), "{size}");
        }
        let keeps = found(RangeChange::ZeroInside, 4096, 4096, grown(5120));
        assert!(keeps.is_err(), "the size stays");
    }
}
