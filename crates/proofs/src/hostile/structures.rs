//! The structures of an image: their fields, and how their checksums are mended.

use pagefence::device::{Device as _, MemoryDevice};
use pagefence_ext4_format::checksum::{ChecksumSeed, crc32c};
use pagefence_ext4_format::group_desc::{GroupDesc, RawGroupDesc};
use pagefence_ext4_format::inode::{FileKind, Inode, InodeFlags, RawInode, RawInodeExtra};
use pagefence_ext4_format::journal::checksum::seed_of_uuid;
use pagefence_ext4_format::journal::fast_commit;
use pagefence_ext4_format::mmp::{self, RawMmp};
use pagefence_ext4_format::superblock::{RawSuperblock, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET};
use pagefence_ext4_format::{BlockNo, GroupNo, InodeNo};
use pagefence_ext4_format::{bitmap, dir_entry, extent, htree, xattr};

use super::layout::Layout;
use super::values::{Field, fields_of, in_a_row};

mod fast_commits;
mod fields;
mod log;
mod quotas;

use fields::{
    dir_fields, extent_fields, index_fields, pointer_fields, xattr_entries, xattr_fields,
};

/// How the checksum of a structure is mended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seal {
    Superblock,
    Group(GroupNo),
    BlockBitmap(GroupNo),
    InodeBitmap(GroupNo),
    Inode(InodeNo),
    Extents(ChecksumSeed),
    Directory(ChecksumSeed),
    Index(ChecksumSeed),
    Xattrs(BlockNo),
    Orphans(ChecksumSeed, BlockNo),
    Mmp,
    /// A big-endian crc32c at this place, over `length` bytes in which it is zero.
    Log {
        seed: u32,
        at: usize,
    },
    /// At the end of the fast commit.
    FastCommit,
    /// There is none.
    Plain,
}

/// One structure.
#[derive(Clone, Debug)]
pub(super) struct Structure {
    /// Its name.
    pub(super) what: String,
    /// Its first byte on the device.
    pub(super) offset: u64,
    /// Its bytes.
    pub(super) length: usize,
    pub(super) seal: Seal,
    pub(super) fields: Vec<Field>,
    /// A number that leads back to it.
    pub(super) own: u64,
}

/// Finds them.
pub(super) struct Survey<'a> {
    layout: &'a Layout,
    found: Vec<Structure>,
}

/// All structures of a sound image, with those of the files of these names.
pub(super) fn survey(layout: &Layout, files: &[(String, InodeNo)]) -> Vec<Structure> {
    let mut survey = Survey {
        layout,
        found: Vec::new(),
    };
    survey.superblock();
    survey.groups();
    let superblock = &layout.superblock;
    let mut own = vec![("resize inode".to_owned(), InodeNo(7))];
    // Those that are not in use are alike in all images of a kind.
    let reserved = (superblock.block_size() == 4096).then_some([1, 3, 4, 5, 6, 8, 9, 10]);
    for number in reserved.into_iter().flatten().map(InodeNo) {
        if superblock.journal_inode() != Some(number) {
            own.push((format!("reserved inode {number}"), number));
        }
    }
    own.extend(
        superblock
            .journal_inode()
            .map(|inode| ("journal".to_owned(), inode)),
    );
    own.extend(
        superblock
            .orphan_file_inode()
            .map(|inode| ("orphan file".to_owned(), inode)),
    );
    for (name, number) in own.iter().chain(files) {
        survey.inode(name, *number);
    }
    survey.orphan_file();
    survey.quotas();
    survey.mmp();
    survey.log();
    // What does not fit where it lies is no field of it.
    for structure in &mut survey.found {
        let length = structure.length;
        structure
            .fields
            .retain(|field| field.at + field.width <= length);
    }
    survey.found
}

