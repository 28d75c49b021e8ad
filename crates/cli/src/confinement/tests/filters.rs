//! What the filters make of calls and arguments that no safe code can try: the programs that the kernel is
//! given are run here as the kernel runs them, over every value that matters.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, sock_filter};

use super::super::{User, calls};
use super::{PLACE, child};

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;

/// How the kernel numbers this architecture (AUDIT_ARCH_*).
fn architecture() -> u32 {
    match std::env::consts::ARCH {
        "x86_64" => 0xc000_003e,
        "aarch64" => 0xc000_00b7,
        "riscv64" => 0xc000_00f3,
        other => panic!("there are no filters for {other}"),
    }
}

/// The filters, in the order in which they are installed.
struct Filters([BpfProgram; 2]);

impl Filters {
    /// A server's.
    fn new() -> Self {
        Self::of(User::Server)
    }

    fn of(user: User) -> Self {
        let denied = SeccompAction::Errno(Errno::PERM.raw_os_error().unsigned_abs());
        Self(calls::programs(calls::rules(user).expect("sound"), denied).expect("sound"))
    }

    /// What the kernel does: of what the filters say, the severest; of two errors the later filter's.
    fn verdict_of(&self, architecture: u32, number: i64, arguments: &[u64]) -> u32 {
        let mut data = [0; 64];
        let number = i32::try_from(number).expect("a call");
        data[..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&architecture.to_ne_bytes());
        for (place, argument) in data[16..].chunks_exact_mut(8).zip(arguments) {
            place.copy_from_slice(&argument.to_ne_bytes());
        }
        let said = self.0.iter().rev().map(|program| returned(program, &data));
        said.min_by_key(|said| (said & 0xffff_0000).cast_signed())
            .expect("there are two")
    }

    fn verdict(&self, number: i64, arguments: &[u64]) -> u32 {
        self.verdict_of(architecture(), number, arguments)
    }

    /// Whether a call is let through; if not, it must fail with EPERM.
    fn allow(&self, number: i64, arguments: &[u64]) -> bool {
        match self.verdict(number, arguments) {
            ALLOW => true,
            denied => {
                let permission = Errno::PERM.raw_os_error().unsigned_abs();
                assert_eq!(denied, ERRNO | permission, "call {number} {arguments:x?}");
                false
            }
        }
    }
}

/// What `program` returns for a call, of which `data` is what the kernel tells (struct seccomp_data).
fn returned(program: &[sock_filter], data: &[u8; 64]) -> u32 {
    let (mut value, mut at) = (0_u32, 0_usize);
    loop {
        let step = &program[at];
        at += 1;
        let mut jump_if = |is_true| at += usize::from(if is_true { step.jt } else { step.jf });
        match step.code {
            0x05 => at += step.k as usize,
            0x06 => return step.k,
            0x15 => jump_if(value == step.k),
            0x25 => jump_if(value > step.k),
            0x35 => jump_if(value >= step.k),
            0x20 => {
                let word = &data[step.k as usize..][..4];
                value = u32::from_ne_bytes(word.try_into().expect("4 bytes"));
            }
            0x54 => value &= step.k,
            code => panic!("an instruction that is not known here: {code:#x}"),
        }
    }
}

#[test]
fn no_memory_becomes_executable() {
    let filters = Filters::new();
    let executable = u64::try_from(libc::PROT_EXEC).expect("positive");
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        for protection in 0..0x1000_u64 {
            // What is not understood, in whichever half, is the kernel's to refuse.
            for high in [0, 1 << 24, 1 << 32, u64::MAX << 12] {
                let protection = protection | high;
                assert_eq!(
                    filters.allow(call, &[0, 4096, protection]),
                    protection & executable == 0,
                    "call {call}, protection {protection:x}"
                );
            }
        }
    }
    for call in [
        libc::SYS_pkey_mprotect,
        libc::SYS_shmat,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_personality,
    ] {
        assert!(!filters.allow(call, &[0; 6]), "call {call}");
    }
}

#[test]
fn ioctls_are_those_of_the_connection_of_faults_and_of_a_check() {
    let (clone, non_blocking) = (0x8004_e500, 0x5421);
    let (begin, news) = (0x8008_f706, 0xbfe0_f707);
    for user in [User::Server, User::Command, User::Client] {
        let filters = Filters::of(user);
        let own: &[u64] = match user {
            User::Client => &[clone, non_blocking, begin, news],
            User::Server | User::Command => &[clone, non_blocking],
        };
        for low in 0..=0xffff_u64 {
            // As they are, with sizes and directions, and with what the kernel does not look at.
            for high in [0, 0x8004, 0x8008, 0xbfe0, 0xc020, 0x7_0000] {
                let number = low | high << 16;
                let expected = own.contains(&(number & 0xffff_ffff)) || low >> 8 == 0xaa;
                let allowed = filters.allow(libc::SYS_ioctl, &[0, number]);
                assert_eq!(allowed, expected, "{user:?}: ioctl {number:x}");
            }
        }
    }
}

#[test]
fn fcntl_sends_no_signals_and_prctl_names() {
    let filters = Filters::new();
    // F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS.
    let controls = [0, 1, 2, 3, 4, 1030, 1033, 1034];
    for control in 0..5000 {
        let allowed = filters.allow(libc::SYS_fcntl, &[0, control]);
        assert_eq!(allowed, controls.contains(&control), "fcntl {control}");
    }
    // PR_SET_NAME, PR_GET_NAME.
    for option in 0..5000 {
        let allowed = filters.allow(libc::SYS_prctl, &[option]);
        assert_eq!(allowed, [15, 16].contains(&option), "prctl {option}");
    }
}

