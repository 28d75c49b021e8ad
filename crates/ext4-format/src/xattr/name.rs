//! Names of attributes: on disk the prefix is a number. Source: the kernel's
//! `Documentation/filesystems/ext4/attributes.rst` and `fs/ext4/xattr.h`.

/// `user.`
pub const USER: u8 = 1;
/// `system.posix_acl_access`, the whole name.
pub const POSIX_ACL_ACCESS: u8 = 2;
/// `system.posix_acl_default`, the whole name.
pub const POSIX_ACL_DEFAULT: u8 = 3;
/// `trusted.`
pub const TRUSTED: u8 = 4;
/// Of Lustre; no name.
pub const LUSTRE: u8 = 5;
/// `security.`
pub const SECURITY: u8 = 6;
/// `system.`: `data` holds what an inline file or directory has beyond `i_block`.
pub const SYSTEM: u8 = 7;
/// `system.richacl`, the whole name.
pub const RICHACL: u8 = 8;
/// The encryption context, stored under the name `c`; no name outside.
pub const ENCRYPTION: u8 = 9;
/// `gnu.`
pub const HURD: u8 = 10;

/// The name under [`SYSTEM`] of what an inline file or directory has beyond `i_block`.
pub const INLINE_DATA: &[u8] = b"data";
/// The longest name that the kernel's interface carries, with its prefix, in bytes.
pub const MAX_NAME_LEN: usize = 255;

const PREFIXES: [(u8, &[u8]); 5] = [
    (USER, b"user."),
    (TRUSTED, b"trusted."),
    (SECURITY, b"security."),
    (SYSTEM, b"system."),
    (HURD, b"gnu."),
];
const WHOLE: [(u8, &[u8]); 3] = [
    (POSIX_ACL_ACCESS, b"system.posix_acl_access"),
    (POSIX_ACL_DEFAULT, b"system.posix_acl_default"),
    (RICHACL, b"system.richacl"),
];

/// The name's beginning that `index` stands for; nothing if the attribute has no name outside.
#[must_use]
pub fn prefix(index: u8) -> Option<&'static [u8]> {
    let mut known = PREFIXES.iter().chain(&WHOLE);
    known
        .find(|(known, _)| *known == index)
        .map(|(_, text)| *text)
}

/// Whether Linux shows attributes of that prefix through its interface. `system.data` is the
/// file's contents, and shown to nobody.
#[must_use]
pub fn is_exposed(index: u8) -> bool {
    matches!(
        index,
        USER | POSIX_ACL_ACCESS | POSIX_ACL_DEFAULT | TRUSTED | SECURITY | HURD
    )
}

/// The whole name; nothing if the attribute has none outside, which is also so for an empty rest
/// behind a prefix, and a rest behind a name that is whole without.
#[must_use]
pub fn join(index: u8, rest: &[u8]) -> Option<Vec<u8>> {
    let is_whole = WHOLE.iter().any(|(whole, _)| *whole == index);
    if rest.is_empty() != is_whole {
        return None;
    }
    Some([prefix(index)?, rest].concat())
}

/// The number and the rest that a whole name is stored under; nothing if the format has no number
/// for it, or nothing follows its prefix.
#[must_use]
pub fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    if let Some((index, _)) = WHOLE.iter().find(|(_, whole)| *whole == name) {
        return Some((*index, &[]));
    }
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        (!rest.is_empty()).then_some((*index, rest))
    })
}
