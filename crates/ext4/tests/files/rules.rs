//! What of fallocate(2) is refused, and how: as by the kernel's own mount of the same file system.

use std::fs::OpenOptions;

use pagefence_ext4::FileSystem;
use pagefence_vfs::{Error, FallocateMode, FileSystem as _, InodeId};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::kernel::{KernelMount, run};
use crate::support::{Image, KINDS, Kind, create, find, set_size};

const KEEP: FallocateMode = FallocateMode::KEEP_SIZE;
const PUNCH: FallocateMode = FallocateMode::PUNCH_HOLE;
const ZERO: FallocateMode = FallocateMode::ZERO_RANGE;

/// The size of each file.
const SIZE: u64 = 50_000;

/// The files, and what chattr is told of them once they are open.
const FILES: [(&str, Option<&str>); 4] = [
    ("plain", None),
    ("blocks", None),
    ("appends", Some("+a")),
    ("fixed", Some("+i")),
];

fn modes() -> Vec<FallocateMode> {
    let plain = FallocateMode::empty();
    vec![
        plain,
        KEEP,
        PUNCH,
        PUNCH | KEEP,
        ZERO,
        ZERO | KEEP,
        PUNCH | ZERO,
        PUNCH | ZERO | KEEP,
    ]
}

/// Ranges inside the file, over its end, behind it, at the ends of what files can have, and such
/// that make no sense.
fn ranges(kind: &Kind) -> Vec<(u64, u64)> {
    let block: u64 = match kind.name {
        name if name.contains("1k") => 1024,
        name if name.contains("2k") => 2048,
        _ => 4096,
    };
    let most = (u64::from(u32::MAX)) * block;
    vec![
        (0, 4096),
        (100, 77),
        (4000, 10_000),
        (SIZE - 1000, 1000),
        (SIZE - 1000, 5000),
        (SIZE, 3000),
        (SIZE + 20_000, 1),
        (0, 0),
        (SIZE + 9, 0),
        (most - 10, 10),
        (most - 10, 11),
        (most, 1),
        (0, most + 1),
        (i64::MAX as u64, 1),
        (i64::MAX as u64, 0),
        (1, i64::MAX as u64),
        (1 << 63, 1),
        (0, 1 << 63),
        (u64::MAX, 5),
    ]
}

/// As the front tells the kernel.
fn number(error: &Error) -> Errno {
    match error {
        Error::InvalidArgument => Errno::INVAL,
        Error::Unsupported(_) => Errno::OPNOTSUPP,
        Error::NotPermitted => Errno::PERM,
        Error::FileTooLarge => Errno::FBIG,
        Error::NoSpace => Errno::NOSPC,
        error => panic!("{error:?}"),
    }
}

/// Makes the files, one of them with a block map; nothing if the kernel can't be asked.
fn make(image: &Image, kind: &Kind) -> Option<()> {
    let fs = image.open();
    for (name, _) in FILES {
        create(&fs, name);
    }
    fs.shut_down().unwrap();
    drop(fs);
    let mount = KernelMount::new(&image.path, "rw")?;
    for (name, _) in FILES {
        let path = mount.path(name);
        if name == "blocks" && kind.has_extents {
            run("chattr", &["-e", path.to_str().unwrap()]);
        }
        std::fs::write(path, [7; SIZE as usize]).unwrap();
    }
    Some(())
}

fn flags_of(mode: FallocateMode) -> FallocateFlags {
    let pairs = [
        (KEEP, FallocateFlags::KEEP_SIZE),
        (PUNCH, FallocateFlags::PUNCH_HOLE),
        (ZERO, FallocateFlags::ZERO_RANGE),
    ];
    let set = pairs.into_iter().filter(|(bit, _)| mode.contains(*bit));
    set.map(|(_, flag)| flag).collect()
}

/// Opened before the flags are set, since an append-only file is not opened for anything else.
fn asked_of_kernel(
    mount: &KernelMount,
    name: &str,
    flag: Option<&str>,
    asked: &[(FallocateMode, (u64, u64))],
) -> Vec<Result<(), Errno>> {
    let path = mount.path(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let chattr = |flag: &str| run("chattr", &[flag, path.to_str().unwrap()]);
    flag.map(chattr);
    let answers = asked.iter().map(|(mode, (offset, length))| {
        let flags = flags_of(*mode);
        let answer = rustix::fs::fallocate(&file, flags, *offset, *length);
        // So that each starts from the same.
        let _ = rustix::fs::ftruncate(&file, SIZE);
        answer
    });
    let answers = answers.collect();
    match flag {
        Some("+i") => drop(chattr("-i")),
        Some("+a") => drop(chattr("-a")),
        _ => {}
    }
    answers
}

fn asked_of_us(
    fs: &FileSystem,
    id: InodeId,
    asked: &[(FallocateMode, (u64, u64))],
) -> Vec<Result<(), Errno>> {
    let file = fs.open(id, true).unwrap();
    let answers = asked.iter().map(|(mode, (offset, length))| {
        let answer = fs.allocate(&file, *offset, *length, *mode);
        let _ = set_size(fs, id, SIZE);
        answer.map_err(|error| number(&error))
    });
    answers.collect()
}

/// Each mode with each range, on files of every kind.
#[test]
fn what_fallocate_refuses_is_what_the_kernel_refuses() {
    for kind in KINDS.iter().filter(|kind| kind.name != "ext2 2k") {
        let by_kernel = Image::new(kind.options, "8M");
        if make(&by_kernel, kind).is_none() {
            return;
        }
        let asked: Vec<_> = modes()
            .into_iter()
            .flat_map(|mode| ranges(kind).into_iter().map(move |range| (mode, range)))
            .collect();
        let by_us = Image::of(&std::fs::read(&by_kernel.path).unwrap());
        let Some(mount) = KernelMount::new(&by_kernel.path, "rw") else {
            return;
        };
        for (name, flag) in FILES {
            let theirs = asked_of_kernel(&mount, name, flag, &asked);
            check(kind, name, flag, &by_us, &asked, &theirs);
        }
    }
}

fn check(
    kind: &Kind,
    name: &str,
    flag: Option<&str>,
    image: &Image,
    asked: &[(FallocateMode, (u64, u64))],
    theirs: &[Result<(), Errno>],
) {
    if let Some(flag) = flag {
        let Some(mount) = KernelMount::new(&image.path, "rw") else {
            return;
        };
        run("chattr", &[flag, mount.path(name).to_str().unwrap()]);
    }
    let fs = image.open();
    let ours = asked_of_us(&fs, find(&fs, name), asked);
    for ((asked, ours), theirs) in asked.iter().zip(&ours).zip(theirs) {
        let is_block_map = !kind.has_extents || name == "blocks";
        let (mode, (offset, length)) = asked;
        let is_inside = offset.saturating_add(*length) <= SIZE;
        // The kernel has neither for block maps, where we write zeros.
        if is_block_map && !mode.contains(PUNCH) && is_inside && theirs == &Err(Errno::OPNOTSUPP) {
            assert_eq!(ours, &Ok(()), "{}: {name}: {asked:?}", kind.name);
            continue;
        }
        assert_eq!(ours, theirs, "{}: {name}: {asked:?}", kind.name);
    }
    fs.shut_down().unwrap();
}
