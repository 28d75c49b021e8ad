//! An image that is mounted, and other programs that map its files.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pagefence_fuse_front::ServerId;
use pagefence_lock_order::primitives::atomic::{AtomicBool, Ordering};
use pagefence_lock_order::primitives::{Arc, thread};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

use crate::common::{Bench, said};

pub(crate) const PAGE: usize = 4096;

/// Longer than any test takes, however slow the machine.
const HANGS: Duration = Duration::from_secs(240);

/// Says to the program that is a child where its mount is.
const PLACE: &str = "PAGEFENCE_MAPS_TEST_PLACE";

/// An image, mounted at `mnt` of a directory that all may search and write to.
pub(crate) struct Served {
    bench: Bench,
    mountpoint: PathBuf,
    directory: PathBuf,
    is_mounted: bool,
}

impl Served {
    pub(crate) fn new(options: &str) -> Self {
        let bench = Bench::new();
        bench.run("mkfs -q -t ext4 --size 32M a.img");
        Self::mount(bench, &format!("mount -o {options} a.img mnt"))
    }

    pub(crate) fn in_memory() -> Self {
        Self::mount(Bench::new(), "mount --tmpfs 8M mnt")
    }

    /// With a file `f`.
    pub(crate) fn read_only() -> Self {
        let mut served = Self::new("rw");
        served.file("f", &[3; PAGE]);
        served.unmount();
        let bench = std::mem::replace(&mut served.bench, Bench::new());
        Self::mount(bench, "mount -o ro a.img mnt")
    }

    fn mount(bench: Bench, line: &str) -> Self {
        let directory = bench.join("");
        let everybody = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&directory, everybody).expect("it is ours");
        let mountpoint = bench.join("mnt");
        if !mountpoint.exists() {
            std::fs::create_dir(&mountpoint).expect("a directory");
        }
        bench.run(line);
        Self {
            bench,
            mountpoint,
            directory,
            is_mounted: true,
        }
    }

    pub(crate) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The directory around the mount.
    pub(crate) fn bench(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.bench.join("a.img")
    }

    /// Makes a file on the mount.
    pub(crate) fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.mountpoint.join(name);
        std::fs::write(&path, contents).expect("there is room");
        path
    }

    pub(crate) fn unmount(&mut self) {
        self.bench.run("umount mnt");
        self.is_mounted = false;
    }

    /// What `umount` says that must fail.
    pub(crate) fn fail_to_unmount(&self) -> String {
        self.bench.fail("umount mnt")
    }

    /// Cuts the kernel's connection to the server, which ends.
    pub(crate) fn abort(&self) {
        let server = self.server();
        // The mount is in use, and stays.
        let _busy = rustix::mount::unmount(&self.mountpoint, UnmountFlags::FORCE);
        wait_for_end(&server.1);
    }

    /// Ends the server by SIGKILL.
    pub(crate) fn kill(&self) {
        let (id, process) = self.server();
        kill_process(id, Signal::KILL).expect("it is there");
        wait_for_end(&process);
    }

    fn server(&self) -> (Pid, OwnedFd) {
        let server = ServerId::ask(&self.mountpoint).expect("it answers");
        let id = i32::try_from(server.pid).ok().and_then(Pid::from_raw);
        let id = id.expect("a process");
        let process = pidfd_open(id, PidfdFlags::empty());
        (id, process.expect("it is there"))
    }

    /// Has e2fsck look at the image.
    pub(crate) fn check(&self) {
        let checked = Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(self.image())
            .output()
            .expect("e2fsck can be run");
        assert!(checked.status.success(), "{checked:?}");
    }
}

