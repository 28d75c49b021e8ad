//! Flags and projects: by the rules of the kernel, asked where there is one.

use pagefence_ext4_format::inode::InodeFlags;
use pagefence_vfs::{Error, FileSystem as _, Fsxattr, SetAttr, SetTime, Timestamp};

use crate::kernel::run;
use crate::support::{Image, debugfs_write, mount, root, user};

/// Tries each flag on a file: prints what is refused (by its number) or what the flags are then.
const TRY_FLAGS: &str = "
import array, errno, fcntl, os, sys
GET, SET = 0x80086601, 0x40086602
for path in sys.argv[1:]:
    fd = os.open(path, os.O_RDONLY)
    def get():
        flags = array.array('I', [0, 0])
        fcntl.ioctl(fd, GET, flags, True)
        return flags[0]
    before = get()
    for bit in range(32):
        try:
            fcntl.ioctl(fd, SET, array.array('I', [before ^ 1 << bit, 0]))
            print(get())
        except OSError as error:
            print(errno.errorcode[error.errno])
        try:
            fcntl.ioctl(fd, SET, array.array('I', [before, 0]))
        except OSError:
            pass
";

/// Flags that are not changed here, and are by the kernel or for other reasons not.
fn is_left_out(flag: InodeFlags) -> bool {
    flag.intersects(InodeFlags::JOURNAL_DATA | InodeFlags::CASEFOLD | InodeFlags::EOFBLOCKS)
}

#[test]
fn flags_are_set_and_refused_as_by_the_kernel() {
    let theirs = Image::new(&["-t", "ext4", "-b", "1024"]);
    let ours = theirs.copy();
    let files = ["a", "dir"];
    let answers = {
        let Some(kernel) = mount(&theirs, "rw") else {
            return;
        };
        let paths = files.map(|file| kernel.path(file).to_str().unwrap().to_owned());
        run("python3", &["-c", TRY_FLAGS, &paths[0], &paths[1]])
    };
    let mut answers = answers.lines();
    let mounted = ours.open();
    for file in files {
        let (id, before) = (mounted.id(file), mounted.attr(file).flags);
        for bit in 0..32 {
            let answer = answers.next().unwrap();
            let flag = InodeFlags::from_bits_retain(1 << bit);
            let set = mounted.fs.set_flags(id, before ^ flag.bits(), &root());
            if is_left_out(flag) {
                assert!(matches!(set, Err(Error::Unsupported(_))), "{file} {flag:?}");
                continue;
            }
            let outcome = match set {
                Ok(()) => mounted.attr(file).flags.to_string(),
                Err(Error::Unsupported(_)) => "ENOTSUP".to_owned(),
                Err(Error::NotPermitted) => "EPERM".to_owned(),
                Err(error) => error.to_string(),
            };
            assert_eq!(outcome, answer, "{file} {flag:?}");
            mounted.fs.set_flags(id, before, &root()).unwrap();
        }
        assert_eq!(mounted.attr(file).flags, before);
    }
    mounted.close();
    ours.assert_clean();
}

#[test]
fn what_is_immutable_or_only_grows_stays_as_it_is() {
    let image = Image::new(&["-t", "ext4", "-b", "1024"]);
    let mounted = image.open();
    let id = mounted.id("a");
    let before = mounted.attr("a").flags;
    let time = Timestamp::default();
    let changes = [
        (
            "mode",
            SetAttr {
                permissions: Some(0o600),
                ..SetAttr::default()
            },
        ),
        (
            "owner",
            SetAttr {
                uid: Some(1),
                ..SetAttr::default()
            },
        ),
        (
            "group",
            SetAttr {
                gid: Some(1),
                ..SetAttr::default()
            },
        ),
        (
            "size",
            SetAttr {
                size: Some(0),
                ..SetAttr::default()
            },
        ),
        (
            "time",
            SetAttr {
                modified: Some(SetTime::To(time)),
                ..SetAttr::default()
            },
        ),
    ];
    let touch = SetAttr {
        modified: Some(SetTime::Now),
        ..SetAttr::default()
    };
    let from_kernel = SetAttr {
        modified: Some(SetTime::To(time)),
        changed: Some(time),
        ..SetAttr::default()
    };
    mounted.set("a", "user.x", b"1").unwrap();
    for flag in [InodeFlags::IMMUTABLE, InodeFlags::APPEND] {
        let flags = before | flag.bits();
        let refused = mounted.fs.set_flags(id, flags, &user(1000, 1000, &[]));
        assert!(
            matches!(refused, Err(Error::NotPermitted)),
            "needs a privilege"
        );
        mounted.fs.set_flags(id, flags, &root()).unwrap();
        let attr = mounted.attr("a");
        for (what, change) in &changes {
            let refused = mounted.fs.set_attr(id, change, &root());
            assert!(
                matches!(refused, Err(Error::NotPermitted)),
                "{what} {flag:?}"
            );
        }
        assert!(matches!(
            mounted.set("a", "user.x", b"2"),
            Err(Error::NotPermitted)
        ));
        assert!(matches!(
            mounted.remove("a", "user.x"),
            Err(Error::NotPermitted)
        ));
        assert_eq!(mounted.attr("a"), attr, "{flag:?}");
        let touched = mounted.fs.set_attr(id, &touch, &root());
        assert_eq!(touched.is_ok(), flag == InodeFlags::APPEND);
        mounted.fs.set_attr(id, &from_kernel, &root()).unwrap();
        if flag == InodeFlags::IMMUTABLE {
            let more = flags | InodeFlags::NODUMP.bits();
            let refused = mounted.fs.set_flags(id, more, &root());
            assert!(
                matches!(refused, Err(Error::NotPermitted)),
                "nor other flags"
            );
        }
        mounted.fs.set_flags(id, before, &root()).unwrap();
    }
    mounted.set("a", "user.x", b"2").unwrap();
    mounted.close();
    image.assert_clean();
}

