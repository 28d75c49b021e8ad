//! Files that get another kind of map, and the first one back: what they hold, where they have
//! holes, what e2fsck and the kernel say.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use pagefence_ext4::FileSystem;
use pagefence_vfs::{Error, FileSystem as _, InodeId, MapFormat, New, NewKind, Whence};

use crate::support::{Image, Random, create, find, root, set_size, write_all};

/// What mke2fs is told; what tune2fs adds then, where files begin with block maps.
const KINDS: [(&[&str], Option<&str>); 6] = [
    (&["-t", "ext4", "-b", "1024"], None),
    (&["-t", "ext4", "-b", "4096"], None),
    (&["-t", "ext4", "-b", "1024", "-O", "^has_journal"], None),
    (&["-t", "ext3", "-b", "1024"], Some("extent")),
    (
        &["-t", "ext3", "-b", "4096", "-O", "huge_file"],
        Some("extent"),
    ),
    (
        &["-t", "ext4", "-b", "2048", "-O", "^extent,^64bit,^flex_bg"],
        Some("extent"),
    ),
];

/// A piece of a file: a byte that fills it.
pub(crate) type Pieces = Vec<(u64, usize, u8)>;

/// Makes a file of pieces in many places of all heights of a block map, in no order.
pub(crate) fn scattered(fs: &FileSystem, name: &str, block: u64, seed: u64, count: u64) -> Pieces {
    let mut random = Random::new(seed);
    let id = create(fs, name);
    let file = fs.open(id, true).unwrap();
    let per_block = block / 4;
    // Direct, single, double, triple.
    let bases = [
        0,
        12,
        12 + per_block,
        12 + per_block + per_block * per_block,
    ];
    let spans = [12, per_block, 4 * per_block, 9 * per_block];
    let mut taken = std::collections::BTreeSet::new();
    let mut pieces = Vec::new();
    for number in 0..count {
        let height = random.below(4) as usize;
        let at = bases[height] + random.below(spans[height]);
        let len = 1 + random.below(if number % 8 == 0 { 40 } else { 2 });
        let blocks: Vec<_> = (at..at + len).take_while(|at| taken.insert(*at)).collect();
        if blocks.is_empty() {
            continue;
        }
        let (offset, len) = (at * block, blocks.len() * block as usize);
        let byte = 1 + (number % 255) as u8;
        let (written, error) = write_all(fs, &file, offset, &vec![byte; len]);
        assert_eq!(written, len, "{error:?}");
        pieces.push((offset, len, byte));
        if random.below(6) == 0 {
            fs.sync_file(&file, false).unwrap();
        }
    }
    fs.sync_file(&file, false).unwrap();
    pieces
}

/// Whether the file holds the pieces.
pub(crate) fn check(fs: &FileSystem, id: InodeId, pieces: &Pieces) -> Result<(), String> {
    let file = fs.open(id, false).map_err(|error| error.to_string())?;
    for (offset, len, byte) in pieces {
        let mut bytes = vec![0; *len];
        let mut done = 0;
        while done < *len {
            match fs.read(&file, offset + done as u64, &mut bytes[done..]) {
                Ok(0) => return Err(format!("it ends at {}", offset + done as u64)),
                Ok(read) => done += read,
                Err(error) => return Err(error.to_string()),
            }
        }
        if let Some(at) = bytes.iter().position(|found| found != byte) {
            return Err(format!(
                "{} instead of {byte} at {offset} + {at}",
                bytes[at]
            ));
        }
    }
    Ok(())
}

/// Where data and holes begin.
pub(crate) fn holes(fs: &FileSystem, id: InodeId) -> Vec<u64> {
    let file = fs.open(id, false).unwrap();
    let (mut at, mut found) = (0, Vec::new());
    for whence in [Whence::Data, Whence::Hole].into_iter().cycle() {
        match fs.seek(&file, at, whence) {
            Ok(next) => at = next,
            Err(Error::NoData) => break,
            Err(error) => panic!("{error:?}"),
        }
        found.push(at);
    }
    found
}

pub(crate) fn has_extents(fs: &FileSystem, id: InodeId) -> bool {
    fs.attr(id).unwrap().flags & 0x8_0000 != 0
}

pub(crate) fn migrate(fs: &FileSystem, id: InodeId, to: MapFormat) {
    fs.migrate(id, to, &root()).unwrap();
    assert_eq!(has_extents(fs, id), to == MapFormat::Extents);
}

pub(crate) fn block_size(options: &[&str]) -> u64 {
    let at = options.iter().position(|option| *option == "-b").unwrap();
    options[at + 1].parse().unwrap()
}

