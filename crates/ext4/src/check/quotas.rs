//! What users, groups and projects have, counted and as the quota files say.

use std::collections::{BTreeMap, BTreeSet};

use pagefence_ext4_format::features::{Compat, RoCompat};
use pagefence_ext4_format::inode::{Inode, InodeFlags};
use pagefence_ext4_format::quota::{
    BLOCK_BYTES, LEVELS, QuotaKind, ROOT, Used, blocks, count_of, entries, references,
};
use pagefence_ext4_format::{FileBlock, InodeNo};

use super::map::{MappedRun, Runs, find, has_map};
use super::{Checker, Memory, Stage, Step};

/// Bytes of memory for whatever is kept of an id.
const KEPT: u64 = 64;

/// Bytes of a record without fields behind the first ones: none of the file system has a project.
const OLD_RECORD: usize = 128;

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    /// In the order of [`QuotaKind::ALL`].
    counted: [BTreeMap<u32, Used>; 3],
    /// Something in use could not be counted.
    is_partial: bool,
}

impl Quotas {
    fn charge(&mut self, kind: usize, id: u32, used: Used, memory: &mut Memory) -> Step {
        let Some(counted) = self.counted.get_mut(kind) else {
            return Ok(());
        };
        if !counted.contains_key(&id) {
            memory.take(KEPT)?;
        }
        let sum = counted.entry(id).or_default();
        sum.bytes = sum.bytes.saturating_add(used.bytes);
        sum.inodes = sum.inodes.saturating_add(used.inodes);
        Ok(())
    }
}

/// A quota file.
struct QuotaFile {
    number: InodeNo,
    runs: Vec<MappedRun>,
    /// Its size in blocks of [`BLOCK_BYTES`], by its header.
    blocks: u32,
}

/// What a quota file says.
#[derive(Default)]
struct Stored {
    /// By the ids.
    used: BTreeMap<u32, Used>,
    /// A part of it can't be understood: what is not there may be.
    is_partial: bool,
}

