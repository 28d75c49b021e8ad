//! How much memory there is.

use std::path::{Path, PathBuf};

/// Where the kernel's numbers are not to be had.
const FALLBACK: u64 = 256 << 20;

/// The cache's size by default: a quarter of memory, or of the control group's limit.
pub(crate) fn default_cache() -> u64 {
    let memory = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total(&text))
        .map_or(4 * FALLBACK, |kib| kib.saturating_mul(1024));
    group_limit().map_or(memory, |limit| limit.min(memory)) / 4
}

/// MemTotal of `/proc/meminfo`, in KiB.
fn total(meminfo: &str) -> Option<u64> {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// The smallest memory limit of this process's control group and those above it, in bytes.
fn group_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_below(Path::new("/sys/fs/cgroup"), &groups)
}

fn limit_below(root: &Path, groups: &str) -> Option<u64> {
    let unified = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let legacy = groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers
            .split(',')
            .any(|name| name == "memory")
            .then_some(path)
    });
    let of = |base: PathBuf, path: &str, file: &str| {
        let mut limits = Vec::new();
        let mut group = base.join(path.trim_start_matches('/'));
        loop {
            limits.extend(
                std::fs::read_to_string(group.join(file))
                    .ok()
                    .and_then(|text| text.trim().parse::<u64>().ok()),
            );
            if group == base || !group.pop() {
                break;
            }
        }
        limits.into_iter().min()
    };
    let unified = unified.and_then(|path| of(root.to_path_buf(), path, "memory.max"));
    let legacy = legacy.and_then(|path| of(root.join("memory"), path, "memory.limit_in_bytes"));
    unified.into_iter().chain(legacy).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_total_is_read() {
        assert_eq!(
            total("MemTotal:       24560000 kB\nMemFree: 1 kB\n"),
            Some(24_560_000)
        );
        assert_eq!(total("nothing"), None);
        assert!(default_cache() > 0);
    }

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let root = tempfile::tempdir().expect("a directory");
        let inner = root.path().join("a/b");
        std::fs::create_dir_all(&inner).expect("groups");
        std::fs::write(root.path().join("a/memory.max"), "1000\n").expect("limit");
        std::fs::write(inner.join("memory.max"), "max\n").expect("limit");
        assert_eq!(limit_below(root.path(), "0::/a/b\n"), Some(1000));
        std::fs::write(inner.join("memory.max"), "500\n").expect("limit");
        assert_eq!(limit_below(root.path(), "0::/a/b\n"), Some(500));
        let legacy = root.path().join("memory/g");
        std::fs::create_dir_all(&legacy).expect("groups");
        std::fs::write(legacy.join("memory.limit_in_bytes"), "77").expect("limit");
        assert_eq!(limit_below(root.path(), "5:cpu,memory:/g\n"), Some(77));
    }
}
