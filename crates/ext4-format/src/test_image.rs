//! Images that `mke2fs` makes, for tests that compare with it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::group_desc::GroupDesc;
use crate::ids::{BlockNo, GroupNo, InodeNo};
use crate::superblock::{SUPERBLOCK_OFFSET, Superblock};

/// An image in a temporary file, removed when dropped.
pub(crate) struct TestImage {
    path: PathBuf,
    file: File,
    pub(crate) len: u64,
}

impl TestImage {
    /// Makes a file system of `mib` MiB with these arguments of `mke2fs`. `label` tells the
    /// images of one test run apart.
    pub(crate) fn make(label: &str, mib: u64, arguments: &[&str]) -> Self {
        let name = format!("pagefence-format-{}-{label}.img", std::process::id());
        let path = std::env::temp_dir().join(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path);
        let file = file.unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
        let len = mib * 1024 * 1024;
        file.set_len(len).expect("the image can be made that large");
        let image = Self { path, file, len };
        let output = tool("mke2fs")
            .args(["-q", "-F"])
            .args(arguments)
            .arg(&image.path)
            .output();
        let output = output.expect("mke2fs runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "mke2fs {arguments:?} failed: {said}"
        );
        image
    }

    /// Runs commands of `debugfs` that change the image.
    pub(crate) fn debugfs(&self, commands: &[&str]) -> String {
        let mut said = String::new();
        for command in commands {
            let output = tool("debugfs")
                .args(["-w", "-R", command])
                .arg(&self.path)
                .output();
            let output = output.expect("debugfs runs");
            // It exits with 0 whatever happens, and says its version first.
            let complaint = String::from_utf8_lossy(&output.stderr);
            let complaint: Vec<_> = complaint.lines().skip(1).collect();
            assert!(complaint.is_empty(), "debugfs {command}: {complaint:?}");
            said.push_str(&String::from_utf8_lossy(&output.stdout));
        }
        said
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, offset)
            .expect("inside the image");
        bytes
    }

    pub(crate) fn superblock(&self) -> Superblock {
        let bytes = self.read(SUPERBLOCK_OFFSET, 1024);
        Superblock::parse(&bytes, Some(self.len)).expect("mke2fs writes valid superblocks")
    }

    pub(crate) fn block(&self, sb: &Superblock, block: BlockNo) -> Vec<u8> {
        let size = sb.block_size() as usize;
        self.read(block.0 * size as u64, size)
    }

    /// The bytes of a descriptor.
    pub(crate) fn descriptor(&self, sb: &Superblock, group: GroupNo) -> Vec<u8> {
        let (index, offset) = sb.locate_descriptor(group).expect("a group");
        let block = self.block(sb, sb.descriptor_block(index).expect("a descriptor block"));
        block[offset..offset + sb.desc_size()].to_vec()
    }

    pub(crate) fn group(&self, sb: &Superblock, group: GroupNo) -> GroupDesc {
        GroupDesc::parse(&self.descriptor(sb, group), group, sb)
            .unwrap_or_else(|error| panic!("group {group}: {error}"))
    }

    /// The bytes of an inode's record.
    pub(crate) fn inode(&self, sb: &Superblock, ino: InodeNo) -> Vec<u8> {
        let place = sb.locate_inode(ino).expect("an inode");
        let table = self.group(sb, place.group).inode_table();
        let block = self.block(sb, BlockNo(table.0 + u64::from(place.table_block)));
        block[place.offset..place.offset + sb.inode_size()].to_vec()
    }
}

impl Drop for TestImage {
    fn drop(&mut self) {
        // Nothing to be done about a file that can't be removed.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A tool of e2fsprogs, wherever it is installed.
pub(crate) fn tool(name: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(extra)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    let found = found
        .unwrap_or_else(|| panic!("this test needs {name} of e2fsprogs, and it is not installed"));
    Command::new(found)
}
