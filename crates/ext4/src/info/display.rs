//! [`Info`] as text.

use std::fmt::{self, Display, Formatter};

use super::time::utc;
use super::{ErrorAt, Info, Journal, JournalState};
use crate::mkfs::Kind;

/// Width of the column of names.
const NAME_WIDTH: usize = 16;
const UNITS: [(u64, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];

/// A number of bytes in the unit that suits it.
struct Bytes(u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some((shift, unit)) = UNITS.iter().find(|(shift, _)| self.0 >> shift != 0) else {
            return write!(f, "{} bytes", self.0);
        };
        let tenths = (u128::from(self.0) * 10) >> shift;
        match (tenths / 10, tenths % 10) {
            (whole, 0) => write!(f, "{whole} {unit}"),
            (whole, tenth) => write!(f, "{whole}.{tenth} {unit}"),
        }
    }
}

fn line(f: &mut Formatter<'_>, name: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "{:NAME_WIDTH$} {value}", format!("{name}:"))
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn percent(part: u64, whole: u64) -> u64 {
    let share = u128::from(part) * 100 / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(100)
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
        })
    }
}

impl Display for Info {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        line(f, "type", self.kind)?;
        let label = self.label.escape_debug().to_string();
        line(f, "label", or(&label, "(none)"))?;
        line(f, "uuid", uuid::Uuid::from_bytes(self.uuid))?;
        self.fmt_sizes(f)?;
        line(f, "features", self.features.join(" "))?;
        if !self.unsupported.is_empty() {
            line(f, "not supported", self.unsupported.join(" "))?;
        }
        if let Some(reason) = &self.read_only_because {
            line(f, "read-only", format_args!("because {reason}"))?;
        }
        line(f, "state", self.state())?;
        line(f, "journal", &self.journal)?;
        if let Some(errors) = &self.errors {
            line(
                f,
                "errors",
                format_args!("{} since the last check", errors.count),
            )?;
            line(f, "first error", &errors.first)?;
            line(f, "last error", &errors.last)?;
        }
        self.fmt_times(f)
    }
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

impl Info {
    fn fmt_sizes(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let size = Bytes(self.size_bytes);
        if self.image_bytes > self.size_bytes {
            let image = Bytes(self.image_bytes);
            line(f, "size", format_args!("{size} of an image of {image}"))?;
        } else {
            line(f, "size", size)?;
        }
        let used = self.blocks.saturating_sub(self.blocks_free);
        line(
            f,
            "blocks",
            format_args!(
                "{} of {} bytes in {} group{}, {used} used ({} %), {} free, {} reserved",
                self.blocks,
                self.block_size,
                self.groups,
                plural(self.groups as usize),
                percent(used, self.blocks),
                self.blocks_free,
                self.blocks_reserved,
            ),
        )?;
        let used = u64::from(self.inodes).saturating_sub(self.inodes_free);
        line(
            f,
            "inodes",
            format_args!(
                "{} of {} bytes, {used} used ({} %), {} free",
                self.inodes,
                self.inode_size,
                percent(used, self.inodes.into()),
                self.inodes_free,
            ),
        )
    }

    fn state(&self) -> String {
        let mut parts = Vec::new();
        let needs_recovery = matches!(
            self.journal,
            Journal::Internal {
                state: JournalState::NeedsRecovery { .. },
                ..
            }
        );
        parts.push(match (self.is_clean, needs_recovery) {
            (true, false) => "clean",
            (_, true) => "not closed properly",
            (false, false) => "not clean",
        });
        if self.has_errors {
            parts.push("with errors (run e2fsck)");
        }
        if self.has_orphans {
            parts.push("with deleted files still to be removed");
        }
        parts.join(", ")
    }

    fn fmt_times(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let times = [
            ("created", self.created),
            ("last mounted", self.mounted),
            ("last written", self.written),
            ("last checked", self.checked),
        ];
        for (name, seconds) in times {
            match seconds {
                0 => line(f, name, "(never, or not known)")?,
                _ => line(f, name, utc(seconds))?,
            }
        }
        let place = self.last_mounted_on.as_deref().unwrap_or_default();
        let place = place.escape_debug().to_string();
        line(f, "last mounted on", or(&place, "(not known)"))?;
        line(
            f,
            "mounts",
            format_args!("{} since the last check", self.mounts),
        )?;
        let written = Bytes(self.lifetime_writes_kib.saturating_mul(1024));
        line(f, "lifetime writes", written)
    }
}

impl Display for Journal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::External => f.write_str("on another device"),
            Self::Unreadable { reason } => write!(f, "can't be read: {reason}"),
            Self::Internal {
                size_bytes,
                fast_commit_bytes,
                state,
                errno,
            } => {
                write!(f, "{}", Bytes(*size_bytes))?;
                if *fast_commit_bytes > 0 {
                    write!(f, ", {} of it for fast commits", Bytes(*fast_commit_bytes))?;
                }
                write!(f, ", {state}")?;
                if *errno != 0 {
                    write!(f, ", aborted with error {errno}")?;
                }
                Ok(())
            }
        }
    }
}

impl Display for JournalState {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self::NeedsRecovery {
            sequence,
            transactions,
            blocks,
            has_fast_commits,
            damaged,
        } = self
        else {
            return f.write_str("clean");
        };
        write!(
            f,
            "needs recovery: {transactions} transaction{} from {sequence} on, changing {blocks} block{}",
            plural(*transactions as usize),
            plural(*blocks),
        )?;
        if *has_fast_commits {
            f.write_str(", then fast commits")?;
        }
        if let Some(damaged) = damaged {
            write!(f, "; transaction {damaged} is damaged")?;
        }
        Ok(())
    }
}

impl Display for ErrorAt {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let function = self.function.escape_debug();
        write!(f, "{}, {function}, line {}", utc(self.time), self.line)?;
        if self.inode != 0 {
            write!(f, ", inode {}", self.inode)?;
        }
        if self.block != 0 {
            write!(f, ", block {}", self.block)?;
        }
        Ok(())
    }
}
