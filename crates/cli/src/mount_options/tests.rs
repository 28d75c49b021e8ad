//! Tests of the option lists.

use super::*;

fn parse(list: &str) -> anyhow::Result<MountOptions> {
    MountOptions::parse(Path::new("image"), &[list.into()])
}

#[test]
fn values_are_understood() {
    let options = parse("ro,offset=1048576,cache=2G,uid=5,gid=6,umask=027,noload").expect("known");
    assert!(options.volume.read_only && options.volume.no_load);
    assert_eq!(options.volume.offset, 1 << 20);
    assert_eq!(options.volume.cache_bytes, Some(2 << 30));
    assert_eq!(
        (options.uid, options.gid, options.umask),
        (Some(5), Some(6), Some(0o27))
    );
    assert_eq!(options.volume.image, Path::new("image"));
    for (text, bytes) in [
        ("4096", 4096),
        ("3k", 3 << 10),
        ("5M", 5 << 20),
        ("1T", 1 << 40),
    ] {
        let options = parse(&format!("cache={text}")).expect("a size");
        assert_eq!(options.volume.cache_bytes, Some(bytes));
    }
    let half = parse("cache=50%")
        .expect("a share")
        .volume
        .cache_bytes
        .expect("bytes");
    let all = parse("cache=100%")
        .expect("a share")
        .volume
        .cache_bytes
        .expect("bytes");
    assert!(half.abs_diff(all / 2) < 2 && half > 0);
    assert_eq!(
        parse("sb=32768").expect("known").volume.superblock,
        Some(32768)
    );
    assert_eq!(
        parse("offset=0x200").expect("hexadecimal").volume.offset,
        512
    );
}

#[test]
fn a_wrong_value_is_named() {
    for wrong in [
        "offset=",
        "offset=x",
        "offset=-1",
        "cache=",
        "cache=G",
        "cache=0",
        "cache=5Q",
        "cache=101%",
        "cache=99999999T",
        "uid=4294967296",
        "gid=",
        "umask=8",
        "umask=1777",
        "log=",
        "fsname=",
    ] {
        let error = parse(wrong).expect_err(wrong).to_string();
        assert!(error.contains(wrong), "{wrong}: {error}");
    }
}

#[test]
fn an_unknown_option_is_named() {
    for wrong in [
        "nosuchthing",
        "ro=1",
        "offset",
        "errors=whatever",
        "journal_path=/x",
        "=5",
    ] {
        let list = format!("ro,{wrong},noexec");
        let error = parse(&list).expect_err(wrong).to_string();
        assert!(error.contains(wrong), "{wrong}: {error}");
    }
}

#[test]
fn the_options_of_mount_and_of_fuse2fs_are_taken() {
    parse("rw,nosuid,nodev,relatime,user=me,x-systemd.automount,comment=a,defaults,_netdev,nofail")
        .expect("those that mount(8) passes");
    parse("fakeroot,norecovery,minixdf,bsddf,acl,no_default_opts,errors=panic,user_xattr,")
        .expect("those of fuse2fs");
    let kernel = parse("kernel,fuse2fs_debug").expect("those of fuse2fs");
    assert!(kernel.allow_other && kernel.suid && kernel.dev && kernel.debug);
}

#[test]
fn the_last_word_holds() {
    let lists = ["ro,suid,noexec".into(), "rw,nosuid,exec".into()];
    let options = MountOptions::parse(Path::new("image"), &lists).expect("known");
    assert!(!options.volume.read_only && !options.suid && !options.no_exec);
}

#[test]
fn commas_can_be_escaped() {
    let options = parse(r"fsname=a\,b\\c,ro").expect("known");
    assert_eq!(options.fsname.as_deref(), Some(OsStr::new(r"a,b\c")));
    assert!(options.volume.read_only);
}

#[test]
fn permissions_are_checked_unless_owners_are_not_those_of_the_image() {
    let checks = |list: &str| {
        let options = parse(list).expect("known");
        (options.checks_permissions(), options.applies_acls())
    };
    assert_eq!(checks(""), (true, true));
    assert_eq!(checks("noacl"), (true, false));
    assert_eq!(checks("fakeroot"), (false, false));
    assert_eq!(checks("uid=1"), (false, false));
    assert_eq!(checks("uid=1,default_permissions"), (true, true));
    assert_eq!(checks("fakeroot,allow_other"), (true, false));
}

#[test]
fn whoever_lets_others_in_has_them_checked() {
    let owners = [
        "",
        "fakeroot",
        "uid=1",
        "gid=1",
        "umask=0",
        "fakeroot,uid=1,gid=1,umask=0",
    ];
    for owners in owners {
        for list in [
            format!("allow_other,{owners}"),
            format!("{owners},allow_other,noacl"),
            format!("{owners},kernel"),
        ] {
            let options = parse(&list).expect("known");
            assert!(
                options.allow_other && options.checks_permissions(),
                "{list}"
            );
        }
    }
}

#[test]
fn who_wants_no_confinement_says_so() {
    assert!(!parse("rw").expect("known").unconfined);
    assert!(parse("rw,unconfined").expect("known").unconfined);
    assert!(parse("unconfined=1").is_err());
}
