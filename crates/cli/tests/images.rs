//! `mkfs`, `info` and `demo`, run as a user runs them.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Bench, can_mount, said};

#[test]
fn what_mkfs_makes_info_tells() {
    let bench = Bench::new();
    let said = bench.run("mkfs -t ext3 --size 64M -b 2048 -L backup -O ^dir_index -m 1 a.img");
    assert!(
        said.starts_with("a.img: ext3, 32768 blocks of 2048 bytes"),
        "{said}"
    );
    let told = bench.run("info a.img");
    for line in [
        "type:            ext3",
        "label:           backup",
        "size:            64 MiB",
        "features:        has_journal ext_attr resize_inode filetype sparse_super large_file",
        "journal:         8 MiB, clean",
        "state:           clean",
    ] {
        assert!(told.lines().any(|found| found == line), "{line}\n{told}");
    }
    assert!(told.contains(", 327 reserved\n"), "{told}");
    assert_eq!(bench.run("mkfs -q --size 1M small.img"), "");
    let said = bench.run("mkfs -F small.img");
    assert!(
        said.contains("too small for a journal: made without has_journal"),
        "{said}"
    );
}

#[test]
fn the_same_options_make_the_same_bytes() {
    let bench = Bench::new();
    let uuid = "-U 01234567-89ab-cdef-0123-456789abcdef";
    let seed = "--hash-seed fedcba98-7654-3210-fedc-ba9876543210";
    for name in ["a.img", "b.img"] {
        let line = format!("mkfs -q --size 8M {uuid} {seed} {name}");
        let status = bench
            .command(&line)
            .env("SOURCE_DATE_EPOCH", "1000000000")
            .status();
        assert!(status.expect("the program can be run").success());
    }
    let read = |name: &str| std::fs::read(bench.join(name)).expect("it was made");
    assert!(read("a.img") == read("b.img"));
    let told = bench.run("info a.img");
    assert!(
        told.contains("uuid:            01234567-89ab-cdef-0123-456789abcdef"),
        "{told}"
    );
    assert!(
        told.contains("created:         2001-09-09 01:46:40 UTC"),
        "{told}"
    );
}

#[test]
fn what_cannot_be_is_one_sentence() {
    let bench = Bench::new();
    bench.run("mkfs -q --size 8M there.img");
    std::fs::write(bench.join("text"), "no image").expect("a file");
    for (line, words) in [
        (
            "mkfs there.img",
            "there.img: it holds an ext2, ext3 or ext4 file system",
        ),
        ("mkfs new.img", "new.img: it has no size yet"),
        (
            "mkfs --size 8M -O bigalloc new.img",
            "the feature bigalloc can't be made",
        ),
        (
            "mkfs --size 8M -O nonsense new.img",
            "\"nonsense\" is not the name of a feature",
        ),
        (
            "mkfs --size 8M -b 3000 new.img",
            "blocks of 3000 bytes can't be made",
        ),
        ("mkfs --size 16K new.img", "16384 bytes are too small"),
        (
            "mkfs --size 8M none/new.img",
            "none/new.img: it can't be made",
        ),
        ("mkfs -F .", "it is a directory"),
        ("info text", "text: no ext2, ext3 or ext4 file system found"),
        ("info none.img", "none.img: there is no such image"),
        ("info --offset 99G there.img", "offset= lies past its end"),
        ("demo none.img", "none.img can't be read"),
    ] {
        let said = bench.fail(line);
        assert!(
            said.starts_with("pagefence: ") && said.contains(words),
            "{line}: {said}"
        );
        assert_eq!(said.trim_end().lines().count(), 1, "{line}: {said}");
    }
    assert!(!bench.join("new.img").exists());
    let wrong = bench
        .command("mkfs -F there.img")
        .env("SOURCE_DATE_EPOCH", "soon")
        .output();
    let wrong = wrong.expect("the program can be run");
    assert!(
        said(&wrong).contains("SOURCE_DATE_EPOCH"),
        "{}",
        said(&wrong)
    );
}

