//! `check`, run as a user runs it.

#[expect(dead_code, reason = "a check fails in more ways than one")]
mod common;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, can_mount, said};
use pagefence::{Options, Volume};
use pagefence_fuse_front::check::Checked;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::thread::scope;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// A check that ends by a signal if it makes a call that the list lacks.
fn check(bench: &Bench, line: &str) -> (i32, String, String) {
    let output: Output = bench
        .command(line)
        .env("PAGEFENCE_CONFINED", "kill")
        .output()
        .expect("the program can be run");
    let code = output.status.code().expect("it ends");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    (code, told, said(&output))
}

#[test]
fn a_sound_image_is_told_in_one_line() {
    let bench = Bench::new();
    bench.run("mkfs -q --size 16M a.img");
    let before = std::fs::read(bench.join("a.img")).expect("it was made");
    let (code, told, complaint) = check(&bench, "check a.img");
    assert_eq!((code, complaint.as_str()), (0, ""), "{told}");
    assert!(told.starts_with("sound; "), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    let after = std::fs::read(bench.join("a.img")).expect("it is there");
    assert!(before == after, "not a byte changes");
}

#[test]
fn each_finding_is_a_line_and_the_status_is_e2fscks() {
    let bench = Bench::new();
    bench.run("mkfs -q --size 16M -O ^metadata_csum -t ext2 a.img");
    let image = std::fs::OpenOptions::new()
        .write(true)
        .open(bench.join("a.img"))
        .expect("it was made");
    // The free blocks of all.
    image
        .write_all_at(&[1, 2, 0, 0], 1024 + 12)
        .expect("it is written");
    drop(image);
    let (code, told, complaint) = check(&bench, "check a.img");
    assert_eq!((code, complaint.as_str()), (4, ""), "{told}");
    let lines: Vec<&str> = told.lines().collect();
    let [finding, summary] = lines[..] else {
        panic!("{told}");
    };
    assert!(
        finding.starts_with("superblock: free blocks 513, counted "),
        "{finding}"
    );
    assert!(summary.starts_with("not sound: 1 finding; "), "{summary}");
}

#[test]
fn what_cant_be_checked_is_no_finding() {
    let bench = Bench::new();
    std::fs::write(bench.join("text"), vec![b'x'; 1 << 20]).expect("a file");
    for (line, code, complaint) in [
        ("check text", 8, "text: no ext2, ext3 or ext4 file system"),
        ("check text --offset 4K", 8, "found at byte 4096"),
        ("check text --offset 2M", 8, "offset= lies past its end"),
        ("check none.img", 8, "none.img: there is no such image"),
        ("check", 16, "IMAGE"),
        ("check --nonsense text", 16, "--nonsense"),
    ] {
        let (status, told, said) = check(&bench, line);
        assert_eq!((status, told.as_str()), (code, ""), "{line}: {said}");
        assert!(said.contains(complaint), "{line}: {said}");
    }
    std::fs::create_dir(bench.join("plain")).expect("a directory");
    for (line, code, complaint) in [
        (
            "check plain",
            8,
            "plain: a directory, and no mount point of pagefence",
        ),
        ("check plain --offset 1K", 16, "--offset goes with an image"),
    ] {
        let (status, told, said) = check(&bench, line);
        assert_eq!((status, told.as_str()), (code, ""), "{line}: {said}");
        assert!(said.contains(complaint), "{line}: {said}");
    }
    let (status, help, _) = check(&bench, "check --help");
    assert_eq!(status, 0);
    assert!(help.contains("Not checked: "), "{help}");
}

/// What `check` draws on a terminal of this kind, its standard error.
fn drawn(bench: &Bench, line: &str, kind: &str) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are terminals");
    grantpt(&terminal)
        .and_then(|()| unlockpt(&terminal))
        .expect("it is ours");
    let name = ptsname(&terminal, Vec::new()).expect("it has a name");
    let name = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
    let other = File::options().read(true).write(true).open(name);
    let mut process = bench
        .command(line)
        .env("PAGEFENCE_CONFINED", "kill")
        .env("TERM", kind)
        .stdout(Stdio::null())
        .stderr(other.expect("it is there"))
        .spawn()
        .expect("the program can be run");
    let mut drawn = Vec::new();
    // That nobody has it open any more is an error.
    let _ = File::from(terminal).read_to_end(&mut drawn);
    assert!(process.wait().expect("it ends").success());
    String::from_utf8_lossy(&drawn).into_owned()
}

/// What the terminal is was asked before; then it is out of reach.
#[test]
fn progress_is_drawn_on_a_terminal_that_may_not_be_asked_anything() {
    let bench = Bench::new();
    bench.run("mkfs -q --size 16M a.img");
    let all = drawn(&bench, "check a.img", "xterm");
    assert!(
        all.contains("group descriptors") && all.contains("█"),
        "{all}"
    );
    assert_eq!(drawn(&bench, "check a.img", "dumb"), "");
    if can_mount() {
        fs::create_dir(bench.join("mnt")).expect("a directory");
        bench.run("mount a.img mnt");
        let all = drawn(&bench, "check mnt", "xterm");
        assert!(all.contains("█"), "{all}");
        bench.run("umount mnt");
    }
}