impl Checker<'_> {
    pub(super) fn has_quotas(&self) -> bool {
        self.instance.superblock.has_ro_compat(RoCompat::QUOTA)
    }

    /// An inode in use can't be counted, or not all of it: what is counted is too little.
    pub(super) fn miss_quota_of(&mut self, number: InodeNo) {
        self.quotas.is_partial |= self.is_charged(number);
    }

    /// Nothing is known of the inodes of a group.
    pub(super) fn miss_quotas_of_group(&mut self) {
        self.quotas.is_partial = true;
    }

    /// Whether somebody is charged for an inode: not for those that the file system keeps for itself.
    fn is_charged(&self, number: InodeNo) -> bool {
        let superblock = &self.instance.superblock;
        number == InodeNo::ROOT
            || (number >= superblock.first_inode()
                && superblock.orphan_file_inode() != Some(number)
                && !superblock.quota_inodes().contains(&Some(number)))
    }

    /// Charges an inode, `clusters` and inodes of values of attributes, to whom it belongs.
    pub(super) fn charge_quotas(
        &mut self,
        record: &Inode,
        clusters: u64,
        value_inodes: u64,
    ) -> Step {
        let superblock = &self.instance.superblock;
        // Who refers to a value is charged for it.
        let is_value = record.flags().contains(InodeFlags::EA_INODE);
        if !self.has_quotas() || !self.is_charged(record.ino()) || is_value {
            return Ok(());
        }
        let used = Used {
            bytes: clusters.saturating_mul(u64::from(superblock.cluster_size())),
            inodes: value_inodes.saturating_add(1),
        };
        let has_projects = superblock.inode_size() > OLD_RECORD;
        let project = has_projects.then(|| record.project().unwrap_or(0));
        let ids = [Some(record.uid()), Some(record.gid()), project];
        for (kind, id) in ids.into_iter().enumerate() {
            if let Some(id) = id {
                self.quotas.charge(kind, id, used, &mut self.memory)?;
            }
        }
        Ok(())
    }

    /// The quota files against what was counted.
    pub(super) fn check_quotas(&mut self) -> Step {
        if !self.has_quotas() {
            return Ok(());
        }
        let quotas = std::mem::take(&mut self.quotas);
        // Linux does not charge for what it replays of fast commits.
        let is_behind =
            self.summary.was_replayed && (self.instance.superblock).has_compat(Compat::FAST_COMMIT);
        let is_known = !quotas.is_partial && !is_behind;
        let total = QuotaKind::ALL.len() as u64;
        let inodes = self.instance.superblock.quota_inodes();
        let files = QuotaKind::ALL.into_iter().zip(inodes).zip(quotas.counted);
        for (done, ((kind, inode), counted)) in (0..).zip(files) {
            self.report.progress(Stage::Quotas, done, total)?;
            let Some(number) = inode else {
                continue;
            };
            if let Some(file) = self.open_quotas(number, kind)? {
                let stored = self.read_quotas(&file)?;
                if is_known {
                    self.compare_quotas(number, kind, &stored, &counted)?;
                }
            }
        }
        Ok(())
    }

    fn open_quotas(&mut self, number: InodeNo, kind: QuotaKind) -> Step<Option<QuotaFile>> {
        let superblock = &self.instance.superblock;
        let record = self.with_record(number, |bytes| Inode::parse(bytes, number, superblock))?;
        // What is wrong with the record was told.
        let Some(Ok(record)) = record else {
            return Ok(None);
        };
        let runs = if has_map(&record) {
            let mut nodes = superblock.blocks_count();
            Runs::of(&self.instance, &record, &mut nodes)?
        } else {
            Vec::new()
        };
        let mut file = QuotaFile {
            number,
            runs,
            blocks: 0,
        };
        match blocks(&self.quota_block(&file, 0)?, kind, record.size()) {
            Ok(blocks) => {
                file.blocks = blocks;
                Ok(Some(file))
            }
            Err(what) => {
                self.report.inode(number, what)?;
                Ok(None)
            }
        }
    }

    /// A block of a quota file; zeros where there is none.
    fn quota_block(&self, file: &QuotaFile, block: u32) -> Step<Vec<u8>> {
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        let at = u64::from(block).saturating_mul(BLOCK_BYTES);
        let block_size = u64::from(self.instance.superblock.block_size()).max(1);
        let place = u32::try_from(at / block_size)
            .ok()
            .and_then(|block| find(&file.runs, FileBlock(block)));
        if let Some(place) = place {
            let buffer = self.instance.buffers.read(place.0)?;
            let start = usize::try_from(at % block_size).unwrap_or(usize::MAX);
            let end = start.saturating_add(bytes.len());
            if let Some(piece) = buffer.get(start..end) {
                bytes.copy_from_slice(piece);
            }
        }
        Ok(bytes)
    }

    /// All of a quota file. Each of its blocks is read once.
    fn read_quotas(&mut self, file: &QuotaFile) -> Step<Stored> {
        let mut stored = Stored::default();
        let mut seen = BTreeSet::from([ROOT]);
        // The nodes of a level, or blocks of entries: by the bytes of ids that lead to them.
        let mut nodes = vec![(0_u32, ROOT)];
        for level in 1..=LEVELS {
            let mut below = Vec::new();
            for (prefix, node) in nodes {
                for (byte, to) in references(&self.quota_block(file, node)?) {
                    let id = (prefix << 8) | u32::from(byte);
                    // Ids share blocks of entries, and nothing above.
                    let is_shared = seen.contains(&to) && level < LEVELS;
                    if to >= file.blocks || is_shared {
                        stored.is_partial = true;
                        self.report.inode(
                            file.number,
                            format_args!(
                                "block {node} of quotas leads to block {to} of {}{}",
                                file.blocks,
                                if is_shared { ", as another does" } else { "" }
                            ),
                        )?;
                        continue;
                    }
                    self.memory.take(KEPT)?;
                    if level < LEVELS {
                        seen.insert(to);
                    }
                    below.push((id, to));
                }
            }
            // As they lie in the file.
            below.sort_unstable_by_key(|(_, to)| *to);
            nodes = below;
        }
        self.read_entries(file, &nodes, &seen, &mut stored)?;
        Ok(stored)
    }

    /// The entries to which ids lead.
    fn read_entries(
        &mut self,
        file: &QuotaFile,
        paths: &[(u32, u32)],
        nodes: &BTreeSet<u32>,
        stored: &mut Stored,
    ) -> Step {
        let mut leaves: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for (id, leaf) in paths {
            leaves.entry(*leaf).or_default().insert(*id);
        }
        for (leaf, mut ids) in leaves {
            if nodes.contains(&leaf) {
                stored.is_partial = true;
                self.report.inode(
                    file.number,
                    format_args!("block {leaf} of quotas is of the tree, and holds entries"),
                )?;
                continue;
            }
            let bytes = self.quota_block(file, leaf)?;
            let (said, there) = (count_of(&bytes), entries(&bytes).count());
            if said != there {
                self.report.inode(
                    file.number,
                    format_args!("block {leaf} of quotas has {there} entries, and says {said}"),
                )?;
            }
            for (id, used) in entries(&bytes) {
                self.memory.take(KEPT)?;
                if ids.remove(&id) {
                    stored.used.insert(id, used);
                } else {
                    self.report.inode(
                        file.number,
                        format_args!("nothing leads to the entry of {id} in block {leaf}"),
                    )?;
                }
            }
            for id in ids {
                stored.is_partial = true;
                self.report.inode(
                    file.number,
                    format_args!("{id} leads to block {leaf}, which has no entry of it"),
                )?;
            }
        }
        Ok(())
    }

    fn compare_quotas(
        &mut self,
        number: InodeNo,
        kind: QuotaKind,
        stored: &Stored,
        counted: &BTreeMap<u32, Used>,
    ) -> Step {
        for (id, said) in &stored.used {
            let due = counted.get(id).copied().unwrap_or_default();
            if *said != due {
                self.report.inode(
                    number,
                    format_args!(
                        "{kind} {id} has {} bytes and {} inodes, counted {} and {}",
                        said.bytes, said.inodes, due.bytes, due.inodes
                    ),
                )?;
            }
        }
        let missing = counted.iter().filter(|_| !stored.is_partial);
        for (id, due) in missing.filter(|(id, _)| !stored.used.contains_key(id)) {
            self.report.inode(
                number,
                format_args!(
                    "nothing is said of {kind} {id}, counted {} bytes and {} inodes",
                    due.bytes, due.inodes
                ),
            )?;
        }
        Ok(())
    }
}
