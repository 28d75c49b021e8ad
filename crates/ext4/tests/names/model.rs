//! Random operations on names, against a map of a tree, with remounts in between; e2fsck judges
//! the end.

use std::collections::BTreeMap;

use pagefence_vfs::{FileKind, FileSystem as _, NewKind, RenameMode};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::kit::{self, FLAVOURS, Paths, close, kind_of, open};

/// What the model knows of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory(BTreeMap<String, usize>),
    Other { kind: FileKind, names: u32 },
}

/// A tree of inodes by index; 0 is the root.
#[derive(Clone, Debug)]
struct Model(Vec<Node>);

#[derive(Clone, Debug)]
enum Op {
    Make(usize, String, u8),
    Link(usize, String),
    Unlink(usize),
    Rmdir(usize),
    Rename(usize, usize, String, u8),
    Remount,
    Sync,
}

/// Names that are often the same, of lengths that are often awkward.
fn name() -> impl Strategy<Value = String> {
    (0..40_u32, prop_oneof![3 => Just(0), 1 => 0..252_usize])
        .prop_map(|(number, pad)| format!("{number}{}", "p".repeat(pad)))
}

fn op() -> impl Strategy<Value = Op> {
    let any = any::<usize>();
    prop_oneof![
        10 => (any, name(), 0..5_u8).prop_map(|(dir, name, kind)| Op::Make(dir, name, kind)),
        2 => (any, name()).prop_map(|(from, name)| Op::Link(from, name)),
        4 => any.prop_map(Op::Unlink),
        2 => any.prop_map(Op::Rmdir),
        5 => (any, any, name(), 0..4_u8)
            .prop_map(|(from, to, name, mode)| Op::Rename(from, to, name, mode)),
        1 => Just(Op::Remount),
        1 => Just(Op::Sync),
    ]
}

impl Model {
    /// Paths of all directories, and of all names that are none.
    fn paths(&self) -> (Vec<String>, Vec<String>) {
        let (mut directories, mut others) = (vec![String::new()], Vec::new());
        let mut todo = vec![(0, String::new())];
        while let Some((at, path)) = todo.pop() {
            let Node::Directory(entries) = &self.0[at] else {
                continue;
            };
            for (name, inode) in entries {
                let below = join(&path, name);
                match &self.0[*inode] {
                    Node::Directory(_) => {
                        directories.push(below.clone());
                        todo.push((*inode, below));
                    }
                    Node::Other { .. } => others.push(below),
                }
            }
        }
        directories.sort();
        others.sort();
        (directories, others)
    }

