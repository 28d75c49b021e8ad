//! One case: a field, a value, and what comes of it.

use std::ops::Range;
use std::sync::Arc;

use pagefence::device::{Device as _, MemoryDevice};
use pagefence::{Options, Volume};
use pagefence_block_io::fault_device::random::Random;
use pagefence_ext4_format::InodeNo;
use pagefence_ext4_format::group_desc::GroupDesc;
use pagefence_ext4_format::superblock::Superblock;

use super::agreement::{Verdict, compare};
use super::device::Watched;
use super::layout::Layout;
use super::structures::{Seal, Structure, survey};
use super::values::Landmarks;
use super::walk::{Seen, walk};
use super::work::{DIRECTORIES, FILES, work};
use crate::e2fsck;

/// Bytes of cache that a volume gets: the least.
const CACHE: u64 = 16 << 20;

/// All cases of an image.
pub(super) struct Cases {
    layout: Layout,
    structures: Vec<Structure>,
    cases: Vec<Case>,
    is_dirty: bool,
    has_e2fsck: bool,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    structure: usize,
    field: usize,
    value: u64,
}

/// What came of a case, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tried {
    /// It opened to be read.
    pub(super) opened: u64,
    /// It opened to be written.
    pub(super) written: u64,
    /// Errors met, each of which says what is wrong.
    pub(super) errors: u64,
    /// What the check and e2fsck find.
    pub(super) verdict: Verdict,
}

