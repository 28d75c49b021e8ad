//! The command, run as a user runs it, on the file system of the example `memory_mount`. Tests
//! that mount need root and /dev/fuse, and say on stderr where they are skipped.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use pagefence_fuse_front::ServerId;
use rustix::process::{Pid, Signal, kill_process};

/// A directory with the program, an image and an empty directory, open to every user.
struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("it is ours");
        let tests = std::env::current_exe().expect("the test has a path");
        let built = tests
            .ancestors()
            .nth(2)
            .expect("target/debug")
            .join("examples/memory_mount");
        assert!(
            built.exists(),
            "{} is built by `cargo test -p pagefence-cli`",
            built.display()
        );
        let bench = Self { directory };
        // By another process: if this one had it open for writing while a test on another thread
        // forks, it could not be run.
        let copied = Command::new("cp")
            .arg(built)
            .arg(bench.join("pagefence"))
            .status();
        assert!(copied.expect("cp can be run").success());
        fs::write(bench.join("image"), "sample").expect("an image can be written");
        fs::create_dir(bench.join("mnt")).expect("a directory can be made");
        bench
    }

    /// The same, unless this machine can't mount.
    fn for_mounting() -> Option<Self> {
        if !Path::new("/dev/fuse").exists() || !rustix::process::geteuid().is_root() {
            eprintln!("skipped: this test mounts, which needs root and /dev/fuse");
            return None;
        }
        Some(Self::new())
    }

    fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs the program. It is in no one's way: if the server kept stdout or stderr, this would
    /// not return.
    fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        let mut command = Command::new(self.join("pagefence"));
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command.output().expect("the program can be run")
    }

    fn run_well<S: AsRef<OsStr>>(&self, arguments: &[S]) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", said(&output));
    }

    /// Runs the program, which must fail with one sentence, returned.
    fn run_badly<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        let said = said(&output);
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        said
    }

    fn mounted(&self) -> bool {
        is_mounted(&self.join("mnt"))
    }

    /// The server of `mnt`.
    fn server(&self) -> Pid {
        let id = ServerId::ask(&self.join("mnt")).expect("the server answers");
        Pid::from_raw(i32::try_from(id.pid).expect("a pid")).expect("not 0")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.mounted() {
            let _unmounted = pagefence_fuse_front::unmount(&self.join("mnt"), true);
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read("/proc/self/mountinfo").expect("/proc is there");
    let path = [b" ", path.as_os_str().as_bytes(), b" "].concat();
    table.windows(path.len()).any(|window| window == path)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn runs(pid: Pid) -> bool {
    Path::new(&format!("/proc/{}/exe", pid.as_raw_nonzero())).exists()
}

/// Waits for something that is about to become true.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{what}: not after 20 s"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_mount_answers_when_the_command_returns_and_is_gone_after_umount() {
    let Some(bench) = Bench::for_mounting() else {
        return;
    };
    let output = bench.run(&["mount", "image", "mnt", "-o", "ro,cache=64M"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(
        said(&output),
        "",
        "a read-only mount that was asked for says nothing"
    );
    assert_eq!(
        fs::read(bench.join("mnt/hello")).expect("it answers"),
        b"hello, world\n"
    );

    let server = bench.server();
    let line = fs::read(format!("/proc/{}/cmdline", server.as_raw_nonzero())).expect("it runs");
    let expected = format!("{}\0mount\0image\0mnt\0", bench.join("pagefence").display());
    assert!(
        line.starts_with(expected.as_bytes()),
        "{}",
        line.escape_ascii()
    );
    let name = fs::read_to_string(format!("/proc/{}/comm", server.as_raw_nonzero()));
    assert_eq!(name.expect("it runs"), "pagefence\n");
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is there");
    let source = format!(" fuse.pagefence {} ro,", bench.join("image").display());
    assert!(table.contains(&source), "{source} in {table}");

    let device = rustix::fs::stat(bench.join("mnt"))
        .expect("it answers")
        .st_dev;
    let minor = rustix::fs::minor(device);
    let readahead = fs::read_to_string(format!("/sys/class/bdi/0:{minor}/read_ahead_kb"));
    match readahead {
        Ok(kilobytes) => assert_eq!(kilobytes, "1024\n", "root's mounts read ahead 1 MiB"),
        Err(error) => eprintln!("skipped in part: no /sys/class/bdi: {error}"),
    }

    bench.run_well(&["umount", "mnt"]);
    assert!(!bench.mounted() && !runs(server));
}

#[test]
fn a_mount_that_can_be_written_says_nothing() {
    let Some(bench) = Bench::for_mounting() else {
        return;
    };
    let output = bench.run(&["mount", "image", "mnt", "-o", "rw"]);
    assert!(output.status.success());
    assert_eq!(said(&output), "");
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is there");
    let source = format!(" fuse.pagefence {} rw,", bench.join("image").display());
    assert!(table.contains(&source), "{source} in {table}");
    bench.run_well(&["umount", "mnt"]);
}

#[test]
fn a_bad_image_is_one_sentence_and_nothing_is_left() {
    let Some(bench) = Bench::for_mounting() else {
        return;
    };
    fs::write(bench.join("bad"), "something else").expect("it can be written");
    fs::write(bench.join("abort"), "abort").expect("it can be written");
    let said = bench.run_badly(&["mount", "bad", "mnt"]);
    assert!(
        said.starts_with("pagefence: bad is no file system"),
        "{said}"
    );
    assert!(
        bench
            .run_badly(&["mount", "missing", "mnt"])
            .contains("missing")
    );
    assert!(
        bench
            .run_badly(&["mount", "-f", "missing", "mnt"])
            .contains("missing")
    );
    assert!(
        bench
            .run_badly(&["mount", "abort", "mnt"])
            .contains("signal 6")
    );
    assert!(!bench.mounted());
    // The options reach whoever opens the image.
    let shifted = bench.run_badly(&["mount", "image", "mnt", "-o", "offset=3"]);
    assert!(shifted.contains("no file system"), "{shifted}");
}

#[test]
fn bad_mount_points_and_options_are_named() {
    let Some(bench) = Bench::for_mounting() else {
        return;
    };
    assert!(
        bench
            .run_badly(&["mount", "image", "none"])
            .contains("`mkdir none`")
    );
    assert!(
        bench
            .run_badly(&["mount", "image", "image"])
            .contains("not a directory")
    );
    let unknown = bench.run_badly(&["mount", "image", "mnt", "-o", "ro,nosuchthing"]);
    assert!(unknown.contains("nosuchthing"), "{unknown}");

    fs::create_dir(bench.join("full")).expect("it can be made");
    fs::write(bench.join("full/file"), "").expect("it can be written");
    assert!(
        bench
            .run_badly(&["mount", "image", "full"])
            .contains("not empty")
    );
    bench.run_well(&["mount", "image", "full", "-o", "nonempty"]);
    bench.run_well(&["umount", "full"]);

    bench.run_well(&["mount", "image", "mnt"]);
    let again = bench.run_badly(&["mount", "image", "mnt", "-o", "nonempty"]);
    assert!(again.contains("mounted on it already"), "{again}");
    bench.run_well(&["umount", "mnt"]);
}

#[test]
fn umount_refuses_what_is_in_use_or_not_ours() {
    let Some(bench) = Bench::for_mounting() else {
        return;
    };
    assert!(
        bench
            .run_badly(&["umount", "mnt"])
            .contains("nothing is mounted")
    );
    assert!(
        bench
            .run_badly(&["umount", "none"])
            .contains("there is no mount at none")
    );
    assert!(
        bench
            .run_badly(&["umount", "/proc"])
            .contains("of type proc")
    );
    bench.run_well(&["mount", "image", "mnt"]);
    let file = File::open(bench.join("mnt/hello")).expect("it opens");
    assert!(bench.run_badly(&["umount", "mnt"]).contains("is in use"));
    assert!(bench.mounted());
    drop(file);
    bench.run_well(&["umount", "mnt"]);
}

#[test]
fn who_is_about_to_leave_is_waited_for() {
    let Some(bench) = Bench::for_mounting() else {
        return;
    };
    bench.run_well(&["mount", "image", "mnt"]);
    let mut user = Command::new("sleep")
        .arg("0.5")
        .current_dir(bench.join("mnt"))
        .spawn()
        .expect("it can be run");
    bench.run_well(&["umount", "mnt"]);
    assert!(user.wait().expect("it ends").success());
    assert!(!bench.mounted());
}

#[test]
fn a_dead_server_hangs_nobody_and_its_mount_can_be_taken_down() {
    let Some(bench) = Bench::for_mounting() else {
        return;
    };
    bench.run_well(&["mount", "image", "mnt"]);
    let server = bench.server();
    kill_process(server, Signal::KILL).expect("it runs");
    eventually("the server is gone", || !runs(server));
    let error = fs::read(bench.join("mnt/hello")).expect_err("the server is gone");
    // The kernel ends a request that it queued while the connection went with the first, and
    // refuses later ones with the second.
    let ended = [rustix::io::Errno::CONNABORTED, rustix::io::Errno::NOTCONN];
    assert!(
        ended
            .map(|errno| Some(errno.raw_os_error()))
            .contains(&error.raw_os_error()),
        "{error}"
    );
    let again = bench.run_badly(&["mount", "image", "mnt"]);
    assert!(again.contains("`pagefence umount mnt`"), "{again}");
    bench.run_well(&["umount", "mnt"]);
    assert!(!bench.mounted());
}

#[test]
fn the_server_unmounts_on_a_signal() {
    let Some(bench) = Bench::for_mounting() else {
        return;
    };
    bench.run_well(&["mount", "image", "mnt"]);
    let server = bench.server();
    kill_process(server, Signal::TERM).expect("it runs");
    eventually("it unmounts and ends", || !bench.mounted() && !runs(server));

    let mut foreground = Command::new(bench.join("pagefence"))
        .args(["mount", "-f", "image", "mnt", "-o", "ro"])
        .current_dir(bench.directory.path())
        .spawn()
        .expect("the program can be run");
    eventually("it mounts", || bench.join("mnt/hello").exists());
    assert_eq!(
        bench.server(),
        Pid::from_child(&foreground),
        "no other process is needed"
    );
    kill_process(Pid::from_child(&foreground), Signal::INT).expect("it runs");
    assert!(foreground.wait().expect("it ends").success());
    assert!(!bench.mounted());
}

#[test]
fn what_goes_wrong_later_is_a_line_in_the_log() {
    let Some(bench) = Bench::for_mounting() else {
        return;
    };
    bench.run_well(&["mount", "image", "mnt", "-o", "ro,log=log"]);
    let error = fs::read(bench.join("mnt/defect")).expect_err("reading it panics");
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error())
    );
    bench.run_well(&["umount", "mnt"]);
    let log = fs::read_to_string(bench.join("log")).expect("there is a log");
    assert!(
        log.contains("a defect of pagefence") && log.contains("memory_fs.rs"),
        "{log}"
    );
}

#[test]
fn other_dresses_of_the_command_line_mount_too() {
    let Some(bench) = Bench::for_mounting() else {
        return;
    };
    bench.run_well(&["image", "mnt", "-o", "ro"]);
    bench.run_well(&["umount", "mnt"]);

    std::os::unix::fs::symlink("pagefence", bench.join("fuse2fs")).expect("a link can be made");
    let options = "ro,fakeroot,allow_other,norecovery,minixdf,no_default_opts,errors=panic";
    let status = Command::new(bench.join("fuse2fs"))
        .args([
            bench.join("image").as_os_str(),
            bench.join("mnt").as_os_str(),
        ])
        .args(["-o", options])
        .status();
    assert!(status.expect("it can be run").success());
    assert!(bench.join("mnt/hello").exists());
    bench.run_well(&["umount", "mnt"]);

    if !Path::new("/sbin/mount.fuse3").exists() && !Path::new("/sbin/mount.fuse").exists() {
        eprintln!("skipped in part: there is no mount.fuse3");
        return;
    }
    // Type `fuse` with the program in the source becomes the same call as type `fuse.pagefence`,
    // which would look for the program in the system's directories.
    let source = format!(
        "{}#{}",
        bench.join("pagefence").display(),
        bench.join("image").display()
    );
    let output = Command::new("mount")
        .args(["-t", "fuse", "-o", "ro,noatime", &source])
        .arg(bench.join("mnt"))
        .output()
        .expect("mount can be run");
    assert!(output.status.success(), "{}", said(&output));
    assert!(bench.join("mnt/hello").exists());
    bench.run_well(&["umount", "mnt"]);
}

/// Lets every user open /dev/fuse, as on ordinary systems, and puts its mode back.
struct OpenDevice(Permissions);

impl OpenDevice {
    fn new() -> Self {
        let before = fs::metadata("/dev/fuse")
            .expect("it is there")
            .permissions();
        fs::set_permissions("/dev/fuse", Permissions::from_mode(0o666)).expect("root may");
        Self(before)
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        let _restored = fs::set_permissions("/dev/fuse", self.0.clone());
    }
}

#[test]
fn a_user_who_is_not_root_mounts_and_unmounts() {
    let Some(bench) = Bench::for_mounting() else {
        return;
    };
    let found = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !found("setpriv") || !found("fusermount3") {
        eprintln!("skipped: this test needs setpriv and fusermount3");
        return;
    }
    let _device = OpenDevice::new();
    // fusermount3 lets a user mount on nothing but his own.
    std::os::unix::fs::chown(bench.join("mnt"), Some(65_534), Some(65_534)).expect("root may");
    let nobody = |arguments: &[&str]| {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .args(arguments)
            .current_dir(bench.directory.path())
            .output()
            .expect("setpriv can be run")
    };
    let output = nobody(&["./pagefence", "mount", "image", "mnt", "-o", "ro,suid,dev"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(bench.mounted());
    assert_eq!(nobody(&["cat", "mnt/hello"]).stdout, b"hello, world\n");
    assert_eq!(
        nobody(&["cat", "mnt/secret"]).stdout,
        b"",
        "permissions are checked"
    );
    let root = fs::read(bench.join("mnt/hello")).expect_err("it is not root's");
    assert_eq!(root.kind(), std::io::ErrorKind::PermissionDenied);
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is there");
    let path = format!(" {} ", bench.join("mnt").display());
    let line = table
        .lines()
        .find(|line| line.contains(&path))
        .expect("it is mounted");
    assert!(
        line.contains(" ro,nosuid,nodev,") && line.contains("fuse.pagefence"),
        "{line}"
    );
    let output = nobody(&["./pagefence", "umount", "mnt"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!bench.mounted());

    let output = nobody(&["./pagefence", "mount", "image", "mnt", "-o", "fakeroot"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(
        nobody(&["cat", "mnt/secret"]).stdout,
        b"for root\n",
        "fakeroot reads everything"
    );
    assert!(nobody(&["./pagefence", "umount", "mnt"]).status.success());

    fs::create_dir(bench.join("roots")).expect("it can be made");
    let output = nobody(&["./pagefence", "mount", "image", "roots"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("fusermount3 refused"),
        "{}",
        said(&output)
    );
    assert!(!is_mounted(&bench.join("roots")));
}

#[test]
fn completions_and_manual_pages_are_made() {
    let bench = Bench::new();
    let script = bench.run(&["completions", "bash"]);
    assert!(String::from_utf8_lossy(&script.stdout).contains("umount"));
    bench.run_well(&["man", "pages"]);
    let page = fs::read_to_string(bench.join("pages/pagefence-mount.1")).expect("a page");
    assert!(page.contains("fakeroot"), "{page}");
    assert!(bench.run(&["--help"]).status.success());
    assert_eq!(bench.run(&["nonsense"]).status.code(), Some(1));
}
