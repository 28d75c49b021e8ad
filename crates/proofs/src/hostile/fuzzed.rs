//! What a fuzzer is given: bytes for the parsers of the format, patches of whole images, and edits of
//! their structures with checksums mended. Each panics where something must not be.

use pagefence_ext4_format::dir_entry::{DirBlock, DirFormat, InlineDir, Role};
use pagefence_ext4_format::extent::{Child, ExtentNode, Place};
use pagefence_ext4_format::group_desc::GroupDesc;
use pagefence_ext4_format::htree::{DxNode, DxRoot, HtreeFormat};
use pagefence_ext4_format::indirect::Pointers;
use pagefence_ext4_format::inode::Inode;
use pagefence_ext4_format::journal::fast_commit::{self, FastCommitScan};
use pagefence_ext4_format::journal::{
    CommitBlock, Header, JournalFeatures, JournalSuperblock, LogFormat, Sequence, descriptor,
    revoke,
};
use pagefence_ext4_format::mmp;
use pagefence_ext4_format::quota::{self, QuotaKind};
use pagefence_ext4_format::superblock::Superblock;
use pagefence_ext4_format::xattr::Xattrs;
use pagefence_ext4_format::{BlockNo, FileBlock, GroupNo, InodeNo};

use super::case::Cases;
use super::images::{self, Recipe};

/// Edits of one image, at most.
const EDITS_MAX: usize = 6;
/// Bytes of an edit: structure, field, value.
const EDIT: usize = 12;
/// Bytes of a patch's head: where, and how many.
const PATCH: usize = 4;

/// A sound image, to be changed by a fuzzer.
pub struct Fuzzed {
    cases: Cases,
}

impl Fuzzed {
    /// Makes the image.
    ///
    /// # Errors
    /// Who is to make it is not there.
    ///
    /// # Panics
    /// It can't be made.
    pub fn new(recipe: &Recipe) -> Result<Self, String> {
        let image = images::make(recipe)?;
        let bytes = std::fs::read(image.file.path()).expect("the image");
        let cases = Cases::of(&bytes, image.is_dirty, "", 0)?;
        Ok(Self { cases })
    }

    /// Reads each parser's share of `bytes`: the first one says which parser.
    ///
    /// # Panics
    /// A parser panics, or gives out what it must not.
    pub fn parse(&self, bytes: &[u8]) {
        if let Some((which, bytes)) = bytes.split_first() {
            parse(*which, bytes, self.cases.superblock());
        }
    }

    /// Patches the image, its checksums left as they are, and tries it.
    ///
    /// # Panics
    /// What comes of it must not be.
    pub fn bytes(&self, mut bytes: &[u8]) {
        let mut patches = Vec::new();
        while let Some((head, rest)) = bytes.split_at_checked(PATCH) {
            // Most of what is there lies in the first mebibyte.
            let at = u32::from_le_bytes([head[0], head[1], head[2] & 0x0F, 0]);
            let (patch, rest) = rest.split_at(rest.len().min(head[3].into()));
            patches.push((u64::from(at), patch));
            bytes = rest;
        }
        if let Err(wrong) = self.cases.run_patched(&patches) {
            panic!("{wrong}");
        }
    }

    /// Sets some fields of some structures, checksums mended, and tries the image.
    ///
    /// # Panics
    /// What comes of it must not be.
    pub fn structure(&self, bytes: &[u8]) {
        let edit = |bytes: &[u8]| {
            let (numbers, value) = bytes.split_first_chunk::<4>()?;
            let value = u64::from_le_bytes(*value.first_chunk()?);
            let number =
                |at: usize| usize::from(u16::from_le_bytes([numbers[at], numbers[at + 1]]));
            Some((number(0), number(2), value))
        };
        let edits: Vec<_> = bytes
            .chunks_exact(EDIT)
            .take(EDITS_MAX)
            .filter_map(edit)
            .collect();
        if let Err(wrong) = self.cases.run_edited(&edits) {
            panic!("{wrong}");
        }
    }
}

