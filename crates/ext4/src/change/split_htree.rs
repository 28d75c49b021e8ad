//! Making room in a hashed directory: a full block of entries is split by hash, a full block of
//! the index in two, and the root gets a level when it is full itself. And making a directory of
//! one block a hashed one.

use pagefence_ext4_format::dir_entry::{self, EntryName, FileKind, Role};
use pagefence_ext4_format::inode::InodeFlags;
use pagefence_ext4_format::{BlockNo, FileBlock, InodeNo, htree};
use pagefence_jbd2::Turn;
use pagefence_vfs::Result;

use crate::change::append_block::append_block;
use crate::change::change_dir::Directory;
use crate::dir::block_no;
use crate::disk_inode::DiskInode;
use crate::error::At;
use crate::htree::DxPath;
use crate::instance::Instance;

/// The hash of half MD4, where the superblock names none that an index on disk may have.
const HALF_MD4: u8 = 1;
/// The last of the hash functions that an index on disk may have.
const LAST_HASH: u8 = 2;

/// What a directory of one block becomes with an index.
struct Indexed {
    /// Its only block, and what that holds then.
    at: BlockNo,
    root: Vec<u8>,
    /// The block of its entries.
    leaf: Vec<u8>,
}

/// A block of entries cut in two.
struct Halves {
    at: BlockNo,
    left: Vec<u8>,
    right: Vec<u8>,
    /// What the index is to say of the right one.
    hash: u32,
    /// Whether the new entry is there.
    is_right: bool,
}

impl Instance {
    /// Makes sure that a directory of one block can get an index.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(super) fn check_index(&self, disk: &DiskInode) -> Result<()> {
        self.plan_index(disk).map(drop)
    }

    /// Makes sure that a full block of entries can be split for a name.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(super) fn check_split(
        &self,
        disk: &DiskInode,
        leaf: FileBlock,
        name: &EntryName<'_>,
    ) -> Result<()> {
        let new = Owned {
            hash: self.dx_hasher(disk)?.hash(name.as_bytes()).major,
            inode: disk.number,
            name: name.as_bytes().to_vec(),
            kind: None,
        };
        self.plan_split(disk, leaf, new).map(drop)
    }

    fn plan_index(&self, disk: &DiskInode) -> Result<Indexed> {
        let first = FileBlock(0);
        let buffer = self.dir_block(disk, first)?;
        let at = block_no(&buffer);
        let view = self.dir_entries(disk, first, &buffer);
        let (_, parent) = view.dots().at(&self.damage, Some(disk.number), Some(at))?;
        let entries: Vec<_> = view.entries().collect::<std::result::Result<_, _>>().at(
            &self.damage,
            Some(disk.number),
            Some(at),
        )?;
        let mut leaf = vec![0; buffer.len()];
        let mut fits = dir_entry::init_block(&mut leaf, &self.dir_format);
        for entry in entries.iter().filter(|entry| entry.role == Role::Name) {
            let put = EntryName::new(entry.name).map(|name| {
                dir_entry::insert(&mut leaf, &self.dir_format, entry.inode, &name, entry.kind)
            });
            fits &= matches!(put, Some(Ok(Some(_))));
        }
        let mut root = vec![0; buffer.len()];
        let version = self.superblock.def_hash_version();
        fits &= htree::init_root(
            &mut root,
            (disk.number, parent),
            (self.dir_format.filetype, self.checksums),
            if version <= LAST_HASH {
                version
            } else {
                HALF_MD4
            },
            FileBlock(1),
        );
        if !fits {
            let what = "its only block can't become a root";
            return Err(self.damaged(disk.number, Some(at), what));
        }
        Ok(Indexed { at, root, leaf })
    }

    /// Half of the entries of a block, by hash, and the other half, with a new entry among them. Both
    /// have room for it, for it is counted in when the middle is chosen.
    fn plan_split(&self, disk: &DiskInode, leaf: FileBlock, new: Owned) -> Result<Halves> {
        let hasher = self.dx_hasher(disk)?;
        let buffer = self.leaf_block(disk, leaf)?;
        let at = block_no(&buffer);
        let (new_hash, new_name) = (new.hash, new.name.clone());
        let mut entries = self
            .dir_entries(disk, leaf, &buffer)
            .entries()
            .map(|entry| {
                entry.map(|entry| Owned {
                    hash: hasher.hash(entry.name).major,
                    inode: entry.inode,
                    name: entry.name.to_vec(),
                    kind: entry.kind,
                })
            })
            .chain([Ok(new)])
            .collect::<std::result::Result<Vec<_>, _>>()
            .at(&self.damage, Some(disk.number), Some(at))?;
        entries.sort_by_key(|entry| entry.hash);
        let half = entries.iter().map(Owned::len).sum::<usize>() / 2;
        let mut sum = 0;
        let mid = entries
            .iter()
            .take_while(|entry| {
                sum += entry.len();
                sum <= half
            })
            .count()
            .max(1);
        let unfit = || {
            let what = "a full block of entries can't be split";
            self.damaged(disk.number, Some(at), what)
        };
        let (Some(first), Some(before)) = (entries.get(mid), entries.get(mid - 1)) else {
            return Err(unfit());
        };
        // Bit 0 says that names of this hash begin in the block before.
        let hash = first.hash | u32::from(first.hash == before.hash);
        let is_right = entries[mid..]
            .iter()
            .any(|entry| entry.hash == new_hash && entry.name == new_name);
        let fill = |entries: &[Owned]| {
            let mut bytes = vec![0; buffer.len()];
            let mut fits = dir_entry::init_block(&mut bytes, &self.dir_format);
            for entry in entries {
                let put = EntryName::new(&entry.name).map(|name| {
                    let (inode, kind) = (entry.inode, entry.kind);
                    dir_entry::insert(&mut bytes, &self.dir_format, inode, &name, kind)
                });
                fits &= matches!(put, Some(Ok(Some(_))));
            }
            fits.then_some(bytes)
        };
        let (left, right) = entries.split_at(mid);
        let (Some(left), Some(right)) = (fill(left), fill(right)) else {
            return Err(unfit());
        };
        Ok(Halves {
            at,
            left,
            right,
            hash,
            is_right,
        })
    }
}

