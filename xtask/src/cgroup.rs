//! A memory control group: what processes in it take together is limited, and the kernel kills one
//! that needs more.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Where control groups are, and what a group's files are called there.
struct Hierarchy {
    root: PathBuf,
    limit: &'static str,
    swap_limit: &'static str,
    /// Whether that limit is one of memory and swap space together.
    swap_has_memory: bool,
    events: &'static str,
}

/// A group of its own, which goes with this value; processes in it then belong to its parent again.
pub(crate) struct MemoryCgroup {
    directory: PathBuf,
    hierarchy: Hierarchy,
}

impl Hierarchy {
    /// cgroup2's unless the memory controller belongs to a hierarchy of version 1.
    fn find() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mounted = |wanted: fn(&str, &str) -> bool| {
            mounts.lines().find_map(|line| {
                let mut words = line.split(' ').skip(1);
                let (at, kind, options) = (words.next()?, words.next()?, words.next()?);
                wanted(kind, options).then(|| PathBuf::from(at))
            })
        };
        let of_version_1 = |kind: &str, options: &str| {
            kind == "cgroup" && options.split(',').any(|option| option == "memory")
        };
        if let Some(root) = mounted(of_version_1) {
            return Ok(Self {
                root,
                limit: "memory.limit_in_bytes",
                swap_limit: "memory.memsw.limit_in_bytes",
                swap_has_memory: true,
                events: "memory.oom_control",
            });
        }
        let Some(root) = mounted(|kind, _| kind == "cgroup2") else {
            bail!("no control groups are mounted");
        };
        let delegated = fs::read_to_string(root.join("cgroup.subtree_control"))?;
        if !delegated.split_whitespace().any(|name| name == "memory") {
            bail!("control groups do not limit memory here");
        }
        Ok(Self {
            root,
            limit: "memory.max",
            swap_limit: "memory.swap.max",
            swap_has_memory: false,
            events: "memory.events",
        })
    }
}

impl MemoryCgroup {
    /// A group that `limit_bytes` are for.
    ///
    /// # Errors
    ///
    /// There are no control groups, they do not limit memory, or it takes other rights to make one.
    pub(crate) fn new(limit_bytes: u64) -> Result<Self> {
        let hierarchy = Hierarchy::find()?;
        let directory = (0..)
            .map(|number| {
                let name = format!("pagefence-{}-{number}", std::process::id());
                hierarchy.root.join(name)
            })
            .find(|directory| !directory.exists())
            .context("each name is taken")?;
        fs::create_dir(&directory).context("a control group can't be made")?;
        let group = Self {
            directory,
            hierarchy,
        };
        group
            .write(group.hierarchy.limit, &limit_bytes.to_string())
            .context("a control group's memory can't be limited")?;
        // Where the kernel does not count swap space there is no such file.
        if group.directory.join(group.hierarchy.swap_limit).exists() {
            let bytes = if group.hierarchy.swap_has_memory {
                limit_bytes
            } else {
                0
            };
            group
                .write(group.hierarchy.swap_limit, &bytes.to_string())
                .context("a control group's swap space can't be limited")?;
        }
        Ok(group)
    }

    /// Takes a process in: what it takes from now on counts; what it has does not.
    pub(crate) fn add(&self, process: u32) -> Result<()> {
        self.write("cgroup.procs", &process.to_string())
            .context("a process can't be taken into a control group")
    }

    /// How many processes the kernel killed in it.
    pub(crate) fn killed(&self) -> Result<u64> {
        let events = fs::read_to_string(self.directory.join(self.hierarchy.events))?;
        events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .context("a control group does not say whom it killed")?
            .parse()
            .context("a number of processes")
    }

    fn write(&self, file: &str, what: &str) -> Result<()> {
        fs::write(self.directory.join(file), what).map_err(Into::into)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        let up = self.directory.parent().unwrap_or(Path::new("/"));
        let members = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        for member in members.lines() {
            let _ = fs::write(up.join("cgroup.procs"), member);
        }
        if let Err(error) = fs::remove_dir(&self.directory) {
            eprintln!("{} can't be removed: {error}", self.directory.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::command;

    /// Whoever takes more than there is, is killed; the group says so, and goes.
    #[test]
    fn who_takes_more_than_there_is_is_killed() {
        let group = match MemoryCgroup::new(8 << 20) {
            Ok(group) => group,
            Err(error) => {
                eprintln!("skipped: {error:#}");
                return;
            }
        };
        assert_eq!(group.killed().unwrap(), 0);
        // It waits for its group before it takes 64 MiB.
        let hungry = "import sys; sys.stdin.read(1); len(bytearray(b'x') * (64 << 20))";
        let mut child = command("python3", ["-c", hungry])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        group.add(child.id()).unwrap();
        drop(child.stdin.take());
        assert!(!child.wait().unwrap().success());
        assert_eq!(group.killed().unwrap(), 1);
        let directory = group.directory.clone();
        drop(group);
        assert!(!directory.exists());
    }
}
