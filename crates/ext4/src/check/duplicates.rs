//! Who owns the blocks that are owned twice: everything is claimed once more, and whoever claims
//! such a block is told.

use std::collections::BTreeSet;
use std::ops::Range;

use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::inode::Inode;

use super::{BlockUsage, Checker, MEMORY_MAX, Memory, Step, Subject};

/// Claims that are remembered; there may be more.
const CLAIMS_MAX: usize = 1 << 16;

/// Who claims what is owned twice. Hears of nothing while that is not yet known.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// What is owned twice, once it is known.
    shared: Option<BlockUsage>,
    claims: Vec<(Range<u64>, InodeNo)>,
}

impl Owners {
    /// Remembers that an inode claims clusters, as far as they are owned twice.
    pub(super) fn note(&mut self, number: InodeNo, clusters: Range<u64>) {
        let Some(shared) = &self.shared else {
            return;
        };
        for run in shared.shared_in(clusters) {
            if self.claims.len() < CLAIMS_MAX {
                self.claims.push((run, number));
            }
        }
    }
}

impl Checker<'_> {
    /// Tells the owners of what is owned twice.
    pub(super) fn check_duplicates(&mut self) -> Step {
        if !self.usage.has_shared() {
            return Ok(());
        }
        let fresh = BlockUsage::new(&self.instance.superblock);
        let mut owners = Owners {
            shared: Some(std::mem::replace(&mut self.usage, fresh)),
            claims: Vec::new(),
        };
        // As much as the first time, which is kept until the end.
        let left = std::mem::replace(&mut self.memory, Memory(MEMORY_MAX));
        self.report.is_muted = true;
        let claimed = self.claim_again(&mut owners);
        self.report.is_muted = false;
        self.memory = left;
        claimed?;
        self.tell_owners(owners)
    }

    fn claim_again(&mut self, owners: &mut Owners) -> Step {
        self.claim_metadata()?;
        let mut xattr_blocks = BTreeSet::new();
        for group in self.inodes.groups() {
            for (number, _) in self.inodes.of_group(group) {
                let superblock = &self.instance.superblock;
                let record =
                    self.with_record(number, |bytes| Inode::read(bytes, number, superblock))?;
                let Some(Ok(record)) = record else {
                    continue;
                };
                if let Some(block) = record.file_acl()
                    && self.xattr_blocks.contains_key(&block)
                    && xattr_blocks.insert(block)
                {
                    let cluster = self.usage.cluster_of(block);
                    owners.note(number, cluster..cluster + 1);
                    self.usage
                        .claim(cluster..cluster + 1, true, &mut self.memory)?;
                }
                if self.is_resize_inode(number) {
                    self.claim_resize_inode(&record, owners)?;
                } else {
                    self.claim_map(&record, owners)?;
                }
            }
        }
        Ok(())
    }

    fn tell_owners(&mut self, owners: Owners) -> Step {
        let Owners { shared, mut claims } = owners;
        claims.sort_by_key(|(run, number)| (run.start, run.end, *number));
        // A run that only one inode claims belongs to metadata as well.
        let mut told_up_to = 0;
        let mut before: Option<(Range<u64>, InodeNo)> = None;
        let mut lines = Vec::new();
        for (run, number) in claims {
            match &before {
                Some((last, other)) if last.end > run.start => {
                    lines.push((run.start..run.end.min(last.end), *other, Some(number)));
                    told_up_to = told_up_to.max(run.end.min(last.end));
                }
                Some((last, other)) if last.start >= told_up_to => {
                    lines.push((last.clone(), *other, None));
                }
                _ => {}
            }
            match &before {
                Some((last, _)) if last.end >= run.end => {}
                _ => before = Some((run, number)),
            }
        }
        if let Some((last, other)) = before
            && last.start >= told_up_to
        {
            lines.push((last, other, None));
        }
        let Some(shared) = shared else {
            return Ok(());
        };
        if lines.is_empty() {
            return self
                .report
                .superblock("metadata of several groups lies in the same blocks");
        }
        for (run, one, other) in lines {
            let first = shared.block_of(run.start);
            let last = shared.block_of(run.end).0.saturating_sub(1);
            let up_to = if last == first.0 {
                String::new()
            } else {
                format!("up to {last} ")
            };
            match other {
                Some(other) if other == one => self.report.find(
                    Subject::Block(first),
                    format_args!("{up_to}owned twice by inode {one}"),
                )?,
                Some(other) => self.report.find(
                    Subject::Block(first),
                    format_args!("{up_to}owned by inode {one} and by inode {other}"),
                )?,
                None => self.report.find(
                    Subject::Block(first),
                    format_args!("{up_to}owned by inode {one} and by the file system's metadata"),
                )?,
            }
        }
        Ok(())
    }
}
