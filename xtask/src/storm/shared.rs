//! Files that all threads change at once: blocks say which write they are of.
//!
//! In files of the first sort blocks stay where they are, and each may hold what the order of
//! changes allows ([`Stamps`]). In those of the second sort they are collapsed, inserted and
//! exchanged as well: any write's block may be anywhere, but in one place at a time.

use std::collections::BTreeMap;

use pagefence::{File, MapFormat, OpenOptions, Volume};

use super::own::{outcome, text};
use super::stamps::{Stamps, distinct};
use super::watch::{Came, Watch};
use crate::random::Random;

/// Blocks of a file, at most.
const MOST_BLOCKS: u64 = 600;
/// Blocks of a change, at most.
const MOST_CHANGED: u64 = 24;
/// Files in which blocks move.
const MOVING: usize = 3;
/// Files in which they stay.
const STAYING: usize = 2;

/// The files, for as long as the volume is open.
pub(crate) struct Shared {
    block_size: u64,
    staying: Vec<(File, Stamps)>,
    moving: Vec<File>,
    moved: Stamps,
    /// The files again, those that stay and then those that move, past the cache.
    direct: Vec<File>,
}

/// Who does something, and with what.
pub(crate) struct Actor<'a> {
    pub(crate) thread: usize,
    pub(crate) random: &'a mut Random,
    pub(crate) watch: &'a Watch,
}

impl Actor<'_> {
    fn begin(&self, what: String) {
        self.watch.begin(self.thread, what);
    }

    fn end(&self, sort: &'static str, came: Came) -> Result<(), String> {
        self.watch.end(self.thread, sort, came)
    }

    fn blocks(&mut self) -> (u64, u64) {
        let first = self.random.below(MOST_BLOCKS);
        let bits = self.random.below(u64::from(MOST_CHANGED.ilog2()) + 1);
        let count = 1 + self.random.below(1 << bits);
        (first, count.min(MOST_BLOCKS - first))
    }
}

/// Migrates to either format.
fn migrate(file: &File, random: &mut Random) -> pagefence::Result<()> {
    file.migrate(match random.below(2) {
        0 => MapFormat::Extents,
        _ => MapFormat::Blocks,
    })
}

impl Shared {
    /// Makes the files anew.
    pub(crate) fn new(volume: &Volume, block_size: u64) -> Result<Self, String> {
        let options = OpenOptions::new().read(true).write(true).create(true);
        let options = options.truncate(true);
        let open = |sort: &str, number: usize| {
            let file = options.open(volume, format!("/{sort}-{number}"));
            file.map_err(text)
        };
        let staying = (0..STAYING).map(|number| {
            let stamps = Stamps::new(block_size, MOST_BLOCKS);
            Ok::<_, String>((open("staying", number)?, stamps))
        });
        let moving = (0..MOVING).map(|number| open("moving", number));
        let (staying, moving) = (
            staying.collect::<Result<_, _>>()?,
            moving.collect::<Result<_, _>>()?,
        );
        let options = OpenOptions::new().read(true).write(true).direct(true);
        let direct = Self::paths().map(|path| options.open(volume, path).map_err(text));
        Ok(Self {
            block_size,
            staying,
            moving,
            direct: direct.collect::<Result<_, _>>()?,
            moved: Stamps::new(block_size, MOST_BLOCKS),
        })
    }

    /// Does something to a file whose blocks stay where they are.
    ///
    /// # Errors
    /// What a reader saw that should not be there; an error that none of these operations may give.
    pub(crate) fn stay(&self, actor: &mut Actor<'_>) -> Result<(), String> {
        let number = actor.random.below(STAYING as u64) as usize;
        let (file, stamps) = &self.staying[number];
        let (first, count) = actor.blocks();
        let (offset, length) = (first * self.block_size, count * self.block_size);
        let sort = match actor.random.below(100) {
            0..18 => "s write",
            18..30 => "s write direct",
            30..50 => "s read",
            50..62 => "s read direct",
            62..74 => "s punch",
            74..79 => "s zero",
            79..84 => "s zero keeping",
            84..88 => "s allocate",
            88..93 => "s truncate",
            93..97 => "s migrate",
            _ => "s fsync",
        };
        let file = match sort {
            "s write direct" | "s read direct" => &self.direct[number],
            _ => file,
        };
        let what = format!("{sort}, blocks {first}+{count} of file {number}");
        actor.begin(what.clone());
        let clearing = |first: u64, count: u64, clear: &dyn Fn() -> pagefence::Result<()>| {
            let change = stamps.begin_clear(first, count);
            let came = outcome(clear());
            stamps.end_clear(change, came == Ok(Came::Done));
            came
        };
        let came = match sort {
            "s write" | "s write direct" => {
                let (write, bytes) = stamps.begin_write(first, count);
                let written = file.write_at(offset, &bytes);
                stamps.end_write(write, written.as_ref().copied().unwrap_or(0));
                outcome(written.map(drop))
            }
            "s read" | "s read direct" => {
                let before = stamps.before(first, count);
                let mut bytes = vec![0xee; length as usize];
                let read = file.read_at(offset, &mut bytes).map_err(text);
                read.and_then(|read| stamps.check(&before, &bytes[..read]))
                    .map(|()| Came::Done)
            }
            "s punch" => clearing(first, count, &|| file.punch_hole(offset, length)),
            "s zero" => clearing(first, count, &|| file.zero_range(offset, length)),
            "s zero keeping" => clearing(first, count, &|| {
                file.zero_range_keeping_size(offset, length)
            }),
            "s allocate" => outcome(file.allocate(offset, length)),
            "s truncate" => clearing(first, MOST_BLOCKS - first, &|| file.set_len(offset)),
            "s migrate" => outcome(migrate(file, actor.random)),
            _ => file.sync_data().map(|()| Came::Done).map_err(text),
        };
        actor.end(sort, came.map_err(|error| format!("{what}: {error}"))?)
    }

