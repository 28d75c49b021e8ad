//! The same operations on the library and on the kernel's own mount of the same image: errno by
//! errno, tree by tree. Needs root and loop devices; says so where they are missing.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagefence::device::MemoryDevice;
use pagefence::{Kind, Options};
use pagefence_fs_model::files::{
    Answer, Failure, Operation, RangeChange, RenameHow, Tree, contents,
};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, XattrFlags};
use rustix::io::Errno;

use crate::model::one_case;
use crate::seen;
use pagefence_proofs::budget::{first_seed, seconds};
use pagefence_proofs::image::Setup;
use pagefence_proofs::library::Library;
use pagefence_proofs::{Budget, e2fsck};

const NORMAL: Duration = Duration::from_millis(2000);
/// How long a mount may be busy.
const BUSY: Duration = Duration::from_secs(5);
/// The whole trees are compared after so many operations.
const WALK_EVERY: usize = 32;

/// An image that the kernel has mounted; unmounted, by its exact path, when dropped.
struct Mounted {
    image: PathBuf,
    point: PathBuf,
    is_mounted: bool,
    held: BTreeMap<u8, File>,
    _directory: tempfile::TempDir,
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments:?}: {}", said.trim()))
}

impl Mounted {
    /// Mounts a copy of the device. `Err` says what is missing here.
    fn new(device: &MemoryDevice) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (image, point) = (directory.path().join("image"), directory.path().join("mnt"));
        std::fs::create_dir(&point).map_err(|error| error.to_string())?;
        std::fs::copy(e2fsck::file_of(device).path(), &image).map_err(|error| error.to_string())?;
        let mut mounted = Self {
            image,
            point,
            is_mounted: false,
            held: BTreeMap::new(),
            _directory: directory,
        };
        mounted.mount()?;
        Ok(mounted)
    }

    fn mount(&mut self) -> Result<(), String> {
        let options = ["-t", "ext4", "-o", "loop"].map(Path::new);
        run(
            "mount",
            &[&options[..], &[&self.image, &self.point]].concat(),
        )?;
        self.is_mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        self.held.clear();
        if !std::mem::take(&mut self.is_mounted) {
            return Ok(());
        }
        // A process that another test starts has our files until it becomes another program.
        let end = Instant::now() + BUSY;
        loop {
            match run("umount", &[&self.point]) {
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
                done => return done,
            }
        }
    }

    /// Waits until no loop device has the image: a mount lives on in the mount namespaces that
    /// were copied from ours meanwhile.
    fn wait_for_its_end(&self) -> Result<(), String> {
        let end = Instant::now() + BUSY;
        loop {
            let output = Command::new("losetup").arg("-j").arg(&self.image).output();
            let output = output.map_err(|error| format!("losetup: {error}"))?;
            if output.stdout.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                return Err("a loop device has the image after it was unmounted".to_owned());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn apply(&mut self, operation: &Operation) -> Result<Answer, Errno> {
        if *operation == Operation::Reopen {
            self.unmount()
                .and_then(|()| self.mount())
                .expect("it is mounted again");
            return Ok(Answer::Done);
        }
        let result = self.step(operation);
        result.map_err(|error| Errno::from_io_error(&error).expect("errors of the kernel"))
    }

    /// A path below the mount point. It has no `..`, and links have none either.
    fn at(&self, path: &str) -> PathBuf {
        self.point.join(path)
    }

    /// Opens a regular file. Opening a pipe would wait, and a directory may be opened but is not
    /// meant.
    fn open(&self, path: &str, options: &OpenOptions) -> std::io::Result<File> {
        let path = self.at(path);
        let kind = std::fs::metadata(&path)?.file_type();
        if kind.is_dir() {
            return Err(Errno::ISDIR.into());
        }
        if kind.is_fifo() {
            return Err(Errno::INVAL.into());
        }
        options.open(path)
    }

    fn step(&mut self, operation: &Operation) -> std::io::Result<Answer> {
        use Operation as O;
        let mut to_read = OpenOptions::new();
        to_read.read(true);
        let mut to_write = OpenOptions::new();
        to_write.write(true);
        match operation {
            O::Create { path } => drop(to_write.create_new(true).open(self.at(path))?),
            O::Write {
                path,
                offset,
                length,
                tag,
            }
            // By other ways; what is there then is the same.
            | O::WriteDirect {
                path,
                offset,
                length,
                tag,
            }
            | O::Store {
                path,
                offset,
                length,
                tag,
            } => {
                let file = self.open(path, &to_write)?;
                file.write_all_at(&contents(*tag, *offset, *length), *offset)?;
            }
            O::Append { path, length, tag } => {
                let mut file = self.open(path, OpenOptions::new().append(true))?;
                let end = file.metadata()?.len();
                file.write_all(&contents(*tag, end, *length))?;
            }
            O::Read {
                path,
                offset,
                length,
            } => return read(&self.open(path, &to_read)?, *offset, *length),
            O::SetSize { path, size } => self.open(path, &to_write)?.set_len(*size)?,
            O::Allocate {
                path,
                offset,
                length,
            } => {
                let file = self.open(path, &to_write)?;
                rustix::fs::fallocate(&file, FallocateFlags::empty(), *offset, *length)?;
            }
            O::ChangeRange {
                path,
                offset,
                length,
                how,
            } => {
                let file = self.open(path, &to_write)?;
                rustix::fs::fallocate(&file, flags(*how), *offset, *length)?;
            }
            O::Sync { path } => self.open(path, &to_read)?.sync_all()?,
            O::SyncData { path } => self.open(path, &to_read)?.sync_data()?,
            O::SyncDirectory { path } => File::open(self.at(path))?.sync_all()?,
            O::ExchangeRange { .. } | O::Migrate { .. } => {
                unreachable!("the kernel is not asked: it has no exchange, and keeps its maps")
            }
            O::SyncAll => rustix::fs::syncfs(&File::open(&self.point)?)?,
            O::MakeDirectory { path } => std::fs::create_dir(self.at(path))?,
            O::RemoveDirectory { path } => std::fs::remove_dir(self.at(path))?,
            O::Remove { path } => std::fs::remove_file(self.at(path))?,
            O::Rename { from, to, how } => {
                let flags = match how {
                    RenameHow::Replace => RenameFlags::empty(),
                    RenameHow::NoReplace => RenameFlags::NOREPLACE,
                    RenameHow::Exchange => RenameFlags::EXCHANGE,
                };
                rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags)?;
            }
            O::Link { original, link } => {
                let (old, new) = (self.at(original), self.at(link));
                rustix::fs::linkat(CWD, old, CWD, new, AtFlags::empty())?;
            }
            O::Symlink { target, path } => std::os::unix::fs::symlink(target, self.at(path))?,
            O::Fifo { path } => {
                let mode = Mode::from_raw_mode(0o666);
                rustix::fs::mknodat(CWD, self.at(path), FileType::Fifo, mode, 0)?;
            }
            O::SetPermissions { path, permissions } => {
                let permissions = std::fs::Permissions::from_mode(u32::from(*permissions));
                std::fs::set_permissions(self.at(path), permissions)?;
            }
            O::SetOwner { path, uid, gid } => {
                std::os::unix::fs::lchown(self.at(path), *uid, *gid)?;
            }
            O::SetXattr { path, name, value } => {
                let path = self.at(path);
                rustix::fs::lsetxattr(path, name.as_str(), value, XattrFlags::empty())?;
            }
            O::RemoveXattr { path, name } => {
                return match rustix::fs::lremovexattr(self.at(path), name.as_str()) {
                    Ok(()) => Ok(Answer::Was(true)),
                    Err(Errno::NODATA) => Ok(Answer::Was(false)),
                    Err(error) => Err(error.into()),
                };
            }
            O::Hold { slot, path } => {
                self.held.remove(slot);
                let file = self.open(path, to_write.read(true))?;
                self.held.insert(*slot, file);
            }
            O::WriteHeld {
                slot,
                offset,
                length,
                tag,
            } => {
                if let Some(file) = self.held.get(slot) {
                    file.write_all_at(&contents(*tag, *offset, *length), *offset)?;
                }
            }
            O::ReadHeld {
                slot,
                offset,
                length,
            } => {
                if let Some(file) = self.held.get(slot) {
                    return read(file, *offset, *length);
                }
            }
            O::LetGo { slot } => drop(self.held.remove(slot)),
            O::Reopen => unreachable!("it was done before"),
        }
        Ok(Answer::Done)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{error}");
        }
    }
}