fn wait_for_end(process: &OwnedFd) {
    let mut ends = [PollFd::new(process, PollFlags::IN)];
    let hangs = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let ended = rustix::event::poll(&mut ends, Some(&hangs));
    assert_eq!(ended, Ok(1), "the server goes on");
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.is_mounted {
            let output = self.bench.command("umount mnt").output();
            let failed = output.is_ok_and(|output| !output.status.success());
            if failed && !std::thread::panicking() {
                panic!("{} can't be unmounted", self.mountpoint.display());
            }
            if failed {
                // A map of the test that fails is still there.
                let _ = rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH);
            }
        }
    }
}

/// Another program: a test of this one, by itself.
pub(crate) struct Child {
    name: &'static str,
    place: PathBuf,
    process: RefCell<Option<std::process::Child>>,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) signal: Option<i32>,
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
}

impl Child {
    /// Runs the test `name` as `user`.
    pub(crate) fn start(name: &'static str, served: &Served, user: u32) -> Self {
        // Where everybody can run it; by another process, which alone has it open for writing.
        let program = served.bench().join("tests");
        if !program.exists() {
            let own = std::env::current_exe().expect("this program");
            let copied = Command::new("cp").arg(own).arg(&program).status();
            assert!(copied.expect("cp can be run").success());
        }
        let process = Command::new(&program)
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(PLACE, served.mountpoint())
            .current_dir(served.bench())
            .uid(user)
            .gid(user)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it can be run");
        Self {
            name,
            place: served.mountpoint().to_owned(),
            process: RefCell::new(Some(process)),
        }
    }

    /// Waits until it says `what`.
    pub(crate) fn wait_for(&self, what: &str) {
        while !sign(&self.place, what).exists() {
            let mut process = self.process.borrow_mut();
            let running = process.as_mut().expect("it runs");
            if running.try_wait().expect("it is ours").is_some() {
                let output = process.take().map(std::process::Child::wait_with_output);
                panic!("{} ended: {output:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let process = self.process.borrow();
        let id = Pid::from_child(process.as_ref().expect("it runs"));
        kill_process(id, signal).expect("it is there");
    }

    /// Stops it; returns when all its threads have.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        let process = self.process.borrow();
        let id = Pid::from_child(process.as_ref().expect("it runs"));
        let (_, status) = waitpid(Some(id), WaitOptions::UNTRACED)
            .expect("it is ours")
            .expect("it was waited for");
        assert!(status.stopped(), "{status:?}");
    }

    pub(crate) fn say(&self, what: &str) {
        tell(&self.place, what);
    }

    /// Waits for its end.
    pub(crate) fn end(self) -> End {
        let process = self.process.take().expect("it runs");
        let output = process.wait_with_output().expect("it is ours");
        End {
            signal: output.status.signal(),
            code: output.status.code(),
            said: format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                said(&output)
            ),
        }
    }
}

/// A file beside the mount that says something.
fn sign(mountpoint: &Path, what: &str) -> PathBuf {
    mountpoint.with_file_name(what)
}

/// Says `what` to the other program.
pub(crate) fn tell(mountpoint: &Path, what: &str) {
    std::fs::write(sign(mountpoint, what), "").expect("a file");
}

/// Waits until the other program says `what`.
pub(crate) fn await_told(mountpoint: &Path, what: &str) {
    let begin = Instant::now();
    while !sign(mountpoint, what).exists() {
        assert!(begin.elapsed() < HANGS, "nobody says {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where the mount is whose files this program is to map, if it is such a child.
pub(crate) fn child_place() -> Option<PathBuf> {
    std::env::var_os(PLACE).map(Into::into)
}

/// Ends this program if a test hangs.
pub(crate) struct Watchdog(Arc<AtomicBool>);

impl Watchdog {
    pub(crate) fn new(test: &'static str) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let watched = Arc::clone(&over);
        thread::spawn("watchdog", move || {
            let begin = Instant::now();
            while !watched.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                if begin.elapsed() > HANGS && !watched.load(Ordering::Relaxed) {
                    eprintln!("{test} hangs");
                    std::process::abort();
                }
            }
        })
        .expect("a thread");
        Self(over)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
