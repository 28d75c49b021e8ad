//! Flags, generations and project ids, as lsattr reads them by ioctl.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::report::Report;
use crate::command::output;

/// Compares what lsattr prints for every file and directory below two mount points.
pub(crate) fn compare(theirs: &Path, ours: &Path, report: &mut Report) -> Result<()> {
    let (theirs, ours) = (listing(theirs)?, listing(ours)?);
    for (path, their_line) in &theirs {
        match ours.get(path) {
            None => report.mismatch(path, "lsattr fails on ours"),
            Some(our_line) if our_line != their_line => report.mismatch(
                path,
                &format!("project, generation, flags: kernel {their_line}, ours {our_line}"),
            ),
            Some(_) => {}
        }
    }
    for path in ours.keys().filter(|path| !theirs.contains_key(*path)) {
        report.mismatch(path, "lsattr fails on the kernel's");
    }
    Ok(())
}

/// Project, generation and flags by path.
fn listing(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let arguments = ["-R", "-a", "-p", "-v"].map(OsStr::new);
    let printed = output("lsattr", arguments.into_iter().chain([root.as_os_str()]))?;
    Ok(parse(&printed.stdout, root))
}

/// Lines of `PROJECT GENERATION FLAGS PATH`; headings of directories are passed over. A path that
/// holds a newline is cut there, on both sides alike.
fn parse(printed: &[u8], root: &Path) -> BTreeMap<PathBuf, String> {
    let mut entries = BTreeMap::new();
    for line in printed.split(|&byte| byte == b'\n') {
        let mut rest = line;
        let mut fields = Vec::new();
        while fields.len() < 3 {
            let start = rest.iter().take_while(|&&byte| byte == b' ').count();
            let length = rest[start..]
                .iter()
                .take_while(|&&byte| byte != b' ')
                .count();
            fields.push(String::from_utf8_lossy(&rest[start..start + length]).into_owned());
            rest = &rest[start + length..];
        }
        let Some(path) = rest.strip_prefix(b" ") else {
            continue;
        };
        // `..` of the root lies outside.
        let path = Path::new(OsStr::from_bytes(path));
        if let Ok(relative) = path.strip_prefix(root)
            && !path.as_os_str().as_bytes().ends_with(b"/..")
        {
            entries.insert(relative.to_owned(), fields.join(" "));
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::parse;

    #[test]
    fn lines_are_told_from_headings() {
        let printed = b"    0 1501074437 ----i---------e------- /m/a b\n\
            \n/m/d:\n    5 7          --------------e------- /m/d/..\n\
            \x20   5 8          ---D---------Te------- /m/d/x\n";
        let entries = parse(printed, Path::new("/m"));
        assert_eq!(entries.len(), 2);
        assert_eq!(
            entries[Path::new("a b")],
            "0 1501074437 ----i---------e-------"
        );
        assert_eq!(entries[Path::new("d/x")], "5 8 ---D---------Te-------");
    }
}
