//! Which images there are: types, block sizes, features.

/// One image to make.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    /// File name without extension.
    pub(crate) name: String,
    /// ext2, ext3 or ext4.
    pub(crate) kind: &'static str,
    /// Block size.
    pub(crate) block_bytes: u32,
    /// The exact features, for `mke2fs -O none,…`.
    pub(crate) features: String,
    /// More arguments of mke2fs.
    pub(crate) make_arguments: Vec<String>,
    /// What tune2fs or debugfs changes before the kernel fills it.
    pub(crate) before_fill: Vec<Adjustment>,
    /// What they change afterwards, since the kernel may not mount the result for writing.
    pub(crate) after_fill: Vec<Adjustment>,
    /// Size of the image in MiB.
    pub(crate) size_mib: u64,
    /// Inodes.
    pub(crate) inodes: u64,
    /// Entries of the big directory.
    pub(crate) big_directory_entries: u64,
    /// Size of an inode in bytes.
    pub(crate) inode_bytes: u32,
    /// More mount options of the kernel's mount that fills it.
    pub(crate) mount_options: &'static str,
}

/// A change made without mounting.
#[derive(Clone, Debug)]
pub(crate) enum Adjustment {
    /// `tune2fs` with these arguments.
    Tune(Vec<&'static str>),
    /// `debugfs -w -R` with this request.
    Debug(&'static str),
}

/// mke2fs's defaults for ext2, the same from 1.42 to 1.47.
pub(crate) const EXT2: &str = "ext_attr,resize_inode,dir_index,filetype,sparse_super,large_file";
/// For ext3.
pub(crate) const EXT3: &str =
    "has_journal,ext_attr,resize_inode,dir_index,filetype,sparse_super,large_file";
/// For ext4 in mke2fs 1.42.
pub(crate) const EXT4_1_42: &str = "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,\
     flex_bg,sparse_super,large_file,huge_file,uninit_bg,dir_nlink,extra_isize";
/// For ext4 in mke2fs 1.43 to 1.46, and in Debian's 1.47.0.
pub(crate) const EXT4_1_45: &str = "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,\
     64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// For ext4 in mke2fs 1.47.0 to 1.47.2 as released.
pub(crate) const EXT4_1_47: &str = "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,\
     64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum,\
     metadata_csum_seed,orphan_file";

/// Adds `added`, removes `removed`; both are separated by commas.
fn change(base: &str, added: &str, removed: &str) -> String {
    let removed: Vec<&str> = removed.split(',').collect();
    base.split(',')
        .chain(added.split(',').filter(|feature| !feature.is_empty()))
        .filter(|feature| !removed.contains(feature))
        .collect::<Vec<_>>()
        .join(",")
}

/// A variant with everything as usual.
pub(crate) fn plain(name: &str, kind: &'static str, block_bytes: u32, features: &str) -> Variant {
    Variant {
        name: format!("{name}-{}k", block_bytes / 1024),
        kind,
        block_bytes,
        features: features.to_owned(),
        make_arguments: Vec::new(),
        before_fill: Vec::new(),
        after_fill: Vec::new(),
        size_mib: 128,
        inodes: 16_384,
        big_directory_entries: 1000,
        inode_bytes: 256,
        mount_options: "",
    }
}

impl Variant {
    fn arguments(mut self, arguments: &[&str]) -> Self {
        self.make_arguments
            .extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    fn before(mut self, adjustment: Adjustment) -> Self {
        self.before_fill.push(adjustment);
        self
    }

    fn after(mut self, adjustment: Adjustment) -> Self {
        self.after_fill.push(adjustment);
        self
    }

    fn inode_size(mut self, bytes: u32) -> Self {
        self.inode_bytes = bytes;
        self
    }

    /// With a directory of 100,000 entries: an htree of two levels and more.
    fn big(mut self) -> Self {
        self.size_mib = 256;
        self.inodes = 131_072;
        self.big_directory_entries = 100_000;
        self
    }

    /// Another size of the big directory, with the room for it.
    pub(crate) fn entries(mut self, entries: u64) -> Self {
        self.big_directory_entries = entries;
        self.inodes = self.inodes.max(entries + 8192);
        self
    }
}

/// An ext4 image: the defaults of 1.45 with a difference.
fn ext4(name: &str, block_bytes: u32, added: &str, removed: &str) -> Variant {
    plain(
        &format!("ext4-{name}"),
        "ext4",
        block_bytes,
        &change(EXT4_1_45, added, removed),
    )
}

/// The whole matrix, or one image of each sort.
pub(crate) fn variants(quick: bool) -> Vec<Variant> {
    if quick {
        return quick_variants();
    }
    let mut variants = Vec::new();
    for block_bytes in [1024, 2048, 4096] {
        variants.extend([
            plain("ext2", "ext2", block_bytes, EXT2),
            plain("ext3", "ext3", block_bytes, EXT3),
            plain("ext4-1.42", "ext4", block_bytes, EXT4_1_42),
            plain("ext4-1.45", "ext4", block_bytes, EXT4_1_45),
            plain("ext4-1.47", "ext4", block_bytes, EXT4_1_47),
            ext4("no-extent", block_bytes, "", "extent,64bit"),
            ext4("inline-data", block_bytes, "inline_data", ""),
            ext4("ea-inode", block_bytes, "ea_inode", ""),
        ]);
    }
    variants.extend(layout_variants());
    variants.extend(directory_variants());
    variants.extend(feature_variants());
    variants
}

fn quick_variants() -> Vec<Variant> {
    vec![
        plain("ext2", "ext2", 1024, EXT2),
        plain("ext3", "ext3", 2048, EXT3).entries(3000),
        plain("ext4-1.42", "ext4", 1024, EXT4_1_42).entries(12_000),
        plain("ext4-1.47", "ext4", 4096, EXT4_1_47),
        ext4("inline-data", 4096, "inline_data", ""),
        ext4("ea-inode", 1024, "ea_inode", ""),
        ext4("bigalloc-16k", 4096, "bigalloc", "resize_inode").arguments(&["-C", "16384"]),
        ext4("inode-128", 1024, "", "extra_isize").inode_size(128),
    ]
}

/// Where the metadata lies.
fn layout_variants() -> Vec<Variant> {
    vec![
        ext4("meta-bg", 1024, "meta_bg", "resize_inode"),
        ext4("meta-bg", 4096, "meta_bg", "resize_inode"),
        ext4(
            "sparse-super2",
            4096,
            "sparse_super2",
            "sparse_super,resize_inode",
        ),
        ext4("no-sparse-super", 1024, "", "sparse_super,resize_inode"),
        ext4("no-flex-bg", 4096, "", "flex_bg"),
        ext4("no-resize-inode", 2048, "", "resize_inode"),
        // The smallest groups that mke2fs makes of 1k blocks are still many in 128 MiB.
        ext4("many-groups", 1024, "", "").arguments(&["-g", "1024"]),
        ext4("no-64bit", 4096, "", "64bit"),
        ext4("bigalloc-8k", 1024, "bigalloc", "resize_inode").arguments(&["-C", "8192"]),
        ext4("bigalloc-64k", 4096, "bigalloc", "resize_inode").arguments(&["-C", "65536"]),
        ext4("inode-128", 1024, "", "extra_isize").inode_size(128),
        ext4("inode-128", 4096, "", "extra_isize").inode_size(128),
        ext4("inode-512", 1024, "", "").inode_size(512),
        ext4("inode-1024", 4096, "inline_data", "").inode_size(1024),
        ext4("uninit-bg", 4096, "uninit_bg", "metadata_csum"),
        ext4("no-checksums", 1024, "", "metadata_csum"),
        ext4("csum-seed", 4096, "metadata_csum_seed", ""),
        ext4("no-journal", 4096, "", "has_journal"),
        ext4("orphan-file", 1024, "orphan_file", ""),
    ]
}

/// How directories are indexed.
fn directory_variants() -> Vec<Variant> {
    vec![
        plain("ext3-big-directory", "ext3", 1024, EXT3).big(),
        ext4("big-directory", 1024, "", "").big(),
        ext4("big-directory", 4096, "", "").big(),
        ext4("large-dir", 1024, "large_dir", "").big(),
        ext4("no-dir-index", 1024, "", "dir_index").entries(3000),
        ext4("no-filetype", 4096, "", "filetype"),
        ext4("hash-legacy", 1024, "", "")
            .before(Adjustment::Tune(vec!["-E", "hash_alg=legacy"]))
            .entries(4000),
        ext4("hash-tea", 1024, "", "")
            .before(Adjustment::Tune(vec!["-E", "hash_alg=tea"]))
            .entries(4000),
        ext4("hash-legacy-unsigned", 1024, "", "")
            .before(Adjustment::Tune(vec!["-E", "hash_alg=legacy"]))
            .before(Adjustment::Debug("set_super_value flags 2"))
            .entries(4000),
        ext4("hash-half-md4-unsigned", 1024, "", "")
            .before(Adjustment::Debug("set_super_value flags 2"))
            .entries(4000),
        ext4("hash-tea-unsigned", 1024, "", "")
            .before(Adjustment::Tune(vec!["-E", "hash_alg=tea"]))
            .before(Adjustment::Debug("set_super_value flags 2"))
            .entries(4000),
        ext4("casefold", 4096, "casefold", ""),
    ]
}

/// Features that reading serves or ignores.
fn feature_variants() -> Vec<Variant> {
    vec![
        ext4("inline-data-ea-inode", 1024, "inline_data,ea_inode", ""),
        ext4("encrypt", 4096, "encrypt", ""),
        ext4("verity", 4096, "verity", ""),
        ext4("stable-inodes", 4096, "stable_inodes", ""),
        ext4("mmp", 4096, "mmp", ""),
        ext4("fast-commit", 4096, "fast_commit", ""),
        // A kernel without quota mounts these read-only alone, so they are made afterwards.
        ext4("quota", 4096, "", "").after(Adjustment::Tune(vec!["-O", "quota"])),
        ext4("project", 4096, "", "")
            .after(Adjustment::Tune(vec!["-O", "project"]))
            .after(Adjustment::Debug(
                "set_inode_field /sizes/size-4096 projid 4242",
            ))
            .after(Adjustment::Debug("set_inode_field /sizes projid 7")),
        // Default mount options, a label, reserved blocks for a user: kept in the superblock.
        ext4("tuned", 4096, "", "")
            .arguments(&["-L", "pagefence", "-m", "10"])
            .after(Adjustment::Tune(vec![
                "-o",
                "user_xattr,acl,nobarrier",
                "-u",
                "1000",
                "-r",
                "100",
            ])),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::variants;

    #[test]
    fn names_are_unique_and_three_directories_are_big() {
        let all = variants(false);
        let names: HashSet<&str> = all.iter().map(|variant| variant.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        let big = all
            .iter()
            .filter(|variant| variant.big_directory_entries >= 100_000)
            .count();
        assert!(big >= 3);
    }

    #[test]
    fn every_type_comes_in_every_block_size() {
        let all = variants(false);
        for kind in ["ext2", "ext3", "ext4"] {
            for block_bytes in [1024, 2048, 4096] {
                assert!(
                    all.iter()
                        .any(|one| one.kind == kind && one.block_bytes == block_bytes)
                );
            }
        }
    }
}
