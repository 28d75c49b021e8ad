//! Which features a new file system has: the defaults of each kind, edited by a list, and the
//! rules by which features need or exclude each other.

use pagefence_ext4_format::features::{Compat, Features, Incompat, RoCompat};

use super::error::MkfsError;

/// Which of the three file systems to make; it decides the features to start from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// ext2: no journal.
    Ext2,
    /// ext3: ext2 with a journal.
    Ext3,
    /// ext4: extents, checksums, flexible groups, 64-bit block numbers.
    #[default]
    Ext4,
}

impl Kind {
    /// The features that mke2fs 1.47 gives this kind as released upstream. (Distributions edit
    /// the list: Debian 12 leaves out `metadata_csum_seed` and `orphan_file`.)
    #[must_use]
    pub fn default_features(self) -> Features {
        let base = Features {
            compat: Compat::EXT_ATTR | Compat::RESIZE_INODE | Compat::DIR_INDEX,
            incompat: Incompat::FILETYPE,
            ro_compat: RoCompat::SPARSE_SUPER | RoCompat::LARGE_FILE,
        };
        let ext3 = Features {
            compat: Compat::HAS_JOURNAL,
            ..Features::default()
        };
        let ext4 = Features {
            compat: Compat::ORPHAN_FILE,
            incompat: Incompat::EXTENTS
                | Incompat::FLEX_BG
                | Incompat::SIXTY_FOUR_BIT
                | Incompat::CSUM_SEED,
            ro_compat: RoCompat::HUGE_FILE
                | RoCompat::METADATA_CSUM
                | RoCompat::DIR_NLINK
                | RoCompat::EXTRA_ISIZE,
        };
        match self {
            Self::Ext2 => base,
            Self::Ext3 => base.union(ext3),
            Self::Ext4 => base.union(ext3).union(ext4),
        }
    }
}

/// Why a feature that has a name can't be made.
const UNSUPPORTED: &[(Features, &str)] = &[
    (compat(Compat::DIR_PREALLOC), "nothing uses it"),
    (compat(Compat::IMAGIC_INODES), "nothing uses it"),
    (
        compat(Compat::LAZY_BG),
        "uninit_bg and metadata_csum took its place",
    ),
    (compat(Compat::EXCLUDE_INODE), "Linux has no snapshots"),
    (compat(Compat::EXCLUDE_BITMAP), "Linux has no snapshots"),
    (incompat(Incompat::COMPRESSION), "Linux has never had it"),
    (incompat(Incompat::RECOVER), "a new file system is clean"),
    (
        incompat(Incompat::JOURNAL_DEV),
        "external journals are not supported",
    ),
    (
        incompat(Incompat::MMP),
        "the protection against mounting twice is not supported",
    ),
    (incompat(Incompat::DIRDATA), "only Lustre has it"),
    (
        incompat(Incompat::CASEFOLD),
        "case folding is not supported",
    ),
    (ro_compat(RoCompat::BTREE_DIR), "nothing uses it"),
    (ro_compat(RoCompat::HAS_SNAPSHOT), "Linux has no snapshots"),
    (ro_compat(RoCompat::QUOTA), "quota files are not supported"),
    (
        ro_compat(RoCompat::BIGALLOC),
        "clusters of several blocks can be read, not made",
    ),
    (ro_compat(RoCompat::REPLICA), "nothing uses it"),
    (
        ro_compat(RoCompat::READONLY),
        "a new file system is there to be filled",
    ),
    (
        ro_compat(RoCompat::SHARED_BLOCKS),
        "a new file system is there to be filled",
    ),
    (
        ro_compat(RoCompat::ORPHAN_PRESENT),
        "a new file system has no orphans",
    ),
];

const fn compat(compat: Compat) -> Features {
    Features {
        compat,
        incompat: Incompat::empty(),
        ro_compat: RoCompat::empty(),
    }
}

const fn incompat(incompat: Incompat) -> Features {
    Features {
        compat: Compat::empty(),
        incompat,
        ro_compat: RoCompat::empty(),
    }
}

const fn ro_compat(ro_compat: RoCompat) -> Features {
    Features {
        compat: Compat::empty(),
        incompat: Incompat::empty(),
        ro_compat,
    }
}

