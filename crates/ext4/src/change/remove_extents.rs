//! Taking extents away from the end of an extent tree.

use pagefence_ext4_format::FileBlock;
use pagefence_ext4_format::extent::{Child, Extent, ExtentNode, ExtentNodeMut, Place};
use pagefence_jbd2::Turn;
use pagefence_vfs::Result;

use crate::change::extent_tree::edit_node;
use crate::change::remove_blocks::{Owner, Progress};
use crate::error::At;

/// Takes away what the tree maps from `from` on.
///
/// Ends: each round frees a block, and a block is freed only once.
///
/// # Errors
/// As [`remove_blocks`](super::remove_blocks::remove_blocks). What goes wrong after blocks were
/// freed is the end of this transaction, and the next one's error, before that changed anything.
pub(crate) fn remove(owner: &mut Owner<'_, '_>, from: FileBlock) -> Result<Progress> {
    loop {
        let (path, last) = match last_extent(owner) {
            Ok(found) => found,
            Err(error) => return owner.stop(error),
        };
        let Some(Last { extent, is_only }) = last else {
            // An empty leaf below the root is no sound tree, but an old kernel may have left one.
            if path.is_empty() {
                return Ok(Progress::Done);
            }
            if let Err(error) = check_prune(owner, &path) {
                return owner.stop(error);
            }
            prune(owner, &path)?;
            continue;
        };
        if extent.end() <= from {
            return Ok(Progress::Done);
        }
        if owner.transaction.is_large() {
            return Ok(Progress::More);
        }
        let kept = from.0.saturating_sub(extent.first.0).min(extent.len.into());
        let kept = u16::try_from(kept).unwrap_or(extent.len);
        let gone = extent.len - kept;
        let Some(start) = extent.start.checked_add(u64::from(kept)) else {
            return Ok(Progress::Done);
        };
        let checked = if is_only && kept == 0 {
            check_prune(owner, &path)
        } else {
            Ok(())
        };
        if let Err(error) = checked.and_then(|()| owner.free(start, gone.into())) {
            return owner.stop(error);
        }
        let shorter = Extent {
            len: kept,
            ..extent
        };
        let emptied = edit(owner, path.last(), |node| {
            let last = node.len().saturating_sub(1);
            if kept == 0 {
                node.remove(last..last + 1);
            } else {
                // As long as before or shorter, so it can be written.
                let _ = node.set_extent(last, &shorter);
            }
            node.is_empty()
        })?;
        if emptied && !path.is_empty() {
            prune(owner, &path)?;
        }
    }
}

/// The last extent of a tree.
struct Last {
    extent: Extent,
    /// Whether it is its leaf's only one.
    is_only: bool,
}

/// The nodes below the root that lead to the last extent of the tree, and that.
fn last_extent(owner: &Owner<'_, '_>) -> Result<(Vec<Child>, Option<Last>)> {
    let instance = owner.transaction.instance;
    let inode = owner.record.ino();
    let root = ExtentNode::parse(owner.record.block_area(), &Place::Root, &instance.limits).at(
        &instance.damage,
        Some(inode),
        None,
    )?;
    let mut path = Vec::new();
    let mut next = last_child(&root);
    let mut last = last_of(&root);
    // Depths fall by one a level, so this ends.
    while let Some(child) = next {
        let buffer = instance.extent_node(inode, owner.record.checksum_seed(), &child)?;
        let node = ExtentNode::reopen(&buffer, &Place::Block(child)).at(
            &instance.damage,
            Some(inode),
            Some(child.block),
        )?;
        next = last_child(&node);
        last = last_of(&node);
        path.push(child);
    }
    Ok((path, last))
}

fn last_of(node: &ExtentNode<'_>) -> Option<Last> {
    let extent = node.extents().next_back()?;
    let is_only = node.len() == 1;
    Some(Last { extent, is_only })
}

/// Makes sure that [`prune`] won't fail to free a node.
fn check_prune(owner: &Owner<'_, '_>, path: &[Child]) -> Result<()> {
    path.iter()
        .try_for_each(|child| owner.check_map_block(child.block))
}

fn last_child(node: &ExtentNode<'_>) -> Option<Child> {
    node.child(node.len().checked_sub(1)?)
}

/// Takes away the node at the end of `path`, which is empty, and every one above that this
/// empties. A root without children becomes an empty leaf.
fn prune(owner: &mut Owner<'_, '_>, path: &[Child]) -> Result<()> {
    let mut rest = path;
    while let Some((empty, above)) = rest.split_last() {
        owner.free_map_block(empty.block)?;
        let emptied = edit(owner, above.last(), |node| {
            let last = node.len().saturating_sub(1);
            node.remove(last..last + 1);
            node.is_empty()
        })?;
        if !emptied {
            return Ok(());
        }
        if above.is_empty() {
            let _ = ExtentNodeMut::init(owner.record.block_area_mut(), 0);
        }
        rest = above;
    }
    Ok(())
}

/// Changes a node: the root, or the one that `child` says.
fn edit<T>(
    owner: &mut Owner<'_, '_>,
    child: Option<&Child>,
    change: impl FnOnce(&mut ExtentNodeMut<'_>) -> T,
) -> Result<T> {
    let turn = Turn::Shrinks;
    edit_node(owner.transaction, owner.record, child, change, turn)
}
