//! Lists by hand, by chance, and what they permit against POSIX.1e's words.

use proptest::prelude::*;

use super::*;

fn acl(entries: &[(AclTag, u8)]) -> Acl {
    let entries = entries.iter().map(|(tag, perm)| AclEntry {
        tag: *tag,
        perm: *perm,
    });
    Acl::new(entries.collect()).unwrap()
}

/// A list with named entries, and with these permissions where a mode has its own.
fn named([owner, mask, other]: [u8; 3]) -> Acl {
    acl(&[
        (AclTag::UserObj, owner),
        (AclTag::User(100), 6),
        (AclTag::User(101), 0),
        (AclTag::GroupObj, 4),
        (AclTag::Group(200), 6),
        (AclTag::Group(201), 1),
        (AclTag::Mask, mask),
        (AclTag::Other, other),
    ])
}

fn sample() -> Acl {
    named([7, 5, 1])
}

/// A list that says what a mode says.
fn plain([owner, group, other]: [u8; 3]) -> Acl {
    acl(&[
        (AclTag::UserObj, owner),
        (AclTag::GroupObj, group),
        (AclTag::Other, other),
    ])
}

const FILE: Owned = Owned {
    uid: 1,
    gid: 2,
    mode: 0o751,
};

fn may(acl: Option<&Acl>, file: &Owned, uid: u32, groups: &[u32], want: u8) -> bool {
    let who = Caller {
        uid,
        gid: 9999,
        groups,
    };
    permits(acl, &who, file, want)
}

#[test]
fn bytes_of_both_forms() {
    let disk: &[u8] =
        b"\x01\0\0\0\x01\0\x06\0\x02\0\x07\0\xE8\x03\0\0\x04\0\x04\0\x10\0\x07\0\x20\0\x04\0";
    let read = Acl::from_disk(disk).unwrap().unwrap();
    assert_eq!(read.entries()[1].tag, AclTag::User(1000));
    assert_eq!(read.to_disk(), disk);
    let xattr: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xFF\xFF\xFF\xFF\x02\0\x07\0\xE8\x03\0\0\x04\0\x04\0\xFF\xFF\xFF\xFF\x10\0\x07\0\xFF\xFF\xFF\xFF\x20\0\x04\0\xFF\xFF\xFF\xFF";
    assert_eq!(read.to_xattr(), xattr);
    assert_eq!(Acl::from_xattr(xattr).unwrap().unwrap(), read);
    assert_eq!(Acl::from_disk(b"\x01\0\0\0"), Ok(None));
    assert_eq!(Acl::from_disk(xattr), Err(AclError::Version { version: 2 }));
    for cut in 1..disk.len() {
        let whole_head = cut == 4;
        assert_eq!(Acl::from_disk(&disk[..cut]).is_ok(), whole_head, "{cut}");
    }
    let mut unknown = disk.to_vec();
    unknown[4] = 3;
    assert_eq!(Acl::from_disk(&unknown), Err(AclError::Tag { tag: 3 }));
    for perm in [8, 0x100] {
        let mut excess = disk.to_vec();
        excess[6..8].copy_from_slice(&u16::to_le_bytes(perm));
        assert_eq!(Acl::from_disk(&excess), Err(AclError::Perm { perm }));
    }
}

#[test]
fn lists_that_are_not_valid() {
    use AclTag::{Group, GroupObj, Mask, Other, User, UserObj};
    let order: [&[AclTag]; 10] = [
        &[],
        &[UserObj, GroupObj],
        &[GroupObj, Other],
        &[UserObj, Other],
        &[UserObj, UserObj, GroupObj, Other],
        &[UserObj, GroupObj, User(1), Mask, Other],
        &[UserObj, User(1), GroupObj, Other],
        &[UserObj, GroupObj, Group(1), Other],
        &[UserObj, GroupObj, Mask, Mask, Other],
        &[UserObj, GroupObj, Other, Other],
    ];
    for tags in order {
        let entries = tags.iter().map(|tag| AclEntry { tag: *tag, perm: 0 });
        assert!(
            matches!(Acl::new(entries.collect()), Err(AclError::Order { .. })),
            "{tags:?}"
        );
    }
    let nobody = [UserObj, User(u32::MAX), GroupObj, Mask, Other];
    let entries = nobody.iter().map(|tag| AclEntry { tag: *tag, perm: 0 });
    assert_eq!(Acl::new(entries.collect()), Err(AclError::Id { at: 1 }));
    plain([0; 3]);
    acl(&[(UserObj, 0), (GroupObj, 0), (Mask, 0), (Other, 0)]);
}

