//! What e2fsck finds after each of three recoveries.

use std::path::Path;

use anyhow::{Context, Result};

use super::report::Report;
use crate::command::output;

/// What `e2fsck -fn` found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Findings {
    exit: i32,
    /// Everything it printed but the headings of its passes.
    complaints: Vec<String>,
    /// Inodes and blocks in use, from its last line: `11/100 files (…), 20/500 blocks`.
    usage: String,
}

impl Findings {
    fn is_clean(&self) -> bool {
        self.exit == 0 && self.complaints.is_empty()
    }
}

/// Compares our recovery with the kernel's and with e2fsck's own. `checked` is a copy that was
/// not recovered yet.
///
/// After ours, e2fsck finds nothing; or else it finds exactly what it finds after its own replay
/// (the superblock's free counts, say, which the journal does not keep).
pub(crate) fn compare(
    ours: &Path,
    theirs: &Path,
    checked: &Path,
    report: &mut Report,
) -> Result<()> {
    let (ours, theirs) = (findings(ours)?, findings(theirs)?);
    let arguments = ["-y".as_ref(), "-E".as_ref(), "journal_only".as_ref()];
    output("e2fsck", arguments.into_iter().chain([checked.as_os_str()]))?;
    let replayed = findings(checked)?;
    // Trees that could be smaller stay as they are: they are nothing to mend.
    let arguments = ["-fy", "-E", "fixes_only"].map(AsRef::as_ref);
    output("e2fsck", arguments.into_iter().chain([checked.as_os_str()]))?;
    let mended = findings(checked)?;

    let mut mismatch = |what: String| report.mismatch(Path::new("/"), &what);
    if ours == replayed && !ours.is_clean() {
        return Ok(());
    }
    if !ours.is_clean() {
        mismatch(format!("e2fsck after our recovery: {ours:?}"));
        mismatch(format!("e2fsck after its own: {replayed:?}"));
    }
    for (who, other) in [("the kernel's", &theirs), ("e2fsck's", &mended)] {
        if ours.usage != other.usage {
            mismatch(format!(
                "in use after our recovery: {}; after {who}: {}",
                ours.usage, other.usage
            ));
        }
    }
    Ok(())
}

/// Why an image is not as e2fsck wants it; nothing if it is.
pub(crate) fn complaints(image: &Path) -> Result<Option<String>> {
    let findings = findings(image)?;
    Ok((!findings.is_clean()).then(|| format!("{findings:?}")))
}

fn findings(image: &Path) -> Result<Findings> {
    let output = output("e2fsck", ["-fn".as_ref(), image.as_os_str()])?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let exit = output.status.code().context("e2fsck was killed")?;
    Ok(parse(&printed, &image.to_string_lossy(), exit))
}

fn parse(printed: &str, image: &str, exit: i32) -> Findings {
    let mut findings = Findings {
        exit,
        complaints: Vec::new(),
        usage: String::new(),
    };
    for line in printed.lines() {
        let line = line.trim();
        let after_name = line
            .strip_prefix(image)
            .and_then(|rest| rest.strip_prefix(": "));
        if let Some(usage) = after_name.and_then(usage_of) {
            findings.usage = usage;
        } else if !line.is_empty() && !line.starts_with("Pass ") && !is_offer(line) {
            findings.complaints.push(line.to_owned());
        }
    }
    findings
}

/// Whether e2fsck offers to make an extent tree smaller: one that lost entries is sound, and the
/// kernel leaves such ones, too.
fn is_offer(line: &str) -> bool {
    line.starts_with("Inode ")
        && line.contains(" extent tree (at level ")
        && line.ends_with("  Optimize? no")
}

/// Files and blocks in use; how scattered the files are is left out.
fn usage_of(line: &str) -> Option<String> {
    let (files, rest) = line.split_once(" files (")?;
    let (_, blocks) = rest.split_once("), ")?;
    let blocks = blocks.strip_suffix(" blocks")?;
    Some(format!("{files} files, {blocks} blocks"))
}

#[cfg(test)]
mod tests {
    use super::parse;

    const PASSES: &str = "Pass 1: Checking inodes, blocks, and sizes\n\
        Pass 5: Checking group summary information\n";

    #[test]
    fn a_clean_check_has_usage_and_nothing_else() {
        let printed =
            format!("{PASSES}a.img: 258/16384 files (0.0% non-contiguous), 6587/65536 blocks\n");
        let findings = parse(&printed, "a.img", 0);
        assert!(findings.is_clean());
        assert_eq!(findings.usage, "258/16384 files, 6587/65536 blocks");
    }

    #[test]
    fn a_wrong_count_is_a_complaint_though_the_exit_status_is_0() {
        let printed = format!(
            "{PASSES}Free blocks count wrong (1, counted=2).\nFix? no\n\n\
             a.img: 1/2 files (0.0% non-contiguous), 3/4 blocks\n"
        );
        let findings = parse(&printed, "a.img", 0);
        assert!(!findings.is_clean());
        assert_eq!(findings.complaints.len(), 2);
    }

    #[test]
    fn an_offer_to_make_a_tree_smaller_is_none() {
        let printed = format!(
            "{PASSES}Inode 768 extent tree (at level 1) could be shorter.  Optimize? no\n\n\
             Inode 12 extent tree (at level 2) is bad.  Optimize? yes\n"
        );
        let findings = parse(&printed, "a.img", 0);
        assert_eq!(findings.complaints.len(), 1);
    }
}
