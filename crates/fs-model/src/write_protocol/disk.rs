//! The device: what each block holds, and what it may hold after a crash.

/// What a block or a page holds.
pub(super) type Tag = u8;

/// What somebody left there before.
pub(super) const GARBAGE: Tag = 0;
/// A block of the extent tree.
pub(super) const TREE: Tag = 1;
/// Zeros: what a hole reads as. Never on the device.
pub(super) const ZEROS: Tag = 31;

/// Versions of one page, at most.
pub(super) const VERSIONS: u8 = 6;
const FIRST_DATA: u8 = 2;

/// The content of a page at one version.
pub(super) fn data_tag(page: usize, version: u8) -> Tag {
    assert!(version < VERSIONS, "the scenario changes a page too often");
    let page = u8::try_from(page).expect("a page number is small");
    FIRST_DATA + page * VERSIONS + version
}

/// The version, if this is data of that page.
pub(super) fn version_of(page: usize, tag: Tag) -> Option<u8> {
    if tag == ZEROS {
        return None;
    }
    let data = tag.checked_sub(FIRST_DATA)?;
    (usize::from(data / VERSIONS) == page).then_some(data % VERSIONS)
}

/// One block. Sets of tags are bit masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Block {
    /// What a read returns.
    pub(super) live: Tag,
    /// Writes submitted and not completed.
    writing: u32,
    /// What a crash may leave here.
    possible: u32,
    /// While a flush runs: what a crash may leave once it has completed.
    flushing: u32,
}

impl Block {
    pub(super) fn durable(tag: Tag) -> Self {
        Self {
            live: tag,
            writing: 0,
            possible: bit(tag),
            flushing: 0,
        }
    }

    pub(super) fn submit(&mut self, tag: Tag) {
        self.writing |= bit(tag);
        self.possible |= bit(tag);
        if self.flushing != 0 {
            self.flushing |= bit(tag);
        }
    }

    pub(super) fn complete(&mut self, tag: Tag) {
        self.live = tag;
        self.writing &= !bit(tag);
    }

    /// A flush covers only what was complete when it was submitted.
    pub(super) fn flush_start(&mut self) {
        self.flushing = bit(self.live) | self.writing;
    }

    pub(super) fn flush_end(&mut self) {
        self.possible = self.flushing;
        self.flushing = 0;
    }

    /// What a crash may leave here.
    pub(super) fn after_crash(&self) -> impl Iterator<Item = Tag> + use<> {
        let possible = self.possible;
        (0..32).filter(move |&tag| possible & bit(tag) != 0)
    }
}

fn bit(tag: Tag) -> u32 {
    1 << tag
}
