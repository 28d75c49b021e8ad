//! Names when there is no space, and names that have to be durable at once.

use std::sync::Arc;

use pagefence_ext4::mkfs::{Contents, Kind, Parameters};
use pagefence_ext4::{FileSystem, MountOptions};
use pagefence_vfs::{Credentials, Error, FileSystem as _, NewKind, RenameMode};

use crate::kit::{self, Paths, close, fails, new, open, root, user};

/// Makes directories or long links until there is no space; says how many.
fn fill(fs: &FileSystem, prefix: &str) -> u32 {
    for at in 0..100_000 {
        match make(fs, prefix, at) {
            Ok(()) => {}
            Err(Error::NoSpace) => return at,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("there is no end");
}

fn make(fs: &FileSystem, prefix: &str, at: u32) -> Result<(), Error> {
    let target = vec![b't'; 900];
    let kind = match at % 3 {
        0 => NewKind::Symlink(&target),
        _ => NewKind::Directory,
    };
    let name = format!("{prefix}{at}{}", "z".repeat(120));
    fs.create(fs.root(), name.as_bytes(), &new(kind, 0o755), &root())
        .map(|_| ())
}

/// A full file system says so before anything changes, and takes again what was given back.
#[test]
fn a_full_file_system() {
    for (kind, inodes) in [
        (Kind::Ext2, 8000),
        (Kind::Ext4, 8000),
        (Kind::Ext2, 300),
        (Kind::Ext4, 300),
    ] {
        let mut parameters = Parameters::new(kind);
        parameters.block_size = Some(1024);
        parameters.contents = Contents::Zeros;
        parameters.inodes = Some(inodes);
        let device = kit::format(&parameters, 8 << 20);
        let fs = open(&device);
        let made = fill(&fs, "a");
        assert!(made > 200, "{made}");
        fails(make(&fs, "a", made), "NoSpace");
        for at in (0..made).filter(|at| at % 3 != 0).take(100) {
            fs.rmd(&format!("a{at}{}", "z".repeat(120))).unwrap();
        }
        // What was freed can be had after a commit, which is asked for.
        let again = fill(&fs, "b");
        assert!(again >= 70, "{again}");
        close(fs, &device);
    }
}

/// What is kept for root is not for others.
#[test]
fn the_reserve() {
    let mut parameters = Parameters::new(Kind::Ext4);
    parameters.block_size = Some(1024);
    parameters.contents = Contents::Zeros;
    parameters.reserved_percent = 20;
    parameters.inodes = Some(9000);
    let device = kit::format(&parameters, 8 << 20);
    let fs = open(&device);
    let target = [b't'; 900];
    let link = new(NewKind::Symlink(&target), 0o777);
    let mut failed = None;
    for at in 0..100_000 {
        let name = format!("{at}");
        if let Err(error) = fs.create(fs.root(), name.as_bytes(), &link, &user(5, 5)) {
            failed = Some(kit::kind_of(&error));
            break;
        }
    }
    assert_eq!(failed.as_deref(), Some("NoSpace"));
    fs.create(fs.root(), b"root's", &link, &root()).unwrap();
    // Nor are blocks of directories, for more names.
    let file = fs.look("0").unwrap().id;
    let name = |at: u32| format!("{at}{}", "z".repeat(200));
    let linked = |who: &Credentials| {
        let link = |at: &u32| {
            fs.link(file, fs.root(), name(*at).as_bytes(), who)
                .map(drop)
        };
        let mut failed = (0..).map(|at| link(&at)).skip_while(|linked| match linked {
            Ok(()) | Err(Error::Exists) => true,
            Err(_) => false,
        });
        kit::kind_of(&failed.next().unwrap().unwrap_err())
    };
    assert_eq!(linked(&user(5, 5)), "NoSpace");
    let left = fs.stat_fs().unwrap().blocks_free;
    assert!(left > 1000, "{left}");
    let long = |at: u32| format!("r{at}{}", "z".repeat(200));
    let rename = |at: u32, mode| {
        let (old, new) = (format!("{at}"), long(at));
        fs.rename(fs.root(), old.as_bytes(), fs.root(), new.as_bytes(), mode)
    };
    let full = (1..1000).find(|at| rename(*at, RenameMode::empty()).is_err());
    let at = full.expect("it has to grow");
    fails(rename(at, RenameMode::empty()), "NoSpace");
    rename(at, RenameMode::USE_RESERVE).unwrap();
    let links = fs.look("0").unwrap().links;
    for at in 0..100 {
        let name = format!("root's {at}{}", "z".repeat(200));
        fs.link(file, fs.root(), name.as_bytes(), &root()).unwrap();
    }
    assert_eq!(fs.look("0").unwrap().links, links + 100);
    close(fs, &device);
}

/// A directory whose changes are synchronous: each is on disk when it is told.
#[test]
fn synchronous_directories() {
    for kind in [Kind::Ext2, Kind::Ext4] {
        let device = kit::device(kind, 1024, "", 16 << 20);
        let fs = open(&device);
        let dirsync = 0x1_0000;
        let made = fs.mkdir("d").unwrap();
        fs.set_flags(made.id, made.flags | dirsync, &root())
            .unwrap();
        fs.mkdir("e").unwrap();
        let seen = |path: &str| {
            // As after a crash.
            let image = Arc::new(device.fork());
            let options = MountOptions {
                write: true,
                cache: Some(16 << 20),
                ..MountOptions::default()
            };
            let fs = FileSystem::open(image as Arc<_>, &options).unwrap();
            fs.look(path).is_ok()
        };
        fs.touch("d/f").unwrap();
        assert!(seen("d/f"));
        fs.mkdir("d/sub").unwrap();
        assert!(seen("d/sub"));
        assert_ne!(fs.look("d/sub").unwrap().flags & dirsync, 0, "inherited");
        fs.ln("d/f", "d/g").unwrap();
        assert!(seen("d/g"));
        fs.mv("d/g", "e/g").unwrap();
        assert!(seen("e/g") && !seen("d/g"));
        fs.rm("d/f").unwrap();
        assert!(!seen("d/f"));
        fs.rmd("d/sub").unwrap();
        assert!(!seen("d/sub"));
        close(fs, &device);
    }
}