fn flags(how: RangeChange) -> FallocateFlags {
    use FallocateFlags as F;
    match how {
        RangeChange::Reserve => F::KEEP_SIZE,
        RangeChange::Punch => F::PUNCH_HOLE | F::KEEP_SIZE,
        RangeChange::Zero => F::ZERO_RANGE,
        RangeChange::ZeroInside => F::ZERO_RANGE | F::KEEP_SIZE,
        RangeChange::Collapse => F::COLLAPSE_RANGE,
        RangeChange::Insert => F::INSERT_RANGE,
    }
}

fn read(file: &File, offset: u64, length: usize) -> std::io::Result<Answer> {
    let mut bytes = vec![0; length];
    let mut count = 0;
    while let more @ 1.. = file.read_at(&mut bytes[count..], offset + count as u64)? {
        count += more;
    }
    bytes.truncate(count);
    Ok(Answer::Bytes(bytes))
}

/// The kernel's errors as the model has them.
fn failure(errno: Errno) -> Option<Failure> {
    Some(match errno {
        Errno::NOENT => Failure::NotFound,
        Errno::NOTDIR => Failure::NotDirectory,
        Errno::ISDIR => Failure::IsDirectory,
        Errno::EXIST => Failure::Exists,
        Errno::NOTEMPTY => Failure::NotEmpty,
        Errno::INVAL => Failure::Invalid,
        Errno::NAMETOOLONG => Failure::NameTooLong,
        Errno::PERM | Errno::ACCESS => Failure::NotPermitted,
        Errno::LOOP => Failure::TooManySymlinks,
        Errno::FBIG => Failure::FileTooLarge,
        Errno::OPNOTSUPP => Failure::Unsupported,
        Errno::NOSPC => Failure::NoSpace,
        _ => return None,
    })
}

