//! Attempts to get out, by a process that has confined itself as the server does.
//!
//! They are made in a child, since what is confined stays so: it runs one test of this very program, on a
//! thread that libtest starts for it; so [`Confinement::enter`], which refuses that, is left to the tests of
//! mounts. Where a mechanism is tried alone, an attempt that it misses succeeds, or fails in another way: so
//! each test fails without its mechanism. No attempt does harm if it succeeds.

mod filters;

use std::fs::{File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pagefence_lock_order::primitives::{Arc, thread};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::log::Syslog;

use super::{Confinement, Outcome, User, VARIABLE, calls, files};

/// Where the child finds its files, in its environment.
const PLACE: &str = "PAGEFENCE_TEST_PLACE";

/// Runs `body` in a process of its own, on a directory that holds `image`, `secret` and a listening `socket`.
/// `name` is that of the test.
fn alone(name: &str, body: impl FnOnce(&Path)) {
    if let Some(place) = std::env::var_os(PLACE) {
        return body(Path::new(&place));
    }
    let place = tempfile::tempdir().expect("a directory can be made");
    for name in ["image", "secret"] {
        std::fs::write(place.path().join(name), name).expect("it is ours");
    }
    let _listener = UnixListener::bind(place.path().join("socket")).expect("it is ours");
    let output = child(name, place.path())
        .output()
        .expect("the test can be run");
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said);
    let passed = output.status.success() && said.contains("1 passed");
    assert!(passed, "{}: {said}", output.status);
    if said.contains("skipped") {
        eprintln!("{said}");
    }
}

/// What runs the body of the test `name` on `place`.
fn child(name: &str, place: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test has a path"));
    command
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg(format!("confinement::tests::{name}"))
        .env(PLACE, place)
        .env_remove(VARIABLE);
    command
}

/// Something that must be denied: what, and how it went.
type Attempt = (&'static str, Option<Errno>);

/// How it went: no error, or which.
fn tried<T>(what: &'static str, outcome: Result<T, impl Into<io::Error>>) -> Attempt {
    let errno = outcome.err().map(|error| {
        let raw = error.into().raw_os_error();
        Errno::from_raw_os_error(raw.unwrap_or_default())
    });
    (what, errno)
}

fn all_are_denied(attempts: impl IntoIterator<Item = Attempt>) {
    let escaped: Vec<_> = attempts
        .into_iter()
        .filter(|(_, errno)| !matches!(errno, Some(Errno::PERM | Errno::ACCESS)))
        .collect();
    assert!(escaped.is_empty(), "not denied: {escaped:?}");
}

fn reading(path: impl AsRef<Path>) -> io::Result<File> {
    File::open(path)
}

/// What landlock denies.
fn files_of_others(place: &Path, parent: Pid) -> Vec<Attempt> {
    let (secret, new) = (place.join("secret"), place.join("new"));
    let parent = parent.as_raw_nonzero();
    let writing = |path: &str| File::options().write(true).open(path);
    vec![
        tried("a file of the system", reading("/etc/passwd")),
        tried("a file beside the image", reading(&secret)),
        tried(
            "it, to be written",
            File::options().write(true).open(&secret),
        ),
        tried("the image once more", reading(place.join("image"))),
        tried("its directory", std::fs::read_dir(place)),
        tried("a new file", File::create(&new)),
        tried("a new file in /tmp", tempfile::tempfile_in("/tmp")),
        tried(
            "the parent's environment",
            reading(format!("/proc/{parent}/environ")),
        ),
        tried("its own memory, to be written", writing("/proc/self/mem")),
        tried(
            "a file by way of its root",
            reading("/proc/self/root/etc/passwd"),
        ),
        tried("a device", reading("/dev/null")),
    ]
}

/// What seccomp denies.
fn system_calls(place: &Path, parent: Pid, [open, namespace]: [&File; 2]) -> Vec<Attempt> {
    use std::os::fd::AsFd as _;
    let (secret, new) = (place.join("secret"), place.join("new"));
    let limit = Rlimit {
        current: Some(100),
        maximum: Some(100),
    };
    let nowhere = place.join("nowhere");
    let mount = rustix::mount::mount("none", &nowhere, "tmpfs", MountFlags::empty(), None);
    vec![
        tried("a new directory", std::fs::create_dir(&new)),
        tried("a new link", std::os::unix::fs::symlink(&secret, &new)),
        tried("a second name", std::fs::hard_link(&secret, &new)),
        tried("another name", std::fs::rename(&secret, &new)),
        tried(
            "a mode",
            std::fs::set_permissions(&secret, Permissions::from_mode(0o777)),
        ),
        tried("an owner", std::os::unix::fs::chown(&secret, Some(1), None)),
        tried("a removal", std::fs::remove_file(&secret)),
        tried("TCP to somebody", TcpStream::connect("127.0.0.1:9")),
        tried("TCP from somebody", TcpListener::bind("127.0.0.1:0")),
        tried("UDP", UdpSocket::bind("127.0.0.1:0")),
        tried(
            "somebody's socket",
            UnixStream::connect(place.join("socket")),
        ),
        tried("messages to anybody", UnixDatagram::unbound()),
        tried("pairs of those", UnixDatagram::pair()),
        tried("a program", Command::new("/bin/true").status()),
        tried(
            "a program in its place",
            Err::<(), _>(Command::new("/bin/true").exec()),
        ),
        tried("a signal to the parent", kill_process(parent, Signal::CONT)),
        tried(
            "a handle of the parent",
            rustix::process::pidfd_open(parent, PidfdFlags::empty()),
        ),
        tried("a mount", mount),
        tried(
            "an unmount",
            rustix::mount::unmount(&nowhere, UnmountFlags::DETACH),
        ),
        tried("another root", rustix::process::chroot("/")),
        tried("another directory", rustix::process::chdir("/")),
        tried(
            "a namespace",
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None),
        ),
        tried(
            "another limit",
            rustix::process::setrlimit(Resource::Nofile, limit),
        ),
        tried("the host's name", rustix::system::sethostname(&[b'x'; 100])),
        tried("no session of its own", rustix::process::setsid()),
        tried("flags of a file", rustix::fs::ioctl_getflags(open)),
        tried("what waits in it", rustix::io::ioctl_fionread(open)),
        tried(
            "blocks of another",
            rustix::fs::ioctl_ficlone(open, namespace),
        ),
    ]
}

