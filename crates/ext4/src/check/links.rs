//! What can be reached from the root, and whether link counts are what was counted.

use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::inode::{FileKind, Inode, InodeFlags};

use super::directories::Reach;
use super::inode_states::InodeState;
use super::{Checker, Stage, Step};

impl Checker<'_> {
    pub(super) fn check_links(&mut self) -> Step {
        self.check_root()?;
        self.check_parents()?;
        self.check_reached()?;
        #[cfg(feature = "mutants")]
        if crate::mutant::Mutant::UncountedLinks.is_named() {
            return Ok(());
        }
        let groups = self.inodes.groups();
        let total = groups.len() as u64;
        for (group, done) in groups.into_iter().zip(0..) {
            self.report.progress(Stage::Links, done, total)?;
            for (number, state) in self.inodes.of_group(group) {
                self.check_link_count(number, state)?;
            }
        }
        Ok(())
    }

    fn check_root(&mut self) -> Step {
        let root = InodeNo::ROOT;
        if self.directories.contains_key(&root) || self.is_lost(root) {
            return Ok(());
        }
        self.report.inode(root, "there is no root directory")
    }

    /// Each `..` leads to the directory that has the name.
    fn check_parents(&mut self) -> Step {
        for (number, directory) in &self.directories {
            let parent = if *number == InodeNo::ROOT {
                Some(InodeNo::ROOT)
            } else {
                directory.parent
            };
            if let (Some(parent), Some(dot_dot)) = (parent, directory.dot_dot)
                && parent != dot_dot
            {
                self.report.inode(
                    *number,
                    format_args!("its .. leads to inode {dot_dot} instead of {parent}"),
                )?;
            }
        }
        Ok(())
    }

    /// Every directory hangs on the root, by however many others.
    fn check_reached(&mut self) -> Step {
        let numbers: Vec<InodeNo> = self.directories.keys().copied().collect();
        for number in numbers {
            let mut way = Vec::new();
            let mut at = number;
            // Each directory is walked through once, in a circle too.
            while let Some(directory) = self.directories.get_mut(&at) {
                match directory.reach {
                    Reach::Settled => break,
                    Reach::OnWay => {
                        self.report.inode(
                            at,
                            "a directory in a circle, which the root does not lead to",
                        )?;
                        break;
                    }
                    Reach::Unknown => {}
                }
                directory.reach = Reach::OnWay;
                way.push(at);
                let parent = directory.parent;
                if at == InodeNo::ROOT {
                    break;
                }
                match parent {
                    Some(parent) => at = parent,
                    None if self.orphans.contains(&at) || !self.lost_groups.is_empty() => break,
                    None => {
                        self.report.inode(at, "a directory that no name leads to")?;
                        break;
                    }
                }
            }
            for met in way {
                if let Some(directory) = self.directories.get_mut(&met) {
                    directory.reach = Reach::Settled;
                }
            }
        }
        Ok(())
    }

    /// Inodes that need no name.
    fn is_special(&self, number: InodeNo) -> bool {
        let superblock = &self.instance.superblock;
        (number < superblock.first_inode() && number != InodeNo::ROOT)
            || superblock.journal_inode() == Some(number)
            || superblock.orphan_file_inode() == Some(number)
            || superblock.quota_inodes().contains(&Some(number))
    }

    fn check_link_count(&mut self, number: InodeNo, state: InodeState) -> Step {
        if self.is_special(number) {
            return Ok(());
        }
        let superblock = &self.instance.superblock;
        let record = self.with_record(number, |bytes| Inode::read(bytes, number, superblock))?;
        let Some(Ok(record)) = record else {
            return Ok(());
        };
        if state.is_ea_inode() {
            return self.check_references(&record);
        }
        let (stored, counted) = (u32::from(record.links()), self.inodes.links(number));
        let is_directory = state.kind() == Some(FileKind::Directory);
        if stored == counted || !self.lost_groups.is_empty() {
            return Ok(());
        }
        if counted == 0 && !is_directory {
            return self.report.inode(number, "in use, and no name leads to it");
        }
        // That a directory has no name was told.
        let has_name = self
            .directories
            .get(&number)
            .is_none_or(|directory| directory.parent.is_some());
        if is_directory && number != InodeNo::ROOT && !has_name {
            return Ok(());
        }
        // A directory that has, or once had, more subdirectories than can be counted has 1.
        if is_directory && stored == 1 && counted > 1 && record.flags().contains(InodeFlags::INDEX)
        {
            return Ok(());
        }
        self.report.inode(
            number,
            format_args!("link count {stored}, counted {counted}"),
        )
    }

    /// How many attributes lead to an attribute inode.
    fn check_references(&mut self, record: &Inode) -> Step {
        let number = record.ino();
        let counted = self
            .ea_inodes
            .get(&number)
            .map_or(0, |known| known.references);
        if !self.lost_groups.is_empty() || self.orphans.contains(&number) {
            return Ok(());
        }
        if counted == 0 {
            return self
                .report
                .inode(number, "an attribute inode that no attribute leads to");
        }
        // Lustre keeps the owner's number where the count is.
        if record.ea_refcount() != counted && record.size() > 0 {
            return self.report.inode(
                number,
                format_args!(
                    "reference count {}, counted {counted}",
                    record.ea_refcount()
                ),
            );
        }
        Ok(())
    }
}
