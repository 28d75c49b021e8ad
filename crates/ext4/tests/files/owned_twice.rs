//! Files of damaged images that claim blocks of metadata as their data: blocks of directories, maps,
//! symbolic links, attributes and orphans. Nobody overwrites what somebody reads as metadata, and
//! nobody reads as metadata what somebody wrote as data.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use pagefence_ext4::FileSystem;
use pagefence_vfs::{Error, FileSystem as _, InodeId, New, NewKind, WriteMode, XattrMode};

use crate::maps::{change, fill, set_field};
use crate::support::{Image, KINDS, create, find, read_all, root, write_all};

/// Bytes of the target of the symbolic link: more than fit into an inode.
const LONG: usize = 200;

/// Pieces of the file with a map, and bytes from one to the next: more than an inode maps.
const PIECES: u64 = 30;
const APART: u64 = 64 << 10;

/// What a block of metadata belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Directory,
    Map,
    Symlink,
    Attributes,
}

impl Victim {
    const ALL: [Self; 4] = [Self::Directory, Self::Map, Self::Symlink, Self::Attributes];

    fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Map => "map",
            Self::Symlink => "symlink",
            Self::Attributes => "attributes",
        }
    }

    /// Makes it.
    fn make(self, fs: &FileSystem, block: usize) {
        match self {
            Self::Directory => {
                let dir = make(fs, fs.root(), self.name(), NewKind::Directory);
                make(fs, dir, "name", NewKind::Regular);
            }
            Self::Map => {
                let file = fs.open(create(fs, self.name()), true).unwrap();
                for piece in 0..PIECES {
                    write_all(fs, &file, piece * APART, &vec![7; block]);
                }
            }
            Self::Symlink => {
                make(fs, fs.root(), self.name(), NewKind::Symlink(&[b'x'; LONG]));
            }
            Self::Attributes => {
                let id = create(fs, self.name());
                fs.set_xattr(id, b"user.long", &[2; 2 * LONG], XattrMode::Set)
                    .unwrap();
            }
        }
    }

    /// Reads its metadata.
    fn read(self, fs: &FileSystem) -> Result<(), Error> {
        let id = find(fs, self.name());
        match self {
            Self::Directory => fs.lookup(id, b"name").map(drop),
            Self::Map => {
                let file = fs.open(id, false)?;
                (0..PIECES).try_for_each(|piece| fs.read(&file, piece * APART, &mut [0]).map(drop))
            }
            Self::Symlink => fs.read_link(id).map(drop),
            Self::Attributes => fs.xattr(id, b"user.long").map(drop),
        }
    }

    /// Where that lies.
    fn place(self, path: &Path, id: InodeId) -> u64 {
        let number = id.0;
        match self {
            Self::Directory | Self::Symlink => said(path, &format!("bmap <{number}> 0"), ""),
            Self::Attributes => said(path, &format!("stat <{number}>"), "File ACL: "),
            Self::Map => {
                let all = debugfs(path, &format!("blocks <{number}>"));
                let mut all = all.split_whitespace().map(|word| word.parse().unwrap());
                let data: Vec<u64> = (0..PIECES)
                    .map(|piece| piece * APART / block_size(path))
                    .map(|at| said(path, &format!("bmap <{number}> {at}"), ""))
                    .collect();
                all.find(|block| !data.contains(block)).unwrap()
            }
        }
    }
}

