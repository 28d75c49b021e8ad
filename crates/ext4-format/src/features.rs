//! The three feature words of the superblock, and the names that `mke2fs` and `dumpe2fs` give
//! their bits.
//!
//! An unknown `Compat` bit may be ignored, an unknown `RoCompat` bit forbids writing, an unknown
//! `Incompat` bit forbids mounting.

use bitflags::bitflags;

bitflags! {
    /// Features that an implementation may ignore (`s_feature_compat`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Compat: u32 {
        /// Directories are given blocks in advance. Unused.
        const DIR_PREALLOC = 0x1;
        /// AFS "magic" inodes. Unused.
        const IMAGIC_INODES = 0x2;
        /// There is a journal.
        const HAS_JOURNAL = 0x4;
        /// Extended attributes.
        const EXT_ATTR = 0x8;
        /// Blocks are reserved for growing the descriptor table.
        const RESIZE_INODE = 0x10;
        /// Directories may have a hash tree.
        const DIR_INDEX = 0x20;
        /// Uninitialised groups, before `uninit_bg`. Unused.
        const LAZY_BG = 0x40;
        /// An exclude inode for snapshots. Unused; has no name in `dumpe2fs`.
        const EXCLUDE_INODE = 0x80;
        /// Exclude bitmaps for snapshots. Unused.
        const EXCLUDE_BITMAP = 0x100;
        /// At most two groups hold a backup superblock (`s_backup_bgs`).
        const SPARSE_SUPER2 = 0x200;
        /// The journal may hold fast commits.
        const FAST_COMMIT = 0x400;
        /// Inode numbers and the UUID never change, so the file system can't shrink.
        const STABLE_INODES = 0x800;
        /// Orphans are kept in a file (`s_orphan_file_inum`).
        const ORPHAN_FILE = 0x1000;
        const _ = !0;
    }
}

bitflags! {
    /// Features that must be known before the file system is read (`s_feature_incompat`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Incompat: u32 {
        /// Compression. Never in Linux.
        const COMPRESSION = 0x1;
        /// Directory entries carry the file type.
        const FILETYPE = 0x2;
        /// The journal must be replayed (`needs_recovery`).
        const RECOVER = 0x4;
        /// This is an external journal, not a file system.
        const JOURNAL_DEV = 0x8;
        /// Descriptors are spread over the meta groups.
        const META_BG = 0x10;
        /// Files may map their blocks by extents.
        const EXTENTS = 0x40;
        /// Block numbers of 48 bits; descriptors of 64 bytes.
        const SIXTY_FOUR_BIT = 0x80;
        /// Protection against mounting twice.
        const MMP = 0x100;
        /// Bitmaps and inode tables may lie outside their group.
        const FLEX_BG = 0x200;
        /// Large attribute values lie in inodes of their own.
        const EA_INODE = 0x400;
        /// Directory entries carry data (Lustre).
        const DIRDATA = 0x1000;
        /// The checksum seed is stored (`metadata_csum_seed`).
        const CSUM_SEED = 0x2000;
        /// Directories of more than 2 GiB, hash trees of three levels.
        const LARGE_DIR = 0x4000;
        /// Small files lie in their inode.
        const INLINE_DATA = 0x8000;
        /// Encrypted files and directories.
        const ENCRYPT = 0x1_0000;
        /// Directories that ignore case.
        const CASEFOLD = 0x2_0000;
        const _ = !0;
    }
}

bitflags! {
    /// Features that must be known before the file system is written (`s_feature_ro_compat`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct RoCompat: u32 {
        /// Only groups 0, 1 and powers of 3, 5 and 7 hold a backup superblock.
        const SPARSE_SUPER = 0x1;
        /// There is a file of 2 GiB or more.
        const LARGE_FILE = 0x2;
        /// Directories as B-trees. Unused; has no name in `dumpe2fs`.
        const BTREE_DIR = 0x4;
        /// `i_blocks` has 48 bits, and may count file system blocks.
        const HUGE_FILE = 0x8;
        /// Descriptors have a crc16, groups may be uninitialised (`uninit_bg`).
        const GDT_CSUM = 0x10;
        /// A directory may have more than 65000 subdirectories.
        const DIR_NLINK = 0x20;
        /// Inodes have a known amount of extra fields.
        const EXTRA_ISIZE = 0x40;
        /// There is a snapshot. Never in Linux.
        const HAS_SNAPSHOT = 0x80;
        /// Quota is kept in hidden inodes.
        const QUOTA = 0x100;
        /// The block bitmap counts clusters.
        const BIGALLOC = 0x200;
        /// All metadata has a crc32c.
        const METADATA_CSUM = 0x400;
        /// Replicas. Never in Linux.
        const REPLICA = 0x800;
        /// Never to be mounted for writing.
        const READONLY = 0x1000;
        /// Project quota.
        const PROJECT = 0x2000;
        /// Files share blocks (Android); never to be written.
        const SHARED_BLOCKS = 0x4000;
        /// Files protected by fs-verity.
        const VERITY = 0x8000;
        /// The orphan file may hold orphans.
        const ORPHAN_PRESENT = 0x1_0000;
        const _ = !0;
    }
}

