//! Attributes that debugfs set: in the inode, in a block, in an inode of their own.

use std::fs;

use super::acl::{Acl, AclTag};
use super::{Value, XattrLimits, Xattrs, name, stored_hash, verify_checksum};
use crate::extent::image_tests::{debugfs, file_blocks, inode_at};
use crate::inode::Inode;
use crate::test_image::TestImage;

#[test]
fn attributes_in_each_place() {
    let options = ["-t", "ext4", "-b", "1024", "-O", "ea_inode,metadata_csum"];
    let image = TestImage::make("xattrs", 8, &options);
    let temp = |what: &str| {
        std::env::temp_dir().join(format!("pagefence-xattr-{what}-{}", std::process::id()))
    };
    let list = Acl::from_disk(
        b"\x01\0\0\0\x01\0\x06\0\x02\0\x07\0\xE8\x03\0\0\x04\0\x04\0\x10\0\x07\0\x20\0\x04\0",
    );
    let list = list.unwrap().unwrap();
    let medium: Vec<u8> = (0..401).map(|at| at as u8).collect();
    // The most that debugfs reads from a file, and too much for the block.
    let large: Vec<u8> = (0..1024).map(|at| (at % 251) as u8).collect();
    fs::write(temp("acl"), list.to_xattr()).unwrap();
    fs::write(temp("medium"), &medium).unwrap();
    fs::write(temp("large"), &large).unwrap();
    let script = format!(
        "write /dev/null f\n\
         ea_set f user.small hello\n\
         ea_set -f {} f user.medium\n\
         ea_set -f {} f user.large\n\
         ea_set -f {} f system.posix_acl_access\n\
         ea_set f trusted.other x\n",
        temp("medium").display(),
        temp("large").display(),
        temp("acl").display()
    );
    debugfs(&image, script.as_bytes());
    for what in ["acl", "medium", "large"] {
        fs::remove_file(temp(what)).unwrap();
    }

    let sb = image.superblock();
    let limits = XattrLimits::from(&sb);
    let seed = sb.checksum_seed();
    let inode = inode_at(&image, &sb, &[b"f"]);
    let region = inode.xattr_region().unwrap();
    let in_inode = Xattrs::in_inode(region, &limits).unwrap().unwrap();
    let number = inode.file_acl().expect("401 bytes need the block");
    let block = image.block(&sb, number);
    verify_checksum(&block, number, seed).unwrap();
    assert!(verify_checksum(&block, number, inode.checksum_seed()).is_err());
    let mut again = block.clone();
    super::update_checksum(&mut again, number, seed).unwrap();
    assert_eq!(again, block);
    let in_block = Xattrs::in_block(&block, &limits).unwrap();
    assert_eq!(stored_hash(&block), Ok(0), "e2fsprogs leaves it out");
    assert_eq!(super::refcount(&block), Ok(1));

    let mut in_inodes = 0;
    let mut met = Vec::new();
    for (entry, in_inode) in in_inode
        .entries()
        .map(|entry| (entry, true))
        .chain(in_block.entries().map(|entry| (entry, false)))
    {
        let whole = name::join(entry.index, entry.name).unwrap();
        entry.verify_hash(in_inode).unwrap();
        let value = match entry.value {
            Value::Bytes(value) => value.to_vec(),
            Value::Inode { inode: ino, len } => {
                in_inodes += 1;
                let holder = Inode::parse(&image.inode(&sb, ino), ino, &sb).unwrap();
                assert_eq!(holder.size(), u64::from(len));
                let mut value = file_blocks(&image, &sb, &holder).concat();
                value.truncate(len as usize);
                entry
                    .verify_ea_inode(&value, holder.ea_hash(), seed)
                    .unwrap();
                value
            }
        };
        met.push((String::from_utf8(whole).unwrap(), value));
    }
    assert_eq!(in_inodes, 1);
    met.sort();
    let expected = [
        ("system.posix_acl_access", list.to_disk()),
        ("trusted.other", b"x".to_vec()),
        ("user.large", large),
        ("user.medium", medium),
        ("user.small", b"hello".to_vec()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    for ((name, value), (due_name, due)) in met.iter().zip(&expected) {
        assert_eq!(name, due_name);
        assert!(value == due, "{name}: {} bytes", value.len());
    }
    assert_eq!(met.len(), expected.len());
    assert_eq!(list.entries()[1].tag, AclTag::User(1000));
}