const MAKEABLE: Features = Features {
    compat: Compat::HAS_JOURNAL
        .union(Compat::EXT_ATTR)
        .union(Compat::RESIZE_INODE)
        .union(Compat::DIR_INDEX)
        .union(Compat::SPARSE_SUPER2)
        .union(Compat::FAST_COMMIT)
        .union(Compat::STABLE_INODES)
        .union(Compat::ORPHAN_FILE),
    incompat: Incompat::FILETYPE
        .union(Incompat::META_BG)
        .union(Incompat::EXTENTS)
        .union(Incompat::SIXTY_FOUR_BIT)
        .union(Incompat::FLEX_BG)
        .union(Incompat::EA_INODE)
        .union(Incompat::CSUM_SEED)
        .union(Incompat::LARGE_DIR)
        .union(Incompat::INLINE_DATA)
        .union(Incompat::ENCRYPT),
    ro_compat: RoCompat::SPARSE_SUPER
        .union(RoCompat::LARGE_FILE)
        .union(RoCompat::HUGE_FILE)
        .union(RoCompat::GDT_CSUM)
        .union(RoCompat::DIR_NLINK)
        .union(RoCompat::EXTRA_ISIZE)
        .union(RoCompat::METADATA_CSUM)
        .union(RoCompat::PROJECT)
        .union(RoCompat::VERITY),
};

/// Features to be made: the defaults of a kind, edited by lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureChoice {
    wanted: Features,
    /// Asked for by name: dropped by no rule, but refused if they can't be.
    explicit: Features,
}

impl FeatureChoice {
    /// The defaults of `kind`.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            wanted: kind.default_features(),
            explicit: Features::default(),
        }
    }

    /// Applies a list as `mke2fs -O` takes it: names parted by commas, each added, or taken away
    /// after `^`; `none` takes all away.
    ///
    /// # Errors
    /// [`MkfsError::UnknownFeature`] or [`MkfsError::UnsupportedFeature`]; nothing is changed
    /// then.
    pub fn edit(&mut self, list: &str) -> Result<(), MkfsError> {
        let mut edited = *self;
        for word in list.split(|c: char| c == ',' || c.is_ascii_whitespace()) {
            let mut added = Features::default();
            added.edit(word)?;
            edited.wanted.edit(word)?;
            // What a later word takes away is no longer asked for.
            edited.explicit = intersection(edited.explicit.union(added), edited.wanted);
        }
        for (feature, reason) in UNSUPPORTED {
            if !intersection(edited.wanted, *feature).is_empty() {
                return Err(MkfsError::UnsupportedFeature {
                    name: feature.to_string(),
                    reason,
                });
            }
        }
        let unknown = edited.wanted.difference(MAKEABLE);
        if let Some(name) = unknown.names().into_iter().next() {
            let reason = "it is not known here";
            return Err(MkfsError::UnsupportedFeature { name, reason });
        }
        *self = edited;
        Ok(())
    }

    /// What was asked for by name.
    pub(super) fn is_explicit(&self, feature: Features) -> bool {
        !intersection(self.explicit, feature).is_empty()
    }

    /// The features to make. A default that lacks what it needs, or that excludes what was asked
    /// for by name, is dropped.
    ///
    /// # Errors
    /// [`MkfsError::FeatureNeeds`] or [`MkfsError::FeatureConflict`] for what was asked for by
    /// name.
    pub fn resolve(&self) -> Result<Features, MkfsError> {
        let mut features = self.wanted;
        // mke2fs drops the older checksum without a word, too: the newer one does all it did.
        if features.ro_compat.contains(RoCompat::METADATA_CSUM) {
            features.ro_compat.remove(RoCompat::GDT_CSUM);
        }
        if features.incompat.contains(Incompat::META_BG)
            && features.compat.contains(Compat::RESIZE_INODE)
        {
            if self.is_explicit(compat(Compat::RESIZE_INODE)) {
                return Err(MkfsError::FeatureConflict {
                    first: "meta_bg",
                    second: "resize_inode",
                });
            }
            features.compat.remove(Compat::RESIZE_INODE);
        }
        for rule in RULES {
            if rule.is_met(features) {
                continue;
            }
            if self.is_explicit(rule.feature) {
                return Err(MkfsError::FeatureNeeds {
                    name: rule.name,
                    needs: rule.needs,
                });
            }
            features = features.difference(rule.feature);
        }
        Ok(features)
    }
}

/// A feature that needs one of others.
struct Rule {
    feature: Features,
    name: &'static str,
    one_of: Features,
    needs: &'static str,
}

impl Rule {
    fn is_met(&self, features: Features) -> bool {
        intersection(features, self.feature).is_empty()
            || !intersection(features, self.one_of).is_empty()
    }
}

