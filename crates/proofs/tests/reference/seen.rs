//! What a walk sees of a tree: of the model, of a volume, of a mount; and how two of them differ.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use pagefence::Volume;
use pagefence_fs_model::files::{Bytes, Kind, NodeNo, Tree};

/// Files up to this size are read whole, larger ones where the model has something.
const READ_WHOLE: u64 = 1 << 20;

/// One path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    kind: &'static str,
    permissions: u16,
    uid: u32,
    gid: u32,
    links: u32,
    size: u64,
    target: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Another path of the same inode: the first.
    same_as: String,
    bytes: Vec<(u64, Vec<u8>)>,
}

/// A tree by its paths.
pub(crate) type Walked = BTreeMap<String, Seen>;

/// The pieces of a file that are compared.
fn pieces(bytes: &Bytes) -> Vec<(u64, usize)> {
    if bytes.size() <= READ_WHOLE {
        return vec![(0, bytes.size() as usize + 1)];
    }
    let around = |(start, length): (u64, u64)| {
        let first = start.saturating_sub(4096);
        (first, (start + length + 4096 - first) as usize)
    };
    let mut pieces: Vec<_> = bytes.with_space().into_iter().map(around).collect();
    pieces.extend([(0, 4096), (bytes.size() - 4096, 8192)]);
    pieces
}

fn pieces_at(tree: &Tree, path: &str) -> Vec<(u64, usize)> {
    match tree.node_at(path, false).map(|node| &tree.node(node).kind) {
        Ok(Kind::File(bytes)) => pieces(bytes),
        _ => Vec::new(),
    }
}

/// What the model says.
pub(crate) fn of_model(tree: &Tree) -> Walked {
    let mut first: BTreeMap<NodeNo, String> = BTreeMap::new();
    let mut walked = Walked::new();
    for (path, number) in sorted(tree.paths()) {
        let same_as = first.entry(number).or_insert_with(|| path.clone()).clone();
        let mut seen = node(tree, number);
        seen.same_as = same_as;
        if let Kind::File(bytes) = &tree.node(number).kind {
            let read = |(at, length)| (at, bytes.read(at, length));
            seen.bytes = pieces(bytes).into_iter().map(read).collect();
        }
        walked.insert(path, seen);
    }
    walked
}

fn sorted(mut paths: Vec<(String, NodeNo)>) -> Vec<(String, NodeNo)> {
    paths.sort();
    paths
}

fn node(tree: &Tree, number: NodeNo) -> Seen {
    let node = tree.node(number);
    let mut seen = Seen {
        permissions: node.permissions,
        uid: node.uid,
        gid: node.gid,
        links: node.links,
        xattrs: node.xattrs.clone(),
        ..Seen::default()
    };
    match &node.kind {
        Kind::File(bytes) => (seen.kind, seen.size) = ("file", bytes.size()),
        Kind::Directory(_) => seen.kind = "directory",
        Kind::Symlink(target) => {
            seen.kind = "symlink";
            seen.size = target.len() as u64;
            seen.target = target.clone().into_bytes();
        }
        Kind::Fifo => seen.kind = "fifo",
    }
    seen
}

/// What the library says; `tree` tells which pieces of large files are read.
pub(crate) fn of_volume(volume: &Volume, tree: &Tree) -> Result<Walked, String> {
    let mut paths = Vec::new();
    for entry in volume.walk("") {
        let entry = entry.map_err(|error| error.to_string())?;
        let path = entry.path().to_str().ok_or("a name that nobody gave")?;
        paths.push(path.to_owned());
    }
    paths.sort();
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    let mut walked = Walked::new();
    for path in paths {
        let seen = at_path(volume, tree, &path, &mut first)
            .map_err(|error| format!("looking at {path:?}: {error}"))?;
        walked.insert(path, seen);
    }
    Ok(walked)
}

fn at_path(
    volume: &Volume,
    tree: &Tree,
    path: &str,
    first: &mut BTreeMap<u64, String>,
) -> Result<Seen, pagefence::Error> {
    let metadata = volume.symlink_metadata(path)?;
    let same_as = first
        .entry(metadata.ino())
        .or_insert_with(|| path.to_owned());
    let mut seen = Seen {
        permissions: metadata.permissions(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        links: metadata.nlink(),
        same_as: same_as.clone(),
        ..Seen::default()
    };
    for name in volume.xattr_names(path)? {
        let value = volume.xattr(path, &name)?.unwrap_or_default();
        seen.xattrs
            .insert(name.to_string_lossy().into_owned(), value);
    }
    if metadata.is_file() {
        (seen.kind, seen.size) = ("file", metadata.len());
        let file = volume.open_file(path)?;
        for (at, length) in pieces_at(tree, path) {
            let mut bytes = vec![0xee; length];
            let count = file.read_at(at, &mut bytes)?;
            bytes.truncate(count);
            seen.bytes.push((at, bytes));
        }
    } else if metadata.is_dir() {
        seen.kind = "directory";
    } else if metadata.is_symlink() {
        (seen.kind, seen.size) = ("symlink", metadata.len());
        seen.target = volume.read_link(path)?.as_os_str().as_bytes().to_vec();
    } else if metadata.file_type().is_fifo() {
        seen.kind = "fifo";
    } else {
        seen.kind = "something else";
    }
    Ok(seen)
}

/// What is seen below a mount point of the kernel.
pub(crate) fn of_mount(root: &Path, tree: &Tree) -> std::io::Result<Walked> {
    let mut paths = vec![String::new()];
    let mut at = 0;
    while let Some(path) = paths.get(at).cloned() {
        at += 1;
        if !std::fs::symlink_metadata(root.join(&path))?.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(root.join(&path))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            paths.push(if path.is_empty() {
                name
            } else {
                format!("{path}/{name}")
            });
        }
    }
    paths.sort();
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    let mut walked = Walked::new();
    for path in paths {
        let seen = at_mounted(root, tree, &path, &mut first)?;
        walked.insert(path, seen);
    }
    Ok(walked)
}