#[test]
fn the_demo_shows_what_it_made_and_leaves_nothing() {
    let bench = Bench::new();
    let output = bench
        .command("demo")
        .output()
        .expect("the program can be run");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    for words in [
        "README.txt",
        "sparse.bin",
        "-> etc/hostname",
        "ext4 file system of 16 MiB",
        "MiB free",
    ] {
        assert!(shown.contains(words), "{words}: {shown}{}", said(&output));
    }
    if Path::new("/dev/fuse").exists() && rustix::process::geteuid().is_root() {
        assert!(output.status.success(), "{}", said(&output));
        assert!(shown.contains("$ pagefence umount "), "{shown}");
    } else {
        eprintln!("skipped in part: the demo mounts with root and /dev/fuse");
    }
    if !output.status.success() {
        assert!(
            said(&output).starts_with("pagefence: "),
            "{}",
            said(&output)
        );
    }
    let left: Vec<_> = std::fs::read_dir(bench.join(""))
        .expect("it is there")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_demo_without_fuse_shows_the_same_through_the_library() {
    let bench = Bench::new();
    let mut demo = bench.command("demo");
    // The program can't be run again where it has no /proc: as good as no FUSE.
    let line = "mount -t tmpfs none /proc && exec \"$0\" demo";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", line])
        .arg(demo.get_program())
        .env("TMPDIR", bench.join(""))
        .env("PAGEFENCE_CONFINED", "kill")
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: there is no unshare");
        return;
    };
    if said(&output).contains("unshare") {
        eprintln!("skipped: mount namespaces need root");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let hidden = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(hidden.contains("through the library"), "{hidden}");
    let output = demo.output().expect("the program can be run");
    if output.status.success() {
        // But for where the root is, both show the same lines.
        let tail = |text: &str| {
            let lines = text.lines().filter(|line| !line.starts_with('$'));
            let names = lines.filter(|line| line.contains(" -> ") || line.starts_with("d "));
            names
                .map(|line| line.rsplit('/').next().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        };
        let mounted = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(tail(&hidden), tail(&mounted));
    }
}

#[test]
fn what_is_written_is_there_after_the_next_mount() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    bench.run("mkfs -q --size 16M a.img");
    let mnt = bench.join("mnt");
    std::fs::create_dir(&mnt).expect("a directory can be made");
    bench.run("mount a.img mnt");
    std::fs::create_dir(mnt.join("d")).expect("it is mounted for writing");
    std::fs::write(mnt.join("d/f"), b"some bytes").expect("it can be written");
    bench.run("umount mnt");
    bench.run("mount -o ro a.img mnt");
    let read = std::fs::read(mnt.join("d/f"));
    let refused = std::fs::write(mnt.join("d/g"), b"");
    bench.run("umount mnt");
    assert_eq!(read.expect("it is there"), b"some bytes");
    assert!(refused.is_err());
}

#[test]
fn what_is_in_memory_is_mounted_and_gone() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let mnt = bench.join("mnt");
    std::fs::create_dir(&mnt).expect("a directory can be made");
    bench.run("mount --memory 32M mnt");
    let written = std::fs::write(mnt.join("f"), b"some bytes");
    let read = std::fs::read(mnt.join("f"));
    bench.run("umount mnt");
    written.expect("it can be written");
    assert_eq!(read.expect("it is there"), b"some bytes");
    assert_eq!(std::fs::read_dir(&mnt).expect("it is there").count(), 0);
    let said = bench.fail("mount --memory 32M a.img mnt");
    assert!(said.contains("give the mount point alone"), "{said}");
}

