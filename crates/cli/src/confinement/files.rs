//! Landlock: no file, no network, no other process but what is open already and what is listed here.

use anyhow::Context as _;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope, path_beneath_rules,
};

use super::{Outcome, User};

/// The rules that are asked for, of which the kernel enforces what it knows.
const RULES: ABI = ABI::V6;

/// What may be opened for reading: where the size of caches and the number of threads come from, what the
/// C library asks, and the process itself (a descriptor of its own memory for reading: /proc/self/fd).
const READ: [&str; 5] = [
    "/proc/self",
    "/proc/meminfo",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
];

/// What a server may open for reading and writing: one more queue of requests for each thread. Without the
/// right to mount it leads nowhere else.
const READ_AND_WRITE: [&str; 1] = ["/dev/fuse"];

/// Restricts the calling thread, and all that it starts from now on.
///
/// # Errors
/// The kernel has landlock and refuses.
pub(super) fn restrict(user: User) -> anyhow::Result<Outcome> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let read_and_write: &[&str] = match user {
        User::Server => &READ_AND_WRITE,
        User::Command | User::Client => &[],
    };
    let serving: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let rules = || -> Result<_, landlock::RulesetError> {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(RULES))?
            .handle_access(AccessNet::from_all(RULES))?
            .scope(Scope::from_all(RULES))?
            .create()?
            // Paths that do not exist are passed over.
            .add_rules(path_beneath_rules(READ, reading))?
            .add_rules(path_beneath_rules(read_and_write, serving))?
            .restrict_self()
    };
    let status = rules().context("landlock refuses")?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Outcome::InForce(
            "no file can be opened but its own /proc and /dev/fuse, none made or removed; no TCP; \
             no signals to others"
                .to_owned(),
        ),
        RulesetStatus::PartiallyEnforced => Outcome::Missing(format!(
            "this kernel enforces a part of it: {:?}",
            status.landlock
        )),
        RulesetStatus::NotEnforced => {
            Outcome::Missing(format!("this kernel has none: {:?}", status.landlock))
        }
    })
}