fn parse(which: u8, bytes: &[u8], superblock: &Superblock) {
    let number = InodeNo(12);
    let limits = superblock.into();
    match which % 14 {
        0 => {
            if let Ok(parsed) = Superblock::parse(bytes, Some(1 << 40)) {
                assert!(parsed.block_size().is_power_of_two() && parsed.group_count() > 0);
                assert!(parsed.inode_size() <= parsed.block_size() as usize);
            }
        }
        1 => {
            if let Ok(desc) = GroupDesc::read(bytes, GroupNo(0), superblock) {
                let _ = desc.check_counts(superblock);
                let _ = desc.metadata_zones(superblock);
            }
            let _ = GroupDesc::parse(bytes, GroupNo(0), superblock);
        }
        2 => {
            if let Ok(inode) = Inode::read(bytes, number, superblock) {
                let _ = (inode.size(), inode.sectors(), inode.device(), inode.kind());
                let _ = (inode.mtime(), inode.crtime(), inode.fast_symlink_target());
                let _ = inode
                    .xattr_region()
                    .map(|region| attributes(region, superblock));
            }
        }
        3 => extents(bytes, &Place::Root, superblock),
        4 => {
            let child = Child {
                block: BlockNo(100),
                first: FileBlock(0),
                end: FileBlock(1 << 20),
                depth: u16::from(bytes.first().copied().unwrap_or(0) % 5),
            };
            extents(bytes, &Place::Block(child), superblock);
        }
        5 => {
            for block in Pointers::block(bytes, &limits)
                .iter()
                .flat_map(|(_, block)| block)
            {
                assert!(superblock.contains_block(block));
            }
            let _ = Pointers::root(bytes, &limits).map(|root| root.run(0, 12));
        }
        6 => directory(bytes, superblock),
        7 => {
            let format = HtreeFormat {
                checksums: superblock.has_metadata_csum(),
                large_dir: true,
                blocks: 1 << 16,
            };
            let roots = DxRoot::parse(bytes, &format).map(|root| root.node);
            for node in [roots, DxNode::parse(bytes, &format, 2)]
                .into_iter()
                .flatten()
            {
                assert!(node.iter().count() == node.len());
                assert!(node.iter().all(|(_, block)| block.0 < format.blocks));
                assert!(node.find(u32::MAX) < node.len().max(1));
            }
        }
        8 => attributes(bytes, superblock),
        9 => {
            if let Ok(journal) = JournalSuperblock::parse(bytes, 1024, 4096) {
                assert!(journal.first < journal.end && journal.end <= journal.length_blocks);
            }
        }
        10 => log(bytes),
        11 => {
            let _ = mmp::verify(bytes, None);
            let _ = mmp::verify(bytes, Some(superblock.checksum_seed()));
        }
        12 => {
            for kind in QuotaKind::ALL {
                let size = 8 * quota::BLOCK_BYTES;
                assert!(quota::blocks(bytes, kind, size).map_or(true, |blocks| blocks <= 8));
            }
            assert!(quota::references(bytes).count() <= bytes.len() / 4);
            let _ = quota::count_of(bytes);
            assert!(quota::entries(bytes).count() <= bytes.len() / 72);
        }
        _ => {
            let mut scan = FastCommitScan::new(Sequence(1));
            let _ = scan.block(bytes);
            assert!(fast_commit::tags(bytes).count() <= bytes.len());
        }
    }
}

fn extents(bytes: &[u8], place: &Place, superblock: &Superblock) {
    let Ok(node) = ExtentNode::parse(bytes, place, &superblock.into()) else {
        return;
    };
    for extent in node.extents() {
        let last = extent.start.0 + u64::from(extent.len) - 1;
        assert!(superblock.contains_block(extent.start));
        assert!(superblock.contains_block(BlockNo(last)));
    }
    assert!(
        node.children()
            .all(|child| superblock.contains_block(child.block))
    );
    let _ = node.find(FileBlock(u32::MAX - 1));
}

fn directory(bytes: &[u8], superblock: &Superblock) {
    let format = DirFormat::from(superblock);
    let check = |name: &[u8], role: Role| {
        assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
        assert_eq!(matches!(name, b"." | b".."), role != Role::Name);
    };
    for first in [true, false] {
        let block = DirBlock::new(bytes, &format, first);
        for entry in block.entries().flatten() {
            check(entry.name, entry.role);
        }
        let _ = (block.find(b"name"), block.dots());
    }
    let (area, attribute) = bytes.split_at(bytes.len().min(60));
    if let Ok(inline) = InlineDir::parse(area, attribute, &format) {
        for entry in inline.entries().flatten() {
            check(entry.name, entry.role);
        }
    }
}

fn attributes(bytes: &[u8], superblock: &Superblock) {
    let limits = superblock.into();
    let sets = [
        Xattrs::in_inode(bytes, &limits),
        Xattrs::in_block(bytes, &limits).map(Some),
    ];
    for set in sets.into_iter().flatten().flatten() {
        for entry in set.entries() {
            let _ = entry.verify_hash(true);
            assert!(set.find(entry.index, entry.name).is_some());
        }
    }
}

fn log(bytes: &[u8]) {
    let _ = Header::parse(bytes);
    for incompat in [0, 2, 8, 0x10, 0x12] {
        let features = JournalFeatures::new(0, incompat).expect("they are known");
        let format = LogFormat {
            block_size: 1024,
            features,
            seed: 7,
        };
        if let Ok(tags) = descriptor::tags(&format, bytes) {
            assert!(tags.count() <= bytes.len());
        }
        if let Ok(records) = revoke::records(&format, bytes) {
            assert!(records.count() <= bytes.len());
        }
        let _ = CommitBlock::parse(&format, bytes);
        let _ = descriptor::check(&format, bytes).or_else(|_| revoke::check(&format, bytes));
    }
}
