//! Values in inodes of their own, and attribute blocks that several inodes share.

use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::{Error, FileSystem as _, XattrMode};

use crate::kernel::run;
use crate::support::{Image, mount, shown_by_kernel};

fn large_image() -> Image {
    Image::new(&["-t", "ext4", "-b", "1024", "-O", "ea_inode,metadata_csum"])
}

fn value(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ salt).collect()
}

#[test]
fn values_up_to_64_kib() {
    let image = large_image();
    let free = image.superblock().free_blocks_count();
    let mounted = image.open();
    let blocks = mounted.attr("a").blocks_512;
    mounted.set("a", "user.large", &value(65536, 1)).unwrap();
    assert_eq!(
        mounted.attr("a").blocks_512,
        blocks + 128,
        "as Linux counts"
    );
    let refused = mounted.set("a", "user.larger", &value(65537, 1));
    assert!(matches!(refused, Err(Error::TooLarge)));
    mounted.set("a", "user.second", &value(5000, 2)).unwrap();
    mounted.set("a", "user.large", &value(3000, 3)).unwrap();
    mounted.set("a", "user.second", b"small").unwrap();
    let due = mounted.xattrs("a");
    assert_eq!(due[&b"user.large"[..]], value(3000, 3));
    mounted.close();
    image.assert_clean();
    if let Some(kernel) = mount(&image, "ro") {
        assert_eq!(shown_by_kernel(&kernel.path("a")), due);
    }
    let mounted = image.open();
    assert_eq!(mounted.xattrs("a"), due);
    mounted.remove("a", "user.large").unwrap();
    mounted.remove("a", "user.second").unwrap();
    assert_eq!(mounted.attr("a").blocks_512, blocks);
    mounted.close();
    image.assert_clean();
    assert_eq!(image.superblock().free_blocks_count(), free);
}

/// The kernel gives equal values one inode, and equal attributes one block.
#[test]
fn what_the_kernel_shared_is_not_changed_for_others() {
    let image = large_image();
    let many = value(600, 5);
    let hex = |bytes: &[u8]| {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("0x{digits}")
    };
    {
        let Some(kernel) = mount(&image, "rw") else {
            return;
        };
        for file in ["a", "b", "c"] {
            let path = kernel.path(file);
            for (name, value) in [
                // Leaves no room in the record.
                ("user.fill", hex(&value(64, 8))),
                ("user.block", hex(&many)),
                ("user.large", hex(&value(4000, 6))),
                ("trusted.more", hex(&value(150, 7))),
            ] {
                run(
                    "setfattr",
                    &["-n", name, "-v", &value, path.to_str().unwrap()],
                );
            }
        }
    }
    let mounted = image.open();
    let ids = ["a", "b", "c"].map(|file| mounted.id(file));
    let before = mounted.xattrs("a");
    assert_eq!(before.len(), 4);
    let shared = ids.map(|id| image.inode(id).file_acl().unwrap());
    assert_eq!(shared[0], shared[1], "the kernel shares");
    assert_eq!(shared[0], shared[2]);
    mounted.set("a", "user.block", b"mine").unwrap();
    mounted.remove("b", "user.large").unwrap();
    assert_eq!(mounted.xattrs("c"), before);
    let mut of_a = before.clone();
    of_a.insert(b"user.block".to_vec(), b"mine".to_vec());
    let mut of_b = before.clone();
    of_b.remove(&b"user.large"[..]);
    assert_eq!(mounted.xattrs("a"), of_a);
    assert_eq!(mounted.xattrs("b"), of_b);
    mounted.close();
    image.assert_clean();
    let blocks = ids.map(|id| image.inode(id).file_acl().unwrap());
    assert_eq!(blocks[2], shared[2], "the last to use it keeps it");
    assert!(blocks[0] != blocks[2] && blocks[1] != blocks[2]);
    if let Some(kernel) = mount(&image, "ro") {
        assert_eq!(shown_by_kernel(&kernel.path("a")), of_a);
        assert_eq!(shown_by_kernel(&kernel.path("b")), of_b);
        assert_eq!(shown_by_kernel(&kernel.path("c")), before);
    }
    let mounted = image.open();
    for file in ["a", "b", "c"] {
        for name in mounted.xattrs(file).keys() {
            let name = std::str::from_utf8(name).unwrap();
            mounted.remove(file, name).unwrap();
        }
    }
    mounted.close();
    image.assert_clean();
}

/// With no inode left, a value that needs one is refused; nothing else happens, and the file
/// system goes on.
#[test]
fn without_free_inodes_a_large_value_is_refused() {
    let options = ["-t", "ext4", "-b", "1024", "-N", "32", "-O", "ea_inode"];
    let image = Image::new(&options);
    let mounted = image.open();
    let mut set = 0;
    let refused = loop {
        match mounted.set("a", &format!("user.{set}"), &value(2000, set)) {
            Ok(()) => set += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::NoSpace), "{refused}");
    assert!((5..40).contains(&set), "{set}");
    mounted.set("b", "user.small", b"fits").unwrap();
    assert_eq!(mounted.xattrs("a").len(), usize::from(set));
    mounted.close();
    image.assert_clean();
}

#[test]
fn a_full_block_is_no_space_without_inodes_for_values() {
    let image = Image::new(&["-t", "ext4", "-b", "1024"]);
    let mounted = image.open();
    mounted.set("a", "user.first", &value(700, 1)).unwrap();
    let before = mounted.xattrs("a");
    for (name, len) in [
        ("user.second", 300),
        ("user.first", 1100),
        ("user.z", 65536),
    ] {
        let refused = mounted.set("a", name, &value(len, 2));
        assert!(matches!(refused, Err(Error::NoSpace)), "{name} {len}");
    }
    assert_eq!(mounted.xattrs("a"), before);
    mounted.close();
    image.assert_clean();
}

/// Who reads an attribute sees one that its inode has or had: not what lies in its block when that
/// is another inode's.
#[test]
fn attributes_read_while_their_blocks_change_owners() {
    const ROUNDS: u8 = 120;
    for options in [&["-b", "1024"][..], &["-b", "1024", "-O", "ea_inode"]] {
        let image = Image::new(&[&["-t", "ext4"], options].concat());
        let mounted = image.open();
        let ids = ["a", "b", "c"].map(|file| mounted.id(file));
        let fs = &mounted.fs;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for (salt, id) in (1..).zip(ids) {
                let stop = &stop;
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        match fs.xattr(id, b"user.large") {
                            Ok(found) => assert_eq!(found, value(found.len(), salt)),
                            Err(Error::NoAttribute) => {}
                            Err(error) => panic!("{error}"),
                        }
                        let names = fs.xattr_names(id).unwrap();
                        assert!(names.len() <= 1, "{names:?}");
                    }
                });
            }
            for round in 0..ROUNDS {
                let at = usize::from(round % 3);
                let (id, salt) = (ids[at], 1 + round % 3);
                let len = if options.len() > 2 && round % 2 == 0 {
                    3000
                } else {
                    600
                };
                fs.set_xattr(id, b"user.large", &value(len, salt), XattrMode::Set)
                    .unwrap();
                let gone = ids[(at + 1) % 3];
                let _ = fs.remove_xattr(gone, b"user.large");
                // What was freed is used again.
                fs.sync().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        mounted.close();
        image.assert_clean();
    }
}
