//! A process of a soak that maps both files, and its threads.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use pagefence::{Map, MapOptions, Mounted, Volume};
use pagefence_fs_model::ledger::{CELL, Wrong};
use pagefence_lock_order::primitives::{Arc, thread};

use super::world::{
    CELLS, MOVE_GATE, MOVED_CELLS, OWNERS, PAGES, PER_PAGE, STEP, TAIL, TAIL_GATE, THREADS, World,
    moved_to,
};
use super::{FILE, MOVED_FILE};
use crate::random::Random;

/// Arguments of a process that maps.
#[derive(clap::Args)]
pub(crate) struct MapperArguments {
    mountpoint: PathBuf,
    world: PathBuf,
    /// Which of the processes it is, from 0 on.
    process: usize,
    seed: u64,
}

/// Maps, and acts until the soak is over; `true` if it saw nothing wrong.
pub(crate) fn mapper(arguments: &MapperArguments) -> Result<bool> {
    let world = Arc::new(World::open(&arguments.world)?);
    let volume = Arc::new(Volume::connect(&arguments.mountpoint)?);
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let actor = arguments.process * THREADS + thread;
            let mut mapper = Mapper {
                maps: Maps::new(&volume, &arguments.mountpoint)?,
                volume: Arc::clone(&volume),
                mountpoint: arguments.mountpoint.clone(),
                world: Arc::clone(&world),
                actor,
                random: Random::for_name(arguments.seed, super::world::ACTORS[actor]),
            };
            Ok(thread::spawn("mapper", move || mapper.act_until_over())?)
        })
        .collect::<Result<_>>()?;
    world.is_ready();
    for thread in threads {
        let ended = thread.join();
        ensure!(ended.is_ok(), "a thread that maps has panicked");
        if let Ok(Err(error)) = ended {
            world.note_wrong(&format!("{error:#}"));
        }
    }
    // Nobody else does anything any more.
    let maps = Maps::new(&volume, &arguments.mountpoint)?;
    for cell in 0..CELLS {
        world.look("a new map at the end", cell, || read(&maps.file, cell))?;
    }
    Ok(world.wrong() == 0)
}

struct Maps {
    file: Map,
    moved: Map,
}

impl Maps {
    fn new(volume: &Mounted, mountpoint: &Path) -> Result<Self> {
        let map = |name: &str, pages: usize| {
            let path = mountpoint.join(name);
            let file = std::fs::File::options().read(true).write(true).open(&path);
            let file = file.with_context(|| format!("cannot open {}", path.display()))?;
            let bytes = (pages * super::world::PAGE) as u64;
            Ok::<_, anyhow::Error>(volume.map_file(&file, 0..bytes, MapOptions::shared())?)
        };
        Ok(Self {
            file: map(FILE, PAGES)?,
            moved: map(MOVED_FILE, super::world::MOVED_PAGES)?,
        })
    }
}

struct Mapper {
    maps: Maps,
    volume: Arc<Mounted>,
    mountpoint: PathBuf,
    world: Arc<World>,
    actor: usize,
    random: Random,
}

impl Mapper {
    fn act_until_over(&mut self) -> Result<()> {
        while !self.world.is_over() {
            self.act().with_context(|| format!("map {}", self.actor))?;
            self.world.count(self.actor);
        }
        Ok(())
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    fn act(&mut self) -> Result<()> {
        match self.below(1000) {
            0 => self.maps = Maps::new(&self.volume, &self.mountpoint)?,
            1..5 => self.look_through_private_map()?,
            5..10 => self.flush()?,
            10..450 => self.store()?,
            450..850 => self.load()?,
            850..920 => self.store_where_pages_move()?,
            _ => self.load_where_pages_move()?,
        }
        Ok(())
    }

    fn store(&mut self) -> Result<()> {
        let cell = self.below(CELLS / OWNERS) * OWNERS + self.actor;
        let (world, map) = (&self.world, &self.maps.file);
        let store = || {
            let (write, bytes) = world.cells.begin_write(cell);
            map.write_at(cell * CELL, &bytes)?;
            world.cells.end_write(cell, &write);
            Ok(())
        };
        in_tail(world, cell, store)
    }

    fn load(&mut self) -> Result<()> {
        let cell = self.below(CELLS);
        let (world, map) = (&self.world, &self.maps.file);
        let who = super::world::ACTORS[self.actor];
        in_tail(world, cell, || {
            Ok(world.look(who, cell, || read(map, cell))?)
        })
    }

    fn flush(&mut self) -> Result<()> {
        let at = self.below(CELLS - TAIL * PER_PAGE) * CELL;
        Ok(self.maps.file.flush_range(at..at + CELL)?)
    }

    /// A private map that nobody stores to shows what everybody sees.
    fn look_through_private_map(&mut self) -> Result<()> {
        let first = self.below(CELLS - (TAIL + 8) * PER_PAGE);
        let path = self.mountpoint.join(FILE);
        let file = std::fs::File::open(path)?;
        let bytes = (first * CELL) as u64..((first + 4 * PER_PAGE) * CELL) as u64;
        let map = self.volume.map_file(&file, bytes, MapOptions::private())?;
        for cell in first..first + 4 * PER_PAGE {
            self.world.look("a private map", cell, || {
                let mut bytes = vec![0; CELL];
                map.read_at((cell - first) * CELL, &mut bytes)?;
                Ok::<_, pagefence::Error>(bytes)
            })?;
        }
        Ok(())
    }

    fn store_where_pages_move(&mut self) -> Result<()> {
        let cell = STEP * PER_PAGE + self.below(MOVED_CELLS - 2 * STEP * PER_PAGE);
        let owned = cell.next_multiple_of(OWNERS) + self.actor;
        let (world, map) = (&self.world, &self.maps.moved);
        let stored = world.inside(MOVE_GATE, || {
            let at = moved_to(owned, world.phase()) * CELL;
            let (write, bytes) = world.moved.begin_write(owned);
            map.write_at(at, &bytes)?;
            world.moved.end_write(owned, &write);
            Ok(())
        });
        stored.unwrap_or(Ok(()))
    }

    /// Loads while pages may be moving: of what was copied while none was, each has its place.
    fn load_where_pages_move(&mut self) -> Result<()> {
        let cell = STEP * PER_PAGE + self.below(MOVED_CELLS - 2 * STEP * PER_PAGE);
        let mut looks = 0;
        loop {
            let phase = self.world.phase();
            let expect = self.world.moved.expect(cell);
            let bytes = read(&self.maps.moved, moved_to(cell, phase))?;
            if self.world.phase() != phase || !phase.is_multiple_of(2) {
                return Ok(());
            }
            match self.world.moved.check(cell, &bytes, expect) {
                Ok(()) => return Ok(()),
                Err(Wrong::Torn(_)) if looks < 100 => looks += 1,
                Err(Wrong::Torn(what) | Wrong::Bad(what)) => {
                    self.world
                        .note_wrong(&format!("where pages move, phase {phase}: {what}"));
                    return Ok(());
                }
            }
        }
    }
}

fn read(map: &Map, cell: usize) -> pagefence::Result<Vec<u8>> {
    let mut bytes = vec![0; CELL];
    map.read_at(cell * CELL, &mut bytes)?;
    Ok(bytes)
}

/// Does `what`, but not to a cell that is not there now.
pub(super) fn in_tail(world: &World, cell: usize, what: impl FnOnce() -> Result<()>) -> Result<()> {
    if cell < CELLS - TAIL * PER_PAGE {
        return what();
    }
    world.inside(TAIL_GATE, what).unwrap_or(Ok(()))
}
