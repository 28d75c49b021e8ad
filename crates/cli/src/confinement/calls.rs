//! Seccomp: the system calls that serving takes, with the arguments that it takes, and no others.
//!
//! What is not listed fails with EPERM. It does not end the process: a C library that comes to use a new
//! call for something harmless would otherwise end the server, with what is not yet written, for nothing; and who has
//! taken over the server gains nothing by an error. Builds with debug assertions end the process instead if
//! `PAGEFENCE_CONFINED=kill` is in the environment, so that a run of the tests shows what the list lacks.
//!
//! clone3(2) fails with ENOSYS, as where it doesn't exist: its flags are in memory, where no filter sees
//! them. The C library then uses clone(2), which is let through for threads alone.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow};
use rustix::io::Errno;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    apply_filter_all_threads,
};

use super::{Outcome, User, VARIABLE};

/// Calls with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // Descriptors that are open, the image and /dev/fuse above all.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_flock,
    libc::SYS_fchmod,
    libc::SYS_splice,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_close,
    // Files by their names: which ones is landlock's to say.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    // Memory, but for what is executable.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_munlock,
    libc::SYS_brk,
    libc::SYS_memfd_create,
    // Threads, and waiting.
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    // Its own signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Sockets that are connected, or that others connect to.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // What it is, and how much there is.
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    // Older ones, which libraries still make where they exist.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
];

/// Installs the filters, for all threads.
///
/// # Errors
/// The kernel has seccomp and refuses.
pub(super) fn restrict(user: User) -> anyhow::Result<Outcome> {
    if architecture().is_none() {
        return Ok(Outcome::Missing(
            "there is no list of calls for this architecture".to_owned(),
        ));
    }
    let mismatch = if cfg!(debug_assertions)
        && std::env::var_os(VARIABLE).is_some_and(|value| value == "kill")
    {
        SeccompAction::KillProcess
    } else {
        SeccompAction::Errno(errno(Errno::PERM))
    };
    let rules = rules(user)?;
    let left = rules.len();
    for program in programs(rules, mismatch)? {
        match apply_filter_all_threads(&program) {
            Ok(()) => {}
            Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error))
                if is_missing(&error) =>
            {
                return Ok(Outcome::Missing("this kernel has none".to_owned()));
            }
            Err(error) => return Err(anyhow!(error).context("seccomp refuses")),
        }
    }
    Ok(Outcome::InForce(format!(
        "{left} system calls are left; no process can be started, and no memory made executable"
    )))
}

fn architecture() -> Option<TargetArch> {
    TargetArch::try_from(std::env::consts::ARCH).ok()
}

/// The filters, in the order in which they are to be installed: of two errors the later filter's counts, but
/// no call may be made after the list that it lacks. A call that `rules` do not list comes to `mismatch`.
///
/// # Errors
/// The rules make no filter, or none for this architecture.
pub(super) fn programs(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    mismatch: SeccompAction,
) -> anyhow::Result<[BpfProgram; 2]> {
    let architecture = architecture().context("there is no filter for this architecture")?;
    let compile = |rules, mismatch, matched| -> anyhow::Result<BpfProgram> {
        Ok(SeccompFilter::new(rules, mismatch, matched, architecture)?.try_into()?)
    };
    let hidden = compile(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno(Errno::NOSYS)),
    )
    .context("the list of hidden calls is not understood")?;
    let allowed = compile(rules, mismatch, SeccompAction::Allow)
        .context("the list of calls is not understood")?;
    Ok([hidden, allowed])
}

fn is_missing(error: &std::io::Error) -> bool {
    [Errno::NOSYS, Errno::INVAL]
        .map(|errno| Some(errno.raw_os_error()))
        .contains(&error.raw_os_error())
}

fn errno(errno: Errno) -> u32 {
    errno.raw_os_error().unsigned_abs()
}

/// The list of `user`: each call with the alternatives of its arguments; none of those stands for any.
pub(super) fn rules(user: User) -> anyhow::Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_clone3, Vec::new());

    // Threads: the memory and the signals of this process, and no namespaces.
    const THREAD: i32 = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    const NAMESPACES: i32 = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    rules.insert(
        libc::SYS_clone,
        vec![all([masked(0, THREAD | NAMESPACES, THREAD)])?],
    );
    // No memory that was ever written is run.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![all([masked(2, libc::PROT_EXEC, 0)])?]);
    }
    // The names of threads, and of memory.
    const PR_SET_VMA: i32 = 0x5356_4d41;
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME, PR_SET_VMA];
    rules.insert(libc::SYS_prctl, one_of(0, &names)?);
    // To end itself.
    let own = std::process::id().cast_signed();
    rules.insert(libc::SYS_tgkill, one_of(0, &[own])?);
    // Limits are read, and not changed: the new limit is null.
    let no_new_limit = SeccompCondition::new(2, Qword, Eq, 0);
    rules.insert(libc::SYS_prlimit64, vec![all([int(0, 0), no_new_limit])?]);
    // Not who is to get signals, and which.
    let controls = [
        libc::F_DUPFD,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
    ];
    rules.insert(libc::SYS_fcntl, one_of(1, &controls)?);
    // Another queue of requests; sockets that don't wait; all that there is for faults of maps.
    const FUSE_DEV_IOC_CLONE: i32 = 0x8004_e500_u32.cast_signed();
    const FIONBIO: i32 = 0x5421;
    let of_user = user.ioctls().iter().map(|number| number.cast_signed());
    let controls: Vec<i32> = of_user.chain([FUSE_DEV_IOC_CLONE, FIONBIO]).collect();
    let mut controls = one_of(1, &controls)?;
    controls.push(all([masked(1, 0xff00, 0xaa00)])?);
    rules.insert(libc::SYS_ioctl, controls);
    // Sockets of this machine, connected before anything is sent: others could send to any name.
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        let mut kinds = Vec::new();
        for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET] {
            kinds.push(all([int(0, libc::AF_UNIX), masked(1, 0xf, kind)])?);
        }
        rules.insert(call, kinds);
    }
    // To whom it is connected: there is no address.
    rules.insert(libc::SYS_sendto, vec![all([int(5, 0)])?]);
    Ok(rules)
}

/// A condition, or why there can't be one.
type Condition = Result<SeccompCondition, seccompiler::BackendError>;

/// That argument `index`, an `int`, is `value`.
fn int(index: u8, value: i32) -> Condition {
    SeccompCondition::new(index, Dword, Eq, u64::from(value.cast_unsigned()))
}

/// That argument `index` has the bits `value` of those in `mask`.
fn masked(index: u8, mask: i32, value: i32) -> Condition {
    let mask = MaskedEq(u64::from(mask.cast_unsigned()));
    SeccompCondition::new(index, Dword, mask, u64::from(value.cast_unsigned()))
}

fn all<const N: usize>(conditions: [Condition; N]) -> anyhow::Result<SeccompRule> {
    let conditions = conditions.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(SeccompRule::new(conditions)?)
}

fn one_of(index: u8, values: &[i32]) -> anyhow::Result<Vec<SeccompRule>> {
    values
        .iter()
        .map(|&value| all([int(index, value)]))
        .collect()
}