    /// Does something to files whose blocks move.
    ///
    /// # Errors
    /// As [`Self::stay`].
    pub(crate) fn shift(&self, actor: &mut Actor<'_>) -> Result<(), String> {
        let number = actor.random.below(MOVING as u64) as usize;
        let other = actor.random.below(MOVING as u64) as usize;
        let (file, stamps) = (&self.moving[number], &self.moved);
        let (first, count) = actor.blocks();
        let (other_first, _) = actor.blocks();
        let (offset, length) = (first * self.block_size, count * self.block_size);
        let sort = match actor.random.below(100) {
            0..16 => "m write",
            16..26 => "m write direct",
            26..38 => "m read",
            38..44 => "m read direct",
            44..52 => "m punch",
            52..57 => "m zero",
            57..60 => "m allocate",
            60..71 => "m collapse",
            71..81 => "m insert",
            81..91 => "m exchange",
            91..94 => "m truncate",
            94..98 => "m migrate",
            _ => "m fsync",
        };
        let file = match sort {
            "m write direct" | "m read direct" => &self.direct[STAYING + number],
            _ => file,
        };
        let what =
            format!("{sort}, blocks {first}+{count} of file {number}, or {other_first} of {other}");
        actor.begin(what.clone());
        let came = match sort {
            "m write" | "m write direct" => {
                let (write, bytes) = stamps.begin_write(first, count);
                let written = file.write_at(offset, &bytes);
                stamps.end_write(write, written.as_ref().copied().unwrap_or(0));
                outcome(written.map(drop))
            }
            "m read" | "m read direct" => {
                let mut bytes = vec![0xee; length as usize];
                let read = file.read_at(offset, &mut bytes).map_err(text);
                read.and_then(|read| stamps.check_any(&bytes[..read - read % 8]))
                    .map(|()| Came::Done)
            }
            "m punch" => outcome(file.punch_hole(offset, length)),
            "m zero" => outcome(file.zero_range(offset, length)),
            "m allocate" => outcome(file.allocate(offset, length)),
            "m collapse" => outcome(file.collapse_range(offset, length)),
            "m insert" => {
                let size = file.metadata().map_err(text)?.len();
                // Others may insert as well meanwhile: a little more is no harm.
                if size + length > MOST_BLOCKS * self.block_size {
                    Ok(Came::Refused)
                } else {
                    outcome(file.insert_range(
                        offset % size.max(1) / self.block_size * self.block_size,
                        length,
                    ))
                }
            }
            "m exchange" => outcome(file.exchange_range(
                offset,
                &self.moving[other],
                other_first * self.block_size,
                length,
            )),
            "m truncate" => outcome(file.set_len(offset)),
            "m migrate" => outcome(migrate(file, actor.random)),
            _ => file.sync_all().map(|()| Came::Done).map_err(text),
        };
        actor.end(sort, came.map_err(|error| format!("{what}: {error}"))?)
    }

    /// Reads all files while nobody changes them: no block is in two places.
    ///
    /// # Errors
    /// What should not be there.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (number, (file, stamps)) in self.staying.iter().enumerate() {
            let before = stamps.before(0, MOST_BLOCKS);
            let bytes = file.read_all().map_err(text)?;
            let checked = stamps.check(&before, &bytes);
            checked.map_err(|error| format!("staying file {number}: {error}"))?;
        }
        let mut places = BTreeMap::new();
        for (number, file) in self.moving.iter().enumerate() {
            let bytes = file.read_all().map_err(text)?;
            for (block, found) in bytes.chunks_exact(self.block_size as usize).enumerate() {
                let checked = self.moved.check_any(found);
                checked.map_err(|error| format!("moving file {number}, block {block}: {error}"))?;
                for word in distinct(found).into_iter().filter(|&word| word != 0) {
                    if let Some(place) = places.insert(word, (number, block)) {
                        return Err(format!(
                            "a block is in two places: block {} of moving file {}, and {block} of \
                             {number} ({word:016x})",
                            place.1, place.0
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// What fsync says of each file: why its data could not be written.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let staying = self.staying.iter().map(|(file, _)| file);
        let all = staying.chain(&self.moving);
        all.filter_map(|file| file.sync_all().err().map(text))
            .collect()
    }

    fn paths() -> impl Iterator<Item = String> {
        let staying = (0..STAYING).map(|number| format!("/staying-{number}"));
        staying.chain((0..MOVING).map(|number| format!("/moving-{number}")))
    }

    /// What the files of a volume hold that has been opened again.
    pub(crate) fn read(volume: &Volume) -> Result<Vec<Vec<u8>>, String> {
        Self::paths()
            .map(|path| volume.read(path).map_err(text))
            .collect()
    }

    /// What the files hold.
    pub(crate) fn contents(&self) -> Result<Vec<Vec<u8>>, String> {
        let staying = self.staying.iter().map(|(file, _)| file);
        let all = staying.chain(&self.moving);
        all.map(|file| file.read_all().map_err(text)).collect()
    }
}
