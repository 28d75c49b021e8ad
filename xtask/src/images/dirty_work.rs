//! What happens on a mounted image before its copy is taken.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{XattrFlags, lsetxattr};

use super::dirty::Work;
use super::journal_state::log_start_and_length;
use crate::random::Random;

/// First four bytes of every journal block.
const JOURNAL_MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];
/// Rounds after which a log is taken not to wrap.
const MAX_WRAP_ROUNDS: usize = 400;

/// A mounted image that is worked on.
pub(crate) struct Scene<'a> {
    root: &'a Path,
    image: &'a Path,
    block_bytes: u64,
    random: Random,
    /// Files that stay open until the copy is taken.
    open: Vec<File>,
    /// Number of files made so far.
    files: u64,
    last: Option<PathBuf>,
}

impl<'a> Scene<'a> {
    /// Starts on an empty file system.
    pub(crate) fn new(root: &'a Path, image: &'a Path, block_bytes: u64, random: Random) -> Self {
        Self {
            root,
            image,
            block_bytes,
            random,
            open: Vec::new(),
            files: 0,
            last: None,
        }
    }

    /// The image file.
    pub(crate) fn image(&self) -> &Path {
        self.image
    }

    /// Commits what the last file needs; everything before is then committed, too.
    pub(crate) fn sync_last_file(&self) -> Result<()> {
        if let Some(last) = &self.last {
            File::open(last)?.sync_all()?;
        }
        Ok(())
    }

    /// Writes everything in place, so that the log is empty of what came before.
    pub(crate) fn settle(&self) -> Result<()> {
        rustix::fs::syncfs(File::open(self.root)?)?;
        Ok(())
    }

    fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    fn write(&mut self, directory: &Path, blocks: u64) -> Result<PathBuf> {
        self.files += 1;
        let path = directory.join(format!("file-{}", self.files));
        let bytes = self
            .random
            .bytes(usize::try_from(blocks * self.block_bytes)?);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        self.last = Some(path.clone());
        Ok(path)
    }
}

/// Does one sort of work, and ends with everything committed.
pub(crate) fn perform(scene: &mut Scene<'_>, work: Work) -> Result<()> {
    match work {
        Work::Basic => basic(scene),
        Work::Orphans => orphans(scene),
        Work::Revokes => revokes(scene),
        Work::Escapes => escapes(scene),
        Work::Wrap => wrap(scene),
        Work::FastCommit => fast_commit(scene),
    }
    .with_context(|| format!("{work:?}"))?;
    scene.sync_last_file()
}

fn basic(scene: &mut Scene<'_>) -> Result<()> {
    let directory = scene.directory("basic")?;
    for index in 0..60 {
        let path = scene.write(&directory, index % 5)?;
        if index % 3 == 0 {
            lsetxattr(
                &path,
                "user.index",
                index.to_string().as_bytes(),
                XattrFlags::empty(),
            )?;
        }
    }
    scene.settle()?;
    for index in 0..40 {
        let path = scene.write(&directory, 1 + index % 7)?;
        match index % 4 {
            0 => fs::rename(&path, directory.join(format!("renamed-{index}")))?,
            1 => fs::remove_file(&path)?,
            2 => fs::hard_link(&path, directory.join(format!("link-{index}")))?,
            _ => OpenOptions::new().write(true).open(&path)?.set_len(100)?,
        }
    }
    let inner = scene.directory("basic/inner/inner")?;
    for index in 0..150 {
        File::create(inner.join(format!("an-entry-that-fills-blocks-{index:040}")))?;
    }
    let big = scene.root.join("to-be-truncated");
    let bytes = scene.random.bytes(usize::try_from(40 * scene.block_bytes)?);
    fs::write(&big, bytes)?;
    scene.write(&directory, 2)?;
    Ok(())
}

fn orphans(scene: &mut Scene<'_>) -> Result<()> {
    let directory = scene.directory("orphans")?;
    for index in 0..5 {
        let path = scene.write(&directory, 1 + index * 20)?;
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        file.sync_all()?;
        scene.open.push(file);
        fs::remove_file(&path)?;
    }
    let emptied = scene.directory("orphans/directory")?;
    scene.open.push(File::open(&emptied)?);
    fs::remove_dir(&emptied)?;
    scene.write(&directory, 1)?;
    Ok(())
}