#[test]
fn who_may_what() {
    let list = sample();
    let may = |uid, groups: &[u32], want| may(Some(&list), &FILE, uid, groups, want);
    assert!(may(1, &[], 7), "the owner, by the mode");
    assert!(may(100, &[], READ));
    assert!(!may(100, &[], WRITE), "masked");
    assert!(
        !may(101, &[200, 2], READ),
        "a named user's entry is the last word"
    );
    assert!(may(50, &[2], READ));
    assert!(!may(50, &[2], EXECUTE), "not as other when in a group");
    assert!(may(50, &[2, 201], EXECUTE), "any of the groups");
    assert!(
        !may(50, &[2, 201], READ | EXECUTE),
        "but one that grants all"
    );
    assert!(!may(50, &[200], WRITE), "masked");
    assert!(may(50, &[], EXECUTE));
    assert!(!may(50, &[], READ));
    assert!(may(50, &[], 0));
    let by_gid = Caller {
        uid: 50,
        gid: 201,
        groups: &[],
    };
    assert!(permits(Some(&list), &by_gid, &FILE, EXECUTE));
}

#[test]
fn the_mode_decides_without_a_list_or_a_mask() {
    let file = Owned {
        mode: 0o742,
        ..FILE
    };
    assert!(may(None, &file, 1, &[], 7));
    assert!(may(None, &file, 5, &[2], READ));
    assert!(!may(None, &file, 5, &[2], WRITE));
    assert!(may(None, &file, 5, &[], WRITE));
    assert!(!may(None, &file, 5, &[], READ));
    let masked = Owned {
        mode: 0o704,
        ..FILE
    };
    assert!(may(Some(&sample()), &masked, 100, &[], READ), "as other");
    assert!(!may(Some(&sample()), &masked, 5, &[2], READ));
}

fn any_acl() -> impl Strategy<Value = Acl> {
    let named = || proptest::collection::vec((0..1000_u32, 0..8_u8), 0..5);
    (named(), named(), any::<bool>(), any::<[u8; 4]>()).prop_map(|(users, groups, mask, perms)| {
        let perms = perms.map(|perm| perm & 7);
        let mut entries = vec![(AclTag::UserObj, perms[0])];
        entries.extend(users.iter().map(|(id, perm)| (AclTag::User(*id), *perm)));
        entries.push((AclTag::GroupObj, perms[1]));
        entries.extend(groups.iter().map(|(id, perm)| (AclTag::Group(*id), *perm)));
        if mask || !users.is_empty() || !groups.is_empty() {
            entries.push((AclTag::Mask, perms[2]));
        }
        entries.push((AclTag::Other, perms[3]));
        acl(&entries)
    })
}

proptest! {
    #[test]
    fn both_forms_come_back(list in any_acl()) {
        prop_assert_eq!(Acl::from_disk(&list.to_disk()), Ok(Some(list.clone())));
        prop_assert_eq!(Acl::from_xattr(&list.to_xattr()), Ok(Some(list)));
    }

    #[test]
    fn more_is_never_permitted_where_less_is_not(
        list in any_acl(),
        uid in 0..1000_u32,
        groups in proptest::collection::vec(0..1000_u32, 0..4),
        mode in 0..0o1000_u16,
        want in 0..8_u8,
        less in 0..8_u8,
    ) {
        let file = Owned { mode, ..FILE };
        if may(Some(&list), &file, uid, &groups, want) {
            prop_assert!(may(Some(&list), &file, uid, &groups, want & less));
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        mut bytes in proptest::collection::vec(prop_oneof![Just(0_u8), 0..0x30_u8, any::<u8>()], 0..80),
        version in 1..3_u8,
    ) {
        if bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&[version, 0, 0, 0]);
        }
        if let Ok(Some(list)) = Acl::from_disk(&bytes) {
            prop_assert_eq!(list.to_disk(), bytes.clone());
        }
        let _ = Acl::from_xattr(&bytes);
    }
}

/// What `chmod` makes of a list: POSIX.1e, 23.1.1 and Linux's rule that the group bits are the
/// mask's.
#[test]
fn a_mode_goes_into_the_list() {
    let list = sample().with_mode(0o640);
    assert_eq!(list, named([6, 4, 0]));
    assert_eq!(list.permissions(), 0o640);
    let list = plain([0; 3]).with_mode(0o107_421);
    assert_eq!(list.permissions(), 0o421, "without a mask the group's");
    assert!(list.is_mode_only());
    assert!(!sample().is_mode_only());
    let masked = acl(&[
        (AclTag::UserObj, 0),
        (AclTag::GroupObj, 0),
        (AclTag::Mask, 7),
        (AclTag::Other, 0),
    ]);
    assert!(!masked.is_mode_only(), "a mask has to be kept");
    assert_eq!(masked.permissions(), 0o070);
}

/// What a new file takes of its directory's default list: POSIX.1e, 23.3.3.
#[test]
fn a_new_file_gets_no_more_than_both_give() {
    let list = sample().inherited(0o666);
    assert_eq!(list, named([6, 4, 0]));
    let three = plain([7, 5, 0]);
    assert_eq!(three.inherited(0o666).permissions(), 0o640);
    assert_eq!(three.inherited(0o777).permissions(), 0o750);
}

proptest! {
    #[test]
    fn the_mode_of_a_list_with_a_mode_is_that_mode(mode: u16) {
        prop_assert_eq!(sample().with_mode(mode).permissions(), mode & 0o777);
        let inherited = sample().inherited(mode).permissions();
        prop_assert_eq!(inherited, sample().permissions() & mode);
    }
}
