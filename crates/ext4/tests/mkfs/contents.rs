//! Devices that held something before, file systems with files in them, sizes at the limits, and
//! images made twice.

use std::io::Write as _;

use pagefence_block_io::memory_device::MemoryDevice;
use pagefence_ext4::mkfs::{
    Contents, EntryError, Kind, MkfsError, NodeMeta, Parameters, Tree, format,
};
use pagefence_ext4_format::inode::Timestamp;

use crate::judges::{KIB, MIB, assert_clean, make, parameters, sparse_file, tool};

/// Bytes that differ from block to block.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512 + at % 251) as u8 | 1).collect()
}

/// A tree that needs every kind of mapping: many extents, indirect blocks of every height that
/// fits, directories of several blocks, links of both kinds, attributes.
pub(crate) fn varied_tree() -> Tree {
    let mut tree = Tree::new();
    let meta = NodeMeta::default;
    let mut fill = || {
        tree.file(b"/etc/hostname", b"pagefence\n".to_vec(), false, meta())?;
        tree.file(b"/empty", Vec::new(), false, meta())?;
        tree.file(b"/large", pattern(3 << 20), false, meta())?;
        let mut sparse = vec![0; 2 << 20];
        for start in (0..sparse.len()).step_by(16 << 10) {
            sparse[start..start + 5].copy_from_slice(b"data\n");
        }
        tree.file(b"/sparse", sparse, true, meta())?;
        tree.file(b"/zeros", vec![0; 100_000], true, meta())?;
        tree.symlink(b"/short", b"etc/hostname", meta())?;
        tree.symlink(b"/long", &[b'x'; 900], meta())?;
        for number in 0..300 {
            let name = format!("/many/a file whose name is rather long, number {number}");
            tree.file(name.as_bytes(), name.clone().into_bytes(), false, meta())?;
        }
        let mut owned = NodeMeta {
            permissions: Some(0o4750),
            uid: 70_000,
            gid: 80_000,
            mtime: Some(Timestamp {
                seconds: 1 << 32,
                nanoseconds: 123_456_789,
            }),
            ..NodeMeta::default()
        };
        owned
            .xattrs
            .insert(b"user.colour".to_vec(), b"green".to_vec());
        owned.xattrs.insert(b"user.empty".to_vec(), Vec::new());
        owned.xattrs.insert(b"trusted.t".to_vec(), vec![0xFF; 7]);
        tree.file(b"/owned", b"x".to_vec(), false, owned.clone())?;
        owned.permissions = Some(0o1777);
        tree.directory(b"/a/b/c/d", owned)
    };
    fill().expect("paths that differ");
    tree
}

#[test]
fn filled_file_systems_are_clean() {
    for kind in [Kind::Ext2, Kind::Ext3, Kind::Ext4] {
        for block_size in [1024, 2048, 4096] {
            for features in ["", "inline_data,project", "none"] {
                if features == "inline_data,project" && kind != Kind::Ext4 {
                    continue;
                }
                let context = format!("{kind:?}, {block_size}, {features:?}");
                let dir = tempfile::tempdir().expect("a directory");
                let path = sparse_file(dir.path(), 40 * MIB);
                make(
                    &path,
                    &parameters(kind, block_size, features),
                    &varied_tree(),
                )
                .unwrap_or_else(|error| panic!("{context}: {error}"));
                assert_clean(&path, &context);
                let (_, listing) = tool("debugfs", &["-R", "cat /etc/hostname"], &path);
                assert!(listing.contains("pagefence\n"), "{context}: {listing}");
            }
        }
    }
}

#[test]
fn files_larger_than_a_group_and_blocks_all_used_are_clean() {
    for kind in [Kind::Ext3, Kind::Ext4] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = sparse_file(dir.path(), 48 * MIB);
        let mut tree = Tree::new();
        // The doubly indirect block's share is 64 MiB of 1 KiB blocks: only holes reach beyond.
        let mut tall = vec![0; 70 << 20];
        tall.extend_from_slice(b"the end");
        tall[..4].copy_from_slice(b"head");
        tree.file(b"/tall", tall, true, NodeMeta::default())
            .expect("a new path");
        tree.file(b"/wide", pattern(20 << 20), false, NodeMeta::default())
            .expect("a new path");
        make(&path, &parameters(kind, 1024, ""), &tree).expect("it fits");
        assert_clean(&path, &format!("{kind:?}"));

        let full = vec![1; 60 << 20];
        tree.file(b"/full", full, false, NodeMeta::default())
            .expect("a new path");
        let error = make(&path, &parameters(kind, 1024, ""), &tree).expect_err("it can't fit");
        assert!(matches!(error, MkfsError::NoSpace { .. }), "{error}");
    }
}

#[test]
fn what_a_device_held_before_does_not_shine_through() {
    for kind in [Kind::Ext2, Kind::Ext3, Kind::Ext4] {
        for features in ["", "none", "uninit_bg,^metadata_csum,^metadata_csum_seed"] {
            for block_size in [1024, 4096] {
                let context = format!("{kind:?}, {block_size}, {features:?}");
                let dir = tempfile::tempdir().expect("a directory");
                let path = dir.path().join("image");
                let mut file = std::fs::File::create(&path).expect("an image");
                for _ in 0..40 {
                    file.write_all(&vec![0xA5; MIB as usize])
                        .expect("40 MiB of rubbish");
                }
                let mut parameters = parameters(kind, block_size, features);
                parameters.contents = Contents::Unknown;
                let made = make(&path, &parameters, &varied_tree())
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                assert_clean(&path, &context);
                let (_, text) = tool("dumpe2fs", &[], &path);
                let is_lazy = made.superblock.has_group_desc_csum();
                assert!(
                    !text.contains("ITABLE_ZEROED"),
                    "{context}: tables are not zeroed"
                );
                assert_eq!(
                    text.contains("INODE_UNINIT"),
                    is_lazy && block_size == 1024,
                    "{context}"
                );
            }
        }
    }
}