impl Survey<'_> {
    fn push(
        &mut self,
        what: impl Into<String>,
        (offset, length): (u64, usize),
        seal: Seal,
        fields: Vec<Field>,
        own: u64,
    ) {
        self.found.push(Structure {
            what: what.into(),
            offset,
            length,
            seal,
            fields,
            own,
        });
    }

    fn push_block(&mut self, what: String, block: BlockNo, seal: Seal, fields: Vec<Field>) {
        let place = (self.layout.offset(block), self.layout.block_size());
        self.push(what, place, seal, fields, block.0);
    }

    fn superblock(&mut self) {
        let mut fields = fields_of!(RawSuperblock:
            s_inodes_count s_blocks_count_lo s_r_blocks_count_lo s_free_blocks_count_lo
            s_free_inodes_count s_first_data_block s_log_block_size s_log_cluster_size
            s_blocks_per_group s_clusters_per_group s_inodes_per_group s_mtime s_wtime s_mnt_count
            s_max_mnt_count s_magic s_state s_errors s_minor_rev_level s_lastcheck s_checkinterval
            s_creator_os s_rev_level s_def_resuid s_def_resgid s_first_ino s_inode_size
            s_block_group_nr s_feature_compat s_feature_incompat s_feature_ro_compat s_uuid
            s_volume_name s_algorithm_usage_bitmap s_prealloc_blocks s_prealloc_dir_blocks
            s_reserved_gdt_blocks s_journal_uuid s_journal_inum s_journal_dev s_last_orphan
            s_hash_seed s_def_hash_version s_jnl_backup_type s_desc_size s_default_mount_opts
            s_first_meta_bg s_mkfs_time s_jnl_blocks s_blocks_count_hi s_r_blocks_count_hi
            s_free_blocks_count_hi s_min_extra_isize s_want_extra_isize s_flags s_raid_stride
            s_mmp_update_interval s_mmp_block s_raid_stripe_width s_log_groups_per_flex
            s_checksum_type s_encryption_level s_reserved_pad s_kbytes_written s_snapshot_inum
            s_snapshot_id s_snapshot_r_blocks_count s_snapshot_list s_error_count
            s_first_error_time s_first_error_ino s_first_error_block s_first_error_line
            s_last_error_time s_last_error_ino s_last_error_line s_last_error_block
            s_usr_quota_inum s_grp_quota_inum s_overhead_clusters s_backup_bgs s_encrypt_algos
            s_encrypt_pw_salt s_lpf_ino s_prj_quota_inum s_checksum_seed s_wtime_hi s_mtime_hi
            s_mkfs_time_hi s_lastcheck_hi s_first_error_time_hi s_last_error_time_hi
            s_first_error_errcode s_last_error_errcode s_encoding s_encoding_flags
            s_orphan_file_inum);
        // Each feature by itself.
        for (set, at) in [("compat", 0x5C), ("incompat", 0x60), ("ro_compat", 0x64)] {
            for byte in 0..4 {
                fields.push(Field::new(format!("{set} features {byte}"), at + byte, 1));
            }
        }
        let own = u64::from(self.layout.superblock.block_size() == 1024);
        let place = (SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES);
        self.push("superblock", place, Seal::Superblock, fields, own);
    }

    fn mmp(&mut self) {
        let Some(block) = self.layout.superblock.mmp_block() else {
            return;
        };
        let fields = fields_of!(RawMmp:
            mmp_magic mmp_seq mmp_time mmp_nodename mmp_bdevname mmp_check_interval mmp_pad1);
        self.push_block("mmp".to_owned(), block, Seal::Mmp, fields);
    }

    fn groups(&mut self) {
        let layout = self.layout;
        let last = GroupNo(layout.superblock.group_count().saturating_sub(1));
        let mut groups = vec![GroupNo(0), last];
        groups.dedup();
        for group in groups {
            let (Some(offset), Some(desc)) = (layout.group_offset(group), layout.group(group))
            else {
                continue;
            };
            let fields = fields_of!(RawGroupDesc:
                bg_block_bitmap_lo bg_inode_bitmap_lo bg_inode_table_lo bg_free_blocks_count_lo
                bg_free_inodes_count_lo bg_used_dirs_count_lo bg_flags bg_exclude_bitmap_lo
                bg_block_bitmap_csum_lo bg_inode_bitmap_csum_lo bg_itable_unused_lo
                bg_block_bitmap_hi bg_inode_bitmap_hi bg_inode_table_hi bg_free_blocks_count_hi
                bg_free_inodes_count_hi bg_used_dirs_count_hi bg_itable_unused_hi
                bg_exclude_bitmap_hi bg_block_bitmap_csum_hi bg_inode_bitmap_csum_hi);
            let own = offset / layout.block_size() as u64;
            let place = (offset, layout.superblock.desc_size());
            let what = format!("descriptor of group {group}");
            self.push(what, place, Seal::Group(group), fields, own);
            let end = layout.block_size();
            let words = |bytes: [usize; 6]| {
                let word = |at: usize| Field::new(format!("bits {at}"), at, 4);
                bytes.map(word).to_vec()
            };
            let fields = words([0, 4, 8, 32, 100, end - 4]);
            let what = format!("block bitmap of group {group}");
            self.push_block(
                what,
                desc.block_bitmap(),
                Seal::BlockBitmap(group),
                fields.clone(),
            );
            let what = format!("inode bitmap of group {group}");
            self.push_block(what, desc.inode_bitmap(), Seal::InodeBitmap(group), fields);
        }
    }

    fn inode(&mut self, name: &str, number: InodeNo) {
        let layout = self.layout;
        let (Some(offset), Some(inode)) = (layout.inode_offset(number), layout.inode(number))
        else {
            return;
        };
        let record_bytes = layout.superblock.inode_size();
        let mut fields = record_fields();
        let area = std::mem::offset_of!(RawInode, i_block);
        let is_mapped = !inode.flags().contains(InodeFlags::INLINE_DATA);
        if is_mapped && inode.flags().contains(InodeFlags::EXTENTS) {
            fields.extend(extent_fields(inode.block_area(), area));
        } else {
            fields.extend(pointer_fields(area, 60));
        }
        let record = layout.read(offset, record_bytes).unwrap_or_default();
        if let Some(range) = inode.xattr_range() {
            fields.push(Field::new("h_magic", range.start, 4));
            fields.extend(xattr_entries(&record, range.start + 4));
        }
        let what = format!("inode of {name}");
        let place = (offset, record_bytes);
        self.push(what, place, Seal::Inode(number), fields, number.0.into());
        self.blocks_of(name, &inode);
    }

    /// What belongs to an inode outside its record.
    fn blocks_of(&mut self, name: &str, inode: &Inode) {
        let layout = self.layout;
        let seed = inode.checksum_seed();
        let map = layout.map(inode);
        let is_tree = inode.flags().contains(InodeFlags::EXTENTS);
        for block in map.nodes.iter().take(2) {
            let Some(bytes) = layout.read_block(*block) else {
                continue;
            };
            if is_tree {
                let fields = extent_fields(&bytes, 0);
                let what = format!("extents of {name}");
                self.push_block(what, *block, Seal::Extents(seed), fields);
            } else {
                let fields = pointer_fields(0, bytes.len());
                self.push_block(format!("pointers of {name}"), *block, Seal::Plain, fields);
            }
        }
        if inode.kind() == Some(FileKind::Directory) {
            self.directory(name, inode, &map.blocks().collect::<Vec<_>>());
        }
        let block = inode.file_acl();
        if let Some((block, bytes)) = block.and_then(|at| Some((at, layout.read_block(at)?))) {
            let what = format!("attributes of {name}");
            self.push_block(what, block, Seal::Xattrs(block), xattr_fields(&bytes));
            for value in values_of(&bytes, 32) {
                self.inode(&format!("a value of {name}"), value);
            }
        }
    }

    fn directory(&mut self, name: &str, inode: &Inode, blocks: &[BlockNo]) {
        let layout = self.layout;
        let seed = inode.checksum_seed();
        let has_tail = layout.superblock.has_metadata_csum();
        let is_indexed = inode.flags().contains(InodeFlags::INDEX);
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
            return;
        };
        let Some(root) = layout.read_block(*first) else {
            return;
        };
        if !is_indexed {
            let fields = dir_fields(&root, has_tail);
            self.push_block(
                format!("entries of {name}"),
                *first,
                Seal::Directory(seed),
                fields,
            );
            return;
        }
        let what = format!("index of {name}");
        self.push_block(
            what,
            *first,
            Seal::Index(seed),
            index_fields(&root, 0x18, true),
        );
        // With levels, the first entry leads to a node.
        let below = u32::from_le_bytes([root[0x24], root[0x25], root[0x26], root[0x27]]);
        let node = blocks.get(below as usize).filter(|_| root[0x1E] > 0);
        if let Some((node, bytes)) = node.and_then(|at| Some((at, layout.read_block(*at)?))) {
            let what = format!("index node of {name}");
            self.push_block(
                what,
                *node,
                Seal::Index(seed),
                index_fields(&bytes, 8, false),
            );
        }
        if let Some(bytes) = layout.read_block(*last) {
            let fields = dir_fields(&bytes, has_tail);
            self.push_block(
                format!("entries of {name}"),
                *last,
                Seal::Directory(seed),
                fields,
            );
        }
    }

    fn orphan_file(&mut self) {
        let layout = self.layout;
        let number = layout.superblock.orphan_file_inode();
        let Some(inode) = number.and_then(|number| layout.inode(number)) else {
            return;
        };
        let Some(block) = layout.map(&inode).blocks().next() else {
            return;
        };
        let end = layout.block_size();
        let mut fields = in_a_row("entry ", 0, &[("0", 4), ("1", 4)]);
        fields.extend(in_a_row(
            "",
            end - 12,
            &[("last entry", 4), ("ob_magic", 4)],
        ));
        let seal = Seal::Orphans(inode.checksum_seed(), block);
        self.push_block("orphans".to_owned(), block, seal, fields);
    }
}

