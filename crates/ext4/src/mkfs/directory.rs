//! Filling the file system: directories with their entries, files with their data, links.

use std::collections::BTreeMap;
use std::ops::Range;

use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::dir_entry::{
    self, EntryName, FileKind as EntryKind, init_block, init_first_block,
};
use pagefence_ext4_format::features::RoCompat;
use pagefence_ext4_format::inode::{FileKind, Inode};

use super::builder::Builder;
use super::error::{EntryError, MkfsError};
use super::mapping::{self, Run, consecutive};
use super::special::set_size;
use super::tree::{Content, LOST_AND_FOUND, Node, NodeMeta, Tree};
use super::xattr;

/// Bytes that `lost+found` is given in advance, as e2fsck can't enlarge what is damaged.
const LOST_AND_FOUND_BYTES: usize = 16 << 10;
/// Blocks of `lost+found`, at least and at most: all are direct ones.
const LOST_AND_FOUND_BLOCKS: std::ops::RangeInclusive<usize> = 2..=12;
/// Links that a directory counts; beyond, with `dir_nlink`, it says 1.
const MOST_LINKS: u32 = 65_000;
/// The longest target of a link that Linux follows.
const MOST_TARGET_BYTES: usize = 4095;
/// Bytes of the shortest target that does not fit into the inode.
const SLOW_SYMLINK_BYTES: usize = 60;

/// Makes everything in the tree.
pub(super) fn populate(
    builder: &mut Builder<'_>,
    tree: &Tree,
    lost_and_found: InodeNo,
) -> Result<(), MkfsError> {
    let mut filler = Filler {
        builder,
        lost_and_found,
    };
    let mut path = Vec::new();
    filler.node(&tree.root, InodeNo::ROOT, InodeNo::ROOT, &mut path)
}

struct Filler<'a, 'b> {
    builder: &'a mut Builder<'b>,
    lost_and_found: InodeNo,
}

impl Filler<'_, '_> {
    /// Makes a file and all below it. `path` is its path, and is so again afterwards.
    fn node(
        &mut self,
        node: &Node,
        ino: InodeNo,
        parent: InodeNo,
        path: &mut Vec<u8>,
    ) -> Result<(), MkfsError> {
        match &node.content {
            Content::Directory(children) => {
                let entries = self.directory(&node.meta, children, ino, parent, path)?;
                for ((name, child), child_ino) in children.iter().zip(entries) {
                    let length = path.len();
                    path.push(b'/');
                    path.extend_from_slice(name);
                    self.node(child, child_ino, ino, path)?;
                    path.truncate(length);
                }
                Ok(())
            }
            Content::File { bytes, holes } => self.file(&node.meta, bytes, *holes, ino, path),
            Content::Symlink(target) => self.symlink(&node.meta, target, ino, path),
        }
    }

    /// Makes a directory and takes the inodes of its children.
    fn directory(
        &mut self,
        meta: &NodeMeta,
        children: &BTreeMap<Vec<u8>, Node>,
        ino: InodeNo,
        parent: InodeNo,
        path: &[u8],
    ) -> Result<Vec<InodeNo>, MkfsError> {
        let mut inode = self.inode(ino, FileKind::Directory, meta, 0o755, path)?;
        let mut numbers = Vec::with_capacity(children.len());
        let mut entries = Vec::with_capacity(children.len());
        let mut links = 2_u32;
        for (name, child) in children {
            let kind = kind_of(child);
            let is_lost_and_found = ino == InodeNo::ROOT && name == LOST_AND_FOUND;
            let child_ino = if is_lost_and_found {
                self.lost_and_found
            } else {
                self.builder.take_inode(kind)?
            };
            links = links.saturating_add(u32::from(kind == FileKind::Directory));
            let name = EntryName::new(name).ok_or_else(|| EntryError::Name.at(path))?;
            entries.push((child_ino, name, entry_kind(kind)));
            numbers.push(child_ino);
        }
        inode.set_links(
            self.directory_links(links)
                .ok_or_else(|| EntryError::Links.at(path))?,
        );

        let mut blocks = self.entry_blocks(&inode, parent, &entries)?;
        if ino == self.lost_and_found {
            let wanted = LOST_AND_FOUND_BYTES / self.builder.block_size();
            let (least, most) = (*LOST_AND_FOUND_BLOCKS.start(), *LOST_AND_FOUND_BLOCKS.end());
            while blocks.len() < wanted.clamp(least, most) {
                blocks.push(self.empty_block());
            }
        }
        if self.builder.sb.has_metadata_csum() {
            for block in &mut blocks {
                dir_entry::update_checksum(block, inode.checksum_seed())?;
            }
        }
        let bytes = blocks.concat();
        mapping::check_size(self.builder, path, bytes.len() as u64)?;
        let pieces = self.builder.allocate(blocks.len() as u64)?;
        self.write_pieces(&pieces, &bytes)?;
        inode.set_size(bytes.len() as u64);
        mapping::map(self.builder, &mut inode, &consecutive(pieces))?;
        self.builder.put_inode(inode);
        Ok(numbers)
    }