#[test]
fn threads_are_started_and_nothing_else() {
    let filters = Filters::new();
    // CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | SETTLS | PARENT_SETTID | CHILD_CLEARTID.
    let thread = 0x003d_0f00;
    assert!(filters.allow(libc::SYS_clone, &[thread]));
    let needed = [libc::CLONE_VM, libc::CLONE_SIGHAND, libc::CLONE_THREAD];
    for flag in needed.map(|flag| u64::from(flag.cast_unsigned())) {
        assert!(!filters.allow(libc::SYS_clone, &[thread & !flag]));
    }
    let (child, lent) = (libc::SIGCHLD, libc::CLONE_VM | libc::CLONE_VFORK);
    for flags in [child, child | lent] {
        let flags = u64::from(flags.cast_unsigned());
        assert!(!filters.allow(libc::SYS_clone, &[flags]), "{flags:x}");
    }
    // CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
    for bit in [17, 25, 26, 27, 28, 29, 30] {
        let flags = thread | 1 << bit;
        assert!(!filters.allow(libc::SYS_clone, &[flags]), "{flags:x}");
    }
    let unknown = ERRNO | Errno::NOSYS.raw_os_error().unsigned_abs();
    assert_eq!(filters.verdict(libc::SYS_clone3, &[]), unknown);
}

#[test]
fn sockets_are_of_this_machine_and_send_to_whom_they_are_connected() {
    let filters = Filters::new();
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        for family in 0..64 {
            for kind in 0..16 {
                for flags in [0, 0o4000, 0o2_000_000] {
                    // AF_UNIX; SOCK_STREAM, SOCK_SEQPACKET.
                    let expected = family == 1 && [1, 5].contains(&kind);
                    let allowed = filters.allow(call, &[family, kind | flags]);
                    assert_eq!(allowed, expected, "family {family}, kind {kind}");
                }
            }
        }
    }
    assert!(filters.allow(libc::SYS_sendto, &[3, 0x1000, 1, 0, 0, 0]));
    assert!(!filters.allow(libc::SYS_sendto, &[3, 0x1000, 1, 0, 0x1000, 110]));
}

#[test]
fn others_are_out_of_reach_by_their_numbers() {
    let filters = Filters::new();
    let own = u64::from(std::process::id());
    assert!(filters.allow(libc::SYS_tgkill, &[own, own, 6]));
    assert!(!filters.allow(libc::SYS_tgkill, &[own + 1, own + 1, 6]));
    assert!(filters.allow(libc::SYS_prlimit64, &[0, 7, 0, 0x1000]));
    assert!(!filters.allow(libc::SYS_prlimit64, &[own + 1, 7, 0, 0x1000]));
    for limit in [1, 0x1000, 1 << 32] {
        assert!(!filters.allow(libc::SYS_prlimit64, &[0, 7, limit]));
    }
}

#[test]
fn calls_by_other_numbers_are_not_made() {
    let filters = Filters::new();
    let listed = calls::rules(User::Server).expect("sound");
    for number in (0..1000).filter(|number| !listed.contains_key(number)) {
        assert!(!filters.allow(number, &[0; 6]), "call {number}");
    }
    for &number in listed.keys() {
        if cfg!(target_arch = "x86_64") {
            // The same call of x32, and a number of i386.
            assert!(
                !filters.allow(number | 0x4000_0000, &[0; 6]),
                "call {number}"
            );
            let ended = filters.verdict_of(0x4000_0003, number, &[0; 6]);
            assert_eq!(ended, 0x8000_0000, "call {number}: the process ends");
        }
    }
}

/// The kernel does what the programs say: a loader needs memory with code.
#[test]
fn a_program_whose_memory_is_never_executable_does_not_start() {
    const NAME: &str = "filters::a_program_whose_memory_is_never_executable_does_not_start";
    let memory = [libc::SYS_mmap, libc::SYS_mprotect].map(|call| (call, Vec::new()));
    if let Some(place) = std::env::var_os(PLACE) {
        let mut rules = calls::rules(User::Server).expect("sound");
        for call in [
            libc::SYS_execve,
            libc::SYS_set_tid_address,
            libc::SYS_faccessat,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_arch_prctl,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_access,
        ] {
            rules.insert(call, Vec::new());
        }
        if place == "executable" {
            rules.extend(BTreeMap::from(memory));
        }
        let denied = SeccompAction::Errno(Errno::PERM.raw_os_error().unsigned_abs());
        for program in calls::programs(rules, denied).expect("sound") {
            seccompiler::apply_filter(&program).expect("this kernel has seccomp");
        }
        panic!("{}", Command::new("/bin/true").exec());
    }
    let run = |place: &str| {
        child(NAME, Path::new(place))
            .output()
            .expect("it can be run")
    };
    let free = run("executable");
    assert_eq!(free.status.code(), Some(0), "{free:?}");
    assert!(
        !String::from_utf8_lossy(&free.stdout).contains("passed"),
        "{free:?}"
    );
    let confined = run("confined");
    // The loader's own: a library can't be mapped.
    assert_eq!(confined.status.code(), Some(127), "{confined:?}");
}