#[test]
fn the_smallest_sizes_are_made_or_refused_by_their_size() {
    for kind in [Kind::Ext2, Kind::Ext3, Kind::Ext4] {
        for block_size in [1024, 2048, 4096] {
            let dir = tempfile::tempdir().expect("a directory");
            let mut made = Vec::new();
            for kib in (0..160).step_by(4) {
                let path = sparse_file(dir.path(), kib * KIB);
                match make(&path, &parameters(kind, block_size, ""), &Tree::new()) {
                    Ok(_) => {
                        assert_clean(&path, &format!("{kind:?}, {block_size}, {kib} KiB"));
                        made.push(kib);
                    }
                    Err(MkfsError::TooSmall {
                        size_bytes,
                        needed_bytes,
                    }) => {
                        assert_eq!(size_bytes, kib * KIB);
                        assert!(needed_bytes > size_bytes, "{needed_bytes} for {size_bytes}");
                    }
                    Err(other) => panic!("{kind:?}, {block_size}, {kib} KiB: {other}"),
                }
            }
            assert!(
                made.contains(&156) || block_size == 4096,
                "{kind:?}, {block_size}: {made:?}"
            );
            let is_run = made.windows(2).all(|pair| pair[1] == pair[0] + 4);
            assert!(is_run, "larger ones can be made, too: {made:?}");
        }
    }
}

#[test]
fn the_same_parameters_make_the_same_bytes() {
    let image = || {
        let device = MemoryDevice::new(24 * MIB);
        let mut parameters = Parameters::new(Kind::Ext4);
        parameters.uuid = [7; 16];
        parameters.hash_seed = [8; 16];
        parameters.time_seconds = 1_700_000_000;
        parameters.label = b"same".to_vec();
        format(&device, &parameters, &varied_tree()).expect("it fits");
        device.to_vec()
    };
    assert!(image() == image());
}

#[test]
fn what_cannot_be_put_into_a_file_system_is_refused_by_name() {
    let device = MemoryDevice::new(8 * MIB);
    let refused = |fill: &dyn Fn(&mut Tree) -> Result<(), MkfsError>, parameters: &Parameters| {
        let mut tree = Tree::new();
        fill(&mut tree).expect("it is refused later");
        match format(&device, parameters, &tree).expect_err("it can't be stored") {
            MkfsError::Entry { path, reason } => (path, reason),
            other => panic!("{other}"),
        }
    };
    let parameters = Parameters::new(Kind::Ext4);
    let meta = NodeMeta::default;
    let (path, reason) = refused(
        &|tree| tree.symlink(b"/l", &[b't'; 1024], meta()),
        &parameters,
    );
    assert_eq!(
        (&path[..], reason),
        (&b"/l"[..], EntryError::Target { most: 1023 })
    );
    let (_, reason) = refused(&|tree| tree.symlink(b"/l", b"", meta()), &parameters);
    assert_eq!(reason, EntryError::Target { most: 1023 });
    let large = |tree: &mut Tree| {
        let mut meta = meta();
        meta.xattrs.insert(b"user.large".to_vec(), vec![1; 200]);
        tree.file(b"/f", vec![], false, meta)
    };
    let (_, reason) = refused(&large, &parameters);
    assert!(
        matches!(reason, EntryError::XattrRoom { room: 96, .. }),
        "{reason:?}"
    );
    let mut small_inodes = Parameters::new(Kind::Ext2);
    small_inodes.inode_size = Some(128);
    let (_, reason) = refused(&large, &small_inodes);
    assert!(
        matches!(reason, EntryError::XattrRoom { room: 0, .. }),
        "{reason:?}"
    );

    let mut few_inodes = Parameters::new(Kind::Ext4);
    few_inodes.inodes = Some(16);
    let mut tree = Tree::new();
    for number in 0..20 {
        let name = format!("/{number}");
        tree.file(name.as_bytes(), vec![], false, meta())
            .expect("a new path");
    }
    let error = format(&device, &few_inodes, &tree).expect_err("there are 16 inodes");
    assert!(
        matches!(error, MkfsError::NoInodes { inodes: 16 }),
        "{error}"
    );

    let mut label = Parameters::new(Kind::Ext4);
    label.label = vec![b'x'; 17];
    let error = format(&device, &label, &Tree::new()).expect_err("a label has 16 bytes");
    assert!(matches!(error, MkfsError::Label { bytes: 17 }), "{error}");

    let mut journal = Parameters::new(Kind::Ext4);
    journal
        .features
        .edit("has_journal")
        .expect("a known feature");
    let error = format(&MemoryDevice::new(MIB), &journal, &Tree::new())
        .expect_err("a journal that was asked for is not left out");
    assert!(
        matches!(
            error,
            MkfsError::TooSmall {
                needed_bytes: 2_097_152,
                ..
            }
        ),
        "{error}"
    );
    let made = format(
        &MemoryDevice::new(MIB),
        &Parameters::new(Kind::Ext4),
        &Tree::new(),
    )
    .expect("a journal by default is left out");
    assert_eq!(made.left_out.to_string(), "has_journal orphan_file");
}
