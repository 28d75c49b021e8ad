//! Servers of mounts are confined, all their threads, and serve in full; and so are commands that work on
//! images. Most of these tests mount, which needs root
//! and /dev/fuse; they say on stderr what is skipped. What a confined process can't do is tried by the
//! unit tests of `confinement`.

mod common;

use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pagefence::{Options, Volume};
use pagefence_fuse_front::ServerId;
use rustix::process::{Pid, Signal, kill_process};

use common::{Bench, can_mount};

/// What /proc/PID/status says of each thread that is confined.
const CONFINED: [&str; 4] = [
    "CapPrm:\t0000000000000000",
    "CapEff:\t0000000000000000",
    "NoNewPrivs:\t1",
    "Seccomp:\t2",
];

/// A directory with `a.img` and `mnt`.
fn bench() -> Option<Bench> {
    can_mount().then(|| {
        let bench = Bench::new();
        bench.run("mkfs -q -t ext4 --size 32M a.img");
        fs::create_dir(bench.join("mnt")).expect("it is ours");
        bench
    })
}

fn server(mountpoint: &Path) -> Pid {
    let id = ServerId::ask(mountpoint).expect("it answers");
    let id = i32::try_from(id.pid).expect("a process");
    Pid::from_raw(id).expect("not 0")
}

/// The status of each thread of `process`.
fn threads(process: Pid) -> Vec<String> {
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    let status = |task: std::io::Result<fs::DirEntry>| {
        // One may have ended meanwhile.
        fs::read_to_string(task.ok()?.path().join("status")).ok()
    };
    let tasks = fs::read_dir(tasks).into_iter().flatten();
    tasks.filter_map(status).collect()
}

/// Fails unless all threads of `process`, and there are many, are confined.
fn assert_confined(process: Pid) {
    let threads = threads(process);
    assert!(threads.len() > 4, "{} threads", threads.len());
    for status in threads {
        for line in CONFINED {
            assert!(status.contains(line), "{line}: {status}");
        }
    }
}

/// The children of `process`.
fn children(process: Pid) -> Vec<Pid> {
    let parent = format!("PPid:\t{}\n", process.as_raw_nonzero());
    let processes = fs::read_dir("/proc").expect("/proc is there");
    processes
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let id: i32 = path.file_name()?.to_str()?.parse().ok()?;
            let status = fs::read_to_string(path.join("status")).ok()?;
            status.contains(&parent).then(|| Pid::from_raw(id))?
        })
        .collect()
}

fn is_mounted(mountpoint: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is there");
    table.contains(&format!(" {} ", mountpoint.display()))
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn log(bench: &Bench) -> String {
    fs::read_to_string(bench.join("log")).expect("there is a log")
}

#[test]
fn every_thread_of_a_server_is_confined_and_serves() {
    let Some(bench) = bench() else { return };
    // It has them open before it gives up the right to open what belongs to others.
    for name in ["a.img", "log"] {
        fs::write(bench.join("log"), "").expect("it is ours");
        chown(bench.join(name), Some(4321), Some(4321)).expect("root may");
        fs::set_permissions(bench.join(name), Permissions::from_mode(0o600)).expect("root may");
    }
    let mut mount = bench.command("mount -o rw,log=log,discard a.img mnt");
    let status = mount.env("PAGEFENCE_LOG", "debug").status();
    assert!(status.expect("it can be run").success());
    let mountpoint = bench.join("mnt");
    assert_confined(server(&mountpoint));

    let file = mountpoint.join("secret");
    let contents = vec![7; 3 << 20];
    fs::write(&file, &contents).expect("there is room");
    chown(&file, Some(1234), Some(99)).expect("root may");
    fs::set_permissions(&file, Permissions::from_mode(0o000)).expect("root may");
    fs::create_dir(mountpoint.join("directory")).expect("there is room");
    bench.run("umount mnt");

    bench.run("mount -o ro a.img mnt");
    assert_confined(server(&mountpoint));
    let served = fs::metadata(&file).expect("it is there");
    assert_eq!(
        (served.uid(), served.gid(), served.mode() & 0o7777),
        (1234, 99, 0)
    );
    assert!(fs::read(&file).expect("root may") == contents);
    bench.run("umount mnt");

    let log = log(&bench);
    assert!(log.contains("confined: no capabilities"), "{log}");
    for name in ["landlock", "seccomp"] {
        assert!(log.contains(&format!("confined by {name}: ")), "{log}");
    }
}

#[test]
fn what_is_in_memory_is_served_by_confined_threads() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let mountpoint = bench.join("mnt");
    fs::create_dir(&mountpoint).expect("it is ours");
    for line in ["mount --memory 32M mnt", "mount --tmpfs 8M mnt"] {
        bench.run(line);
        assert_confined(server(&mountpoint));
        fs::write(mountpoint.join("file"), "contents").expect("there is room");
        bench.run("umount mnt");
    }
}

