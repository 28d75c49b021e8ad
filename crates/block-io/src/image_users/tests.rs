//! Tests against a made-up sysfs and procfs, and against the real ones.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{LoopUse, Mounted, System, Writer, unescape};

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn system(root: &Path) -> System {
    System {
        sys: root.join("sys"),
        proc: root.join("proc"),
    }
}

#[test]
fn a_loop_device_is_found_by_the_files_identity() {
    let root = tempfile::tempdir().unwrap();
    let image = root.path().join("disk.img");
    fs::write(&image, "x").unwrap();
    let link = root.path().join("link.img");
    fs::hard_link(&image, &link).unwrap();
    let system = system(root.path());
    put(root.path(), "proc/self/mountinfo", "");
    assert_eq!(system.used_by_loop(&image).unwrap(), []);

    let backing = format!("{}\n", link.display());
    put(root.path(), "sys/block/loop3/loop/backing_file", &backing);
    put(root.path(), "sys/block/loop3/loop/offset", "1048576\n");
    put(root.path(), "sys/block/loop3/ro", "1\n");
    put(root.path(), "sys/class/block/loop3/dev", "7:3\n");
    put(root.path(), "sys/block/loop4/loop/backing_file", "/other\n");
    put(root.path(), "sys/block/sda/ro", "0\n");
    let unmounted = LoopUse {
        device: "loop3".to_owned(),
        read_only: true,
        offset_bytes: 1 << 20,
        mounted: None,
    };
    assert_eq!(system.used_by_loop(&image).unwrap(), [unmounted]);

    fs::create_dir_all(root.path().join("sys/fs/ext4/loop3")).unwrap();
    assert_eq!(
        system.used_by_loop(&image).unwrap()[0].mounted,
        Some(Mounted::OutOfSight)
    );
    put(
        root.path(),
        "proc/self/mountinfo",
        "22 27 0:21 / /proc rw - proc proc rw\n30 1 7:3 / /mnt/with\\040space rw - ext4 /dev/loop3 rw\n",
    );
    assert_eq!(
        system.used_by_loop(&image).unwrap()[0].mounted,
        Some(Mounted::At(PathBuf::from("/mnt/with space")))
    );
    // A partition of the loop device counts too.
    put(root.path(), "sys/class/block/loop3/loop3p1/dev", "259:1\n");
    put(root.path(), "sys/class/block/loop3p1/dev", "259:1\n");
    put(
        root.path(),
        "proc/self/mountinfo",
        "30 1 259:1 / /part rw - ext4 /dev/loop3p1 rw\n",
    );
    assert_eq!(
        system.used_by_loop(&image).unwrap()[0].mounted,
        Some(Mounted::At(PathBuf::from("/part")))
    );
}

#[test]
fn writers_are_told_from_readers() {
    let root = tempfile::tempdir().unwrap();
    let image = root.path().join("disk.img");
    fs::write(&image, "x").unwrap();
    for (process, flags, name) in [("71", "0100002", "qemu"), ("72", "0100000", "less")] {
        put(
            root.path(),
            &format!("proc/{process}/comm"),
            &format!("{name}\n"),
        );
        put(
            root.path(),
            &format!("proc/{process}/fdinfo/5"),
            &format!("pos:\t0\nflags:\t{flags}\n"),
        );
        fs::create_dir_all(root.path().join(format!("proc/{process}/fd"))).unwrap();
        std::os::unix::fs::symlink(&image, root.path().join(format!("proc/{process}/fd/5")))
            .unwrap();
    }
    assert_eq!(
        system(root.path()).writers(&image).unwrap(),
        [Writer {
            process: 71,
            name: "qemu".to_owned()
        }]
    );
}

#[test]
fn another_process_that_writes_is_seen_on_this_machine() {
    let image = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(super::writers(image.path()).unwrap(), []);
    // Holds the file open until its standard input ends.
    let mut child = std::process::Command::new("cat")
        .stdin(std::process::Stdio::piped())
        .stdout(fs::File::options().write(true).open(image.path()).unwrap())
        .spawn()
        .unwrap();
    let found = super::writers(image.path()).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(
        found.iter().any(|writer| writer.process == child.id()),
        "{found:?}"
    );
}

#[test]
fn the_kernels_own_loop_device_is_seen() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    assert_eq!(super::used_by_loop(image.path()).unwrap(), []);
    let attached = std::process::Command::new("losetup")
        .args(["--find", "--show", "--read-only"])
        .arg(image.path())
        .output();
    let device = match attached {
        Ok(output) if output.status.success() => {
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        }
        other => {
            println!("skipped: no loop device ({other:?})");
            return;
        }
    };
    let uses = super::used_by_loop(image.path());
    let mounted = super::mounted_block_device(Path::new(&device));
    std::process::Command::new("losetup")
        .args(["--detach", &device])
        .status()
        .unwrap();
    let uses = uses.unwrap();
    assert_eq!(format!("/dev/{}", uses[0].device), device);
    assert!(uses[0].read_only);
    assert_eq!(uses[0].mounted, None);
    assert_eq!(mounted.unwrap(), None);
}

#[test]
fn the_root_file_system_is_mounted() {
    let root_device = fs::metadata("/").unwrap().dev();
    let number = format!(
        "{}:{}",
        rustix::fs::major(root_device),
        rustix::fs::minor(root_device)
    );
    assert_eq!(
        System::default().mount_point(&[number]),
        Some(Mounted::At(PathBuf::from("/")))
    );
}

#[test]
fn escapes_are_undone() {
    assert_eq!(unescape(b"/a\\040b\\134c\\"), Path::new("/a b\\c\\"));
    assert_eq!(unescape(b"\\04"), Path::new("\\04"));
}