fn parent() -> Pid {
    rustix::process::getppid().expect("the test that runs this")
}

fn own_namespace() -> File {
    reading("/proc/self/ns/uts").expect("/proc is there")
}

#[test]
fn nothing_gets_out_of_all_of_it() {
    alone("nothing_gets_out_of_all_of_it", |place| {
        let (parent, namespace) = (parent(), own_namespace());
        let options = || File::options().read(true).write(true).clone();
        let mut image = options().open(place.join("image")).expect("it was made");
        super::confine(User::Server).expect("it is entered");

        all_are_denied(system_calls(place, parent, [&image, &namespace]));
        let has_landlock = reading("/etc/passwd").is_err();
        if has_landlock {
            all_are_denied(files_of_others(place, parent));
        } else {
            eprintln!("skipped in part: this kernel has no landlock");
        }
        let place = place.to_owned();
        let same = image.try_clone().expect("descriptors can be had");
        let thread = thread::spawn("attempts", move || {
            all_are_denied(system_calls(&place, parent, [&same, &namespace]));
            if has_landlock {
                all_are_denied(files_of_others(&place, parent));
            }
        });
        let thread = thread.expect("threads can be started");
        thread.join().expect("they are no better off");

        image.write_all(b"IMAGE").expect("what is open stays open");
        let status =
            std::fs::read_to_string("/proc/thread-self/status").expect("it stays readable");
        for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line}: {status}");
        }
    });
}

#[test]
fn files_are_out_of_reach_for_landlock_alone() {
    alone("files_are_out_of_reach_for_landlock_alone", |place| {
        rustix::thread::set_no_new_privs(true).expect("every kernel has it");
        match files::restrict(User::Server).expect("it is not refused") {
            Outcome::InForce(_) => all_are_denied(files_of_others(place, parent())),
            Outcome::Missing(what) => eprintln!("skipped: {what}"),
        }
    });
}

#[test]
fn other_calls_are_out_of_reach_for_seccomp_alone() {
    alone("other_calls_are_out_of_reach_for_seccomp_alone", |place| {
        let (parent, namespace) = (parent(), own_namespace());
        let image = reading("/proc/self/exe").expect("this test");
        match calls::restrict(User::Server).expect("it is not refused") {
            Outcome::InForce(_) => {
                all_are_denied(system_calls(place, parent, [&image, &namespace]))
            }
            Outcome::Missing(what) => eprintln!("skipped: {what}"),
        }
    });
}

#[test]
fn no_capability_is_left_or_comes_back() {
    alone("no_capability_is_left_or_comes_back", |_| {
        super::drop_capabilities().expect("one's own can be dropped");
        let held = rustix::thread::capabilities(None).expect("one's own can be seen");
        assert!(held.effective.is_empty() && held.permitted.is_empty());
        let wanted = CapabilitySets {
            effective: CapabilitySet::SYS_ADMIN,
            permitted: CapabilitySet::SYS_ADMIN,
            inheritable: CapabilitySet::empty(),
        };
        all_are_denied([
            tried(
                "a capability",
                rustix::thread::set_capabilities(None, wanted),
            ),
            tried("another root", rustix::process::chroot("/")),
        ]);
        if rustix::process::geteuid().is_root() {
            // Root who runs a program has those of the bounding set.
            let status = std::process::Command::new("cat")
                .arg("/proc/self/status")
                .output();
            let status = String::from_utf8(status.expect("it can be run").stdout).expect("text");
            assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
        }
    });
}

