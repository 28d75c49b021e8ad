//! What operations do to the bytes of files.

use std::rc::Rc;

use pagefence_fs_model::files::{Kind, NodeNo, Operation, RangeChange, Tree};

use super::Candidate;
use super::bytes::Event;

/// The files whose length says what an operation does to them, or whether it can be done.
pub(super) fn measured(operation: &Operation) -> Vec<&str> {
    use Operation as O;
    match operation {
        O::Append { path, .. } | O::Allocate { path, .. } | O::ChangeRange { path, .. } => {
            vec![path]
        }
        O::ExchangeRange { path, other, .. } => vec![path, other],
        _ => Vec::new(),
    }
}

/// Whether it is about a range of a file that it does not write to.
pub(super) fn is_of_range(operation: &Operation) -> bool {
    use Operation as O;
    matches!(
        operation,
        O::Allocate { .. } | O::ChangeRange { .. } | O::ExchangeRange { .. }
    )
}

/// How long a file is.
pub(super) fn size(tree: &Tree, node: NodeNo) -> Option<u64> {
    match &tree.node(node).kind {
        Kind::File(bytes) => Some(bytes.size()),
        _ => None,
    }
}

/// The changes of files' bytes that an operation makes, if it can be done.
pub(super) fn events(candidate: &Candidate, operation: &Operation) -> Vec<(NodeNo, Event)> {
    possible_events(candidate, operation).unwrap_or_default()
}

fn possible_events(candidate: &Candidate, operation: &Operation) -> Option<Vec<(NodeNo, Event)>> {
    use Operation as O;
    let tree = &candidate.tree;
    let at = |path: &str| tree.node_at(path, true).ok();
    let write = |offset: u64, length: usize, tag: u64| Event::Write {
        offset,
        length,
        tag,
    };
    Some(match operation {
        O::Write {
            path,
            offset,
            length,
            tag,
        } => vec![(at(path)?, write(*offset, *length, *tag))],
        O::Append { path, length, tag } => {
            let node = at(path)?;
            vec![(node, write(size(tree, node)?, *length, *tag))]
        }
        O::WriteHeld {
            slot,
            offset,
            length,
            tag,
        } => vec![(tree.held(*slot)?, write(*offset, *length, *tag))],
        O::SetSize { path, size } => vec![(at(path)?, Event::SetSize(*size))],
        O::Allocate {
            path,
            offset,
            length,
        } => vec![(at(path)?, Event::Grow(offset + length))],
        O::ChangeRange {
            path,
            offset,
            length,
            how,
        } => {
            let node = at(path)?;
            let events = of_range(size(tree, node)?, *offset, *length, *how)?;
            events.into_iter().map(|event| (node, event)).collect()
        }
        O::ExchangeRange {
            path,
            offset,
            other,
            other_offset,
            length,
        } => {
            let sides = [(at(path)?, *offset), (at(other)?, *other_offset)];
            let given = sides.map(|(node, offset)| {
                let known = candidate.files.get(&node).cloned().unwrap_or_default();
                Rc::new(known.given(offset, *length))
            });
            let [to, from] = sides;
            let [mine, theirs] = given;
            let event = |(node, offset), theirs| (node, Event::Exchange { offset, theirs });
            vec![event(to, theirs), event(from, mine)]
        }
        _ => return None,
    })
}

/// What is done to a range of a file that is so long.
fn of_range(size: u64, offset: u64, length: u64, how: RangeChange) -> Option<Vec<Event>> {
    let end = offset.checked_add(length)?;
    Some(match how {
        RangeChange::Reserve => Vec::new(),
        // What lies past the end stays.
        RangeChange::Punch => vec![Event::Clear {
            offset,
            length: end.min(size).saturating_sub(offset),
        }],
        RangeChange::ZeroInside => vec![Event::Clear { offset, length }],
        RangeChange::Zero => vec![Event::Clear { offset, length }, Event::Grow(end)],
        RangeChange::Collapse => vec![Event::Collapse {
            offset,
            length,
            size: size.checked_sub(length)?,
        }],
        RangeChange::Insert => vec![Event::Insert {
            offset,
            length,
            size: size.checked_add(length)?,
        }],
    })
}

/// A write of the first `accepted` bytes.
pub(super) fn shortened(operation: &Operation, accepted: usize) -> Operation {
    let mut operation = operation.clone();
    if let Operation::Write { length, .. }
    | Operation::Append { length, .. }
    | Operation::WriteHeld { length, .. } = &mut operation
    {
        *length = accepted;
    }
    operation
}