#[test]
fn who_serves_in_the_foreground_is_confined() {
    let Some(bench) = bench() else { return };
    let mountpoint = bench.join("mnt");
    let mut served = bench
        .command("mount -f a.img mnt")
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be run");
    eventually("it mounts", || is_mounted(&mountpoint));
    fs::write(mountpoint.join("file"), "contents").expect("there is room");
    assert_eq!(server(&mountpoint), Pid::from_child(&served));
    assert_confined(Pid::from_child(&served));
    kill_process(Pid::from_child(&served), Signal::INT).expect("it runs");
    let status = served.wait().expect("it ends");
    let mut said = String::new();
    let stderr = served.stderr.as_mut().expect("it is piped");
    stderr.read_to_string(&mut said).expect("text");
    assert!(status.success() && said.is_empty(), "{status} {said}");
    assert!(!is_mounted(&mountpoint));
}

/// What the descriptors of `process` are open on, by number.
fn descriptors(process: Pid) -> Vec<(i32, String)> {
    let directory = format!("/proc/{}/fd", process.as_raw_nonzero());
    let entries = fs::read_dir(directory).expect("it runs");
    let mut open: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.parse().ok()?;
            // One may have been closed meanwhile.
            let target = fs::read_link(path).ok()?;
            Some((number, target.to_string_lossy().into_owned()))
        })
        .collect();
    open.sort();
    open
}

/// Fails unless `process` has open what it needs, and nothing besides.
fn assert_nothing_left_open(process: Pid, needs: &[&str]) {
    for (number, target) in descriptors(process) {
        // With -f it says on stderr what it has to.
        let is_needed = number == 2 || needs.iter().any(|need| target.contains(need));
        assert!(is_needed, "descriptor {number}: {target}");
    }
}

#[test]
fn what_was_left_open_is_closed() {
    let Some(bench) = bench() else { return };
    fs::write(bench.join("secret"), "secret").expect("it is ours");
    let left_open = File::open(bench.join("secret")).expect("it is ours");
    // From here on every program that this one starts has it.
    rustix::io::fcntl_setfd(&left_open, rustix::io::FdFlags::empty()).expect("it is ours");
    let inherited = Command::new("ls").args(["-l", "/proc/self/fd"]).output();
    let inherited = inherited.expect("it can be run").stdout;
    assert!(String::from_utf8_lossy(&inherited).contains("secret"));

    let mountpoint = bench.join("mnt");
    let served = [
        "a.img",
        "/dev/null",
        "/dev/fuse",
        "socket:",
        "anon_inode:[eventfd]",
        "/memfd:pagefence",
    ];
    let kept = ["/dev/null", "socket:"];
    let check = || {
        fs::write(mountpoint.join("file"), "contents").expect("there is room");
        let server = server(&mountpoint);
        assert_nothing_left_open(server, &served);
        let keepers = children(server);
        assert_eq!(keepers.len(), 1, "one keeper");
        assert_nothing_left_open(keepers[0], &kept);
    };
    bench.run("mount a.img mnt");
    check();
    bench.run("umount mnt");
    // In the foreground; also where the environment is what the server would make it.
    for arenas in [None, Some("2")] {
        let mut command = bench.command("mount -f a.img mnt");
        match arenas {
            Some(count) => command.env("MALLOC_ARENA_MAX", count),
            None => command.env_remove("MALLOC_ARENA_MAX"),
        };
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be run");
        eventually("it mounts", || is_mounted(&mountpoint));
        check();
        bench.run("umount mnt");
        assert!(process.wait().expect("it ends").success());
    }
    drop(left_open);
}