fn at_mounted(
    root: &Path,
    tree: &Tree,
    path: &str,
    first: &mut BTreeMap<u64, String>,
) -> std::io::Result<Seen> {
    let full = root.join(path);
    let metadata = std::fs::symlink_metadata(&full)?;
    let same_as = first
        .entry(metadata.ino())
        .or_insert_with(|| path.to_owned());
    let mut seen = Seen {
        permissions: (metadata.mode() & 0o7777) as u16,
        uid: metadata.uid(),
        gid: metadata.gid(),
        links: metadata.nlink() as u32,
        same_as: same_as.clone(),
        xattrs: xattrs_of(&full)?,
        ..Seen::default()
    };
    if metadata.is_file() {
        (seen.kind, seen.size) = ("file", metadata.len());
        let file = std::fs::File::open(&full)?;
        for (at, length) in pieces_at(tree, path) {
            let mut bytes = vec![0xee; length];
            let mut count = 0;
            while let more @ 1.. = file.read_at(&mut bytes[count..], at + count as u64)? {
                count += more;
            }
            bytes.truncate(count);
            seen.bytes.push((at, bytes));
        }
    } else if metadata.is_dir() {
        seen.kind = "directory";
    } else if metadata.is_symlink() {
        (seen.kind, seen.size) = ("symlink", metadata.len());
        seen.target = std::fs::read_link(&full)?.as_os_str().as_bytes().to_vec();
    } else if metadata.file_type().is_fifo() {
        seen.kind = "fifo";
    } else {
        seen.kind = "something else";
    }
    Ok(seen)
}

/// The attributes of what is at the path itself.
fn xattrs_of(path: &Path) -> std::io::Result<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0; 4096];
    let count = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut xattrs = BTreeMap::new();
    for name in names[..count].split(|byte| *byte == 0) {
        if name.is_empty() {
            continue;
        }
        let name = String::from_utf8_lossy(name).into_owned();
        let mut value = vec![0; 4096];
        let count = rustix::fs::lgetxattr(path, &name, &mut value[..])?;
        value.truncate(count);
        xattrs.insert(name, value);
    }
    Ok(xattrs)
}

/// Where two trees differ, in a few lines.
pub(crate) fn difference(expected: &Walked, found: &Walked) -> Result<(), String> {
    for path in expected.keys().chain(found.keys()) {
        match (expected.get(path), found.get(path)) {
            (Some(expected), Some(found)) if expected == found => {}
            (Some(expected), Some(found)) => {
                return Err(format!("{path:?} differs: {}", of_one(expected, found)));
            }
            (Some(expected), None) => return Err(format!("{path:?} is missing: {expected:.200?}")),
            (None, found) => return Err(format!("{path:?} should not be there: {found:.200?}")),
        }
    }
    Ok(())
}

fn of_one(expected: &Seen, found: &Seen) -> String {
    let without_bytes = |seen: &Seen| Seen {
        bytes: Vec::new(),
        ..seen.clone()
    };
    let (one, other) = (without_bytes(expected), without_bytes(found));
    if one != other {
        return format!("expected {one:?}, found {other:?}");
    }
    for ((at, expected), (_, found)) in expected.bytes.iter().zip(&found.bytes) {
        if expected.len() != found.len() {
            let (expected, found) = (expected.len(), found.len());
            return format!("from byte {at} on {expected} bytes are expected, and {found} found");
        }
        let differs = expected
            .iter()
            .zip(found)
            .position(|(one, other)| one != other);
        if let Some(first) = differs {
            let at = at + first as u64;
            let shown =
                |bytes: &[u8]| format!("{:02x?}", &bytes[first..bytes.len().min(first + 16)]);
            return format!(
                "byte {at}: expected {}, found {}",
                shown(expected),
                shown(found)
            );
        }
    }
    "in the number of pieces".to_owned()
}

/// The space of every file: what was written has some, and nothing but what was written or
/// promised has any. For a volume that was just opened.
pub(crate) fn check_space(volume: &Volume, tree: &Tree) -> Result<(), String> {
    for (path, number) in tree.paths() {
        let Kind::File(bytes) = &tree.node(number).kind else {
            continue;
        };
        let file = volume.open_file(&path).map_err(|error| error.to_string())?;
        let mut written = Vec::new();
        for extent in file.extents() {
            let extent = extent.map_err(|error| error.to_string())?;
            let run = (extent.logical, extent.logical + extent.length);
            if !covers(&bytes.with_space(), run) {
                return Err(format!(
                    "{path:?} has blocks at {run:?} that nobody asked for"
                ));
            }
            if extent.state != pagefence::ExtentState::Unwritten {
                written.push((extent.logical, extent.length));
            }
        }
        for (start, length) in bytes.written() {
            if !covers(&joined(&written), (start, start + length)) {
                return Err(format!("{path:?} has no blocks at {start}, {length} bytes"));
            }
        }
    }
    Ok(())
}

fn covers(runs: &[(u64, u64)], (start, end): (u64, u64)) -> bool {
    runs.iter()
        .any(|(first, length)| *first <= start && end <= first + length)
}

fn joined(runs: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, length) in runs {
        match joined.last_mut() {
            Some(last) if last.0 + last.1 == *start => last.1 += length,
            _ => joined.push((*start, *length)),
        }
    }
    joined
}
