//! Making images: mke2fs, filled from a directory and by debugfs.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Image;

/// How an image is made.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    arguments: Vec<String>,
    mib: u64,
    files: Vec<(String, Vec<u8>)>,
    debugfs: Vec<String>,
    rehash: bool,
}

impl Recipe {
    /// An image of `mib` MiB by these arguments of mke2fs.
    pub(crate) fn new(mib: u64, arguments: &str) -> Self {
        Self {
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            mib,
            files: Vec::new(),
            debugfs: Vec::new(),
            rehash: false,
        }
    }

    /// A file (its directories too) with contents; zeros at its end or between are written.
    pub(crate) fn file(mut self, path: &str, contents: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.to_owned(), contents.into()));
        self
    }

    /// A command of debugfs, run once the files are there.
    pub(crate) fn run(mut self, command: impl Into<String>) -> Self {
        self.debugfs.push(command.into());
        self
    }

    /// Gives directories of several blocks their index (e2fsck -D).
    pub(crate) fn rehash(mut self) -> Self {
        self.rehash = true;
        self
    }

    /// Makes it in memory.
    pub(crate) fn make(&self) -> Image {
        Image::from_bytes(&self.make_bytes())
    }

    /// Makes it in memory, whatever it is.
    pub(crate) fn make_bytes(&self) -> Vec<u8> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        self.make_at(&path);
        std::fs::read(&path).expect("the image")
    }

    /// Makes it as a file.
    pub(crate) fn make_at(&self, path: &Path) {
        let tree = tempfile::tempdir().expect("a directory");
        for (name, contents) in &self.files {
            let file = tree.path().join(name);
            let parent = file.parent().expect("a file below the tree");
            std::fs::create_dir_all(parent).expect("its directory");
            std::fs::write(&file, contents).expect("a file");
        }
        let image = std::fs::File::create(path).expect("an image");
        image.set_len(self.mib << 20).expect("a sparse file");
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-F", "-E", "root_owner=0:0,lazy_itable_init=1"]);
        mke2fs.args(&self.arguments);
        if !self.files.is_empty() {
            mke2fs.arg("-d").arg(tree.path());
        }
        let output = mke2fs.arg(path).output().expect("mke2fs (e2fsprogs) runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "mke2fs {:?}: {said}",
            self.arguments
        );
        debugfs(path, &self.debugfs);
        if self.rehash {
            let output = Command::new("e2fsck")
                .args(["-f", "-y", "-D"])
                .arg(path)
                .output();
            let output = output.expect("e2fsck (e2fsprogs) runs");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.code() < Some(4), "e2fsck: {said}");
        }
    }

    /// A small image with something of every kind: a file of many extents (`big`), one of a few
    /// bytes (`small`) with attributes in its inode and in a block, an index of two levels
    /// (`deep`), links, a device.
    pub(crate) fn rich(arguments: &str) -> Self {
        let block = if arguments.contains("4096") {
            4096
        } else {
            1024
        };
        let mut big = Vec::new();
        for number in 0..24u8 {
            big.resize(big.len() + block, b'a' + number);
            big.resize(big.len() + block, 0);
        }
        let mut recipe = Self::new(8, arguments)
            .file("small", vec![b's'; 100])
            .file("big", big)
            .file("sub/inner/leaf", "leaf")
            .run("symlink fast small")
            .run(format!("symlink slow {}", "sub/../".repeat(12) + "small"))
            .run("mknod null c 1 3")
            .run("ea_set small user.short value")
            .run(format!("ea_set small user.long {}", "v".repeat(block / 2)));
        let names = if block == 4096 { 60 } else { 500 };
        for number in 0..names {
            recipe = recipe.file(&format!("deep/{number:0>250}"), "");
        }
        recipe.rehash()
    }
}

/// Runs commands of debugfs on an image.
pub(crate) fn debugfs(path: &Path, commands: &[String]) -> String {
    if commands.is_empty() {
        return String::new();
    }
    let mut child = Command::new("debugfs")
        .args(["-w", "-f", "-"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("debugfs (e2fsprogs) runs");
    let script = commands.join("\n") + "\n";
    let mut stdin = child.stdin.take().expect("a pipe");
    let writer = pagefence_lock_order::primitives::thread::spawn("debugfs input", move || {
        stdin.write_all(script.as_bytes()).expect("it reads");
    })
    .expect("a thread");
    let output = child.wait_with_output().expect("debugfs ends");
    writer.join().expect("its input was written");
    let said = String::from_utf8_lossy(&output.stderr);
    // It says its version first, whatever happens.
    let complaints: Vec<_> = said.lines().skip(1).collect();
    assert!(complaints.is_empty(), "debugfs: {complaints:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