/// The fields that every inode's record has, from its start on.
fn record_fields() -> Vec<Field> {
    let mut fields = fields_of!(RawInode:
        i_mode i_uid i_size_lo i_atime i_ctime i_mtime i_dtime i_gid i_links_count i_blocks_lo
        i_flags l_i_version i_generation i_file_acl_lo i_size_high i_obso_faddr l_i_blocks_high
        l_i_file_acl_high l_i_uid_high l_i_gid_high l_i_reserved);
    let extra = fields_of!(RawInodeExtra:
        i_extra_isize i_ctime_extra i_mtime_extra i_atime_extra i_crtime i_crtime_extra
        i_version_hi i_projid);
    fields.extend(extra.into_iter().map(|field| Field {
        at: field.at + 128,
        ..field
    }));
    for byte in 0..4 {
        fields.push(Field::new(format!("flags {byte}"), 32 + byte, 1));
    }
    fields
}

/// The inodes that hold values of attributes whose entries begin at `at`.
fn values_of(bytes: &[u8], at: usize) -> Vec<InodeNo> {
    let field = |entry: &Field| {
        let word = bytes[entry.at..].first_chunk().copied().unwrap_or_default();
        InodeNo(u32::from_le_bytes(word))
    };
    let entries = xattr_entries(bytes, at);
    let inodes = entries
        .iter()
        .filter(|field| field.name.ends_with("e_value_inum"));
    inodes.map(field).filter(|inode| inode.0 != 0).collect()
}