    fn directory_links(&self, links: u32) -> Option<u16> {
        if links < MOST_LINKS {
            return u16::try_from(links).ok();
        }
        self.builder
            .sb
            .has_ro_compat(RoCompat::DIR_NLINK)
            .then_some(1)
    }

    /// The blocks of a directory, one entry behind the other.
    fn entry_blocks(
        &self,
        inode: &Inode,
        parent: InodeNo,
        entries: &[(InodeNo, EntryName<'_>, EntryKind)],
    ) -> Result<Vec<Vec<u8>>, MkfsError> {
        let format = self.builder.dir_format();
        let mut block = vec![0; self.builder.block_size()];
        let is_made = init_first_block(&mut block, &format, inode.ino(), parent);
        debug_assert!(is_made, "two entries fit into any block");
        let mut blocks = Vec::new();
        for (ino, name, kind) in entries {
            let place = dir_entry::insert(&mut block, &format, *ino, name, Some(*kind))?;
            if place.is_none() {
                blocks.push(std::mem::replace(&mut block, self.empty_block()));
                let place = dir_entry::insert(&mut block, &format, *ino, name, Some(*kind))?;
                debug_assert!(place.is_some(), "any name fits into an empty block");
            }
        }
        blocks.push(block);
        Ok(blocks)
    }

    fn empty_block(&self) -> Vec<u8> {
        let mut block = vec![0; self.builder.block_size()];
        let is_made = init_block(&mut block, &self.builder.dir_format());
        debug_assert!(is_made, "an entry fits into any block");
        block
    }

    fn file(
        &mut self,
        meta: &NodeMeta,
        bytes: &[u8],
        holes: bool,
        ino: InodeNo,
        path: &[u8],
    ) -> Result<(), MkfsError> {
        mapping::check_size(self.builder, path, bytes.len() as u64)?;
        let mut inode = self.inode(ino, FileKind::Regular, meta, 0o644, path)?;
        let block_size = self.builder.block_size();
        let mut runs: Vec<Run> = Vec::new();
        for stretch in stretches(bytes, block_size, holes) {
            let pieces = self
                .builder
                .allocate((stretch.end - stretch.start) as u64)?;
            let first_byte = stretch.start * block_size;
            let end_byte = bytes.len().min(stretch.end * block_size);
            self.write_pieces(&pieces, &bytes[first_byte..end_byte])?;
            let first = stretch.start as u32;
            runs.extend(consecutive(pieces).into_iter().map(|run| Run {
                first: first + run.first,
                ..run
            }));
        }
        set_size(self.builder, &mut inode, bytes.len() as u64);
        mapping::map(self.builder, &mut inode, &runs)?;
        self.builder.put_inode(inode);
        Ok(())
    }

    fn symlink(
        &mut self,
        meta: &NodeMeta,
        target: &[u8],
        ino: InodeNo,
        path: &[u8],
    ) -> Result<(), MkfsError> {
        // A block holds the target and the NUL byte behind it.
        let most = MOST_TARGET_BYTES.min(self.builder.block_size() - 1);
        if target.is_empty() || target.len() > most || target.contains(&0) {
            return Err(EntryError::Target { most }.at(path));
        }
        let meta = NodeMeta {
            permissions: Some(0o777),
            ..meta.clone()
        };
        let mut inode = self.inode(ino, FileKind::Symlink, &meta, 0o777, path)?;
        if target.len() < SLOW_SYMLINK_BYTES {
            let is_set = inode.set_fast_symlink_target(target);
            debug_assert!(is_set, "the target was checked");
        } else {
            let pieces = self.builder.allocate(1)?;
            self.write_pieces(&pieces, target)?;
            inode.set_size(target.len() as u64);
            mapping::map(self.builder, &mut inode, &consecutive(pieces))?;
        }
        self.builder.put_inode(inode);
        Ok(())
    }

    /// An inode with what `meta` says.
    fn inode(
        &self,
        ino: InodeNo,
        kind: FileKind,
        meta: &NodeMeta,
        permissions: u16,
        path: &[u8],
    ) -> Result<Inode, MkfsError> {
        let permissions = meta.permissions.unwrap_or(permissions);
        let mut inode = self.builder.new_inode(ino, kind, permissions);
        inode.set_uid(meta.uid);
        inode.set_gid(meta.gid);
        if let Some(mtime) = meta.mtime {
            inode.set_atime(mtime);
            inode.set_mtime(mtime);
        }
        xattr::store(&mut inode, &meta.xattrs).map_err(|reason| reason.at(path))?;
        Ok(inode)
    }

    /// Writes `bytes` to the pieces one after the other.
    fn write_pieces(&mut self, pieces: &[Range<u64>], bytes: &[u8]) -> Result<(), MkfsError> {
        let block_size = self.builder.block_size();
        let mut rest = bytes;
        for piece in pieces {
            let length = (piece.end - piece.start) as usize * block_size;
            let (now, later) = rest.split_at(rest.len().min(length));
            self.builder.writer.write(piece.start, now)?;
            rest = later;
        }
        debug_assert!(rest.is_empty(), "the pieces hold all bytes");
        Ok(())
    }
}

fn kind_of(node: &Node) -> FileKind {
    match node.content {
        Content::Directory(_) => FileKind::Directory,
        Content::File { .. } => FileKind::Regular,
        Content::Symlink(_) => FileKind::Symlink,
    }
}

fn entry_kind(kind: FileKind) -> EntryKind {
    match kind {
        FileKind::Directory => EntryKind::Directory,
        FileKind::Symlink => EntryKind::Symlink,
        _ => EntryKind::Regular,
    }
}

/// The stretches of file blocks that are stored: all of them, or with `holes` those with a byte
/// that is not zero.
fn stretches(bytes: &[u8], block_size: usize, holes: bool) -> Vec<Range<usize>> {
    let mut stored: Vec<Range<usize>> = Vec::new();
    for (number, block) in bytes.chunks(block_size).enumerate() {
        if holes && block.iter().all(|byte| *byte == 0) {
            continue;
        }
        match stored.last_mut() {
            Some(last) if last.end == number => last.end = number + 1,
            _ => stored.push(number..number + 1),
        }
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_become_holes_only_if_asked() {
        let mut bytes = vec![0; 4096 * 3 + 1];
        bytes[4096] = 1;
        let bounds = |bytes: &[u8], holes| -> Vec<(usize, usize)> {
            let stored = stretches(bytes, 4096, holes);
            stored.iter().map(|run| (run.start, run.end)).collect()
        };
        assert_eq!(bounds(&bytes, true), [(1, 2)]);
        assert_eq!(bounds(&bytes, false), [(0, 4)]);
        bytes[4096 * 3] = 1;
        assert_eq!(bounds(&bytes, true), [(1, 2), (3, 4)]);
        assert!(bounds(&[], false).is_empty());
    }
}
