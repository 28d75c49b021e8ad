//! Directories that can't grow: that is known before a name is made.

use pagefence_vfs::{Error, FileSystem as _, InodeId};

use crate::maps::set_field;
use crate::support::{Image, create, try_create};

/// A directory whose root says that it has less room than there is can be read; it does not grow,
/// and that is known before a name is made.
#[test]
fn directories_with_less_room_than_there_is_do_not_grow() {
    let image = Image::new(&["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"], "8M");
    let root = InodeId(2);
    set_field(&image.path, root, "block[1]", 3);
    let fs = image.open();
    let free = fs.stat_fs().unwrap().inodes_free;
    let name = |number: usize| format!("{number:0>200}");
    let made: Vec<_> = (0..20)
        .map(|number| try_create(&fs, &name(number)))
        .collect();
    let fit = made.iter().take_while(|made| made.is_ok()).count();
    assert!((2..6).contains(&fit), "{fit}");
    for late in &made[fit..] {
        assert!(matches!(late, Err(Error::Corrupt { .. })), "{late:?}");
    }
    create(&fs, "short");
    fs.sync().unwrap();
    assert_eq!(fs.stat_fs().unwrap().inodes_free, free - fit as u64 - 1);
    fs.shut_down().unwrap();
}

/// A directory that ends in a hole can't be made longer, so its blocks can't be split: that is known
/// before a name is made.
#[test]
fn a_directory_that_can_not_be_split_costs_an_error_only() {
    let image = Image::new(&["-t", "ext4", "-b", "1024"], "8M");
    let name = |number: usize| format!("{number:0>100}");
    let fs = image.open();
    for number in 0..40 {
        create(&fs, &name(number));
    }
    let size = fs.attr(fs.root()).unwrap().size;
    fs.shut_down().unwrap();
    drop(fs);
    set_field(&image.path, InodeId(2), "size", size + 1024);
    let fs = image.open();
    let free = fs.stat_fs().unwrap().inodes_free;
    let made: Vec<_> = (40..100)
        .map(|number| try_create(&fs, &name(number)))
        .collect();
    let is_damage = |made: &&_| matches!(made, Err(Error::Corrupt { .. }));
    let late = made.iter().filter(is_damage).count();
    let fit = made.iter().filter(|made| made.is_ok()).count();
    assert!(late > 0 && late + fit == 60, "{late}, {fit} of 60");
    fs.sync().unwrap();
    assert_eq!(fs.stat_fs().unwrap().inodes_free, free - fit as u64);
    fs.shut_down().unwrap();
}

/// A directory with blocks behind its end does not grow over them, nor does one whose blocks can't be
/// counted: that is known before a name is made.
#[test]
fn a_directory_that_has_blocks_behind_its_end_costs_an_error_only() {
    for kind in ["ext4", "ext2"] {
        for field in ["size", "blocks"] {
            let features = "^dir_index,^huge_file,^metadata_csum";
            let image = Image::new(&["-t", kind, "-b", "1024", "-O", features], "8M");
            let name = |number: usize| format!("{number:0>200}");
            let fs = image.open();
            for number in 0..6 {
                create(&fs, &name(number));
            }
            let size = fs.attr(fs.root()).unwrap().size;
            assert!(size > 1024);
            fs.shut_down().unwrap();
            drop(fs);
            let value = match field {
                "size" => size - 1024,
                _ => u64::from(u32::MAX) / 2 * 2,
            };
            set_field(&image.path, InodeId(2), field, value);
            let fs = image.open();
            let free = fs.stat_fs().unwrap().inodes_free;
            let made: Vec<_> = (10..30)
                .map(|number| try_create(&fs, &name(number)))
                .collect();
            let is_damage = |made: &&_| matches!(made, Err(Error::Corrupt { .. }));
            let late = made.iter().filter(is_damage).count();
            let fit = made.iter().filter(|made| made.is_ok()).count();
            let what = format!("{kind}, {field}: {late}, {fit} of 20");
            assert!(late > 10 && late + fit == 20, "{what}");
            create(&fs, "s");
            fs.sync().unwrap();
            let left = fs.stat_fs().unwrap().inodes_free;
            assert_eq!(left, free - fit as u64 - 1, "{what}");
            fs.shut_down().unwrap();
        }
    }
}
