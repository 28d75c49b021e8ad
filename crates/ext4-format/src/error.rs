//! One kind of corruption per check, each with the values that failed it. Where it was found
//! (inode, block) is added by whoever read the bytes.

use crate::ids::GroupNo;

/// A check that bytes from disk did not pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corruption {
    /// A structure reaches past the bytes that hold it.
    #[error("{what} needs {needed} bytes and has {have}")]
    Truncated {
        /// The structure.
        what: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes there are.
        have: usize,
    },
    /// A stored checksum does not match the bytes.
    #[error("the checksum of {what} is {stored:#010x} and should be {computed:#010x}")]
    Checksum {
        /// The structure.
        what: &'static str,
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    // --- superblock, group descriptors, inodes, bitmaps ---
    /// The magic number is missing: this is no ext2, ext3 or ext4 file system at all.
    #[error("not an ext2, ext3 or ext4 file system (magic {magic:#06x} instead of 0xef53)")]
    NotExt {
        /// What is there instead.
        magic: u16,
    },
    /// The file system is larger than the device that holds it.
    #[error(
        "the file system has {needed_bytes} bytes, but the image or device only {device_bytes}: \
         it is cut off"
    )]
    ImageTruncated {
        /// Bytes that the superblock promises.
        needed_bytes: u64,
        /// Bytes of the device.
        device_bytes: u64,
    },
    /// `s_log_block_size` is more than 6 (64 KiB).
    #[error("block size of 2^(10+{log_block_size}) bytes is more than 64 KiB")]
    BlockSize {
        /// The field.
        log_block_size: u32,
    },
    /// The cluster is smaller than a block, too large, or not a block without `bigalloc`.
    #[error(
        "cluster size of 2^(10+{log_cluster_size}) bytes does not go with blocks of \
         2^(10+{log_block_size})"
    )]
    ClusterSize {
        /// The field.
        log_cluster_size: u32,
        /// The field.
        log_block_size: u32,
    },
    /// Not a power of two from 128 to the block size.
    #[error("inode size {inode_size} does not go with blocks of {block_size} bytes")]
    InodeRecordSize {
        /// `s_inode_size`.
        inode_size: u16,
        /// Bytes.
        block_size: u32,
    },
    /// With `64bit`: not a power of two from 64 to 1024.
    #[error("group descriptor size {desc_size}")]
    DescriptorSize {
        /// `s_desc_size`.
        desc_size: u16,
    },
    /// Must be 1 with clusters of 1 KiB and 0 otherwise.
    #[error("first data block {first_data_block} instead of {expected}")]
    FirstDataBlock {
        /// `s_first_data_block`.
        first_data_block: u32,
        /// What the cluster size demands.
        expected: u32,
    },
    /// None, not a multiple of 8, or more than one bitmap block can hold.
    #[error("{clusters_per_group} clusters of {blocks_per_group} blocks in a group")]
    BlocksPerGroup {
        /// `s_blocks_per_group`.
        blocks_per_group: u32,
        /// `s_clusters_per_group`.
        clusters_per_group: u32,
    },
    /// Fewer than a block of them, not a multiple of 8, or more than a bitmap block can hold.
    #[error("{inodes_per_group} inodes in a group")]
    InodesPerGroup {
        /// `s_inodes_per_group`.
        inodes_per_group: u32,
    },
    /// No block, or more than the block numbers reach.
    #[error("{blocks_count} blocks, which no file system has")]
    BlocksCount {
        /// `s_blocks_count`.
        blocks_count: u64,
    },
    /// More groups than a 32-bit number counts.
    #[error("{groups} block groups")]
    GroupCount {
        /// Groups.
        groups: u64,
    },
    /// `s_inodes_count` is not groups × inodes per group.
    #[error("{inodes_count} inodes, but {groups} groups of {inodes_per_group} inodes")]
    InodesCount {
        /// `s_inodes_count`.
        inodes_count: u32,
        /// Groups.
        groups: u32,
        /// `s_inodes_per_group`.
        inodes_per_group: u32,
    },
    /// The first inode for files is among the reserved ones, or past the last.
    #[error("first inode for files {first_ino} of {inodes_count}")]
    FirstInode {
        /// `s_first_ino`.
        first_ino: u32,
        /// `s_inodes_count`.
        inodes_count: u32,
    },
    /// More reserved descriptor blocks than the resize inode can map.
    #[error("{reserved_gdt_blocks} blocks reserved for group descriptors")]
    ReservedGdtBlocks {
        /// `s_reserved_gdt_blocks`.
        reserved_gdt_blocks: u16,
    },
    /// The first meta group is past the last.
    #[error("first meta group {first_meta_bg} of {gdt_blocks}")]
    FirstMetaBg {
        /// `s_first_meta_bg`.
        first_meta_bg: u32,
        /// Blocks of group descriptors, one per meta group.
        gdt_blocks: u32,
    },
    /// The group descriptors do not fit into the file system.
    #[error("{gdt_blocks} blocks of group descriptors in a file system of {blocks_count}")]
    DescriptorTable {
        /// Blocks of group descriptors.
        gdt_blocks: u32,
        /// Blocks.
        blocks_count: u64,
    },
    /// Bitmaps and inode tables leave no room.
    #[error("bitmaps and inode tables need {needed} blocks of {blocks_count}")]
    Overhead {
        /// Blocks of all bitmaps and inode tables.
        needed: u64,
        /// Blocks.
        blocks_count: u64,
    },
    /// A checksum algorithm that is not crc32c.
    #[error("checksum type {checksum_type} instead of 1 (crc32c)")]
    ChecksumType {
        /// `s_checksum_type`.
        checksum_type: u8,
    },
    /// A bitmap or the inode table of a group lies where it can't.
    #[error("{what} of group {group} lies at block {block}, outside {first} to {last}")]
    GroupBlockRange {
        /// Which one.
        what: &'static str,
        /// Its group.
        group: GroupNo,
        /// First block of it.
        block: u64,
        /// First block that it may use.
        first: u64,
        /// Last block that it may use.
        last: u64,
    },
    /// A bitmap or the inode table of a group lies on other metadata.
    #[error("{what} of group {group} at block {block} lies on {other}")]
    GroupBlockOverlap {
        /// Which one.
        what: &'static str,
        /// Its group.
        group: GroupNo,
        /// First block of it.
        block: u64,
        /// What else lies there.
        other: &'static str,
    },
    /// A count of a group is more than the group has.
    #[error("group {group} counts {count} {what} of {max}")]
    GroupCounter {
        /// What is counted.
        what: &'static str,
        /// The group.
        group: GroupNo,
        /// The count.
        count: u32,
        /// What the group has.
        max: u32,
    },
    /// A group, block or inode number past the end.
    #[error("{what} {number}, but there are only {count}")]
    NumberRange {
        /// What is numbered.
        what: &'static str,
        /// The number.
        number: u64,
        /// How many there are.
        count: u64,
    },
    /// The extra fields of an inode do not fit its record, or are not words.
    #[error("{extra_isize} bytes of extra fields in an inode with room for {room}")]
    InodeExtraSize {
        /// `i_extra_isize`.
        extra_isize: u16,
        /// Bytes after the first 128.
        room: usize,
    },
    /// An inode of no known kind.
    #[error("mode {mode:#o} is of no kind of file")]
    InodeMode {
        /// `i_mode`.
        mode: u16,
    },
    /// A file of more bytes than offsets reach.
    #[error("file size {size}")]
    FileSize {
        /// Bytes.
        size: u64,
    },
    /// More sectors than an inode can count.
    #[error("{sectors} sectors of one file are more than can be counted")]
    SectorCount {
        /// Sectors of 512 bytes.
        sectors: u64,
    },
    /// A target in an inode that is empty, too long, or holds a NUL byte.
    #[error("symbolic link with a target of {size} bytes in the inode")]
    SymlinkTarget {
        /// Size of the inode.
        size: u64,
    },
    /// A block bitmap that says that metadata of the group is free.
    #[error("the block bitmap of group {group} has cluster {cluster} free, which is in use")]
    MetadataMarkedFree {
        /// The group.
        group: GroupNo,
        /// Cluster of the group.
        cluster: u32,
    },
    /// A bit past the end of a bitmap is clear.
    #[error("bit {bit} of the {what} of group {group} is past its end and clear")]
    BitmapPadding {
        /// Which bitmap.
        what: &'static str,
        /// The group.
        group: GroupNo,
        /// The bit.
        bit: u32,
    },
    // --- extents, block maps, directories, htrees, attributes ---
    /// A node of an extent tree.
    #[error(transparent)]
    Extent(#[from] crate::extent::ExtentCorruption),
    /// A pointer of a block map.
    #[error(transparent)]
    BlockMap(#[from] crate::indirect::BlockMapCorruption),
    /// An entry of a directory.
    #[error(transparent)]
    DirEntry(#[from] crate::dir_entry::DirCorruption),
    /// The index of a directory.
    #[error(transparent)]
    Htree(#[from] crate::htree::HtreeCorruption),
    /// Extended attributes.
    #[error(transparent)]
    Xattr(#[from] crate::xattr::XattrCorruption),
    /// The block of `mmp`.
    #[error(transparent)]
    Mmp(#[from] crate::mmp::MmpCorruption),
    /// Quota files.
    #[error(transparent)]
    Quota(#[from] crate::quota::QuotaCorruption),
    // --- journal ---
    /// The journal does not begin with its magic number.
    #[error("the journal begins with {found:#010x} in place of its magic number")]
    JournalMagic {
        /// What is there.
        found: u32,
    },
    /// The first block of the journal is no superblock.
    #[error("the first block of the journal is of kind {kind}")]
    JournalSuperblockKind {
        /// Kind of block.
        kind: u32,
    },
    /// The journal has features that are not known.
    #[error("the journal has unknown {set} features {unknown:#x}")]
    JournalFeatures {
        /// Which set of features.
        set: &'static str,
        /// The unknown bits.
        unknown: u32,
    },
    /// The journal claims checksums of more than one version.
    #[error("the journal has checksums of several versions (features {compat:#x}, {incompat:#x})")]
    JournalChecksumVersions {
        /// Compatible features.
        compat: u32,
        /// Incompatible features.
        incompat: u32,
    },
    /// A checksum of an algorithm that does not exist.
    #[error("the journal has checksums of unknown kind {kind}")]
    JournalChecksumType {
        /// As stored.
        kind: u8,
    },
    /// A field of the journal's superblock that can't be.
    #[error("field {field} of the journal's superblock is {value}")]
    JournalSuperblockField {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// A revoke block that claims more bytes than it has, or fewer than its header.
    #[error("a revoke block of the journal claims {count} of {limit} bytes")]
    JournalRevokeCount {
        /// As stored.
        count: u32,
        /// What there is room for.
        limit: usize,
    },
    /// A block in the journal whose number is too large, or belongs to the journal itself.
    #[error("the journal changes block {block}, which it can't")]
    JournalBlockRange {
        /// The block.
        block: crate::ids::BlockNo,
    },
    /// A data block in the journal whose checksum is wrong.
    #[error("the journal's contents of block {block} in transaction {sequence} are damaged")]
    JournalData {
        /// Where the data belongs.
        block: crate::ids::BlockNo,
        /// Number of the transaction.
        sequence: u32,
    },
    /// A tag of a fast commit that does not exist, or has the wrong length.
    #[error("a fast commit has tag {tag} with {length} bytes")]
    FastCommitTag {
        /// The tag.
        tag: u16,
        /// Bytes of its value.
        length: u16,
    },
}
