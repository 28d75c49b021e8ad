//! `cargo xtask ranges`: the same random operations on a mount by the real binary and on the
//! kernel's mount of a copy; answers, bytes, and where the holes are have to be equal.
//!
//! Ranges are changed in all modes of fallocate(2) amid writes, direct writes, stores through maps
//! and truncates. Nothing is synced in between, but for what `pagefence fallocate` syncs itself
//! before it moves bytes, which is left out in about half of these calls: what is written is in
//! dirty pages, in blocks that are not allocated yet, and in maps. In the end both are unmounted,
//! shown to e2fsck, and mounted and compared once more.

mod compare;
mod operation;
mod side;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use self::compare::Maps;
use self::operation::{FILES, Operation, Scope, What};
use self::side::{Side, Whose};
use crate::command::{Needs, require, run as run_program};
use crate::diff_walk::check;
use crate::mounts::{Access, KernelMount, ServedMount, Server, pagefence_binary};
use crate::random::Random;
use crate::scratch::Scratch;
use crate::sparse;

/// Arguments of `ranges`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Operations on each type of file system with maps, and as many without.
    #[arg(long, default_value_t = 10_000)]
    operations: u64,
    /// Decides what is done.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Types of file system, separated by commas. For ext3 the kernel knows punch alone.
    #[arg(long, value_delimiter = ',', default_value = "ext3,ext4")]
    types: Vec<String>,
    /// Block sizes, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1024,4096")]
    block_sizes: Vec<u32>,
    /// The binary to try; built in the release profile unless given.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Prints each operation.
    #[arg(long)]
    trace: bool,
}

/// Size of an image in MiB: much more than the files take.
const IMAGE_MIB: u64 = 256;
/// Bytes are compared after so many operations.
const COMPARE_EVERY: u64 = 500;

/// Runs the chore; `true` if nothing differed.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    require(&Needs {
        programs: &["mke2fs", "e2fsck", "losetup", "mount", "umount"],
        fuse: true,
    })?;
    let binary = pagefence_binary(arguments.binary.as_deref())?;
    let (mut operations, mut mismatches) = (0, 0);
    for kind in &arguments.types {
        for &block_size in &arguments.block_sizes {
            // Without maps nothing at all is let pass.
            for has_maps in [true, false] {
                let scratch = Scratch::new()?;
                let pair = Pair::new(&scratch, &binary, (kind, block_size), has_maps)?;
                let without = if has_maps { "" } else { " without maps" };
                let what = format!("{kind} {block_size}{without}");
                let mut done = Done::default();
                let tried = pair.try_all(arguments, &mut done);
                match tried.unwrap_or_else(|error| Some(format!("{error:#}"))) {
                    None => println!("ok       {what}: {}", done.in_words()),
                    Some(difference) => {
                        mismatches += 1;
                        println!("DIFFERS  {what}, seed {}: {difference}", arguments.seed);
                        let kept = scratch.keep();
                        println!("         the images are kept in {}", kept.display());
                    }
                }
                operations += done.operations;
            }
        }
    }
    println!("ranges: {operations} operations, {mismatches} mismatches");
    Ok(mismatches == 0)
}

/// What was done.
#[derive(Default)]
struct Done {
    operations: u64,
    refused: u64,
    sorts: BTreeMap<String, u64>,
    /// Blocks of zeros that one of them has more, of pages that were stored to.
    zeros: usize,
}

impl Done {
    fn count(&mut self, operation: &Operation, was_refused: bool) {
        self.operations += 1;
        self.refused += u64::from(was_refused);
        let sort = match operation.what {
            What::Change(mode, _) => format!("{mode:?}"),
            what => format!("{what:?}"),
        };
        *self.sorts.entry(sort).or_default() += 1;
    }

    fn in_words(&self) -> String {
        let sorts: Vec<_> = self
            .sorts
            .iter()
            .map(|(sort, count)| format!("{sort} {count}"))
            .collect();
        format!(
            "{} operations, {} of them refused by both: {}; {} blocks of zeros in one of them only",
            self.operations,
            self.refused,
            sorts.join(", "),
            self.zeros
        )
    }
}

/// An image, its copy, and where they are mounted.
struct Pair {
    server: Server,
    binary: PathBuf,
    scope: Scope,
    ours: Place,
    kernels: Place,
}

struct Place {
    image: PathBuf,
    directory: PathBuf,
}

impl Place {
    fn new(scratch: &Scratch, name: &str) -> Result<Self> {
        Ok(Self {
            image: scratch.join(&format!("{name}.img")),
            directory: scratch.directory(name)?,
        })
    }

    fn mount_by_kernel(&self, access: Access) -> Result<KernelMount> {
        let option = match access {
            Access::ReadOnly => "ro",
            Access::ReadWrite => "rw",
        };
        let mount = KernelMount::new(&self.image, &self.directory, access, option)?;
        // By default Linux writes zeros where unwritten extents of up to 32 KiB would have to be
        // split, so that holes become data: without that, its maps follow from the operations.
        let name = mount.device().file_name().context("a device with a name")?;
        let setting = Path::new("/sys/fs/ext4")
            .join(name)
            .join("extent_max_zeroout_kb");
        std::fs::write(&setting, "0")
            .with_context(|| format!("cannot set {}", setting.display()))?;
        Ok(mount)
    }
}

