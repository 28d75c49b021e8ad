//! Attributes set and removed by chance, against a map, with remounts; the kernel and e2fsck see
//! the same in the end.

use std::collections::BTreeMap;

use pagefence_vfs::{Error, FileSystem as _, XattrMode};
use proptest::prelude::*;

use crate::support::{Image, Xattrs, mount, shown_by_kernel};

const FILES: [&str; 4] = ["a", "b", "dir", ""];

#[derive(Clone, Debug)]
enum Step {
    Set(usize, String, Vec<u8>, XattrMode),
    Remove(usize, String),
    Remount,
}

fn name() -> impl Strategy<Value = String> {
    let prefix = prop_oneof![Just("user."), Just("trusted."), Just("security.")];
    (prefix, "[a-d]{1,2}|[a-b]{60}").prop_map(|(prefix, rest)| format!("{prefix}{rest}"))
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |range| proptest::collection::vec(any::<u8>(), range);
    prop_oneof![
        4 => bytes(0..40),
        3 => bytes(40..400),
        2 => bytes(400..1200),
        1 => bytes(1200..9000),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![
        4 => Just(XattrMode::Set),
        1 => Just(XattrMode::Create),
        1 => Just(XattrMode::Replace),
    ];
    prop_oneof![
        8 => (0..FILES.len(), name(), value(), mode)
            .prop_map(|(file, name, value, mode)| Step::Set(file, name, value, mode)),
        4 => (0..FILES.len(), name()).prop_map(|(file, name)| Step::Remove(file, name)),
        1 => Just(Step::Remount),
    ]
}

fn follow(options: &[&str], steps: &[Step]) -> Result<(), TestCaseError> {
    let image = Image::new(options);
    let mut model: BTreeMap<usize, Xattrs> = BTreeMap::new();
    let mut mounted = image.open();
    for step in steps {
        match step {
            Step::Set(file, name, value, mode) => {
                let id = mounted.id(FILES[*file]);
                let of_file = model.entry(*file).or_default();
                let is_there = of_file.contains_key(name.as_bytes());
                let result = mounted.fs.set_xattr(id, name.as_bytes(), value, *mode);
                match result {
                    Err(Error::Exists) => prop_assert!(is_there && *mode == XattrMode::Create),
                    Err(Error::NoAttribute) => {
                        prop_assert!(!is_there && *mode == XattrMode::Replace);
                    }
                    // Never where all there is fits with ease.
                    Err(Error::NoSpace) => {
                        let there: usize = of_file.iter().map(|(n, v)| n.len() + v.len()).sum();
                        prop_assert!(there + value.len() > 300, "{step:?}: {of_file:?}");
                    }
                    Err(error) => prop_assert!(false, "{step:?}: {error}"),
                    Ok(()) => {
                        let refused = match mode {
                            XattrMode::Set => false,
                            XattrMode::Create => is_there,
                            XattrMode::Replace => !is_there,
                        };
                        prop_assert!(!refused, "{step:?}");
                        of_file.insert(name.clone().into_bytes(), value.clone());
                    }
                }
            }
            Step::Remove(file, name) => {
                let removed = model
                    .entry(*file)
                    .or_default()
                    .remove(name.as_bytes())
                    .is_some();
                match mounted.remove(FILES[*file], name) {
                    Ok(()) => prop_assert!(removed),
                    Err(Error::NoAttribute) => prop_assert!(!removed),
                    Err(error) => prop_assert!(false, "{step:?}: {error}"),
                }
            }
            Step::Remount => {
                mounted.close();
                mounted = image.open();
            }
        }
        for (file, name) in FILES.iter().enumerate() {
            let due = model.get(&file).cloned().unwrap_or_default();
            prop_assert_eq!(mounted.xattrs(name), due, "{} after {:?}", name, step);
        }
    }
    mounted.close();
    image.assert_clean();
    if let Some(kernel) = mount(&image, "ro") {
        for (file, name) in FILES.iter().enumerate() {
            let due = model.get(&file).cloned().unwrap_or_default();
            prop_assert_eq!(shown_by_kernel(&kernel.path(name)), due, "{}", name);
        }
    }
    Ok(())
}

/// Attributes of all files go, one by one; nothing stays behind.
fn removed_to_the_last(options: &[&str]) {
    let image = Image::new(options);
    let free = |image: &Image| {
        let superblock = image.superblock();
        (
            superblock.free_blocks_count(),
            superblock.free_inodes_count(),
        )
    };
    let before = free(&image);
    let mounted = image.open();
    let blocks = mounted.attr("a").blocks_512;
    for length in [0, 10, 100, 300] {
        mounted
            .set("a", &format!("user.{length}"), &vec![1; length])
            .unwrap();
    }
    assert!(
        mounted.attr("a").blocks_512 > blocks,
        "a block of attributes counts"
    );
    for length in [100, 0, 300, 10] {
        mounted.remove("a", &format!("user.{length}")).unwrap();
    }
    assert_eq!(mounted.attr("a").blocks_512, blocks);
    mounted.close();
    assert_eq!(free(&image), before);
    image.assert_clean();
}

macro_rules! each {
    ($($name:ident, $options:expr;)*) => {
        mod by_chance {
            use super::*;
            proptest! {
                #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
                $(
                    #[test]
                    fn $name(steps in proptest::collection::vec(step(), 1..60)) {
                        follow(&$options, &steps)?;
                    }
                )*
            }
        }
        mod to_the_last {
            $(
                #[test]
                fn $name() {
                    super::removed_to_the_last(&$options);
                }
            )*
        }
    };
}

each! {
    ext4_1k_256, ["-t", "ext4", "-b", "1024", "-I", "256"];
    ext4_4k_256, ["-t", "ext4", "-b", "4096", "-I", "256"];
    ext4_1k_128, ["-t", "ext4", "-b", "1024", "-I", "128"];
    ext4_1k_256_ea_inode, ["-t", "ext4", "-b", "1024", "-I", "256", "-O", "ea_inode"];
    ext4_4k_128_ea_inode, ["-t", "ext4", "-b", "4096", "-I", "128", "-O", "ea_inode"];
    ext4_1k_512_inline, ["-t", "ext4", "-b", "1024", "-I", "512", "-O", "inline_data"];
    ext2_1k_128, ["-t", "ext2", "-b", "1024", "-I", "128"];
    ext3_4k_256, ["-t", "ext3", "-b", "4096", "-I", "256"];
    ext4_1k_no_extents_ea_inode,
        ["-t", "ext4", "-b", "1024", "-I", "256", "-O", "ea_inode,^extents,^64bit"];
}
