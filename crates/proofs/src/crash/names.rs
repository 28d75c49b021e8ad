//! The names of a tree and what is known of each without its bytes, in one form for the model and
//! for a volume.

use std::collections::BTreeMap;

use pagefence::Volume;
use pagefence_fs_model::files::{Kind, NodeNo, Tree};

/// A path.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    /// Kind, mode, owner, links, attributes, target, and the first path of the same inode.
    pub(crate) looks: String,
    pub(crate) node: NodeNo,
    pub(crate) is_file: bool,
}

/// Every path of a tree.
pub(crate) type Names = BTreeMap<String, Named>;

/// What the model has.
pub(crate) fn of_model(tree: &Tree) -> Names {
    let mut first: BTreeMap<NodeNo, String> = BTreeMap::new();
    let mut paths = tree.paths();
    paths.sort();
    let named = |(path, number): (String, NodeNo)| {
        let node = tree.node(number);
        let first = first.entry(number).or_insert_with(|| path.clone());
        let (kind, target) = match &node.kind {
            Kind::File(_) => ("file", ""),
            Kind::Directory(_) => ("directory", ""),
            Kind::Symlink(target) => ("symlink", target.as_str()),
            Kind::Fifo => ("fifo", ""),
        };
        let (mode, uid, gid, links) = (node.permissions, node.uid, node.gid, node.links);
        let looks = format!(
            "{kind} {mode:o} {uid}:{gid} {links} {target} {:?} ={first}",
            node.xattrs
        );
        let named = Named {
            looks,
            node: number,
            is_file: matches!(node.kind, Kind::File(_)),
        };
        (path, named)
    };
    paths.into_iter().map(named).collect()
}

/// What a volume has: each path's looks, and the bytes of files.
pub(crate) fn of_volume(
    volume: &Volume,
) -> Result<BTreeMap<String, (String, Vec<u8>)>, pagefence::Error> {
    let mut paths = Vec::new();
    for entry in volume.walk("") {
        let entry = entry?;
        paths.push((
            entry.path().to_string_lossy().into_owned(),
            entry.metadata().clone(),
        ));
    }
    paths.sort_by(|one, other| one.0.cmp(&other.0));
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    let mut names = BTreeMap::new();
    for (path, metadata) in paths {
        let first = first.entry(metadata.ino()).or_insert_with(|| path.clone());
        let mut xattrs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for name in volume.xattr_names(&path)? {
            let value = volume.xattr(&path, &name)?.unwrap_or_default();
            xattrs.insert(name.to_string_lossy().into_owned(), value);
        }
        let mut target = String::new();
        let mut bytes = Vec::new();
        let kind = if metadata.is_file() {
            bytes = volume.read(&path)?;
            "file"
        } else if metadata.is_dir() {
            "directory"
        } else if metadata.is_symlink() {
            target = volume.read_link(&path)?.to_string_lossy().into_owned();
            "symlink"
        } else {
            "fifo"
        };
        let (mode, uid, gid) = (metadata.permissions(), metadata.uid(), metadata.gid());
        let looks = format!(
            "{kind} {mode:o} {uid}:{gid} {} {target} {xattrs:?} ={first}",
            metadata.nlink()
        );
        names.insert(path, (looks, bytes));
    }
    Ok(names)
}

/// How many inodes these paths name, as [`of_volume`] has them.
pub(crate) fn count(paths: &BTreeMap<String, (String, Vec<u8>)>) -> u64 {
    let is_first = |(path, (looks, _)): &(&String, &(String, Vec<u8>))| {
        looks
            .rsplit_once('=')
            .is_some_and(|(_, first)| first == path.as_str())
    };
    paths.iter().filter(is_first).count() as u64
}