/// Makes a directory that consists of one block a hashed one: its entries move into a second
/// block, the first becomes the root.
///
/// # Errors
/// `Corrupt`, `Io` (also of the kind `StorageFull`), `NoSpace`.
pub(super) fn make_index(directory: &mut Directory<'_, '_>) -> Result<()> {
    let instance = directory.transaction.instance;
    let mut new = instance.plan_index(&directory.disk()?)?;
    let (leaf, leaf_at) = append_block(directory.transaction, directory.record)?;
    debug_assert_eq!(leaf, FileBlock(1), "it had one block");
    directory.set_entries(leaf_at, &mut new.leaf)?;
    let flags = directory.record.flags() | InodeFlags::INDEX;
    directory.record.set_flags(flags);
    change_index(directory, new.at, |block| {
        block.copy_from_slice(&new.root);
        true
    })?;
    directory.transaction.take_turn(new.at, Turn::Yields);
    Ok(())
}

/// Puts a name into a hashed directory, in whose block for it there may be no room; returns the
/// block where it is then.
///
/// # Errors
/// `Corrupt` if the index has no room for more; `Io` (also of the kind `StorageFull`), `NoSpace`.
pub(super) fn insert(
    directory: &mut Directory<'_, '_>,
    name: &EntryName<'_>,
    inode: InodeNo,
    kind: Option<FileKind>,
) -> Result<FileBlock> {
    let instance = directory.transaction.instance;
    loop {
        let disk = directory.disk()?;
        let (hash, path) = instance.dx_find(&disk, name.as_bytes())?;
        let leaf = path.leaf().at(&instance.damage, Some(disk.number), None)?;
        let buffer = instance.leaf_block(&disk, leaf)?;
        let at = block_no(&buffer);
        let gap = dir_entry::largest_gap(&buffer, &instance.dir_format).at(
            &instance.damage,
            Some(disk.number),
            Some(at),
        )?;
        if gap >= dir_entry::entry_len(name.as_bytes().len()) {
            directory.insert_into(at, name, inode, kind)?;
            return Ok(leaf);
        }
        let lowest = path.levels();
        if is_full(directory, &path, lowest)? {
            make_room(directory, &path)?;
            continue;
        }
        let new = Owned {
            hash,
            inode,
            name: name.as_bytes().to_vec(),
            kind,
        };
        let (entry, is_right) = split_leaf(directory, &disk, leaf, new)?;
        add(directory, &path, lowest, entry)?;
        return Ok(if is_right { entry.1 } else { leaf });
    }
}

fn is_full(directory: &Directory<'_, '_>, path: &DxPath, level: usize) -> Result<bool> {
    path.is_full(level).at(
        &directory.transaction.instance.damage,
        Some(directory.record.ino()),
        None,
    )
}

/// Makes room in the index on the way to a block of entries, whose lowest node is full: one node
/// is split, or the root grows. The caller looks the way up again.
fn make_room(directory: &mut Directory<'_, '_>, path: &DxPath) -> Result<()> {
    for level in (0..path.levels()).rev() {
        if !is_full(directory, path, level)? {
            let entry = split_node(directory, path, level + 1)?;
            return add(directory, path, level, entry);
        }
    }
    grow(directory, path)
}

/// An entry of a directory, copied out.
struct Owned {
    hash: u32,
    inode: InodeNo,
    name: Vec<u8>,
    kind: Option<FileKind>,
}

impl Owned {
    /// Bytes that it takes.
    fn len(&self) -> usize {
        dir_entry::entry_len(self.name.len())
    }
}