/// Whether `process` is confined; if it is at all, all of it must be.
fn is_confined(process: Pid) -> bool {
    let threads = threads(process);
    let confined = |status: &String| CONFINED.iter().all(|line| status.contains(line));
    !threads.is_empty() && threads.iter().all(confined)
}

/// Fails unless the command `line`, when it has something to say, is confined as the environment asks; and
/// unless it then says `expected`.
fn assert_confined_if_asked(bench: &Bench, line: &str, expected: &str) {
    for (variable, confined) in [("yes", true), ("no", false)] {
        // It can't get rid of what it says, and waits.
        let (mut read, write) = std::io::pipe().expect("descriptors can be had");
        rustix::io::ioctl_fionbio(&write, true).expect("it is ours");
        let mut filled = 0;
        while let Ok(more) = (&write).write(&[b'.'; 4096]) {
            filled += more;
        }
        rustix::io::ioctl_fionbio(&write, false).expect("it is ours");
        let mut process = bench
            .command(line)
            .env("PAGEFENCE_CONFINED", variable)
            .stdout(write)
            .spawn()
            .expect("it can be run");
        let id = Pid::from_child(&process);
        if confined {
            eventually("it is confined", || is_confined(id));
        } else {
            let sleeps = |status: &String| status.contains("State:\tS");
            eventually("it waits", || threads(id).iter().all(sleeps));
            std::thread::sleep(Duration::from_millis(300));
            assert!(!is_confined(id), "{:?}", threads(id));
        }
        let mut said = Vec::new();
        read.read_to_end(&mut said).expect("it ends");
        assert!(process.wait().expect("it ends").success());
        let said = String::from_utf8_lossy(&said[filled..]);
        assert!(said.contains(expected), "{line}: {said}");
    }
}

#[test]
fn who_looks_at_an_image_is_confined() {
    let bench = Bench::new();
    bench.run("mkfs -q -t ext4 --size 8M a.img");
    assert_confined_if_asked(&bench, "info a.img", "ext4");
    assert_confined_if_asked(&bench, "check a.img", "sound; ");
}

#[test]
fn who_checks_a_mount_is_confined() {
    let Some(bench) = bench() else { return };
    bench.run("mount a.img mnt");
    assert_confined_if_asked(&bench, "check mnt", "sound; ");
    bench.run("umount mnt");
}

#[test]
fn who_changes_an_image_is_confined() {
    let bench = Bench::new();
    bench.run("mkfs -q -t ext4 --size 32M a.img");
    let volume = Volume::open(bench.join("a.img"), Options::new().write(true));
    let volume = volume.expect("it was made");
    volume.write("/f", [7; 100_000]).expect("there is room");
    volume.close().expect("it closes");
    for line in [
        "truncate --size 90000 a.img:/f",
        "fallocate --offset 0 --length 90000 a.img:/f",
        "migrate --to extents a.img:/f",
    ] {
        assert_seen_confined(line, 0, || bench.command(line));
    }
}

/// Fails unless the command, which ends with `code`, is seen to be confined.
fn assert_seen_confined(what: &str, code: i32, mut command: impl FnMut() -> Command) {
    // It may be too fast to be seen.
    eventually(what, || {
        let mut process = command().spawn().expect("it can be run");
        let mut seen = false;
        loop {
            seen |= is_confined(Pid::from_child(&process));
            if let Some(status) = process.try_wait().expect("it is ours") {
                assert_eq!(status.code(), Some(code), "{what}");
                return seen;
            }
        }
    });
}