#[test]
fn what_is_said_later_is_in_the_log() {
    alone("what_is_said_later_is_in_the_log", |place| {
        let path = place.join("log");
        let listener = UnixDatagram::bind(&path).expect("it is ours");
        listener
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("it is not 0");
        let file = File::create(place.join("file")).expect("it is ours");
        let syslog = Syslog::connect(&path).expect("somebody listens");
        let to_syslog = tracing_subscriber::fmt().with_writer(syslog).finish();
        let to_file = tracing_subscriber::fmt()
            .with_writer(Arc::new(file.try_clone().expect("descriptors can be had")))
            .finish();
        super::confine(User::Server).expect("it is entered");

        tracing::subscriber::with_default(to_syslog, || tracing::error!("damaged"));
        let mut heard = [0; 500];
        let length = listener.recv(&mut heard).expect("a datagram");
        let heard = String::from_utf8_lossy(&heard[..length]);
        assert!(heard.starts_with("<27>pagefence["), "{heard}");
        assert!(heard.contains("damaged"), "{heard}");
        tracing::subscriber::with_default(to_file, || tracing::error!("damaged"));
        assert!(file.metadata().expect("it is open").len() > 0);
        assert!(Syslog::connect(&path).is_none(), "nobody else is told");
    });
}

#[test]
fn who_has_threads_is_refused() {
    let (tell, mut wait) = UnixStream::pair().expect("sockets can be made");
    let other = thread::spawn("other", move || {
        assert_eq!(wait.read(&mut [0]).expect("an end"), 0);
    })
    .expect("a thread");
    let refused = super::refuse_threads().expect_err("there is another one");
    assert!(refused.to_string().contains("threads"), "{refused}");
    drop(tell);
    other.join().expect("it ends");
}

#[test]
fn what_is_not_wanted_is_not_entered() {
    alone("what_is_not_wanted_is_not_entered", |place| {
        Confinement::of_server(false)
            .enter()
            .expect("nothing to refuse");
        reading(place.join("secret")).expect("nothing is given up");
        let status = Command::new("/bin/true")
            .status()
            .expect("nothing is given up");
        assert!(status.success());
    });
}

#[test]
fn a_kernel_that_has_none_of_it_is_no_obstacle() {
    alone("a_kernel_that_has_none_of_it_is_no_obstacle", |place| {
        let unknown = [libc::SYS_landlock_create_ruleset, libc::SYS_seccomp];
        let hidden: BpfProgram = SeccompFilter::new(
            unknown.map(|call| (call, Vec::new())).into(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
            std::env::consts::ARCH
                .try_into()
                .expect("one that is known"),
        )
        .and_then(TryInto::try_into)
        .expect("a filter");
        seccompiler::apply_filter(&hidden).expect("this kernel has seccomp");
        let missing = |outcome| matches!(outcome, Ok(Outcome::Missing(_)));
        assert!(missing(files::restrict(User::Server)) && missing(calls::restrict(User::Server)));
        super::confine(User::Server).expect("what there is, is in force");
        reading(place.join("secret")).expect("this is not there");
        all_are_denied([tried("another root", rustix::process::chroot("/"))]);
    });
}

#[test]
fn a_run_that_looks_for_calls_that_the_list_lacks_ends_at_the_first() {
    let alone = "other_calls_are_out_of_reach_for_seccomp_alone";
    let output = child(alone, Path::new("/nowhere"))
        .env(VARIABLE, "kill")
        .output()
        .expect("the test can be run");
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    let expected = cfg!(debug_assertions).then_some(libc::SIGSYS);
    assert_eq!(signal, expected, "{output:?}");
}

/// What no test can try without `unsafe`, and what must never be added in passing.
#[test]
fn the_list_has_no_way_out() {
    let rules = calls::rules(User::Server).expect("it is sound");
    for call in [
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_pidfd_send_signal,
        libc::SYS_pidfd_getfd,
        libc::SYS_connect,
        libc::SYS_sendmmsg,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_fsopen,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_pivot_root,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_io_uring_setup,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_open_by_handle_at,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_fchmodat,
        libc::SYS_fsetxattr,
        libc::SYS_setuid,
        libc::SYS_setresuid,
        libc::SYS_capset,
        libc::SYS_seccomp,
        libc::SYS_personality,
    ] {
        assert!(!rules.contains_key(&call), "call {call}");
    }
    for call in [
        libc::SYS_clone,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_prctl,
        libc::SYS_ioctl,
        libc::SYS_fcntl,
        libc::SYS_socket,
        libc::SYS_tgkill,
    ] {
        assert!(!rules[&call].is_empty(), "call {call} with any arguments");
    }
}
