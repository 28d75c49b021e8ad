//! Directories that get another kind of map, and the first one back: all names stay, for who looks
//! meanwhile as well, and can be changed as ever.

use std::ops::ControlFlow;
use std::process::Command;

use pagefence_ext4::FileSystem;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::{DirEntry, DirSink, FileSystem as _, InodeId, MapFormat, New, NewKind};

use crate::migrate::{block_size, has_extents, migrate};
use crate::support::{Image, create, find, root};

/// What mke2fs is told; what tune2fs adds then, where directories begin with block maps.
const KINDS: [(&[&str], Option<&str>); 6] = [
    (&["-t", "ext4", "-b", "1024"], None),
    (&["-t", "ext4", "-b", "4096", "-O", "^metadata_csum"], None),
    (&["-t", "ext4", "-b", "1024", "-O", "^has_journal"], None),
    (&["-t", "ext4", "-b", "1024", "-O", "^dir_index"], None),
    (&["-t", "ext3", "-b", "1024"], Some("extent")),
    (
        &["-t", "ext4", "-b", "2048", "-O", "^extent,^64bit,^flex_bg"],
        Some("extent"),
    ),
];

/// The names of a directory, `directory`: all of them mean `file`.
pub(crate) struct Names {
    names: Vec<String>,
}

struct Listed(Vec<String>);

impl DirSink for Listed {
    fn entry(&mut self, entry: &DirEntry<'_>) -> ControlFlow<()> {
        let name = String::from_utf8(entry.name.to_vec()).unwrap();
        if name != "." && name != ".." {
            self.0.push(name);
        }
        ControlFlow::Continue(())
    }
}

fn list(fs: &FileSystem, id: InodeId) -> Vec<String> {
    let mut listed = Listed(Vec::new());
    let dir = fs.open_dir(id).unwrap();
    fs.read_dir(&dir, 0, false, &mut listed).unwrap();
    listed.0.sort();
    listed.0
}

fn make_dir(fs: &FileSystem, name: &str) -> InodeId {
    let new = New {
        kind: NewKind::Directory,
        permissions: 0o755,
        umask: 0,
    };
    let made = fs.create(fs.root(), name.as_bytes(), &new, &root());
    made.unwrap().attr.id
}

impl Names {
    /// Whether each name is there, and no other.
    pub(crate) fn find_all(&self, fs: &FileSystem) -> Result<(), String> {
        let (dir, file) = (find(fs, "directory"), find(fs, "file"));
        for name in &self.names {
            match fs.lookup(dir, name.as_bytes()) {
                Ok(entry) if entry.attr.id == file => {}
                other => return Err(format!("{name}: {other:?}")),
            }
        }
        let parent = fs.lookup(dir, b"..").map_err(|error| error.to_string())?;
        if parent.attr.id != fs.root() || list(fs, dir) != self.names {
            return Err("it lists something else".to_owned());
        }
        Ok(())
    }

    fn add(&mut self, fs: &FileSystem, name: String) {
        let (dir, file) = (find(fs, "directory"), find(fs, "file"));
        fs.link(file, dir, name.as_bytes(), &root()).unwrap();
        self.names.push(name);
        self.names.sort();
    }

    fn remove(&mut self, fs: &FileSystem, at: usize) {
        let name = self.names.remove(at);
        fs.unlink(find(fs, "directory"), name.as_bytes()).unwrap();
    }
}