/// The demonstration without a mount reads the image itself.
#[test]
fn who_shows_an_image_without_a_mount_is_confined() {
    let bench = Bench::new();
    bench.run("mkfs -q -t ext4 --size 8M a.img");
    // The program can't be run again where it has no /proc: as good as no FUSE.
    let hide = "mount -t tmpfs none /proc";
    let unshared = |line: &str| {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", line]);
        command
    };
    if !unshared(hide).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: mount namespaces need root and unshare");
        return;
    }
    let line = format!("{hide} && exec \"$0\" demo \"$1\"");
    assert_seen_confined("demo", 1, || {
        let mut command = unshared(&line);
        command
            .arg(bench.command("demo").get_program())
            .arg(bench.join("a.img"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    });
}

#[test]
fn who_wants_no_confinement_has_none() {
    let Some(bench) = bench() else { return };
    let mut mount = bench.command("mount -o rw,unconfined,log=log a.img mnt");
    let status = mount.env("PAGEFENCE_LOG", "info").status();
    assert!(status.expect("it can be run").success());
    let threads = threads(server(&bench.join("mnt")));
    assert!(threads.iter().all(|status| status.contains("Seccomp:\t0")));
    bench.run("umount mnt");
    assert!(log(&bench).contains("not confined, as asked for"));
    let said = bench.fail("mount -o unconfined=1 a.img mnt");
    assert!(said.contains("unconfined=1 is unknown"), "{said}");
}

#[test]
fn the_keeper_unmounts_what_is_in_use_and_ends_with_the_server() {
    let Some(bench) = bench() else { return };
    bench.run("mount a.img mnt");
    let mountpoint = bench.join("mnt");
    let server = server(&mountpoint);
    let keepers = children(server);
    assert_eq!(keepers.len(), 1, "one keeper");
    // What is for the server leaves the keeper where it is.
    kill_process(keepers[0], Signal::TERM).expect("it runs");

    let mut open = File::create(mountpoint.join("open")).expect("there is room");
    kill_process(server, Signal::TERM).expect("it runs");
    eventually("it disappears", || !is_mounted(&mountpoint));
    open.write_all(b"late").expect("who has it open goes on");
    drop(open);
    for process in [server, keepers[0]] {
        let process = PathBuf::from(format!("/proc/{}/exe", process.as_raw_nonzero()));
        eventually("both end", || !process.exists());
    }
    bench.run("mount -o ro a.img mnt");
    assert_eq!(
        fs::read(mountpoint.join("open")).expect("it is there"),
        b"late"
    );
    bench.run("umount mnt");
}

#[test]
fn a_server_without_its_keeper_goes_on() {
    let Some(bench) = bench() else { return };
    bench.run("mount -o log=log a.img mnt");
    let mountpoint = bench.join("mnt");
    let server = server(&mountpoint);
    for keeper in children(server) {
        kill_process(keeper, Signal::KILL).expect("it runs");
    }
    kill_process(server, Signal::TERM).expect("it runs");
    eventually("it says so", || log(&bench).contains("can't unmount"));
    fs::write(mountpoint.join("file"), "contents").expect("it is served");
    bench.run("umount mnt");
    assert!(!is_mounted(&mountpoint));
}

#[test]
fn a_block_device_is_served_and_told_what_is_free() {
    let Some(bench) = bench() else { return };
    let image = bench.join("a.img");
    let attached = Command::new("losetup")
        .args(["--find", "--show"])
        .arg(&image)
        .output();
    let Some(attached) = attached.ok().filter(|output| output.status.success()) else {
        eprintln!("skipped: this test needs a loop device");
        return;
    };
    let device = String::from_utf8_lossy(&attached.stdout).trim().to_owned();
    bench.run(&format!("mount -o rw,discard,log=log {device} mnt"));
    let mountpoint = bench.join("mnt");
    assert_confined(server(&mountpoint));
    let file = mountpoint.join("file");
    fs::write(&file, vec![1; 4 << 20]).expect("there is room");
    File::open(&file)
        .and_then(|file| file.sync_all())
        .expect("it is written");
    let before = fs::metadata(&image).expect("it is there").blocks();
    fs::remove_file(&file).expect("it is there");
    bench.run("umount mnt");
    let detached = Command::new("losetup").args(["--detach", &device]).status();
    assert!(detached.expect("it can be run").success());
    let after = fs::metadata(&image).expect("it is there").blocks();
    assert!(
        after + 4096 < before,
        "blocks of the image: {before}, then {after}"
    );
    assert_eq!(log(&bench), "");
}