fn new(kind: NewKind<'_>) -> New<'_> {
    New {
        kind,
        permissions: 0o755,
        umask: 0,
    }
}

fn make(fs: &FileSystem, parent: InodeId, name: &str, kind: NewKind<'_>) -> InodeId {
    let made = fs.create(parent, name.as_bytes(), &new(kind), &root());
    made.unwrap().attr.id
}

fn debugfs(path: &Path, command: &str) -> String {
    let output = Command::new("debugfs")
        .args(["-R", command])
        .arg(path)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The number behind `label`.
fn said(path: &Path, command: &str, label: &str) -> u64 {
    let text = debugfs(path, command);
    let digits = text
        .split_once(label)
        .map_or("", |(_, found)| found.trim_start());
    let end = digits.find(|c: char| !c.is_ascii_digit());
    digits[..end.unwrap_or(digits.len())]
        .parse()
        .unwrap_or_else(|_| panic!("{command}: {text}"))
}

fn block_size(path: &Path) -> u64 {
    said(path, "show_super_stats -h", "Block size:")
}

/// The field of an inode that says where its first block lies.
fn first_pointer(has_extents: bool) -> &'static str {
    match has_extents {
        true => "block[5]",
        false => "block[0]",
    }
}

/// An image on which a file, "thief", has the block of each victim as its first one, and where they
/// lie.
fn robbed(options: &[&str], has_extents: bool, victims: &[Victim]) -> (Image, Vec<u64>) {
    let image = Image::new(options, "16M");
    let fs = image.open();
    let block = usize::try_from(fs.stat_fs().unwrap().block_size).unwrap();
    let pairs: Vec<_> = victims
        .iter()
        .map(|victim| {
            victim.make(&fs, block);
            let thief = create(&fs, &format!("thief of {}", victim.name()));
            write_all(&fs, &fs.open(thief, true).unwrap(), 0, &vec![7; block]);
            (find(&fs, victim.name()), thief)
        })
        .collect();
    fs.shut_down().unwrap();
    drop(fs);
    let first = first_pointer(has_extents);
    let places = victims
        .iter()
        .zip(pairs)
        .map(|(victim, (id, thief))| {
            let place = victim.place(&image.path, id);
            set_field(&image.path, thief, first, place);
            place
        })
        .collect();
    (image, places)
}

/// What the thief of `victim` gets for a write.
fn steal(fs: &FileSystem, victim: Victim) -> Result<(), Error> {
    let thief = find(fs, &format!("thief of {}", victim.name()));
    let file = fs.open(thief, true).unwrap();
    let block = usize::try_from(fs.stat_fs().unwrap().block_size).unwrap();
    write_all(fs, &file, 0, &vec![0x66; block]);
    fs.sync_file(&file, false)
}

/// Whether it was refused because the block is another's.
fn is_taken<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Corrupt { what, .. }) if what.contains("it owns a block of "))
}

fn bytes_at(image: &Image, place: u64) -> Vec<u8> {
    let size = usize::try_from(block_size(&image.path)).unwrap();
    let bytes = std::fs::read(&image.path).unwrap();
    bytes
        .chunks(size)
        .nth(usize::try_from(place).unwrap())
        .unwrap()
        .to_vec()
}

/// What was read as metadata is not overwritten as data; who has it goes on.
#[test]
fn what_was_read_as_metadata_is_not_written_as_data() {
    for kind in KINDS {
        let (image, places) = robbed(kind.options, kind.has_extents, &Victim::ALL);
        let before: Vec<_> = places
            .iter()
            .map(|place| bytes_at(&image, *place))
            .collect();
        let fs = image.open();
        for victim in Victim::ALL {
            let what = format!("{}, {victim:?}", kind.name);
            victim.read(&fs).unwrap();
            let outcome = steal(&fs, victim);
            assert!(is_taken(&outcome), "{what}: {outcome:?}");
            victim.read(&fs).unwrap();
        }
        let _ = fs.shut_down();
        drop(fs);
        for ((victim, place), before) in Victim::ALL.into_iter().zip(places).zip(before) {
            let after = bytes_at(&image, place);
            assert_eq!(after, before, "{}, {victim:?}", kind.name);
        }
    }
}

/// What was written as data is not read as metadata, whether or not there are checksums: a map made
/// of a file's bytes would lead anywhere.
#[test]
fn what_was_written_as_data_is_not_read_as_metadata() {
    for kind in KINDS {
        let checked = [kind.options, &["-O", "metadata_csum"]].concat();
        let plain = [kind.options, &["-O", "^metadata_csum"]].concat();
        for options in [checked, plain] {
            let (image, _) = robbed(&options, kind.has_extents, &Victim::ALL);
            let fs = image.open();
            for victim in Victim::ALL {
                let what = format!("{options:?}, {victim:?}");
                steal(&fs, victim).unwrap();
                let outcome = victim.read(&fs);
                assert!(is_taken(&outcome), "{what}: {outcome:?}");
                steal(&fs, victim).unwrap();
            }
            let _ = fs.shut_down();
        }
    }
}

