//! What was compared, and what differs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Mismatches printed for one image; the others are only counted.
const MAX_PRINTED: usize = 60;

/// Counts, and prints mismatches as they are found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    image: PathBuf,
    pass: String,
    images: u64,
    skipped: u64,
    files: u64,
    bytes: u64,
    mismatches: u64,
    mismatches_of_image: usize,
    not_compared: BTreeSet<String>,
}

impl Report {
    /// From here on, mismatches are those of `image`.
    pub(crate) fn start_image(&mut self, image: &Path) {
        image.clone_into(&mut self.image);
        self.pass.clear();
        self.images += 1;
        self.mismatches_of_image = 0;
    }

    /// From here on, they are those of a mount with these options.
    pub(crate) fn start_pass(&mut self, options: &str) {
        options.clone_into(&mut self.pass);
    }

    /// Prints how the image fared.
    pub(crate) fn end_image(&mut self) {
        let count = self.mismatches_of_image;
        if count > MAX_PRINTED {
            println!("  and {} more", count - MAX_PRINTED);
        }
        let verdict = if count == 0 { "equal" } else { "DIFFERS" };
        println!("{verdict:8} {}", self.image.display());
    }

    /// The image can't be compared, for a reason that is not ours.
    pub(crate) fn skip(&mut self, reason: &str) {
        self.skipped += 1;
        println!("skipped  {}: {reason}", self.image.display());
    }

    /// Something differs.
    pub(crate) fn mismatch(&mut self, path: &Path, what: &str) {
        self.mismatches += 1;
        self.mismatches_of_image += 1;
        if self.mismatches_of_image <= MAX_PRINTED {
            println!("  [{}] {}: {what}", self.pass, path.display());
        }
    }

    /// Something can't be seen through one of the mounts; said once, at the end.
    pub(crate) fn not_compared(&mut self, what: &str) {
        self.not_compared.insert(what.to_owned());
    }

    /// A file was compared.
    pub(crate) fn count_file(&mut self) {
        self.files += 1;
    }

    /// So many bytes were compared.
    pub(crate) fn count_bytes(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Mismatches so far.
    pub(crate) fn mismatches(&self) -> u64 {
        self.mismatches
    }

    /// The last lines.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        for what in &self.not_compared {
            text.push_str(&format!("not compared: {what}\n"));
        }
        if self.skipped > 0 {
            text.push_str(&format!(
                "images skipped, since this kernel does not mount them: {}\n",
                self.skipped
            ));
        }
        text.push_str(&format!(
            "diff-walk: images {}, files {}, bytes {}, mismatches {}",
            self.images - self.skipped,
            self.files,
            self.bytes,
            self.mismatches
        ));
        text
    }
}