/// Deletes directories whose blocks are in the log, then writes data until those blocks are used
/// again: without revokes, a replay would write directory blocks over the data.
fn revokes(scene: &mut Scene<'_>) -> Result<()> {
    let parent = scene.directory("revokes")?;
    for round in 0..3 {
        let doomed = scene.directory(&format!("revokes/doomed-{round}"))?;
        for index in 0..300 {
            File::create(doomed.join(format!("entry-{index:060}")))?;
        }
        scene.write(&parent, 1)?;
        scene.sync_last_file()?;
        fs::remove_dir_all(&doomed)?;
        scene.write(&parent, 1)?;
        scene.sync_last_file()?;
        for _ in 0..30 {
            scene.write(&parent, 8)?;
        }
        scene.sync_last_file()?;
    }
    Ok(())
}

fn escapes(scene: &mut Scene<'_>) -> Result<()> {
    let directory = scene.directory("escapes")?;
    for _ in 0..4 {
        let path = scene.write(&directory, 9)?;
        let file = OpenOptions::new().write(true).open(&path)?;
        for block in 0..9 {
            file.write_all_at(&JOURNAL_MAGIC, block * scene.block_bytes)?;
        }
        file.sync_all()?;
    }
    Ok(())
}

/// Commits until the log starts in its last third, then a little more than is left of it.
fn wrap(scene: &mut Scene<'_>) -> Result<()> {
    let directory = scene.directory("wrap")?;
    for _ in 0..MAX_WRAP_ROUNDS {
        wrap_round(scene, &directory, 6)?;
        let (start, length) = log_start_and_length(scene.image)?;
        if start > length * 2 / 3 {
            break;
        }
        // Once everything is in place, the next commit moves the start of the log on.
        scene.settle()?;
    }
    let mut rounds = 0;
    while !super::journal_state::log(scene.image)?.wraps && rounds < 60 {
        wrap_round(scene, &directory, 4)?;
        rounds += 1;
    }
    Ok(())
}

fn wrap_round(scene: &mut Scene<'_>, directory: &Path, commits: usize) -> Result<()> {
    for _ in 0..commits {
        let inner = directory.join(format!("d{}", scene.files));
        fs::create_dir_all(&inner)?;
        for index in 0..8 {
            File::create(inner.join(format!("entry-{index}")))?;
        }
        let path = scene.write(&inner, 1)?;
        scene.sync_last_file()?;
        if scene.files.is_multiple_of(2) {
            fs::remove_file(path)?;
            fs::remove_dir_all(&inner)?;
            scene.last = None;
        }
    }
    scene.write(directory, 1)?;
    scene.sync_last_file()
}

fn fast_commit(scene: &mut Scene<'_>) -> Result<()> {
    let directory = scene.directory("fast-commit")?;
    let base = scene.write(&directory, 4)?;
    scene.settle()?;
    let bytes = scene.random.bytes(usize::try_from(3 * scene.block_bytes)?);
    let file = OpenOptions::new().write(true).open(&base)?;
    file.write_all_at(&bytes, 10 * scene.block_bytes)?;
    file.sync_all()?;
    for index in 0..6 {
        let path = scene.write(&directory, 2)?;
        File::open(&path)?.sync_all()?;
        match index % 3 {
            0 => fs::hard_link(&path, directory.join(format!("link-{index}")))?,
            1 => fs::rename(&path, directory.join(format!("renamed-{index}")))?,
            _ => fs::remove_file(directory.join(format!("link-{}", index - 2)))?,
        }
        file.write_all_at(&bytes[..100], index * 700)?;
        file.sync_all()?;
    }
    file.set_len(5 * scene.block_bytes)?;
    // A full commit, so that what follows is found in the fast-commit area alone.
    scene.settle()?;
    for index in 0..4 {
        file.write_all_at(&bytes, (20 + 5 * index) * scene.block_bytes)?;
        file.sync_all()?;
        let path = scene.write(&directory, 3)?;
        File::open(&path)?.sync_all()?;
    }
    scene.last = None;
    Ok(())
}