/// Two directories that have one block: who reads it first has it.
#[test]
fn a_block_of_two_directories_is_read_by_one_of_them() {
    for kind in KINDS {
        let image = Image::new(kind.options, "8M");
        let fs = image.open();
        let dirs = ["one", "other"].map(|name| make(&fs, fs.root(), name, NewKind::Directory));
        fs.shut_down().unwrap();
        drop(fs);
        let place = Victim::Directory.place(&image.path, dirs[0]);
        let first = first_pointer(kind.has_extents);
        set_field(&image.path, dirs[1], first, place);
        let fs = image.open();
        let look = |dir| match fs.lookup(dir, b"name") {
            Err(Error::NotFound) => Ok(()),
            other => other.map(drop),
        };
        look(dirs[0]).unwrap();
        let outcome = look(dirs[1]);
        assert!(is_taken(&outcome), "{}: {outcome:?}", kind.name);
        look(dirs[0]).unwrap();
        let _ = fs.shut_down();
    }
}

/// A directory whose block is free by the bitmap loses it to the file that gets it, though it was read
/// before.
#[test]
fn a_block_that_was_free_is_written_by_who_gets_it() {
    let image = Image::new(&["-t", "ext2", "-b", "1024", "-O", "^metadata_csum"], "8M");
    let fs = image.open();
    let dir = make(&fs, fs.root(), "directory", NewKind::Directory);
    fs.shut_down().unwrap();
    drop(fs);
    let place = Victim::Directory.place(&image.path, dir);
    let free = said(&image.path, "show_super_stats -h", "Free blocks:") + 1;
    change(&image.path, &format!("freeb {place}"));
    change(
        &image.path,
        &format!("set_super_value free_blocks_count {free}"),
    );
    change(
        &image.path,
        &format!("set_block_group 0 free_blocks_count {free}"),
    );

    let fs = image.open();
    assert!(matches!(fs.lookup(dir, b"name"), Err(Error::NotFound)));
    let file = fill(&fs, "all", WriteMode::empty());
    let outcome = fs.create(dir, b"name", &new(NewKind::Regular), &root());
    assert!(is_taken(&outcome), "{outcome:?}");
    drop(file);
    fs.shut_down().unwrap();
    drop(fs);
    assert_eq!(bytes_at(&image, place), [9; 1024]);
}

/// A donor's blocks are written only if they are its own.
#[test]
fn data_is_not_moved_to_what_was_read_as_metadata() {
    for kind in KINDS.iter().filter(|kind| kind.has_extents) {
        let (image, places) = robbed(kind.options, kind.has_extents, &Victim::ALL);
        let before: Vec<_> = places
            .iter()
            .map(|place| bytes_at(&image, *place))
            .collect();
        let fs = image.open();
        let block = usize::try_from(fs.stat_fs().unwrap().block_size).unwrap();
        let file = fs.open(create(&fs, "file"), true).unwrap();
        write_all(&fs, &file, 0, &vec![5; block]);
        for victim in Victim::ALL {
            victim.read(&fs).unwrap();
            let donor = find(&fs, &format!("thief of {}", victim.name()));
            let donor = fs.open(donor, true).unwrap();
            let outcome = fs.move_blocks(&file, 0, &donor, 0, block as u64);
            assert!(is_taken(&outcome), "{}, {victim:?}: {outcome:?}", kind.name);
        }
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        for ((victim, place), before) in Victim::ALL.into_iter().zip(places).zip(before) {
            let after = bytes_at(&image, place);
            assert_eq!(after, before, "{}, {victim:?}", kind.name);
        }
    }
}

