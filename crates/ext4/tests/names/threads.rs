//! Names that many threads change at once.

use pagefence_lock_order::primitives::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use pagefence_ext4::mkfs::Kind;
use pagefence_vfs::RenameMode;

use crate::kit::{self, FLAVOURS, Paths, close, open};

/// Directories thrown at each other: nobody waits for ever, and the tree stays a tree.
#[test]
fn renames_across_directories_from_many_threads() {
    for (kind, block_size, features) in [FLAVOURS[0], FLAVOURS[4], FLAVOURS[6]] {
        let device = kit::device(kind, block_size, features, 32 << 20);
        let fs = Arc::new(open(&device));
        for top in 0..4 {
            fs.mkdir(&format!("{top}")).unwrap();
            for below in 0..4 {
                fs.mkdir(&format!("{top}/{below}")).unwrap();
                fs.touch(&format!("{top}/f{below}")).unwrap();
            }
        }
        let done = AtomicU32::new(0);
        pagefence_lock_order::primitives::thread::scope(|scope| {
            for thread in 0..6_u32 {
                let (fs, done) = (&fs, &done);
                scope.spawn(move || {
                    let mut random = thread * 7919 + 1;
                    let mut next = |below: u32| {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (random >> 16) % below
                    };
                    for _ in 0..2500 {
                        let kind = if next(2) == 0 { "" } else { "f" };
                        let from = format!("{}/{kind}{}", next(4), next(4));
                        let to = match next(3) {
                            0 => format!("{}/{kind}{}", next(4), next(4)),
                            1 => format!("{}/{}/{kind}{}", next(4), next(4), next(4)),
                            _ => format!("{}/{}", next(4), next(4)),
                        };
                        let mode = match next(3) {
                            0 => RenameMode::EXCHANGE,
                            _ => RenameMode::NO_REPLACE,
                        };
                        if fs.mv_as(&from, &to, mode).is_ok() {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        let _ = fs.look(&to);
                    }
                });
            }
        });
        assert!(done.load(Ordering::Relaxed) > 100, "{done:?}");
        close(Arc::into_inner(fs).unwrap(), &device);
    }
}

/// Threads that make, link and remove the same few names.
#[test]
fn the_same_names_from_many_threads() {
    let device = kit::device(Kind::Ext4, 1024, "", 32 << 20);
    let fs = Arc::new(open(&device));
    fs.mkdir("d").unwrap();
    fs.mkdir("e").unwrap();
    pagefence_lock_order::primitives::thread::scope(|scope| {
        for thread in 0..6_u32 {
            let fs = &fs;
            scope.spawn(move || {
                for round in 0..2000_u32 {
                    let name = format!("d/{}", (round * 7 + thread) % 9);
                    let other = format!("e/{}", (round * 5 + thread) % 9);
                    let done = match (round + thread) % 6 {
                        0 => fs.touch(&name).map(|_| ()),
                        1 => fs.ln(&name, &other).map(|_| ()),
                        2 => fs.rm(&name),
                        3 => fs.mv(&other, &name),
                        4 => fs.mkdir(&other).map(|_| ()),
                        _ => fs.rmd(&other),
                    };
                    if let Err(error) = done {
                        let kind = kit::kind_of(&error);
                        assert!(
                            !matches!(kind.as_str(), "Corrupt" | "Io" | "ReadOnly"),
                            "{error}"
                        );
                    }
                }
            });
        }
    });
    close(Arc::into_inner(fs).unwrap(), &device);
}

/// A directory for each thread, and one for all.
#[test]
fn creates_and_unlinks_at_once() {
    let device = kit::device(Kind::Ext4, 4096, "", 64 << 20);
    let fs = Arc::new(open(&device));
    fs.mkdir("all").unwrap();
    pagefence_lock_order::primitives::thread::scope(|scope| {
        for thread in 0..4 {
            let fs = &fs;
            scope.spawn(move || {
                fs.mkdir(&format!("{thread}")).unwrap();
                for at in 0..800 {
                    fs.touch(&format!("{thread}/{at}")).unwrap();
                    fs.touch(&format!("all/{thread}-{at}")).unwrap();
                    if at % 2 == 0 {
                        fs.rm(&format!("{thread}/{at}")).unwrap();
                        fs.rm(&format!("all/{thread}-{at}")).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(fs.list("all").unwrap().len(), 1600);
    close(Arc::into_inner(fs).unwrap(), &device);
}