#[test]
fn xflags_and_projects() {
    let image = Image::new(&["-t", "ext4", "-b", "1024", "-O", "project"]);
    let mounted = image.open();
    let id = mounted.id("dir");
    let flags = mounted.attr("dir").flags;
    let wanted = Fsxattr {
        xflags: 0x200 | 0x80,
        project: 0x8000_0001,
        ..Fsxattr::default()
    };
    mounted.fs.set_fsxattr(id, &wanted, &root()).unwrap();
    assert_eq!(mounted.fs.fsxattr(id).unwrap(), wanted);
    let set = InodeFlags::PROJINHERIT | InodeFlags::NODUMP;
    assert_eq!(mounted.attr("dir").flags, flags | set.bits());
    for bad in [
        Fsxattr {
            xflags: 0x1,
            ..wanted
        },
        Fsxattr {
            extent_size: 4096,
            ..wanted
        },
    ] {
        let refused = mounted.fs.set_fsxattr(id, &bad, &root());
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{bad:?}");
    }
    let nobody = Fsxattr {
        project: u32::MAX,
        ..wanted
    };
    let refused = mounted.fs.set_fsxattr(id, &nobody, &root());
    assert!(matches!(refused, Err(Error::InvalidArgument)));
    assert_eq!(mounted.fs.fsxattr(id).unwrap(), wanted);
    mounted.close();
    image.assert_clean();

    let image = Image::new(&["-t", "ext4", "-b", "1024"]);
    let mounted = image.open();
    let id = mounted.id("a");
    let wanted = Fsxattr {
        project: 1,
        ..Fsxattr::default()
    };
    let refused = mounted.fs.set_fsxattr(id, &wanted, &root());
    assert!(matches!(refused, Err(Error::Unsupported(_))));
    let none = Fsxattr::default();
    mounted.fs.set_fsxattr(id, &none, &root()).unwrap();
}

/// A record whose extra fields end before the project's gets it, for which attributes move.
#[test]
fn a_record_grows_a_field_and_attributes_make_way() {
    let options = ["-t", "ext4", "-b", "1024", "-I", "256", "-O", "project"];
    for inline in [false, true] {
        let image = Image::new(&options);
        for file in ["b", "c"] {
            debugfs_write(
                &image.path,
                &format!("set_inode_field {file} extra_isize 28"),
            );
        }
        let mounted = image.open();
        // 128 - 28 bytes: a header, two entries and their ends, and a value.
        let most = if inline { 40 } else { 52 };
        mounted.set("b", "user.x", &[1; 20]).unwrap();
        mounted.set("b", "user.y", &vec![2; most - 20]).unwrap();
        let before = mounted.xattrs("b");
        assert_eq!(mounted.attr("b").blocks_512, 0, "all in the record");
        for file in ["b", "c"] {
            let id = mounted.id(file);
            let wanted = Fsxattr {
                project: 77,
                ..Fsxattr::default()
            };
            mounted.fs.set_fsxattr(id, &wanted, &root()).unwrap();
            assert_eq!(mounted.fs.fsxattr(id).unwrap().project, 77);
        }
        assert_eq!(mounted.xattrs("b"), before);
        let moved = mounted.attr("b").blocks_512 > 0;
        assert_eq!(moved, !inline, "only if they must");
        let created = mounted.attr("b").created;
        mounted.close();
        image.assert_clean();
        let mounted = image.open();
        assert_eq!(mounted.xattrs("b"), before);
        assert_eq!(mounted.attr("b").created, created);
        assert_eq!(mounted.fs.fsxattr(mounted.id("b")).unwrap().project, 77);
        if let Some(kernel) = mount(&image, "ro") {
            assert_eq!(crate::support::shown_by_kernel(&kernel.path("b")), before);
        }
    }
}