/// One of the three words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Compat,
    Incompat,
    RoCompat,
}

/// Names as `dumpe2fs` prints them; of several names for a bit the first is printed.
const NAMES: &[(&str, Word, u32)] = &[
    ("dir_prealloc", Word::Compat, Compat::DIR_PREALLOC.bits()),
    ("has_journal", Word::Compat, Compat::HAS_JOURNAL.bits()),
    ("imagic_inodes", Word::Compat, Compat::IMAGIC_INODES.bits()),
    ("ext_attr", Word::Compat, Compat::EXT_ATTR.bits()),
    ("dir_index", Word::Compat, Compat::DIR_INDEX.bits()),
    ("resize_inode", Word::Compat, Compat::RESIZE_INODE.bits()),
    ("lazy_bg", Word::Compat, Compat::LAZY_BG.bits()),
    (
        "snapshot_bitmap",
        Word::Compat,
        Compat::EXCLUDE_BITMAP.bits(),
    ),
    ("sparse_super2", Word::Compat, Compat::SPARSE_SUPER2.bits()),
    ("fast_commit", Word::Compat, Compat::FAST_COMMIT.bits()),
    ("stable_inodes", Word::Compat, Compat::STABLE_INODES.bits()),
    ("orphan_file", Word::Compat, Compat::ORPHAN_FILE.bits()),
    ("compression", Word::Incompat, Incompat::COMPRESSION.bits()),
    ("filetype", Word::Incompat, Incompat::FILETYPE.bits()),
    ("needs_recovery", Word::Incompat, Incompat::RECOVER.bits()),
    ("journal_dev", Word::Incompat, Incompat::JOURNAL_DEV.bits()),
    ("extent", Word::Incompat, Incompat::EXTENTS.bits()),
    ("extents", Word::Incompat, Incompat::EXTENTS.bits()),
    ("meta_bg", Word::Incompat, Incompat::META_BG.bits()),
    ("64bit", Word::Incompat, Incompat::SIXTY_FOUR_BIT.bits()),
    ("mmp", Word::Incompat, Incompat::MMP.bits()),
    ("flex_bg", Word::Incompat, Incompat::FLEX_BG.bits()),
    ("ea_inode", Word::Incompat, Incompat::EA_INODE.bits()),
    ("dirdata", Word::Incompat, Incompat::DIRDATA.bits()),
    (
        "metadata_csum_seed",
        Word::Incompat,
        Incompat::CSUM_SEED.bits(),
    ),
    ("large_dir", Word::Incompat, Incompat::LARGE_DIR.bits()),
    ("inline_data", Word::Incompat, Incompat::INLINE_DATA.bits()),
    ("encrypt", Word::Incompat, Incompat::ENCRYPT.bits()),
    ("casefold", Word::Incompat, Incompat::CASEFOLD.bits()),
    ("fname_encoding", Word::Incompat, Incompat::CASEFOLD.bits()),
    (
        "sparse_super",
        Word::RoCompat,
        RoCompat::SPARSE_SUPER.bits(),
    ),
    ("large_file", Word::RoCompat, RoCompat::LARGE_FILE.bits()),
    ("huge_file", Word::RoCompat, RoCompat::HUGE_FILE.bits()),
    ("uninit_bg", Word::RoCompat, RoCompat::GDT_CSUM.bits()),
    ("uninit_groups", Word::RoCompat, RoCompat::GDT_CSUM.bits()),
    ("dir_nlink", Word::RoCompat, RoCompat::DIR_NLINK.bits()),
    ("extra_isize", Word::RoCompat, RoCompat::EXTRA_ISIZE.bits()),
    ("snapshot", Word::RoCompat, RoCompat::HAS_SNAPSHOT.bits()),
    ("quota", Word::RoCompat, RoCompat::QUOTA.bits()),
    ("bigalloc", Word::RoCompat, RoCompat::BIGALLOC.bits()),
    (
        "metadata_csum",
        Word::RoCompat,
        RoCompat::METADATA_CSUM.bits(),
    ),
    ("replica", Word::RoCompat, RoCompat::REPLICA.bits()),
    ("read-only", Word::RoCompat, RoCompat::READONLY.bits()),
    ("project", Word::RoCompat, RoCompat::PROJECT.bits()),
    (
        "shared_blocks",
        Word::RoCompat,
        RoCompat::SHARED_BLOCKS.bits(),
    ),
    ("verity", Word::RoCompat, RoCompat::VERITY.bits()),
    (
        "orphan_present",
        Word::RoCompat,
        RoCompat::ORPHAN_PRESENT.bits(),
    ),
];

/// The three feature words together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features {
    /// May be ignored.
    pub compat: Compat,
    /// Must be known to read.
    pub incompat: Incompat,
    /// Must be known to write.
    pub ro_compat: RoCompat,
}

/// A name that no feature has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a feature")]
pub struct UnknownFeature(pub String);

