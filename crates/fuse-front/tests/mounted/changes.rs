//! Attributes that change, and what the kernel shows of them.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pagefence_lock_order::primitives::atomic::Ordering;
use pagefence_lock_order::primitives::thread;
use pagefence_vfs::Timestamp;
use rustix::fs::{AtFlags, CWD, IFlags, StatxFlags, XattrFlags};

use crate::common::{Mounted, mount};
use crate::memory_fs::{MemoryFs, ROOT};

/// A file that changed last at `seconds`, on a mount that can be written.
fn mount_file(seconds: i64) -> Option<Mounted> {
    let mut fs = MemoryFs::new();
    fs.is_writable = true;
    let file = fs.bytes(ROOT, "file", b"");
    fs.attr_mut(file).changed = Timestamp {
        seconds,
        nanoseconds: 0,
    };
    mount(fs)
}

fn changed(path: &Path) -> i64 {
    fs::metadata(path).expect("it is there").ctime()
}

/// An ioctl says nothing of attributes to the kernel.
#[test]
fn flags_that_are_set_show_in_the_change_time() {
    let Some(mounted) = mount_file(1000) else {
        return;
    };
    let path = mounted.join("file");
    assert_eq!(changed(&path), 1000);
    let file = File::open(&path).expect("it opens");
    rustix::fs::ioctl_setflags(&file, IFlags::NODUMP).expect("they are set");
    assert_eq!(changed(&path), 1001);
}

/// Attributes that were read before a change and come to the kernel after it do not stay.
#[test]
fn an_answer_that_is_out_of_date_is_not_kept() {
    let Some(mounted) = mount_file(1000) else {
        return;
    };
    let path = mounted.join("file");
    assert_eq!(changed(&path), 1000);
    let counters = &mounted.counters;
    counters.is_slow.store(true, Ordering::SeqCst);
    let slow = {
        let path = path.clone();
        thread::spawn("slow", move || {
            let flags = AtFlags::STATX_FORCE_SYNC;
            rustix::fs::statx(CWD, &path, flags, StatxFlags::BASIC_STATS).map(drop)
        })
        .expect("a thread")
    };
    while counters.waiting.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let set = rustix::fs::setxattr(&path, "user.name", b"value", XattrFlags::empty());
    counters.is_slow.store(false, Ordering::SeqCst);
    set.expect("it is set");
    slow.join().expect("no panic").expect("an answer");
    assert_eq!(changed(&path), 1001);
}

/// Blocks are counted when data is written back, which no request tells.
#[test]
fn what_changed_lately_is_asked_for_again() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("a clock").as_secs() as i64;
    for (seconds, due) in [(now, 8), (1000, 0)] {
        let Some(mounted) = mount_file(seconds) else {
            return;
        };
        // What is open stays in the kernel's memory.
        let file = File::open(mounted.join("file")).expect("it opens");
        let blocks = || file.metadata().expect("it is there").blocks();
        assert_eq!(blocks(), 0);
        mounted.counters.sectors.store(8, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(blocks(), due);
    }
}

/// The kernel tells a caller's first group alone, and takes off a set-group-id bit that no group of
/// the caller allows: one that it leaves is allowed.
#[test]
fn a_set_group_id_bit_that_the_kernel_allows_is_set() {
    let mut fs = MemoryFs::new();
    fs.is_writable = true;
    let file = fs.bytes(ROOT, "file", b"");
    let attr = fs.attr_mut(file);
    (attr.uid, attr.gid) = (65_534, 4242);
    let Some(mounted) = mount(fs) else { return };
    let groups = "--groups=4242";
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        groups,
        "--",
        "chmod",
        "2755",
    ]);
    match command.arg(mounted.join("file")).output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => eprintln!("skipped: setpriv can't be run: {error}"),
    }
}