/// Of what was not closed properly: its journal is replayed within the list of calls, too.
#[test]
fn an_unclean_image_is_checked_as_a_mount_would_see_it() {
    let bench = Bench::new();
    bench.run("mkfs -q --size 16M a.img");
    let volume = Volume::open(bench.join("a.img"), Options::new().write(true));
    let volume = volume.expect("it was made");
    volume.create_dir("/directory").expect("there is room");
    volume.sync().expect("nothing fails");
    // As after a power cut.
    fs::copy(bench.join("a.img"), bench.join("b.img")).expect("there is room");
    volume.close().expect("it closes");
    let before = fs::read(bench.join("b.img")).expect("it is there");
    let (code, told, complaint) = check(&bench, "check b.img");
    assert_eq!((code, complaint.as_str()), (0, ""), "{told}");
    let due = "3 of them directories";
    assert!(told.contains(due) && told.contains("replayed"), "{told}");
    assert!(before == fs::read(bench.join("b.img")).expect("it is there"));
}

/// Makes, fills and removes directories until it is told to end; how many.
fn write_until(top: &Path, stop: &AtomicBool) -> u32 {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) || rounds == 0 {
        let directory = top.join(format!("directory {}", rounds % 3));
        if directory.exists() {
            fs::remove_dir_all(&directory).expect("it is removed");
        }
        fs::create_dir(&directory).expect("it is made");
        for number in 0..40 {
            let name = directory.join(format!("{number:0>100}"));
            fs::write(&name, vec![b'd'; 500 * number]).expect("there is room");
        }
        let file = File::open(directory.join(format!("{:0>100}", 7))).expect("it is there");
        file.sync_all().expect("nothing fails");
        rounds += 1;
    }
    rounds
}

#[test]
fn a_mount_is_checked_while_it_is_written_to() {
    if !can_mount() {
        return;
    }
    for kind in ["ext2", "ext4"] {
        let bench = Bench::new();
        bench.run(&format!("mkfs -q -t {kind} --size 32M a.img"));
        fs::create_dir(bench.join("mnt")).expect("a directory");
        bench.run("mount a.img mnt -o commit=1");
        let stop = AtomicBool::new(false);
        let (checks, rounds) = scope(|scope| {
            let writer = scope.spawn(|| write_until(&bench.join("mnt"), &stop));
            let checks: Vec<_> = (0..6).map(|_| check(&bench, "check mnt")).collect();
            stop.store(true, Ordering::Relaxed);
            (checks, writer.join().expect("it goes well"))
        });
        for (code, told, complaint) in checks {
            assert_eq!((code, complaint.as_str()), (0, ""), "{kind}: {told}");
            assert!(
                told.starts_with("sound; ") && told.lines().count() == 1,
                "{told}"
            );
        }
        println!("{kind}: {rounds} directories");
        let (code, told, complaint) = check(&bench, "check mnt/lost+found");
        assert_eq!((code, told.as_str()), (8, ""), "{complaint}");
        assert!(
            complaint.contains("not the mount point itself"),
            "{complaint}"
        );
        bench.run("umount mnt");
        let (code, told, complaint) = check(&bench, "check a.img");
        assert_eq!((code, complaint.as_str()), (0, ""), "{told}");
    }
}

#[test]
fn damage_of_a_mount_is_told() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    bench.run("mkfs -q --size 16M -t ext2 a.img");
    fs::create_dir(bench.join("mnt")).expect("a directory");
    bench.run("mount a.img mnt");
    let image = File::options().write(true).open(bench.join("a.img"));
    // The free blocks of the first group.
    image
        .and_then(|image| image.write_all_at(&[1, 2], 2048 + 12).map(|()| image))
        .and_then(|image| image.sync_all())
        .expect("it is written");
    let (code, told, complaint) = check(&bench, "check mnt");
    assert_eq!((code, complaint.as_str()), (4, ""), "{told}");
    assert!(
        told.starts_with("group 0: free clusters 513, counted "),
        "{told}"
    );
    assert!(told.contains("not sound: 1 finding; "), "{told}");
    bench.run("umount mnt");
}

/// The check of who went away does not stand in the way of the next one, nor of the end.
#[test]
fn who_goes_away_leaves_nothing_behind() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    bench.run("mkfs -q --size 16M a.img");
    fs::create_dir(bench.join("mnt")).expect("a directory");
    bench.run("mount a.img mnt");
    for _ in 0..20 {
        let directory = File::open(bench.join("mnt")).expect("it is there");
        let left = pagefence_fuse_front::check::check(&directory, |_| ControlFlow::Break(()));
        // It may have come to its end before.
        match left {
            Ok(Checked::LeftOff | Checked::Ended(_)) => {}
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            other => panic!("{other:?}"),
        }
    }
    let start = Instant::now();
    loop {
        let (code, told, complaint) = check(&bench, "check mnt");
        if code == 0 {
            assert!(told.starts_with("sound; "), "{told}");
            break;
        }
        assert!(
            complaint.contains("it is being checked already"),
            "{complaint}"
        );
        assert!(start.elapsed() < Duration::from_secs(60), "it never ends");
    }
    bench.run("umount mnt");
}