impl Features {
    /// The feature of this name (in any case), as `mke2fs -O` takes it, alone in its word;
    /// also `FEATURE_C5`, `FEATURE_I5` and `FEATURE_R5` for bit 5 of a word.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let known = NAMES
            .iter()
            .find(|(known, _, _)| known.eq_ignore_ascii_case(name));
        if let Some((_, word, bits)) = known {
            return Some(Self::of(*word, *bits));
        }
        let (prefix, rest) = name.split_at_checked(8)?;
        if !prefix.eq_ignore_ascii_case("FEATURE_") {
            return None;
        }
        let (word, number) = rest.split_at_checked(1)?;
        let word = match word {
            "C" | "c" => Word::Compat,
            "I" | "i" => Word::Incompat,
            "R" | "r" => Word::RoCompat,
            _ => return None,
        };
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self::of(word, 1_u32.checked_shl(number.parse().ok()?)?))
    }

    /// The names of all features here, as `dumpe2fs` prints them; a bit without a name is
    /// `FEATURE_` and its word and number.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let words = [
            (Word::Compat, 'C', self.compat.bits()),
            (Word::Incompat, 'I', self.incompat.bits()),
            (Word::RoCompat, 'R', self.ro_compat.bits()),
        ];
        let bit_names = words.into_iter().flat_map(|(word, letter, bits)| {
            (0..u32::BITS)
                .map(|number| (number, 1_u32.wrapping_shl(number)))
                .filter(move |(_, bit)| bits & bit != 0)
                .map(move |(number, bit)| {
                    NAMES
                        .iter()
                        .find(|(_, known, mask)| *known == word && *mask == bit)
                        .map_or_else(
                            || format!("FEATURE_{letter}{number}"),
                            |(name, ..)| (*name).to_owned(),
                        )
                })
        });
        bit_names.collect()
    }

    /// Applies a list as `mke2fs -O` takes it: names parted by commas or blanks, each added, or
    /// taken away after `^` or `-`; `none` takes all away.
    ///
    /// # Errors
    /// The first name that no feature has; nothing is changed then.
    pub fn edit(&mut self, list: &str) -> Result<(), UnknownFeature> {
        let mut edited = *self;
        let words = list.split(|c: char| c == ',' || c.is_ascii_whitespace());
        for word in words.filter(|word| !word.is_empty()) {
            if word.eq_ignore_ascii_case("none") || word.eq_ignore_ascii_case("clear") {
                edited = Self::default();
                continue;
            }
            let (remove, name) = match word.strip_prefix(['^', '-']) {
                Some(name) => (true, name),
                None => (false, word.strip_prefix('+').unwrap_or(word)),
            };
            let feature = Self::from_name(name).ok_or_else(|| UnknownFeature(name.to_owned()))?;
            edited = if remove {
                edited.difference(feature)
            } else {
                edited.union(feature)
            };
        }
        *self = edited;
        Ok(())
    }

    /// What is here or there.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            compat: self.compat | other.compat,
            incompat: self.incompat | other.incompat,
            ro_compat: self.ro_compat | other.ro_compat,
        }
    }

    /// What is here and not there.
    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        Self {
            compat: self.compat.difference(other.compat),
            incompat: self.incompat.difference(other.incompat),
            ro_compat: self.ro_compat.difference(other.ro_compat),
        }
    }

    /// Whether no feature is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.compat.is_empty() && self.incompat.is_empty() && self.ro_compat.is_empty()
    }

    fn of(word: Word, bits: u32) -> Self {
        let mut features = Self::default();
        match word {
            Word::Compat => features.compat = Compat::from_bits_retain(bits),
            Word::Incompat => features.incompat = Incompat::from_bits_retain(bits),
            Word::RoCompat => features.ro_compat = RoCompat::from_bits_retain(bits),
        }
        features
    }
}

impl std::fmt::Display for Features {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.names().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_has_a_name_that_finds_it_again() {
        for number in 0..32 {
            for word in [Word::Compat, Word::Incompat, Word::RoCompat] {
                let feature = Features::of(word, 1 << number);
                let names = feature.names();
                assert_eq!(names.len(), 1);
                assert_eq!(Features::from_name(&names[0]), Some(feature), "{names:?}");
            }
        }
    }

    #[test]
    fn second_names_are_understood_and_wrong_ones_are_not() {
        assert_eq!(
            Features::from_name("extents"),
            Features::from_name("EXTENT")
        );
        assert_eq!(
            Features::from_name("uninit_groups"),
            Features::from_name("uninit_bg")
        );
        for wrong in [
            "",
            "extent ",
            "FEATURE_",
            "FEATURE_C",
            "FEATURE_C32",
            "FEATURE_X1",
            "FEATURE_I+1",
            "größe_die",
        ] {
            assert_eq!(Features::from_name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lists_are_edited_like_mke2fs_does() {
        let mut features = Features::default();
        features
            .edit("has_journal,extent 64bit")
            .expect("known names");
        features
            .edit("^has_journal,-64bit,+quota")
            .expect("known names");
        assert_eq!(features.to_string(), "extent quota");
        let before = features;
        assert_eq!(
            features.edit("none,bogus"),
            Err(UnknownFeature("bogus".into()))
        );
        assert_eq!(features, before, "a list that fails changes nothing");
        features.edit("none").expect("a known word");
        assert!(features.is_empty());
    }
}