    fn find(&self, path: &str) -> Option<usize> {
        let mut at = 0;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let Node::Directory(entries) = &self.0[at] else {
                return None;
            };
            at = *entries.get(part)?;
        }
        Some(at)
    }

    fn entries(&mut self, path: &str) -> &mut BTreeMap<String, usize> {
        let at = self.find(path).unwrap();
        match &mut self.0[at] {
            Node::Directory(entries) => entries,
            Node::Other { .. } => panic!("{path} is no directory"),
        }
    }

    fn is_empty(&self, at: usize) -> bool {
        matches!(&self.0[at], Node::Directory(entries) if entries.is_empty())
    }

    fn is_dir(&self, at: usize) -> bool {
        matches!(&self.0[at], Node::Directory(_))
    }

    fn insert(&mut self, dir: &str, name: &str, node: Node) -> Result<(), &'static str> {
        if self.entries(dir).contains_key(name) {
            return Err("Exists");
        }
        self.0.push(node);
        let at = self.0.len() - 1;
        self.entries(dir).insert(name.to_owned(), at);
        Ok(())
    }

    fn drop_name(&mut self, path: &str) {
        let (dir, name) = split(path);
        let at = self.entries(dir).remove(name).unwrap();
        if let Node::Other { names, .. } = &mut self.0[at] {
            *names -= 1;
        }
    }

    fn rename(&mut self, from: &str, to: &str, mode: RenameMode) -> Result<(), &'static str> {
        let source = self.find(from).unwrap();
        let target = self.find(to);
        let exchange = mode.contains(RenameMode::EXCHANGE);
        if target.is_none() && exchange {
            return Err("NotFound");
        }
        if target.is_some() && mode.contains(RenameMode::NO_REPLACE) {
            return Err("Exists");
        }
        let ((old_dir, old_name), (new_dir, new_name)) = (split(from), split(to));
        let crosses = old_dir != new_dir;
        let below = |dir: &str, top: &str| dir == top || dir.starts_with(&format!("{top}/"));
        let into_itself = crosses && self.is_dir(source) && below(new_dir, from);
        let out_of_itself = exchange && crosses && below(old_dir, to);
        if into_itself || out_of_itself {
            return Err("InvalidArgument");
        }
        if target.is_some() && !exchange && crosses && below(old_dir, to) {
            return Err("NotEmpty");
        }
        if target == Some(source) {
            return Ok(());
        }
        if let (Some(target), true) = (target, exchange) {
            self.entries(old_dir).insert(old_name.to_owned(), target);
            self.entries(new_dir).insert(new_name.to_owned(), source);
            return Ok(());
        }
        if let Some(target) = target {
            match (self.is_dir(source), self.is_dir(target)) {
                (true, false) => return Err("NotDirectory"),
                (false, true) => return Err("IsDirectory"),
                (true, true) if !self.is_empty(target) => return Err("NotEmpty"),
                _ => self.drop_name(to),
            }
        }
        self.entries(new_dir).insert(new_name.to_owned(), source);
        self.entries(old_dir).remove(old_name);
        Ok(())
    }

    fn check(&self, fs: &impl Paths) {
        let (directories, _) = self.paths();
        let mut numbers: BTreeMap<usize, u64> = BTreeMap::new();
        for path in directories {
            let at = self.find(&path).unwrap();
            let Node::Directory(entries) = &self.0[at] else {
                continue;
            };
            let mut listed = fs.list(&path).unwrap();
            listed.retain(|(name, _)| !(path.is_empty() && name == "lost+found"));
            let mut names: Vec<&String> = entries.keys().collect();
            names.sort();
            let seen: Vec<&String> = listed.iter().map(|(name, _)| name).collect();
            assert_eq!(seen, names, "in {path:?}");
            let mut subdirectories = 0;
            for (name, number) in &listed {
                let inode = entries[name];
                let attr = fs.look(&join(&path, name)).unwrap();
                assert_eq!(attr.id.0, *number);
                assert_eq!(*numbers.entry(inode).or_insert(*number), *number);
                match &self.0[inode] {
                    Node::Directory(_) => {
                        assert_eq!(attr.kind, FileKind::Directory);
                        subdirectories += 1;
                    }
                    Node::Other { kind, names } => {
                        assert_eq!((attr.kind, attr.links), (*kind, *names), "{path}/{name}");
                    }
                }
            }
            let links = fs.look(&path).unwrap().links;
            let found = u32::from(path.is_empty());
            assert_eq!(links, 2 + subdirectories + found, "links of {path:?}");
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}/{name}")
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn pick(paths: &[String], at: usize) -> Option<&String> {
    paths.get(at.checked_rem(paths.len())?)
}

fn run(flavour: (pagefence_ext4::mkfs::Kind, u32, &str), ops: &[Op]) {
    let (kind, block_size, features) = flavour;
    let device = kit::device(kind, block_size, features, 8 << 20);
    let mut fs = open(&device);
    let mut model = Model(vec![Node::Directory(BTreeMap::new())]);
    for op in ops {
        let (directories, others) = model.paths();
        let all: Vec<String> = directories[1..].iter().chain(&others).cloned().collect();
        let (done, expected) = match op {
            Op::Make(dir, name, kind) => {
                let dir = pick(&directories, *dir).unwrap();
                let target = "t".repeat(200);
                let (new, kind) = match kind {
                    0 => (NewKind::Regular, FileKind::Regular),
                    1 => (NewKind::Symlink(target.as_bytes()), FileKind::Symlink),
                    2 => (NewKind::Fifo, FileKind::Fifo),
                    _ => (NewKind::Directory, FileKind::Directory),
                };
                let node = match kind {
                    FileKind::Directory => Node::Directory(BTreeMap::new()),
                    kind => Node::Other { kind, names: 1 },
                };
                let done = fs.make(&join(dir, name), new).map(|_| ());
                (done, model.insert(dir, name, node))
            }
            Op::Link(from, name) => {
                let (Some(from), Some(dir)) = (pick(&others, *from), pick(&directories, *from))
                else {
                    continue;
                };
                let done = fs.ln(from, &join(dir, name)).map(|_| ());
                let at = model.find(from).unwrap();
                let expected = if model.entries(dir).contains_key(name) {
                    Err("Exists")
                } else {
                    model.entries(dir).insert(name.clone(), at);
                    if let Node::Other { names, .. } = &mut model.0[at] {
                        *names += 1;
                    }
                    Ok(())
                };
                (done, expected)
            }
            Op::Unlink(path) => {
                let Some(path) = pick(&all, *path) else {
                    continue;
                };
                let expected = if model.is_dir(model.find(path).unwrap()) {
                    Err("IsDirectory")
                } else {
                    model.drop_name(path);
                    Ok(())
                };
                (fs.rm(path), expected)
            }
            Op::Rmdir(path) => {
                let Some(path) = pick(&all, *path) else {
                    continue;
                };
                let at = model.find(path).unwrap();
                let expected = if !model.is_dir(at) {
                    Err("NotDirectory")
                } else if !model.is_empty(at) {
                    Err("NotEmpty")
                } else {
                    model.drop_name(path);
                    Ok(())
                };
                (fs.rmd(path), expected)
            }
            Op::Rename(from, to, name, mode) => {
                let (Some(from), Some(dir)) = (pick(&all, *from), pick(&directories, *to)) else {
                    continue;
                };
                let mode = match mode {
                    0 => RenameMode::NO_REPLACE,
                    1 => RenameMode::EXCHANGE,
                    _ => RenameMode::empty(),
                };
                // As often as not over something.
                let to = match pick(&all, to / 7).filter(|_| to % 2 == 0) {
                    Some(taken) => taken.clone(),
                    None => join(dir, name),
                };
                let done = fs.mv_as(from, &to, mode);
                (done, model.rename(from, &to, mode))
            }
            Op::Remount => {
                close(fs, &device);
                fs = open(&device);
                model.check(&fs);
                continue;
            }
            Op::Sync => {
                fs.sync().unwrap();
                continue;
            }
        };
        let done = done.as_ref().map_err(kind_of);
        assert_eq!(done.copied(), expected.map_err(str::to_owned), "{op:?}");
    }
    model.check(&fs);
    close(fs, &device);
    let fs = kit::open_as(&device, false);
    model.check(&fs);
}

#[test]
fn random_names_agree_with_a_tree() {
    for flavour in FLAVOURS {
        let mut runner = TestRunner::new(Config {
            cases: 12,
            failure_persistence: None,
            max_shrink_iters: 400,
            ..Config::default()
        });
        runner
            .run(&prop::collection::vec(op(), 1..220), |ops| {
                run(flavour, &ops);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{flavour:?}: {error}"));
    }
}