/// What needs what, each before those that need it in turn.
const RULES: &[Rule] = &[
    Rule {
        feature: compat(Compat::ORPHAN_FILE),
        name: "orphan_file",
        one_of: compat(Compat::HAS_JOURNAL),
        needs: "has_journal",
    },
    Rule {
        feature: compat(Compat::FAST_COMMIT),
        name: "fast_commit",
        one_of: compat(Compat::HAS_JOURNAL),
        needs: "has_journal",
    },
    Rule {
        feature: incompat(Incompat::CSUM_SEED),
        name: "metadata_csum_seed",
        one_of: ro_compat(RoCompat::METADATA_CSUM),
        needs: "metadata_csum",
    },
    Rule {
        // Block maps have no room for more than 32 bits.
        feature: incompat(Incompat::SIXTY_FOUR_BIT),
        name: "64bit",
        one_of: incompat(Incompat::EXTENTS),
        needs: "extent",
    },
    Rule {
        // With a backup in every group the resize inode's map would not hold them.
        feature: compat(Compat::RESIZE_INODE),
        name: "resize_inode",
        one_of: Features {
            compat: Compat::SPARSE_SUPER2,
            incompat: Incompat::empty(),
            ro_compat: RoCompat::SPARSE_SUPER,
        },
        needs: "sparse_super or sparse_super2",
    },
    Rule {
        // Small files overflow into an attribute.
        feature: incompat(Incompat::INLINE_DATA),
        name: "inline_data",
        one_of: compat(Compat::EXT_ATTR),
        needs: "ext_attr",
    },
    Rule {
        feature: incompat(Incompat::EA_INODE),
        name: "ea_inode",
        one_of: compat(Compat::EXT_ATTR),
        needs: "ext_attr",
    },
];

fn intersection(a: Features, b: Features) -> Features {
    Features {
        compat: a.compat & b.compat,
        incompat: a.incompat & b.incompat,
        ro_compat: a.ro_compat & b.ro_compat,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(kind: Kind, list: &str) -> Result<String, MkfsError> {
        let mut choice = FeatureChoice::new(kind);
        choice.edit(list)?;
        choice.resolve().map(|features| features.to_string())
    }

    #[test]
    fn defaults_are_those_of_mke2fs() {
        assert_eq!(
            resolved(Kind::Ext2, "").expect("the defaults"),
            "ext_attr resize_inode dir_index filetype sparse_super large_file"
        );
        assert_eq!(
            resolved(Kind::Ext3, "").expect("the defaults"),
            "has_journal ext_attr resize_inode dir_index filetype sparse_super large_file"
        );
        assert_eq!(
            resolved(Kind::Ext4, "").expect("the defaults"),
            "has_journal ext_attr resize_inode dir_index orphan_file filetype extent 64bit \
             flex_bg metadata_csum_seed sparse_super large_file huge_file dir_nlink extra_isize \
             metadata_csum"
        );
    }

    #[test]
    fn defaults_give_way_and_wishes_do_not() {
        let without_journal = resolved(Kind::Ext4, "^has_journal").expect("a default gives way");
        assert!(!without_journal.contains("orphan_file"));
        for (list, message) in [
            (
                "^has_journal,orphan_file",
                "the feature orphan_file needs has_journal",
            ),
            ("^extent,64bit", "the feature 64bit needs extent"),
            (
                "meta_bg,resize_inode",
                "the features meta_bg and resize_inode exclude each other",
            ),
            (
                "casefold",
                "the feature casefold can't be made: case folding is not supported",
            ),
            (
                "FEATURE_C30",
                "the feature FEATURE_C30 can't be made: it is not known here",
            ),
            ("bogus", "\"bogus\" is not the name of a feature"),
        ] {
            let error = resolved(Kind::Ext4, list).expect_err(list);
            assert_eq!(error.to_string(), message);
        }
        let taken_back = resolved(Kind::Ext4, "orphan_file,^orphan_file,^has_journal");
        assert!(taken_back.is_ok(), "a word taken back is no wish");
        let meta_bg = resolved(Kind::Ext4, "meta_bg").expect("a default gives way");
        assert!(!meta_bg.contains("resize_inode"));
        let crc16 = resolved(Kind::Ext4, "uninit_bg").expect("the newer checksum covers it");
        assert!(!crc16.contains("uninit_bg"));
    }

    #[test]
    fn every_name_is_makeable_or_has_a_reason() {
        let reasons = UNSUPPORTED
            .iter()
            .fold(Features::default(), |all, (feature, _)| all.union(*feature));
        assert!(intersection(reasons, MAKEABLE).is_empty());
        for bit in 0..32 {
            for letter in ["C", "I", "R"] {
                let feature = Features::from_name(&format!("FEATURE_{letter}{bit}"))
                    .expect("every bit has a name of this form");
                let is_known = !feature.to_string().starts_with("FEATURE_");
                let is_decided = !intersection(feature, reasons.union(MAKEABLE)).is_empty();
                assert!(!is_known || is_decided, "{feature}");
            }
        }
    }
}