/// A file whose data lies in its own map.
#[test]
fn a_map_is_not_written_as_data_of_its_own_file() {
    for kind in KINDS.iter().filter(|kind| !kind.has_extents) {
        let image = Image::new(kind.options, "16M");
        let fs = image.open();
        let block = usize::try_from(fs.stat_fs().unwrap().block_size).unwrap();
        Victim::Map.make(&fs, block);
        let id = find(&fs, Victim::Map.name());
        fs.shut_down().unwrap();
        drop(fs);
        let place = Victim::Map.place(&image.path, id);
        set_field(&image.path, id, "block[0]", place);
        let before = bytes_at(&image, place);
        let fs = image.open();
        Victim::Map.read(&fs).unwrap();
        let file = fs.open(id, true).unwrap();
        write_all(&fs, &file, 0, &vec![0x66; block]);
        let outcome = fs.sync_file(&file, false);
        assert!(is_taken(&outcome), "{}: {outcome:?}", kind.name);
        drop(file);
        let _ = fs.shut_down();
        drop(fs);
        assert_eq!(bytes_at(&image, place), before, "{}", kind.name);
    }
}

/// The orphan file's blocks are its own from the beginning, before anything is an orphan.
#[test]
fn the_blocks_of_the_orphan_file_are_not_written_as_data() {
    let options = ["-t", "ext4", "-b", "1024", "-O", "orphan_file"];
    let (image, _) = robbed(&options, true, &[Victim::Directory]);
    let number = said(&image.path, "show_super_stats -h", "Orphan file inode:");
    let place = said(&image.path, &format!("bmap <{number}> 0"), "");
    let fs = image.open();
    let thief = find(&fs, "thief of directory");
    fs.shut_down().unwrap();
    drop(fs);
    set_field(&image.path, thief, first_pointer(true), place);
    let before = bytes_at(&image, place);
    let fs = image.open();
    let outcome = steal(&fs, Victim::Directory);
    assert!(is_taken(&outcome), "{outcome:?}");
    let _ = fs.shut_down();
    drop(fs);
    assert_eq!(bytes_at(&image, place), before);
}

/// Attributes that several inodes share are everybody's who names them, and free for others when the
/// last lets go.
#[test]
fn shared_attributes_are_read_by_all_who_share_them() {
    let image = Image::new(&["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"], "8M");
    let fs = image.open();
    let ids = ["one", "other"].map(|name| create(&fs, name));
    fs.set_xattr(ids[0], b"user.long", &[2; 2 * LONG], XattrMode::Set)
        .unwrap();
    fs.shut_down().unwrap();
    drop(fs);
    let place = Victim::Attributes.place(&image.path, ids[0]);
    set_field(&image.path, ids[1], "file_acl", place);
    let blocks = said(&image.path, &format!("stat <{}>", ids[0].0), "Blockcount: ");
    set_field(&image.path, ids[1], "blocks", blocks);
    // h_refcount.
    let device = std::fs::File::options()
        .write(true)
        .open(&image.path)
        .unwrap();
    let at = place * block_size(&image.path) + 4;
    device.write_all_at(&2_u32.to_le_bytes(), at).unwrap();
    drop(device);
    image.assert_clean("two inodes share a block of attributes");

    let fs = image.open();
    for id in ids {
        assert_eq!(fs.xattr(id, b"user.long").unwrap(), [2; 2 * LONG]);
    }
    fs.set_xattr(ids[0], b"user.long", &[3; 2 * LONG], XattrMode::Set)
        .unwrap();
    assert_eq!(fs.xattr(ids[0], b"user.long").unwrap(), [3; 2 * LONG]);
    assert_eq!(fs.xattr(ids[1], b"user.long").unwrap(), [2; 2 * LONG]);
    fs.remove_xattr(ids[1], b"user.long").unwrap();
    fs.sync().unwrap();
    // What they let go can be data now.
    let space = fs.stat_fs().unwrap();
    let all = usize::try_from(space.blocks_available * u64::from(space.block_size)).unwrap();
    let file = fs.open(create(&fs, "file"), true).unwrap();
    write_all(&fs, &file, 0, &vec![4; all - (64 << 10)]);
    fs.sync_file(&file, false).unwrap();
    assert_eq!(read_all(&fs, find(&fs, "file"))[..8], [4; 8]);
    drop(file);
    fs.shut_down().unwrap();
    drop(fs);
    image.assert_clean("nothing is shared any more");
}
