//! Extended attributes: in the inode, in blocks that inodes share, in inodes of their own.

use pagefence_ext4_format::inode::{FileKind, Inode, InodeFlags};
use pagefence_ext4_format::xattr::name::{ENCRYPTION, INLINE_DATA, SYSTEM};
use pagefence_ext4_format::xattr::{self, Value, XattrEntry, XattrLimits, Xattrs};
use pagefence_ext4_format::{BlockNo, FileBlock, InodeNo};

use super::duplicates::Owners;
use super::map::{Runs, find};
use super::{Checker, Step, Subject};

/// Blocks of the map of an attribute inode that are read: a value has 16 MiB at most.
const VALUE_NODES: u64 = 64;

/// No prefix: nobody gives names such.
const NO_PREFIX: u8 = 0;

/// The name of the attribute that says how an inode is encrypted.
const CONTEXT: &[u8] = b"c";

/// A block of attributes.
#[derive(Debug)]
pub(super) struct XattrBlock {
    /// Inodes that share it, as it says; nothing if its header is damaged.
    refcount: Option<u32>,
    /// Inodes that lead to it.
    counted: u32,
    /// Clusters of values in inodes that its users are charged for.
    clusters: u64,
    /// Those inodes.
    value_inodes: u64,
    /// One of its attributes says how its users are encrypted.
    has_context: bool,
}

/// An inode that holds the value of an attribute.
#[derive(Debug, Default)]
pub(super) struct EaInode {
    /// Attributes that lead to it.
    pub(super) references: u64,
    /// Its hash was compared with its contents.
    is_verified: bool,
}

/// What an inode's attributes come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct XattrUse {
    /// Clusters that the inode is charged for.
    pub(super) clusters: u64,
    /// Inodes of values, each as often as an attribute leads to it.
    pub(super) value_inodes: u64,
    /// The attribute block belongs to another, too.
    pub(super) is_shared: bool,
    /// One of its attributes says how it is encrypted.
    pub(super) has_context: bool,
    /// Bytes of what an inline file has beyond `i_block`; nothing without the attribute.
    pub(super) inline_rest: Option<usize>,
}

fn has_context(xattrs: &Xattrs<'_>) -> bool {
    xattrs.find(ENCRYPTION, CONTEXT).is_some()
}

