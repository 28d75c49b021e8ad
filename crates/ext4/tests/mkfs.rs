//! What mkfs makes, before the judges: `e2fsck -fn` must find nothing, `dumpe2fs` must tell the
//! same as of what mke2fs makes, and the kernel must mount it, write to it and leave it clean.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use pagefence_block_io::file_device::{FileDevice, OpenOptions};
use pagefence_ext4::mkfs::{
    Contents, Kind, Made, MkfsError, NodeMeta, Parameters, Tree, format,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A new sparse file of that size.
fn sparse_file(dir: &Path, size: u64) -> PathBuf {
    let path = dir.join("image");
    let file = std::fs::File::create(&path).expect("an image in a directory of its own");
    file.set_len(size).expect("a sparse file");
    path
}

fn parameters(kind: Kind, block_size: u32, features: &str) -> Parameters {
    let mut parameters = Parameters::new(kind);
    parameters.block_size = Some(block_size);
    parameters.contents = Contents::Zeros;
    parameters.features.edit(features).expect("known features");
    parameters
}

fn make(path: &Path, parameters: &Parameters, tree: &Tree) -> Result<Made, MkfsError> {
    let options = OpenOptions {
        write: true,
        ..OpenOptions::default()
    };
    let device = FileDevice::open(path, options).expect("the image opens");
    format(&device, parameters, tree)
}

/// Runs a tool of e2fsprogs and returns what it wrote.
fn tool(name: &str, arguments: &[&str], path: &Path) -> (bool, String) {
    let output = Command::new(name)
        .args(arguments)
        .arg(path)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{name} of e2fsprogs is needed: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Everything that e2fsck says beside its title, its passes and its summary is a complaint.
fn assert_clean(path: &Path, context: &str) {
    let (success, text) = tool("e2fsck", &["-f", "-n"], path);
    let image = path.display().to_string();
    let complaint = text.lines().find(|line| {
        let is_summary = line.starts_with(&image) && line.contains(" blocks");
        let is_pass = line.starts_with("Pass ") && line.contains(": Checking ");
        !(line.is_empty() || line.starts_with("e2fsck ") || is_pass || is_summary)
    });
    assert!(success && complaint.is_none(), "{context}: {text}");
}

/// The lines of `dumpe2fs -h` that two makers must agree on.
fn facts(path: &Path) -> Vec<String> {
    const COMPARED: &[&str] = &[
        "Filesystem revision #",
        "Filesystem features",
        "Filesystem flags",
        "Default mount options",
        "Filesystem state",
        "Errors behavior",
        "Filesystem OS type",
        "Inode count",
        "Block count",
        "Reserved block count",
        "Overhead clusters",
        "Free blocks",
        "Free inodes",
        "First block",
        "Block size",
        "Fragment size",
        "Group descriptor size",
        "Reserved GDT blocks",
        "Blocks per group",
        "Inodes per group",
        "Inode blocks per group",
        "Flex block group size",
        "Mount count",
        "Maximum mount count",
        "Check interval",
        "Reserved blocks uid",
        "First inode",
        "Inode size",
        "Required extra isize",
        "Desired extra isize",
        "Journal inode",
        "Default directory hash",
        "Journal backup",
        "Backup block groups",
        "Checksum type",
        "Orphan file inode",
        "Journal features",
        "Total journal size",
        "Total journal blocks",
        "Max transaction length",
        "Fast commit length",
        "Journal sequence",
        "Journal start",
    ];
    let (success, text) = tool("dumpe2fs", &["-h"], path);
    assert!(success, "{text}");
    text.lines()
        .filter(|line| COMPARED.iter().any(|name| line.starts_with(name)))
        .map(str::to_owned)
        .collect()
}

/// What mke2fs makes of the same, with upstream's features whatever the distribution's are.
fn mke2fs(path: &Path, kind: Kind, block_size: u32, features: &str) {
    let (kind, defaults) = match kind {
        Kind::Ext2 => ("ext2", ""),
        Kind::Ext3 => ("ext3", ""),
        Kind::Ext4 => ("ext4", "metadata_csum_seed,orphan_file,"),
    };
    // What is asked for by name mke2fs would refuse where a default only gives way.
    let defaults = if features.contains("^has_journal") || features.contains("^metadata_csum") {
        ""
    } else {
        defaults
    };
    let features = format!("{defaults}{features}");
    let block_size = block_size.to_string();
    let mut arguments = vec!["-q", "-F", "-t", kind, "-b", &block_size];
    if !features.is_empty() {
        arguments.extend(["-O", &features]);
    }
    let (success, text) = tool("mke2fs", &arguments, path);
    assert!(success, "mke2fs {arguments:?}: {text}");
}

fn check_like_mke2fs(kind: Kind, block_size: u32, size: u64, features: &str) {
    let context = format!("{kind:?}, blocks of {block_size}, {size} bytes, {features:?}");
    let dir = tempfile::tempdir().expect("a directory");
    let path = sparse_file(dir.path(), size);
    make(&path, &parameters(kind, block_size, features), &Tree::new())
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_clean(&path, &context);
    let ours = facts(&path);
    std::fs::remove_file(&path).expect("our image goes");
    let path = sparse_file(dir.path(), size);
    mke2fs(&path, kind, block_size, features);
    let theirs = facts(&path);
    assert_eq!(ours, theirs, "{context}");
}

#[test]
fn all_kinds_and_block_sizes_are_clean_and_like_those_of_mke2fs() {
    for kind in [Kind::Ext2, Kind::Ext3, Kind::Ext4] {
        for block_size in [1024, 2048, 4096] {
            for size in [256 * KIB, 8 * MIB, 64 * MIB, GIB] {
                check_like_mke2fs(kind, block_size, size, "");
            }
        }
    }
}