impl Pair {
    fn new(
        scratch: &Scratch,
        binary: &Path,
        (kind, block_size): (&str, u32),
        has_maps: bool,
    ) -> Result<Self> {
        let (ours, kernels) = (
            Place::new(scratch, "ours")?,
            Place::new(scratch, "kernels")?,
        );
        std::fs::File::create(&ours.image)?.set_len(IMAGE_MIB << 20)?;
        let size = block_size.to_string();
        let arguments = ["-q", "-F", "-t", kind, "-b", &size].map(AsRef::as_ref);
        run_program(
            "mke2fs",
            arguments.into_iter().chain([ours.image.as_os_str()]),
        )?;
        sparse::copy(&ours.image, &kernels.image)?;
        Ok(Self {
            server: Server::Pagefence(binary.to_owned()),
            binary: binary.to_owned(),
            scope: Scope {
                block_size: u64::from(block_size),
                has_extents: kind == "ext4",
                has_maps,
            },
            ours,
            kernels,
        })
    }

    fn mount_ours(&self) -> Result<ServedMount> {
        ServedMount::new(&self.server, &self.ours.image, &self.ours.directory, "rw")
    }

    /// Does all operations, unmounts, checks and compares; the first difference.
    fn try_all(&self, arguments: &Arguments, done: &mut Done) -> Result<Option<String>> {
        let (ours, kernels) = (
            self.mount_ours()?,
            self.kernels.mount_by_kernel(Access::ReadWrite)?,
        );
        let played = self.play(arguments, done);
        ours.unmount()?;
        kernels.unmount()?;
        if let Some(difference) = played? {
            return Ok(Some(difference));
        }
        for place in [&self.ours, &self.kernels] {
            if let Some(complaints) = check::complaints(&place.image)? {
                return Ok(Some(format!(
                    "e2fsck of {}: {complaints}",
                    place.image.display()
                )));
            }
        }
        self.look_again(done)
    }

    fn sides(&self) -> Result<(Side, Side)> {
        Ok((
            Side::new(Whose::Ours(self.binary.clone()), &self.ours.directory)?,
            Side::new(Whose::Kernels, &self.kernels.directory)?,
        ))
    }

    fn play(&self, arguments: &Arguments, done: &mut Done) -> Result<Option<String>> {
        let mut random = Random::new(arguments.seed);
        let (mut ours, mut kernels) = self.sides()?;
        for number in 1..=arguments.operations {
            let mut sizes = [0; FILES];
            for (file, size) in sizes.iter_mut().enumerate() {
                *size = kernels.size(file)?;
            }
            let operation = self.scope.draw(&mut random, number, &sizes);
            if arguments.trace {
                println!("{operation:?}");
            }
            let here = ours
                .apply(&operation)
                .with_context(|| format!("{operation:?}"))?;
            let there = kernels
                .apply(&operation)
                .with_context(|| format!("{operation:?}"))?;
            done.count(&operation, there.is_err());
            let told =
                |what: String| Ok(Some(format!("operation {number}, {operation:?}: {what}")));
            use side::Given;
            match (&here, &there) {
                (Ok(Given::Bytes(here)), Ok(Given::Bytes(there))) => {
                    if let Some(difference) = compare::first_difference(here, there) {
                        return told(format!("from {} on, {difference}", operation.offset));
                    }
                }
                _ if here == there => {}
                _ => return told(format!("{here:?} here, {there:?} there")),
            }
            let sizes = (ours.size(operation.file)?, kernels.size(operation.file)?);
            if sizes.0 != sizes.1 {
                return told(format!("the size is {} here, {} there", sizes.0, sizes.1));
            }
            if (number % COMPARE_EVERY == 0 || number == arguments.operations)
                && let Some(difference) = compare::contents(&ours, &kernels)?
            {
                return told(format!("some operations later, {difference}"));
            }
        }
        Ok(None)
    }

    /// Mounts both once more, ours by the kernel, too.
    fn look_again(&self, done: &mut Done) -> Result<Option<String>> {
        let kernels = self.kernels.mount_by_kernel(Access::ReadWrite)?;
        let by_us = self.mount_ours()?;
        let found = self.see_both();
        by_us.unmount()?;
        let by_kernel = self.ours.mount_by_kernel(Access::ReadWrite)?;
        let seen = self.see_both();
        by_kernel.unmount()?;
        kernels.unmount()?;
        let (found, seen) = match (found?, seen?) {
            (Ok(found), Ok(seen)) => (found, seen),
            (Err(difference), _) => return Ok(Some(format!("mounted once more: {difference}"))),
            (_, Err(difference)) => {
                return Ok(Some(format!("both mounted by the kernel: {difference}")));
            }
        };
        if let Some(difference) = compare::different_map(&found.ours, &seen.ours) {
            return Ok(Some(format!(
                "our image, seen by the kernel there: {difference}"
            )));
        }
        let size = self.scope.block_size;
        let images = (&self.ours.image, &self.kernels.image);
        let apart = match compare::states_apart(images.0, images.1, size, self.scope.has_maps)? {
            Ok(apart) => apart,
            Err(difference) => return Ok(Some(difference)),
        };
        done.zeros += apart.len();
        let ours = compare::with_data(&found.ours, &apart, size, &found.sizes);
        let kernels = compare::with_data(&found.kernels, &apart, size, &found.sizes);
        Ok(compare::different_map(&ours, &kernels))
    }

    /// Compares the bytes of what is mounted, and tells the maps.
    fn see_both(&self) -> Result<std::result::Result<Seen, String>> {
        let (ours, kernels) = self.sides()?;
        // Before anything is read: Linux takes cached pages of unwritten blocks for data.
        let seen = Seen {
            ours: compare::maps(&ours)?,
            kernels: compare::maps(&kernels)?,
            sizes: (0..FILES)
                .map(|file| ours.size(file))
                .collect::<Result<_>>()?,
        };
        Ok(match compare::contents(&ours, &kernels)? {
            Some(difference) => Err(difference),
            None => Ok(seen),
        })
    }
}

/// What is mounted.
struct Seen {
    ours: Maps,
    kernels: Maps,
    sizes: Vec<u64>,
}