impl Checker<'_> {
    /// Checks the attributes of an inode and claims their block.
    pub(super) fn check_xattrs(&mut self, record: &Inode, owners: &mut Owners) -> Step<XattrUse> {
        let number = record.ino();
        let limits = XattrLimits::from(&self.instance.superblock);
        let mut used = XattrUse::default();
        if let Some(region) = record.xattr_region() {
            match Xattrs::in_inode(region, &limits) {
                Ok(Some(xattrs)) => {
                    (used.clusters, used.value_inodes) =
                        self.check_entries(number, &xattrs, true)?;
                    used.has_context = has_context(&xattrs);
                    let is_inline = record.flags().contains(InodeFlags::INLINE_DATA);
                    if is_inline && xattrs.has_value_outside() {
                        self.report
                            .inode(number, "an attribute's value of no bytes lies outside")?;
                    }
                    used.inline_rest =
                        xattrs
                            .find(SYSTEM, INLINE_DATA)
                            .and_then(|entry| match entry.value {
                                Value::Bytes(bytes) => Some(bytes.len()),
                                Value::Inode { .. } => None,
                            });
                }
                Ok(None) => {}
                Err(what) => {
                    self.miss_quota_of(number);
                    self.report.inode(number, what)?;
                }
            }
        }
        let Some(block) = record.file_acl() else {
            return Ok(used);
        };
        if !self.instance.limits.contains(block, 1) {
            self.miss_quota_of(number);
            self.report.inode(
                number,
                format_args!("its attribute block is {block}, outside the file system"),
            )?;
            return Ok(used);
        }
        if !self.xattr_blocks.contains_key(&block) {
            used.is_shared = self.open_xattr_block(number, block, &limits, owners)?;
        }
        if let Some(known) = self.xattr_blocks.get_mut(&block) {
            known.counted = known.counted.saturating_add(1);
            used.has_context |= known.has_context;
            used.clusters = used
                .clusters
                .saturating_add(known.clusters)
                .saturating_add(1);
            used.value_inodes = used.value_inodes.saturating_add(known.value_inodes);
        }
        Ok(used)
    }

    /// Checks a block of attributes when the first inode leads to it. Says whether another owns
    /// it.
    fn open_xattr_block(
        &mut self,
        number: InodeNo,
        block: BlockNo,
        limits: &XattrLimits,
        owners: &mut Owners,
    ) -> Step<bool> {
        self.memory.take(64)?;
        let cluster = self.usage.cluster_of(block);
        owners.note(number, cluster..cluster + 1);
        let is_shared = self
            .usage
            .claim(cluster..cluster + 1, true, &mut self.memory)?;
        let buffer = self.instance.buffers.read(block.0)?;
        if self.instance.checksums
            && let Err(what) = xattr::verify_checksum(&buffer, block, self.instance.seed)
        {
            self.report
                .inode(number, format_args!("block {block}: {what}"))?;
        }
        let mut known = XattrBlock {
            refcount: xattr::refcount(&buffer).ok(),
            counted: 0,
            clusters: 0,
            value_inodes: 0,
            has_context: false,
        };
        match Xattrs::in_block(&buffer, limits) {
            Ok(xattrs) => {
                (known.clusters, known.value_inodes) =
                    self.check_entries(number, &xattrs, false)?;
                known.has_context = has_context(&xattrs);
            }
            Err(what) => {
                self.miss_quota_of(number);
                self.report
                    .inode(number, format_args!("block {block}: {what}"))?;
            }
        }
        self.xattr_blocks.insert(block, known);
        Ok(is_shared)
    }

    /// Checks attributes one by one, and returns the clusters of their values in inodes, and how many
    /// of these there are.
    fn check_entries(
        &mut self,
        number: InodeNo,
        xattrs: &Xattrs<'_>,
        in_inode: bool,
    ) -> Step<(u64, u64)> {
        let (mut clusters, mut inodes) = (0_u64, 0_u64);
        for entry in xattrs.entries() {
            if let Value::Inode { inode, len } = entry.value {
                clusters =
                    clusters.saturating_add(self.check_ea_inode(number, &entry, inode, len)?);
                inodes = inodes.saturating_add(1);
            }
            if let Err(what) = entry.verify_hash(in_inode) {
                self.report.inode(number, what)?;
            }
            if entry.index == NO_PREFIX && !in_inode {
                self.report
                    .inode(number, "an attribute whose name has no prefix")?;
            }
        }
        if xattrs.values_collide() {
            self.report.inode(
                number,
                "values of its attributes lie on each other, or past the end",
            )?;
        }
        Ok((clusters, inodes))
    }

    /// Checks an inode that holds a value, and returns the clusters that it counts for.
    fn check_ea_inode(
        &mut self,
        owner: InodeNo,
        entry: &XattrEntry<'_>,
        number: InodeNo,
        len: u32,
    ) -> Step<u64> {
        let clusters = u64::from(len).div_ceil(u64::from(self.instance.superblock.cluster_size()));
        let superblock = &self.instance.superblock;
        let record = self.with_record(number, |bytes| Inode::parse(bytes, number, superblock))?;
        let holder = match record {
            None => return Ok(clusters),
            Some(Err(what)) => {
                self.report.inode(
                    owner,
                    format_args!("inode {number}, which holds an attribute: {what}"),
                )?;
                return Ok(clusters);
            }
            Some(Ok(holder)) => holder,
        };
        let fits = holder.flags().contains(InodeFlags::EA_INODE)
            && holder.kind() == Some(FileKind::Regular)
            && holder.links() > 0
            && holder.size() == u64::from(len);
        if !fits {
            self.report.inode(
                owner,
                format_args!("inode {number} is no attribute inode of {len} bytes"),
            )?;
            return Ok(clusters);
        }
        self.memory.take(48)?;
        let known = self.ea_inodes.entry(number).or_default();
        known.references = known.references.saturating_add(1);
        if known.is_verified {
            return Ok(clusters);
        }
        known.is_verified = true;
        // As many blocks as there are hold all values once: more are values in shared blocks.
        let blocks = u64::from(len).div_ceil(u64::from(self.instance.superblock.block_size()));
        match self.value_blocks_left.checked_sub(blocks) {
            Some(left) => self.value_blocks_left = left,
            None => return Ok(clusters),
        }
        // Lustre's attribute inodes have no hash: they point back to their owner instead.
        if holder.mtime().seconds == i64::from(owner.0) {
            return Ok(clusters);
        }
        match self.value_of(&holder)? {
            None => self
                .report
                .inode(number, "an attribute inode with a hole")?,
            Some(value) => {
                if let Err(what) =
                    entry.verify_ea_inode(&value, holder.ea_hash(), self.instance.seed)
                {
                    self.report.inode(number, what)?;
                }
            }
        }
        Ok(clusters)
    }

    /// The contents of an attribute inode, whose size was checked; nothing if it has a hole.
    fn value_of(&self, holder: &Inode) -> Step<Option<Vec<u8>>> {
        let Ok(len) = usize::try_from(holder.size()) else {
            return Ok(None);
        };
        let runs = Runs::of(&self.instance, holder, &mut { VALUE_NODES })?;
        let mut value = vec![0; len];
        let block_size = self.instance.superblock.block_size() as usize;
        for (block, piece) in (0..).zip(value.chunks_mut(block_size)) {
            let Some(start) = find(&runs, FileBlock(block)) else {
                return Ok(None);
            };
            let buffer = self.instance.buffers.read(start.0)?;
            piece.copy_from_slice(buffer.get(..piece.len()).unwrap_or(&[]));
        }
        Ok(Some(value))
    }

    /// What is counted of attribute blocks and attribute inodes, once all inodes were met.
    pub(super) fn check_xattr_counts(&mut self) -> Step {
        for (block, known) in &self.xattr_blocks {
            if let Some(refcount) = known.refcount
                && refcount != known.counted
            {
                self.report.find(
                    Subject::Block(*block),
                    format_args!(
                        "attribute block with {refcount} users, counted {}",
                        known.counted
                    ),
                )?;
            }
        }
        Ok(())
    }
}