/// Does the operations to the library, to the kernel and to the model.
fn compare(setup: &Setup, image: &MemoryDevice, operations: &[Operation]) -> Result<(), String> {
    let mut kernel = Mounted::new(image)?;
    let device = Arc::new(image.fork());
    let options = Options::new().write(true).cache(0);
    let mut library = Library::open(Arc::clone(&device) as _, options)?;
    let mut tree = Tree::new(setup.format());
    for (number, operation) in operations.iter().enumerate() {
        if !kernel_has(operation, setup) {
            continue;
        }
        let expected = kernel.apply(operation);
        let found = library.apply(operation);
        let modelled = tree.apply(operation);
        let agree = match (&expected, &found) {
            (Ok(expected), Ok(found)) => expected == found,
            (Err(expected), Err((Some(found), _))) => failure(*expected) == Some(*found),
            _ => false,
        };
        let where_ = || format!("operation {number}, {operation:.300?}");
        if !agree {
            return Err(format!(
                "{}: the kernel says {expected:.300?}, the library {found:.300?}",
                where_()
            ));
        }
        if modelled != expected.map_err(|errno| failure(errno).expect("it agreed")) {
            return Err(format!("{}: the model says {modelled:.300?}", where_()));
        }
        if *operation == Operation::Reopen || number % WALK_EVERY == 0 {
            same_tree(&kernel, &library, &tree)
                .map_err(|error| format!("after {}: {error}", where_()))?;
        }
    }
    same_tree(&kernel, &library, &tree).map_err(|error| format!("at the end: {error}"))?;
    library
        .close()
        .map_err(|error| format!("closing: {error}"))?;
    kernel.unmount()?;
    kernel.wait_for_its_end()?;
    e2fsck::check(&device)?;
    e2fsck::check_file(&kernel.image).map_err(|error| format!("of the kernel's: {error}"))
}

/// Whether the kernel can do it. Ours writes zeros into a file without extents, and moves its blocks,
/// where the kernel refuses.
fn kernel_has(operation: &Operation, setup: &Setup) -> bool {
    match operation {
        Operation::ExchangeRange { .. } | Operation::Migrate { .. } => false,
        Operation::ChangeRange {
            how: RangeChange::Punch,
            ..
        } => true,
        Operation::Allocate { .. } | Operation::ChangeRange { .. } => setup.format().has_unwritten,
        _ => true,
    }
}

fn same_tree(kernel: &Mounted, library: &Library, tree: &Tree) -> Result<(), String> {
    let theirs = seen::of_mount(&kernel.point, tree).map_err(|error| error.to_string())?;
    let ours = seen::of_volume(library.volume(), tree)?;
    seen::difference(&theirs, &ours)?;
    seen::difference(&theirs, &seen::of_model(tree)).map_err(|error| format!("the model: {error}"))
}

fn run_beside(setup: Setup) {
    let image = setup.make();
    if let Err(missing) = Mounted::new(&image) {
        println!("skipped: {missing}");
        return;
    }
    // What the library takes off the modes of what it makes.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let budget = Budget::new(seconds(NORMAL));
    let mut seed = first_seed();
    let mut cases = 0;
    while cases == 0 || budget.is_left() {
        let outcome = one_case(seed, |operations| compare(&setup, &image, operations));
        if let Err(failure) = outcome {
            panic!("{setup:?}: {failure}");
        }
        (seed, cases) = (seed + 1, cases + 1);
    }
    println!("{setup:?}: {cases} cases beside the kernel, failures 0");
}

#[test]
fn ext2_does_as_the_kernel() {
    run_beside(Setup::new(Kind::Ext2, 4096, 32));
}

#[test]
fn ext3_does_as_the_kernel() {
    run_beside(Setup::new(Kind::Ext3, 1024, 16));
}

#[test]
fn ext4_of_small_blocks_does_as_the_kernel() {
    run_beside(Setup::new(Kind::Ext4, 1024, 16));
}

#[test]
fn ext4_of_large_blocks_does_as_the_kernel() {
    run_beside(Setup::new(Kind::Ext4, 4096, 32));
}