/// An image with one scattered file, `file`, and the feature that lets it have extents.
pub(crate) fn image_with_file(
    options: &[&str],
    added: Option<&str>,
    size: &str,
    seed: u64,
    count: u64,
) -> (Image, Pieces) {
    let image = Image::new(options, size);
    let pieces = {
        let fs = image.open();
        let pieces = scattered(&fs, "file", block_size(options), seed, count);
        fs.shut_down().unwrap();
        pieces
    };
    if let Some(feature) = added {
        let output = Command::new("tune2fs")
            .args(["-O", feature])
            .arg(&image.path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    (image, pieces)
}

#[test]
fn there_and_back_changes_nothing_else() {
    for (seed, (options, added)) in KINDS.iter().enumerate() {
        let what = format!("{options:?}");
        let (image, pieces) = image_with_file(options, *added, "64M", seed as u64, 500);
        let first = match added {
            None => MapFormat::Blocks,
            Some(_) => MapFormat::Extents,
        };
        let other = match first {
            MapFormat::Blocks => MapFormat::Extents,
            MapFormat::Extents => MapFormat::Blocks,
        };
        let (map, blocks) = {
            let fs = image.open();
            let id = find(&fs, "file");
            assert_eq!(has_extents(&fs, id), added.is_none(), "{what}");
            (holes(&fs, id), fs.attr(id).unwrap().blocks_512)
        };
        for to in [first, other, first, other] {
            let fs = image.open();
            let id = find(&fs, "file");
            check(&fs, id, &pieces).unwrap_or_else(|told| panic!("{what}: {told}"));
            migrate(&fs, id, to);
            assert_eq!(holes(&fs, id), map, "{what}");
            check(&fs, id, &pieces).unwrap_or_else(|told| panic!("{what}: {told}"));
            fs.shut_down().unwrap();
            drop(fs);
            image.assert_clean(&what);
            let fs = image.open();
            let id = find(&fs, "file");
            assert_eq!(holes(&fs, id), map, "{what}");
            assert_eq!(has_extents(&fs, id), to == MapFormat::Extents, "{what}");
            check(&fs, id, &pieces).unwrap_or_else(|told| panic!("{what}: {told}"));
        }
        if added.is_some() {
            let fs = image.open();
            let now = fs.attr(find(&fs, "file")).unwrap().blocks_512;
            assert_eq!(now, blocks, "{what}: the same block map takes as much");
        }
    }
}

/// A file can be changed as ever when it has its new map, also where that was full.
#[test]
fn a_new_map_takes_changes() {
    for to in [MapFormat::Blocks, MapFormat::Extents] {
        let options = ["-t", "ext4", "-b", "1024"];
        let (image, mut pieces) = image_with_file(&options, None, "64M", 7, 700);
        let fs = image.open();
        let id = find(&fs, "file");
        migrate(&fs, id, MapFormat::Blocks);
        if to == MapFormat::Extents {
            migrate(&fs, id, to);
        }
        let file = fs.open(id, true).unwrap();
        let end = fs.attr(id).unwrap().size.next_multiple_of(1024);
        for number in 0..200 {
            let offset = end + 3 * number * 1024;
            let (written, error) = write_all(&fs, &file, offset, &[200; 1024]);
            assert_eq!(written, 1024, "{error:?}");
            pieces.push((offset, 1024, 200));
        }
        fs.sync_file(&file, false).unwrap();
        check(&fs, id, &pieces).unwrap();
        let cut = pieces[pieces.len() - 100].0;
        drop(file);
        set_size(&fs, id, cut).unwrap();
        pieces.retain(|(offset, len, _)| offset + *len as u64 <= cut);
        check(&fs, id, &pieces).unwrap();
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean("changed");
        let fs = image.open();
        set_size(&fs, find(&fs, "file"), 0).unwrap();
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean("cut");
    }
}

/// The smallest of files, and such as have no blocks.
#[test]
fn small_files_and_links_are_migrated() {
    let image = Image::new(&["-t", "ext4", "-b", "1024", "-O", "^inline_data"], "16M");
    let fs = image.open();
    let sizes = [0, 1, 1024, 12 << 10, 13 << 10, 300 << 10];
    let all = |fs: &FileSystem, check_only: bool, to: MapFormat| {
        for size in sizes {
            let id = find(fs, &format!("file{size}"));
            if !check_only {
                migrate(fs, id, to);
            }
            check(fs, id, &vec![(0, size, 7)]).unwrap();
            assert_eq!(fs.attr(id).unwrap().size, size as u64);
        }
    };
    for size in sizes {
        let id = create(&fs, &format!("file{size}"));
        let file = fs.open(id, true).unwrap();
        let (written, error) = write_all(&fs, &file, 0, &vec![7; size]);
        assert_eq!(written, size, "{error:?}");
    }
    let target = "x".repeat(200);
    let links = [("slow", target.as_str()), ("fast", "short")];
    for (name, target) in links {
        let new = New {
            kind: NewKind::Symlink(target.as_bytes()),
            permissions: 0o777,
            umask: 0,
        };
        fs.create(fs.root(), name.as_bytes(), &new, &root())
            .unwrap();
    }
    for to in [MapFormat::Blocks, MapFormat::Extents, MapFormat::Blocks] {
        all(&fs, false, to);
        for (name, target) in links {
            let id = find(&fs, name);
            fs.migrate(id, to, &root()).unwrap();
            assert_eq!(fs.read_link(id).unwrap(), target.as_bytes());
        }
    }
    fs.shut_down().unwrap();
    drop(fs);
    image.assert_clean("small");
    let fs = image.open();
    all(&fs, true, MapFormat::Blocks);
}

/// Without the feature there are no extents; an inode that holds its data has no map.
#[test]
fn what_can_not_be_migrated_is_refused() {
    let image = Image::new(&["-t", "ext3", "-b", "1024"], "16M");
    let fs = image.open();
    let id = create(&fs, "file");
    let told = fs.migrate(id, MapFormat::Extents, &root());
    assert!(matches!(told, Err(Error::InvalidArgument)), "{told:?}");
    drop(fs);
    let image = Image::new(&["-t", "ext4", "-b", "1024", "-O", "inline_data"], "16M");
    let small = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(small.path(), [7; 20]).unwrap();
    let command = format!("write {} file", small.path().display());
    let debugfs = Command::new("debugfs")
        .args(["-w", "-R", &command])
        .arg(&image.path)
        .status();
    assert!(debugfs.unwrap().success());
    let fs = image.open();
    let id = find(&fs, "file");
    for to in [MapFormat::Extents, MapFormat::Blocks] {
        let told = fs.migrate(id, to, &root());
        assert!(matches!(told, Err(Error::InvalidArgument)), "{told:?}");
    }
    for kind in [NewKind::Directory, NewKind::Fifo] {
        let new = New {
            kind,
            permissions: 0o755,
            umask: 0,
        };
        let name = format!("{kind:?}");
        let made = fs.create(fs.root(), name.as_bytes(), &new, &root());
        let told = fs.migrate(made.unwrap().attr.id, MapFormat::Blocks, &root());
        assert!(matches!(told, Err(Error::InvalidArgument)), "{told:?}");
    }
    check(&fs, id, &vec![(0, 20, 7)]).unwrap();
}

/// Mounts an image by the kernel and reads the file; nothing where that is not possible.
pub(crate) fn by_kernel(image: &Path, pieces: &Pieces) -> Option<()> {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    if !is_root || !Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: the kernel's part needs root and loop devices");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        let mut tries = 0;
        loop {
            let output = Command::new(program).args(arguments).output().unwrap();
            tries += 1;
            if output.status.success() {
                return;
            }
            // Others look for free loop devices, or have our files open for a moment.
            assert!(tries < 50, "{program}: {output:?}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    };
    let (loops, at) = (std::ffi::OsStr::new("loop"), dir.path().as_os_str());
    run("mount", &["-o".as_ref(), loops, image.as_os_str(), at]);
    let read = std::panic::catch_unwind(|| {
        let file = std::fs::File::open(dir.path().join("file")).unwrap();
        for (offset, len, byte) in pieces {
            let mut bytes = vec![0; *len];
            file.read_exact_at(&mut bytes, *offset).unwrap();
            assert!(bytes.iter().all(|found| found == byte), "at {offset}");
        }
    });
    run("umount", &[at]);
    read.unwrap();
    Some(())
}

#[test]
fn the_kernel_reads_what_was_migrated() {
    for (seed, (options, added)) in KINDS.iter().enumerate() {
        let (image, pieces) = image_with_file(options, *added, "64M", 100 + seed as u64, 300);
        let to = match added {
            None => [MapFormat::Blocks, MapFormat::Extents],
            Some(_) => [MapFormat::Extents, MapFormat::Blocks],
        };
        for to in to {
            let fs = image.open();
            migrate(&fs, find(&fs, "file"), to);
            fs.shut_down().unwrap();
            drop(fs);
            if by_kernel(&image.path, &pieces).is_none() {
                return;
            }
            image.assert_clean(&format!("{options:?}, {to:?}"));
        }
    }
}
