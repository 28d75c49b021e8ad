//! Access by mode and access list: what the kernel says for the same file and caller.

use std::path::Path;
use std::process::Command;

use pagefence_vfs::{Access, Credentials, Error, FileSystem as _};

use crate::common::kernel::{KernelMount, run};
use crate::common::{Recipe, id, open};

/// A mode and an access list, in setfacl's words.
const FILES: [(&str, &str); 10] = [
    ("640", ""),
    ("604", ""),
    ("070", ""),
    ("000", "u:1001:rwx,m::rwx"),
    ("600", "u:1001:rw-,g:2002:r--,m::rwx"),
    ("600", "u:1001:rw-,g:2002:rwx,m::---"),
    ("606", "u:1001:rw-,g:2002:rwx,m::---"),
    ("644", "u:1001:---,g:2002:-wx,m::r-x"),
    ("464", "g:2001:---,g:2002:rw-,m::rw-"),
    ("711", "u:1000:---,g:2001:--x,m::--x"),
];

/// User, group, further groups. The files belong to 1000 and 2000.
const CALLERS: [(u32, u32, &[u32]); 8] = [
    (1000, 5, &[]),
    (1000, 2000, &[2002]),
    (1001, 5, &[]),
    (1001, 2000, &[]),
    (1002, 2000, &[]),
    (1002, 5, &[2000, 2002]),
    (1002, 2001, &[2002]),
    (1003, 5, &[]),
];

/// What the kernel allows, as eight characters: for each of the rights 0 to 7, y or n.
fn kernel_says(path: &Path, (uid, gid, groups): (u32, u32, &[u32])) -> String {
    // test(1) asks faccessat for one right; a set of rights is allowed if each of them is.
    let script = "for t in x w r; do if test -$t \"$1\"; then printf y; else printf n; fi; done";
    let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
    let groups = if groups.is_empty() {
        "--clear-groups".to_owned()
    } else {
        format!("--groups={}", groups.join(","))
    };
    let output = Command::new("setpriv")
        .args([
            &format!("--reuid={uid}"),
            &format!("--regid={gid}"),
            &groups,
        ])
        .args(["sh", "-c", script, "sh"])
        .arg(path)
        .output()
        .expect("setpriv (util-linux) runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("letters")
}

#[test]
fn access_is_what_the_kernel_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    Recipe::new(16, "-t ext4 -b 1024").make_at(&image);
    let Some(mount) = KernelMount::new(&image, "acl") else {
        return;
    };
    let root = mount.path("");
    run("chmod", &["755", &root.display().to_string()]);
    let mut kernel = Vec::new();
    for (number, (mode, list)) in FILES.iter().enumerate() {
        let path = mount.path(&format!("f{number}"));
        std::fs::write(&path, "x").expect("a file");
        let name = path.display().to_string();
        run("chown", &["1000:2000", &name]);
        run("chmod", &[mode, &name]);
        if !list.is_empty() {
            run("setfacl", &["-m", list, &name]);
        }
        for caller in CALLERS {
            kernel.push(kernel_says(&path, caller));
        }
    }
    drop(mount);
    let fs = open_file(&image);
    let mut said = kernel.iter();
    for (number, file) in FILES.iter().enumerate() {
        let inode = id(&fs, &format!("f{number}"));
        for (uid, gid, groups) in CALLERS {
            let who = Credentials {
                uid,
                gid,
                groups: groups.to_vec(),
            };
            let kernel = said.next().expect("an answer for each");
            for (access, due) in [(Access::EXECUTE, 0), (Access::READ, 2)] {
                let ours = match fs.access(inode, access, &who) {
                    Ok(()) => 'y',
                    Err(Error::PermissionDenied) => 'n',
                    Err(error) => panic!("{error}"),
                };
                let kernel = kernel.chars().nth(due).expect("three letters");
                assert_eq!(ours, kernel, "{:?} for {who:?}: {access:?}", file);
            }
            // The mount is read-only, whoever asks.
            let write = fs.access(inode, Access::WRITE, &who);
            assert!(matches!(write, Err(Error::ReadOnly)));
        }
    }
    let root = Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    };
    assert!(fs.access(id(&fs, "f0"), Access::READ, &root).is_ok());
    let execute = fs.access(id(&fs, "f0"), Access::EXECUTE, &root);
    assert!(matches!(execute, Err(Error::PermissionDenied)));
    assert!(fs.access(id(&fs, "f9"), Access::EXECUTE, &root).is_ok());
}

fn open_file(image: &Path) -> pagefence_ext4::FileSystem {
    let bytes = std::fs::read(image).expect("the image");
    open(crate::common::Image::from_bytes(&bytes).device()).expect("it opens")
}