impl Structure {
    /// Writes the structure as `bytes`, its checksum mended. Where a change left no place for a
    /// checksum, there is nothing to mend. `layout` is the sound image's.
    pub(super) fn put(&self, layout: &Layout, device: &MemoryDevice, mut bytes: Vec<u8>) {
        let superblock = &layout.superblock;
        let has_checksums = superblock.has_metadata_csum();
        match self.seal {
            Seal::Superblock if has_checksums => {
                let end = SUPERBLOCK_BYTES - 4;
                let checksum = crc32c(!0, &bytes[..end]);
                bytes[end..].copy_from_slice(&checksum.to_le_bytes());
            }
            Seal::Group(group) => mend_group(layout, group, &mut bytes, |_| ()),
            Seal::BlockBitmap(group) | Seal::InodeBitmap(group) => {
                self.put_bitmap_checksum(layout, device, group, &bytes);
            }
            Seal::Inode(number) => {
                if let Ok(mut inode) = Inode::read(&bytes, number, superblock) {
                    inode.update_checksum();
                    let _ = inode.write_to(&mut bytes);
                }
            }
            Seal::Extents(seed) if has_checksums => {
                let _ = extent::update_checksum(&mut bytes, seed);
            }
            Seal::Directory(seed) if has_checksums => {
                let _ = dir_entry::update_checksum(&mut bytes, seed);
            }
            Seal::Index(seed) if has_checksums => {
                let _ = htree::update_checksum(&mut bytes, seed);
            }
            Seal::Xattrs(block) if has_checksums => {
                let _ = xattr::update_checksum(&mut bytes, block, superblock.checksum_seed());
            }
            Seal::Orphans(seed, block) if has_checksums => {
                let (entries, tail) = bytes.split_at_mut(self.length - 8);
                let seed = ChecksumSeed(seed.checksum(&block.0.to_le_bytes()));
                tail[4..].copy_from_slice(&seed.checksum(entries).to_le_bytes());
            }
            Seal::Mmp if has_checksums => {
                mmp::update_checksum(&mut bytes, superblock.checksum_seed());
            }
            Seal::Log { seed, at } => {
                bytes[at..at + 4].fill(0);
                let checksum = crc32c(seed, &bytes);
                bytes[at..at + 4].copy_from_slice(&checksum.to_be_bytes());
            }
            Seal::FastCommit => fast_commit::update_checksums(&mut bytes, layout.block_size()),
            _ => {}
        }
        device
            .write(self.offset, &bytes)
            .expect("it was read there");
    }