/// Puts an entry into a full block of entries, half of which, by hash, moves into a new block.
/// Returns what the index is to say of the new block, and whether the entry is there.
fn split_leaf(
    directory: &mut Directory<'_, '_>,
    disk: &DiskInode,
    leaf: FileBlock,
    new: Owned,
) -> Result<((u32, FileBlock), bool)> {
    let mut halves = directory.transaction.instance.plan_split(disk, leaf, new)?;
    let (new, new_at) = append_block(directory.transaction, directory.record)?;
    directory.set_entries(new_at, &mut halves.right)?;
    directory.change_entries(halves.at, &halves.left)?;
    directory.transaction.take_turn(halves.at, Turn::Yields);
    Ok(((halves.hash, new), halves.is_right))
}

/// Moves the upper half of the entries of a level's node into a new node. Returns what the level
/// above is to say of that.
fn split_node(
    directory: &mut Directory<'_, '_>,
    path: &DxPath,
    level: usize,
) -> Result<(u32, FileBlock)> {
    let entries = entries(directory, path, level)?;
    let (left, right) = entries.split_at(entries.len() / 2);
    let hash = right.first().map_or(0, |(hash, _)| *hash);
    let new = new_node(directory, right)?;
    set_entries(directory, path, level, left)?;
    Ok((hash, new))
}

/// Moves the root's entries into a node of their own.
fn grow(directory: &mut Directory<'_, '_>, path: &DxPath) -> Result<()> {
    let instance = directory.transaction.instance;
    let (root, _) = path.step(0);
    let levels = path.levels() + 1;
    if levels > instance.dx_levels_max() as usize {
        return Err(instance.damaged(directory.record.ino(), Some(root), "its index is full"));
    }
    let entries = entries(directory, path, 0)?;
    let new = new_node(directory, &entries)?;
    let checksums = instance.checksums;
    change_index(directory, root, |bytes| {
        htree::set_entries(bytes, true, checksums, &[(0, new)])
            && htree::set_levels(bytes, levels as u8)
    })
}

/// Adds a block with a node of these entries to the directory.
fn new_node(directory: &mut Directory<'_, '_>, entries: &[(u32, FileBlock)]) -> Result<FileBlock> {
    let instance = directory.transaction.instance;
    let (new, block) = append_block(directory.transaction, directory.record)?;
    let mut bytes = vec![0; instance.superblock.block_size() as usize];
    let made = htree::init_node(&mut bytes, instance.checksums, entries);
    debug_assert!(made, "what one node or the root had fits into a node");
    seal(directory, block, &mut bytes)?;
    directory.transaction.set(block, &bytes);
    Ok(new)
}

/// Adds an entry to the block of a level that has room, behind the one that was followed.
fn add(
    directory: &mut Directory<'_, '_>,
    path: &DxPath,
    level: usize,
    entry: (u32, FileBlock),
) -> Result<()> {
    let mut entries = entries(directory, path, level)?;
    let (_, at) = path.step(level);
    entries.insert((at + 1).min(entries.len()), entry);
    set_entries(directory, path, level, &entries)
}

fn entries(
    directory: &Directory<'_, '_>,
    path: &DxPath,
    level: usize,
) -> Result<Vec<(u32, FileBlock)>> {
    path.entries(level).at(
        &directory.transaction.instance.damage,
        Some(directory.record.ino()),
        None,
    )
}

fn set_entries(
    directory: &mut Directory<'_, '_>,
    path: &DxPath,
    level: usize,
    entries: &[(u32, FileBlock)],
) -> Result<()> {
    let checksums = directory.transaction.instance.checksums;
    let (block, _) = path.step(level);
    change_index(directory, block, |bytes| {
        htree::set_entries(bytes, level == 0, checksums, entries)
    })
}

/// Changes a block of the index, and refreshes its checksum. `edit` says whether it could.
fn change_index(
    directory: &mut Directory<'_, '_>,
    block: BlockNo,
    edit: impl FnOnce(&mut [u8]) -> bool,
) -> Result<()> {
    let instance = directory.transaction.instance;
    let inode = directory.record.ino();
    let seed = directory.record.checksum_seed();
    directory.transaction.change(block, |bytes| {
        if !edit(bytes) {
            return Err(instance.damaged(inode, Some(block), "its index has no room"));
        }
        if instance.checksums {
            htree::update_checksum(bytes, seed).at(&instance.damage, Some(inode), Some(block))?;
        }
        Ok(())
    })
}

fn seal(directory: &Directory<'_, '_>, block: BlockNo, bytes: &mut [u8]) -> Result<()> {
    let instance = directory.transaction.instance;
    if !instance.checksums {
        return Ok(());
    }
    htree::update_checksum(bytes, directory.record.checksum_seed()).at(
        &instance.damage,
        Some(directory.record.ino()),
        Some(block),
    )
}
