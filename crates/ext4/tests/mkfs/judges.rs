//! The tools that judge an image, and how an image for them is made.

use std::path::{Path, PathBuf};
use std::process::Command;

use pagefence_block_io::file_device::{FileDevice, OpenOptions};
use pagefence_ext4::mkfs::{Contents, Kind, Made, MkfsError, Parameters, Tree, format};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// A new sparse file of that size.
pub(crate) fn sparse_file(dir: &Path, size: u64) -> PathBuf {
    let path = dir.join("image");
    let file = std::fs::File::create(&path).expect("an image in a directory of its own");
    file.set_len(size).expect("a sparse file");
    path
}

pub(crate) fn parameters(kind: Kind, block_size: u32, features: &str) -> Parameters {
    let mut parameters = Parameters::new(kind);
    parameters.block_size = Some(block_size);
    parameters.contents = Contents::Zeros;
    parameters.features.edit(features).expect("known features");
    parameters
}

pub(crate) fn make(path: &Path, parameters: &Parameters, tree: &Tree) -> Result<Made, MkfsError> {
    let options = OpenOptions {
        write: true,
        ..OpenOptions::default()
    };
    let device = FileDevice::open(path, options).expect("the image opens");
    format(&device, parameters, tree)
}

/// Runs a tool of e2fsprogs and returns what it wrote.
pub(crate) fn tool(name: &str, arguments: &[&str], path: &Path) -> (bool, String) {
    let output = Command::new(name)
        .args(arguments)
        .arg(path)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{name} of e2fsprogs is needed: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Everything that e2fsck says beside its title, its passes and its summary is a complaint.
pub(crate) fn assert_clean(path: &Path, context: &str) {
    let (success, text) = tool("e2fsck", &["-f", "-n"], path);
    let image = path.display().to_string();
    let complaint = text.lines().find(|line| {
        let is_summary = line.starts_with(&image) && line.contains(" blocks");
        let is_pass = line.starts_with("Pass ") && line.contains(": Checking ");
        !(line.is_empty() || line.starts_with("e2fsck ") || is_pass || is_summary)
    });
    assert!(success && complaint.is_none(), "{context}: {text}");
}