impl Cases {
    /// Those of a sound image whose names contain `only`, in the order that `seed` gives.
    ///
    /// # Errors
    /// It is not sound, in words.
    pub(super) fn of(image: &[u8], is_dirty: bool, only: &str, seed: u64) -> Result<Self, String> {
        let device = MemoryDevice::from_bytes(image);
        let files = files_of(&device)?;
        let layout = Layout::of(device).ok_or("its superblock is damaged")?;
        let mut structures = survey(&layout, &files);
        if is_dirty {
            // What is at home is old.
            let is_of_journal = |what: &str| {
                ["block ", "superblock", "fast commit"]
                    .iter()
                    .any(|it| what.contains(it))
            };
            structures.retain(|it| is_of_journal(&it.what));
        }
        let superblock = &layout.superblock;
        let bitmap = layout.group(pagefence_ext4_format::GroupNo(0));
        let landmarks = Landmarks {
            metadata: bitmap
                .as_ref()
                .map_or(1, |desc| GroupDesc::inode_table(desc).0),
            end: superblock.blocks_count(),
            block_size: superblock.block_size().into(),
            inodes: superblock.inodes_count().into(),
        };
        let mut cases = Vec::new();
        for (structure, it) in structures.iter().enumerate() {
            let bytes = layout.read(it.offset, it.length).ok_or("it has holes")?;
            for (number, field) in it.fields.iter().enumerate() {
                cases.extend(
                    field
                        .values(&bytes, it.own, &landmarks)
                        .into_iter()
                        .map(|value| Case {
                            structure,
                            field: number,
                            value,
                        }),
                );
            }
        }
        cases.retain(|case| name(&structures, *case).contains(only));
        let mut random = Random::new(seed);
        for left in (1..cases.len()).rev() {
            cases.swap(left, random.below(left as u64 + 1) as usize);
        }
        Ok(Self {
            layout,
            structures,
            cases,
            is_dirty,
            has_e2fsck: e2fsck::is_there(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.cases.len()
    }

    /// The structures, each once.
    pub(super) fn structures(&self) -> usize {
        self.structures.len()
    }

    /// A case in words.
    pub(super) fn name(&self, number: usize) -> String {
        name(&self.structures, self.cases[number])
    }

    /// What the sound image says of itself.
    pub(super) fn superblock(&self) -> &Superblock {
        &self.layout.superblock
    }

    /// Tries one.
    ///
    /// # Errors
    /// What must not be, in words.
    pub(super) fn run(&self, number: usize) -> Result<Tried, String> {
        let case = self.cases[number];
        let damaged = self.layout.device.fork();
        let structure = self.edit(&damaged, case.structure, case.field, case.value);
        let zones = self.zones(&damaged, structure);
        let name = self.name(number);
        let (tried, _) = self.try_image(&damaged, zones, self.has_e2fsck.then_some(&name))?;
        Ok(tried)
    }

    /// Sets a field of a structure, its checksum mended.
    fn edit(&self, damaged: &MemoryDevice, at: usize, field: usize, value: u64) -> &Structure {
        let structure = &self.structures[at];
        let mut bytes = vec![0; structure.length];
        damaged
            .read(structure.offset, &mut bytes)
            .expect("it is there");
        structure.fields[field].set(&mut bytes, value);
        structure.put(&self.layout, damaged, bytes);
        structure
    }

    /// Tries an image of which some fields are set: number of the structure, of the field (both
    /// brought into range), and the value.
    ///
    /// # Errors
    /// What must not be, in words.
    pub(super) fn run_edited(&self, edits: &[(usize, usize, u64)]) -> Result<(), String> {
        let damaged = self.layout.device.fork();
        let mut zones = self.layout.zones(true);
        for (structure, field, value) in edits {
            let at = structure % self.structures.len();
            let fields = self.structures[at].fields.len();
            if let Some(field) = field.checked_rem(fields) {
                let structure = self.edit(&damaged, at, field, *value);
                let now = self.zones(&damaged, structure);
                zones = common(zones, &now);
            }
        }
        self.try_image(&damaged, zones, None).map(drop)
    }

    /// Tries an image with these bytes at these places (brought into range).
    ///
    /// # Errors
    /// What must not be, in words.
    pub(super) fn run_patched(&self, patches: &[(u64, &[u8])]) -> Result<(), String> {
        let damaged = self.layout.device.fork();
        for (at, bytes) in patches {
            let room = damaged.size() - bytes.len() as u64;
            damaged.write(at % room, bytes).expect("it is inside");
        }
        let zones = match Layout::of(damaged.fork()) {
            Some(now) => common(self.layout.zones(true), &now.zones(true)),
            None => Vec::new(),
        };
        self.try_image(&damaged, zones, None).map(drop)
    }

    /// Tries an image that nothing is wrong with.
    ///
    /// # Errors
    /// What must not be; an error that it led to.
    pub(super) fn run_sound(&self) -> Result<(), String> {
        let zones = self.layout.zones(true);
        let field = self.has_e2fsck.then_some("none");
        let (tried, errors) = self.try_image(&self.layout.device, zones, field)?;
        match (&errors[..], tried.verdict) {
            ([], Verdict::Sound) => Ok(()),
            ([], Verdict::Alone) if !self.has_e2fsck => Ok(()),
            ([], _) => Err("a sound image that the check and e2fsck find damaged".to_owned()),
            (errors, _) => Err(format!("in a sound image: {}", errors.join("; "))),
        }
    }

    /// The blocks of metadata: of the sound image, and where what says so was changed, only those
    /// that both agree on.
    fn zones(&self, damaged: &MemoryDevice, structure: &Structure) -> Vec<Range<u64>> {
        let journal = self.layout.superblock.journal_inode();
        let has_journal = match structure.seal {
            Seal::Inode(number) => Some(number) != journal,
            // The journal brings other superblocks, descriptors and inodes.
            Seal::Log { .. } | Seal::Plain if self.is_dirty => return Vec::new(),
            Seal::Superblock | Seal::Group(_) => {
                let before = self.layout.zones(true);
                let Some(now) = Layout::of(damaged.fork()) else {
                    return Vec::new();
                };
                return common(before, &now.zones(true));
            }
            _ => true,
        };
        self.layout.zones(has_journal)
    }

    /// What came of it, and the errors. What the check finds is compared with what e2fsck finds if a
    /// field, by name, is said to be what was damaged.
    fn try_image(
        &self,
        damaged: &MemoryDevice,
        zones: Vec<Range<u64>>,
        field: Option<&str>,
    ) -> Result<(Tried, Vec<String>), String> {
        let block_size = self.layout.superblock.block_size();
        let watch = |zones| {
            let device = Arc::new(damaged.fork());
            (
                Arc::clone(&device),
                Arc::new(Watched::new(device, block_size, zones)),
            )
        };
        let mut tried = Tried::default();
        let (_, watched) = watch(Vec::new());
        let mut errors = look(&watched, &mut tried.opened)?.errors;
        let compared = compare(damaged, block_size, self.is_dirty, field)?;
        tried.verdict = compared.verdict;
        if let (Some(error), true, Some(_)) = (errors.first(), compared.is_clean, field) {
            return Err(format!("the check finds nothing, but: {error}"));
        }
        let (device, watched) = watch(zones);
        let mut seen = Seen::default();
        if let Some(volume) = seen.note("opening to write", open(&watched, true)) {
            tried.written += u64::from(work(&volume, &mut seen));
            seen.note("closing", volume.close());
        }
        finish(&watched, &seen)?;
        // Whatever is left of it can be looked at again.
        let again = Arc::new(Watched::new(device, block_size, Vec::new()));
        let left = look(&again, &mut 0)?;
        errors.extend(seen.errors);
        errors.extend(left.errors);
        tried.errors = errors.len() as u64;
        Ok((tried, errors))
    }
}

/// A case in words.
fn name(structures: &[Structure], case: Case) -> String {
    let structure = &structures[case.structure];
    let field = &structure.fields[case.field];
    format!("{}: {} = {:#x}", structure.what, field.name, case.value)
}

/// The blocks that are in both.
fn common(before: Vec<Range<u64>>, now: &[Range<u64>]) -> Vec<Range<u64>> {
    let is_now = |block: &u64| now.iter().any(|zone| zone.contains(block));
    let blocks = before.into_iter().flatten().filter(is_now);
    blocks.map(|block| block..block + 1).collect()
}

fn open(device: &Arc<Watched>, write: bool) -> pagefence::Result<Volume> {
    let options = Options::new().write(write).cache(CACHE).read_ahead(false);
    Volume::open_device(Arc::clone(device) as _, options)
}

fn finish(device: &Watched, seen: &Seen) -> Result<(), String> {
    match seen.wrong.clone().or_else(|| device.wrong()) {
        None => Ok(()),
        Some(wrong) => Err(wrong),
    }
}

/// Opens it read-only, and walks over it.
fn look(device: &Arc<Watched>, opened: &mut u64) -> Result<Seen, String> {
    let mut seen = Seen::default();
    if let Some(volume) = seen.note("opening", open(device, false)) {
        *opened += 1;
        seen = walk(&volume);
        seen.note("closing", volume.close());
    }
    finish(device, &seen)?;
    Ok(seen)
}

/// The files whose structures are damaged, and their inodes.
fn files_of(device: &MemoryDevice) -> Result<Vec<(String, InodeNo)>, String> {
    let options = Options::new().cache(CACHE);
    let volume = Volume::open_device(Arc::new(device.fork()), options)
        .map_err(|error| format!("a sound image: {error}"))?;
    let links = ["fast", "slow", "fifo"];
    let names = FILES.iter().chain(&DIRECTORIES).chain(&links);
    let mut files = Vec::new();
    for name in names {
        if let Ok(metadata) = volume.symlink_metadata(name) {
            let number = u32::try_from(metadata.ino()).map_err(|error| error.to_string())?;
            files.push(((*name).to_owned(), InodeNo(number)));
        }
    }
    Ok(files)
}
