//! What the kernel knows, and what becomes of it.

use std::fs::{self, File};
use std::path::Path;

use pagefence_lock_order::primitives::{Arc, thread};

use crate::common::mount;
use crate::memory_fs::{BARE, MemoryFs};
use crate::support::{drop_caches, dropping_caches_until, in_both_modes};
use crate::tree::ROOT;

/// Stats everything below `path`.
fn walk(path: &Path) -> usize {
    let mut seen = 1;
    if fs::symlink_metadata(path).expect("it is there").is_dir() {
        for entry in fs::read_dir(path).expect("it is a directory") {
            seen += walk(&entry.expect("entries are read").path());
        }
    }
    seen
}

#[test]
fn everything_that_was_known_is_forgotten_once() {
    in_both_modes(|mounted, _| {
        // Known by CREATE, MKDIR, SYMLINK, MKNOD, LINK, LOOKUP and READDIRPLUS, several times.
        for directory in 0..10 {
            let directory = mounted.join(format!("d{directory}"));
            fs::create_dir(&directory).expect("a directory");
            for file in 0..50 {
                fs::write(directory.join(format!("f{file}")), b"x").expect("a file");
            }
            std::os::unix::fs::symlink("f1", directory.join("s")).expect("a link");
            fs::hard_link(directory.join("f2"), directory.join("l")).expect("a link");
        }
        let planted = mounted.counters.plant("planted", b"");
        assert_eq!(walk(mounted.path()), 1 + 10 * 53 + 1);
        walk(mounted.path());
        let inodes = 10 * 52 + 1;
        let tree = || mounted.counters.tree.lock();
        assert_eq!(tree().nodes.len(), 1 + inodes);
        let before = tree().forgotten.clone();
        dropping_caches_until("all are forgotten", || tree().forgotten.len() == inodes);
        {
            let tree = tree();
            assert!(!tree.forgotten.contains_key(&ROOT.0));
            assert!(tree.forgotten.contains_key(&planted.0));
            // Others have the kernel drop its caches, too, also before.
            for (id, &times) in &tree.forgotten {
                let before = before.get(id).copied().unwrap_or(0);
                assert!(times <= before + 1, "{id} was forgotten twice");
            }
            assert_eq!(tree.nodes.len(), 1 + inodes, "they have names");
        }
        // And they are found again, and deleted once they have no name.
        assert_eq!(walk(mounted.path()), 1 + 10 * 53 + 1);
        fs::remove_dir_all(mounted.join("d3")).expect("it goes");
        dropping_caches_until("they are deleted", || tree().nodes.len() == 1 + inodes - 52);
    });
}

#[test]
fn threads_make_find_and_remove_the_same_names() {
    in_both_modes(|mounted, _| {
        thread::scope(|scope| {
            for thread in 0..4u32 {
                scope.spawn(move || {
                    for round in 0..300u32 {
                        let one = mounted.join(format!("n{}", (thread + round) % 5));
                        let other = mounted.join(format!("n{}", round % 7));
                        match (thread * 7 + round) % 6 {
                            0 => drop(fs::write(&one, b"text")),
                            1 => drop(fs::remove_file(&one)),
                            2 => drop(fs::rename(&one, &other)),
                            3 => drop(fs::hard_link(&one, &other)),
                            4 => drop(fs::read(&one)),
                            _ => assert!(fs::read_dir(mounted.path()).is_ok()),
                        }
                    }
                });
            }
        });
        // What was found is what is there, and what has no name goes.
        let listed = fs::read_dir(mounted.path()).expect("it is a directory");
        for entry in listed {
            let path = entry.expect("entries are read").path();
            let text = fs::read(&path).expect("it is there");
            assert!(text.is_empty() || text == b"text");
            fs::remove_file(&path).expect("it goes");
        }
        let left = || mounted.counters.tree.lock().nodes.len();
        dropping_caches_until("only the root is left", || left() == 1);
    });
}

#[test]
fn what_is_open_is_closed_before_the_end() {
    let Some(mounted) = mount(MemoryFs::new()) else {
        return;
    };
    let file = File::create(mounted.join("file")).expect("a file");
    let number = rustix::fs::fstat(&file).expect("it is open").st_dev;
    let counters = Arc::clone(&mounted.counters);
    // The connection is cut: nothing is closed by request.
    let minor = rustix::fs::minor(number);
    let abort = format!("/sys/fs/fuse/connections/{minor}/abort");
    if let Err(error) = fs::write(&abort, "1") {
        eprintln!("skipped: {abort} can't be written: {error}");
        return;
    }
    pagefence_fuse_front::unmount(mounted.path(), true).expect("it is mounted");
    let _ended = mounted.finish();
    assert_eq!(counters.tree.lock().open_at_the_end, Some(0));
    drop(file);
}

#[test]
fn an_entry_that_is_listed_without_attributes_forgets_no_other_lookup() {
    in_both_modes(|mounted, _| {
        let name = std::str::from_utf8(BARE).expect("text");
        let file = File::create(mounted.join(name)).expect("a file");
        let id = mounted.counters.named(name).expect("it was made");
        // The kernel forgets what it can't use of a READDIRPLUS.
        let listed = fs::read_dir(mounted.path()).expect("it is a directory");
        assert_eq!(listed.count(), 1);
        fs::remove_file(mounted.join(name)).expect("it goes");
        // FORGETs come in order, so that one behind it shows that it came.
        let other = mounted.counters.plant("other", b"");
        fs::metadata(mounted.join("other")).expect("it is there");
        let forgotten = |id: u64| mounted.counters.tree.lock().forgotten.get(&id).copied();
        dropping_caches_until("the other is forgotten", || forgotten(other.0).is_some());
        assert_eq!(forgotten(id.0), None, "it is open");
        drop(file);
        drop_caches();
        dropping_caches_until("it is forgotten", || forgotten(id.0) == Some(1));
    });
}