    /// The checksum of a bitmap is in its group's descriptor.
    fn put_bitmap_checksum(
        &self,
        layout: &Layout,
        device: &MemoryDevice,
        group: GroupNo,
        bits: &[u8],
    ) {
        let superblock = &layout.superblock;
        let offset = layout.group_offset(group).expect("it was found");
        let mut record = vec![0; superblock.desc_size()];
        device.read(offset, &mut record).expect("it was read");
        mend_group(layout, group, &mut record, |desc| match self.seal {
            Seal::BlockBitmap(_) => {
                desc.set_block_bitmap_checksum(bitmap::block_bitmap_checksum(bits, superblock));
            }
            _ => desc.set_inode_bitmap_checksum(bitmap::inode_bitmap_checksum(bits, superblock)),
        });
        device.write(offset, &record).expect("it was read there");
    }
}

fn mend_group(
    layout: &Layout,
    group: GroupNo,
    record: &mut [u8],
    change: impl FnOnce(&mut GroupDesc),
) {
    if let Ok(mut desc) = GroupDesc::read(record, group, &layout.superblock) {
        if layout.superblock.has_metadata_csum() {
            change(&mut desc);
        }
        desc.update_checksum(&layout.superblock);
        let _ = desc.write_to(record);
    }
}

/// The seed of the checksums in a journal whose superblock this is; nothing if it has none.
fn log_seed(journal: &[u8]) -> Option<u32> {
    const CHECKSUMS: u8 = 0x18;
    let uuid: &[u8; 16] = journal.get(0x30..)?.first_chunk()?;
    (journal.get(0x2B)? & CHECKSUMS != 0).then(|| seed_of_uuid(uuid))
}
