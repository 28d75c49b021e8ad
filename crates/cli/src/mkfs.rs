//! `pagefence mkfs`: makes a file system in a file or on a block device.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use pagefence::{Formatted, Kind, Mkfs, Uuid};

use crate::size::parse_size;

/// The time that builds which are to be repeatable give.
const TIME_VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// `pagefence mkfs`.
#[derive(Args, Debug)]
#[command(after_help = "\
Without further options the file system is as mke2fs 1.47 makes it. The features are those that it
has upstream; some distributions leave out metadata_csum_seed and orphan_file.

If the variable SOURCE_DATE_EPOCH is set, its seconds are the file system's time; together with -U
and --hash-seed they make the same bytes each time.")]
pub(crate) struct MkfsArguments {
    /// A file, which is made if it does not exist, or a block device
    image: PathBuf,
    /// The type
    #[arg(
        short = 't',
        long = "type",
        value_name = "TYPE",
        default_value = "ext4"
    )]
    kind: KindArgument,
    /// Size: bytes, or a number with K, M, G or T; a file or device that exists keeps its own
    #[arg(short, long, value_parser = parse_size)]
    size: Option<u64>,
    /// Bytes of a block: 1024, 2048 or 4096 [default: 1024 below 512M, else 4096]
    #[arg(short, long, value_name = "BYTES")]
    block_size: Option<u32>,
    /// Bytes of an inode [default: 256]
    #[arg(short = 'I', long, value_name = "BYTES")]
    inode_size: Option<u16>,
    /// Number of inodes [default: by the size]
    #[arg(short = 'N', long, value_name = "COUNT")]
    inodes: Option<u32>,
    /// Percentage of the blocks that only root gets
    #[arg(short = 'm', long, value_name = "PERCENT", default_value_t = 5)]
    reserved: u8,
    /// Label, up to 16 bytes
    #[arg(short = 'L', long)]
    label: Option<String>,
    /// Features to add, or after ^ to leave out, separated by commas
    #[arg(short = 'O', long, value_name = "FEATURES", allow_hyphen_values = true)]
    features: Vec<String>,
    /// UUID [default: a random one]
    #[arg(short = 'U', long)]
    uuid: Option<Uuid>,
    /// Seed of the hash of directories, in the form of a UUID [default: a random one]
    #[arg(long, value_name = "UUID")]
    hash_seed: Option<Uuid>,
    /// Overwrite a file system that is there
    #[arg(short = 'F', long)]
    force: bool,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArgument {
    Ext2,
    Ext3,
    Ext4,
}

/// Makes the file system.
pub(crate) fn run(arguments: &MkfsArguments) -> anyhow::Result<()> {
    let kind = match arguments.kind {
        KindArgument::Ext2 => Kind::Ext2,
        KindArgument::Ext3 => Kind::Ext3,
        KindArgument::Ext4 => Kind::Ext4,
    };
    let mut mkfs = Mkfs::new(kind)
        .reserved_percent(arguments.reserved)
        .overwrite(arguments.force);
    if let Some(size) = arguments.size {
        mkfs = mkfs.size(size);
    }
    if let Some(bytes) = arguments.block_size {
        mkfs = mkfs.block_size(bytes);
    }
    if let Some(bytes) = arguments.inode_size {
        mkfs = mkfs.inode_size(bytes);
    }
    if let Some(count) = arguments.inodes {
        mkfs = mkfs.inodes(count);
    }
    if let Some(label) = &arguments.label {
        mkfs = mkfs.label(label);
    }
    for list in &arguments.features {
        mkfs = mkfs.features(list);
    }
    if let Some(uuid) = arguments.uuid {
        mkfs = mkfs.uuid(uuid);
    }
    if let Some(seed) = arguments.hash_seed {
        mkfs = mkfs.hash_seed(seed);
    }
    if let Some(time) = source_date()? {
        mkfs = mkfs.time(time);
    }
    let made = mkfs.format(&arguments.image)?;
    if !arguments.quiet {
        report(arguments, kind, &made);
    }
    Ok(())
}

fn report(arguments: &MkfsArguments, kind: Kind, made: &Formatted) {
    println!(
        "{}: {kind}, {} blocks of {} bytes ({} free), {} inodes, UUID {}",
        arguments.image.display(),
        made.blocks,
        made.block_size,
        made.blocks_free,
        made.inodes,
        made.uuid,
    );
    if !made.left_out.is_empty() {
        println!(
            "too small for a journal: made without {}",
            made.left_out.join(", ")
        );
    }
}

/// The time in the environment, if there is one.
fn source_date() -> anyhow::Result<Option<SystemTime>> {
    let Some(value) = std::env::var_os(TIME_VARIABLE) else {
        return Ok(None);
    };
    let seconds: Option<u64> = value.to_str().and_then(|text| text.parse().ok());
    let time = seconds.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    time.map(Some)
        .with_context(|| format!("{TIME_VARIABLE} must be a number of seconds, not {value:?}"))
}