/// An image with a directory of so many long names, whose blocks lie apart from each other, and the
/// feature that lets it have extents.
pub(crate) fn image_with_directory(
    options: &[&str],
    added: Option<&str>,
    size: &str,
    count: usize,
) -> (Image, Names) {
    let image = Image::new(options, size);
    let fs = image.open();
    let file = create(&fs, "file");
    let (dir, other) = (make_dir(&fs, "directory"), make_dir(&fs, "other"));
    let mut names: Vec<_> = (0..count).map(|number| format!("{number:0>220}")).collect();
    for name in &names {
        for dir in [dir, other] {
            fs.link(file, dir, name.as_bytes(), &root()).unwrap();
        }
    }
    names.sort();
    fs.shut_down().unwrap();
    drop(fs);
    if let Some(feature) = added {
        let output = Command::new("tune2fs")
            .args(["-O", feature])
            .arg(&image.path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    (image, Names { names })
}

fn other(format: MapFormat) -> MapFormat {
    match format {
        MapFormat::Blocks => MapFormat::Extents,
        MapFormat::Extents => MapFormat::Blocks,
    }
}

#[test]
fn directories_there_and_back() {
    for (options, added) in KINDS {
        let what = format!("{options:?}");
        let count = if block_size(options) == 1024 {
            1200
        } else {
            600
        };
        let (image, mut names) = image_with_directory(options, added, "32M", count);
        let first = match added {
            None => MapFormat::Blocks,
            Some(_) => MapFormat::Extents,
        };
        for (round, to) in [first, other(first), first, other(first)]
            .into_iter()
            .enumerate()
        {
            let fs = image.open();
            let id = find(&fs, "directory");
            names.find_all(&fs).unwrap();
            let before = fs.attr(id).unwrap();
            migrate(&fs, id, to);
            fs.migrate(id, to, &root()).unwrap();
            let after = fs.attr(id).unwrap();
            assert_eq!(
                (after.size, after.links),
                (before.size, before.links),
                "{what}"
            );
            names
                .find_all(&fs)
                .unwrap_or_else(|told| panic!("{what}: {told}"));
            // It grows, and what is there is changed.
            for number in 0..40 {
                names.add(&fs, format!("{round}.{number}{}", "x".repeat(200)));
                names.remove(&fs, 7 * number);
            }
            names
                .find_all(&fs)
                .unwrap_or_else(|told| panic!("{what}: {told}"));
            fs.shut_down().unwrap();
            drop(fs);
            image.assert_clean(&what);
            let fs = image.open();
            let id = find(&fs, "directory");
            assert_eq!(has_extents(&fs, id), to == MapFormat::Extents, "{what}");
            names
                .find_all(&fs)
                .unwrap_or_else(|told| panic!("{what}: {told}"));
            fs.shut_down().unwrap();
        }
        // It can be got rid of.
        let fs = image.open();
        while !names.names.is_empty() {
            names.remove(&fs, 0);
        }
        fs.rmdir(fs.root(), b"directory").unwrap();
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(&what);
    }
}

/// The root, and directories of one block.
#[test]
fn small_directories_are_migrated() {
    let image = Image::new(&["-t", "ext4", "-b", "1024"], "16M");
    let fs = image.open();
    let small = make_dir(&fs, "small");
    for id in [fs.root(), small] {
        let before = (list(&fs, id), fs.attr(id).unwrap().blocks_512);
        for to in [MapFormat::Blocks, MapFormat::Extents, MapFormat::Blocks] {
            migrate(&fs, id, to);
            let now = (list(&fs, id), fs.attr(id).unwrap().blocks_512);
            assert_eq!(now, before, "{to:?}");
        }
    }
    fs.shut_down().unwrap();
    drop(fs);
    image.assert_clean("small");
}

/// Who looks names up, lists, makes and removes them meanwhile has what there is.
#[test]
fn names_are_there_while_their_directory_is_migrated() {
    for options in [
        &["-t", "ext4", "-b", "1024"][..],
        &["-t", "ext4", "-b", "1024", "-O", "^dir_index"],
    ] {
        let (image, names) = image_with_directory(options, None, "32M", 700);
        let fs = image.open();
        let (dir, file) = (find(&fs, "directory"), find(&fs, "file"));
        let mut sorted = names.names.clone();
        sorted.sort();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for at in (0..names.names.len()).cycle().step_by(7) {
                    let found = fs.lookup(dir, names.names[at].as_bytes()).unwrap();
                    assert_eq!(found.attr.id, file);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let listed = list(&fs, dir);
                    let there = |name: &String| listed.binary_search(name).is_ok();
                    assert!(names.names.iter().all(there));
                    // A listing is not of one moment: it may meet several that come and go.
                    let comes_and_goes = |name: &String| name.starts_with("comes and goes ");
                    let stayed = listed.iter().filter(|name| !comes_and_goes(name));
                    assert!(stayed.eq(&sorted));
                    assert!(
                        listed.is_sorted_by(|one, other| one < other),
                        "a name twice"
                    );
                }
            });
            scope.spawn(|| {
                for number in 0.. {
                    let name = format!("comes and goes {number}{}", "y".repeat(200));
                    fs.link(file, dir, name.as_bytes(), &root()).unwrap();
                    fs.unlink(dir, name.as_bytes()).unwrap();
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            for round in 0..30 {
                let to = [MapFormat::Blocks, MapFormat::Extents][round % 2];
                migrate(&fs, dir, to);
                // What was freed is used again.
                fs.sync().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        names.find_all(&fs).unwrap();
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean("after all");
    }
}