/// Everything that needs no image: filled to its last byte, emptied, limits, holes, names.
#[test]
fn a_tmpfs_is_mounted_and_gone() {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let mnt = bench.join("mnt");
    std::fs::create_dir(&mnt).expect("a directory can be made");
    bench.run("mount --tmpfs 8M -o nr_inodes=100 mnt");
    let used = || -> std::io::Result<()> {
        let root = std::fs::metadata(&mnt)?;
        assert_eq!(root.mode() & 0o7777, 0o1777);
        let stat = rustix::fs::statvfs(&mnt)?;
        assert_eq!(
            (stat.f_blocks * stat.f_frsize, stat.f_files),
            (8 << 20, 100)
        );
        let path = mnt.join("d/f");
        std::fs::create_dir(mnt.join("d"))?;
        let full = std::fs::write(&path, vec![7; 9 << 20]).map_err(|error| error.kind());
        assert_eq!(full, Err(std::io::ErrorKind::StorageFull));
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)?;
        assert_eq!(file.metadata()?.len(), 8 << 20, "to the last byte");
        rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
            100,
            1 << 20,
        )?;
        let mut bytes = [1; 200];
        file.read_exact_at(&mut bytes, 0)?;
        assert_eq!(
            (&bytes[..100], &bytes[100..]),
            (&[7; 100][..], &[0; 100][..])
        );
        assert_eq!(file.metadata()?.blocks(), (8 << 11) - (255 << 3));
        // It lives on without a name, and its space comes back with its end.
        std::fs::remove_file(&path)?;
        file.read_exact_at(&mut bytes, 2 << 20)?;
        assert_eq!(bytes, [7; 200]);
        drop(file);
        // The kernel tells of a last close, and that it forgot an inode, when it gets to it.
        let start = std::time::Instant::now();
        let is_empty = |stat: rustix::fs::StatVfs| {
            (stat.f_bfree, stat.f_ffree) == (stat.f_blocks, stat.f_files - 2)
        };
        while !is_empty(rustix::fs::statvfs(&mnt)?) {
            assert!(
                start.elapsed().as_secs() < 20,
                "its space does not come back"
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        std::os::unix::fs::symlink("d", mnt.join("l"))?;
        std::fs::hard_link(mnt.join("l"), mnt.join("d/l"))?;
        let names = (0..200).map(|number| mnt.join(format!("l/{number}")));
        let made = names.take_while(|name| std::fs::write(name, b"x").is_ok());
        assert_eq!(made.count(), 100 - 4, "but for the root, d, l and its name");
        assert_eq!(std::fs::read_dir(mnt.join("d"))?.count(), 97);
        Ok(())
    };
    let used = std::panic::catch_unwind(std::panic::AssertUnwindSafe(used));
    bench.run("umount mnt");
    match used {
        Ok(result) => result.expect("nothing fails but what should"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
    assert_eq!(std::fs::read_dir(&mnt).expect("it is there").count(), 0);
    let said = bench.fail("mount --tmpfs 8M a.img mnt");
    assert!(said.contains("give the mount point alone"), "{said}");
    bench.fail("mount --tmpfs 100 mnt");
}

#[test]
fn a_file_system_with_errors_is_mounted_read_only_and_says_why() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    bench.run("mkfs -q --size 16M a.img");
    let marked = Command::new("debugfs")
        .args(["-w", "-R", "set_super_value state 2"])
        .arg(bench.join("a.img"))
        .output();
    if !marked.is_ok_and(|marked| marked.status.success()) {
        eprintln!("skipped: debugfs is missing (apt-get install e2fsprogs)");
        return;
    }
    let mnt = bench.join("mnt");
    std::fs::create_dir(&mnt).expect("a directory can be made");
    let output = bench
        .command("mount a.img mnt")
        .output()
        .expect("the program can be run");
    let refused = std::fs::write(mnt.join("f"), b"").map_err(|error| error.kind());
    bench.run("umount mnt");
    assert!(output.status.success());
    assert!(
        said(&output).contains("mounted read-only, because errors were found"),
        "{}",
        said(&output)
    );
    assert_eq!(refused, Err(std::io::ErrorKind::ReadOnlyFilesystem));
}
