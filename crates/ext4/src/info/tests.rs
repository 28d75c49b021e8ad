//! What is told of images that were just made, changed, or are none.

use pagefence_block_io::memory_device::MemoryDevice;
use pagefence_ext4_format::superblock::{ErrorRecord, SUPERBLOCK_OFFSET};

use super::*;
use crate::mkfs::{Contents, Parameters, Tree, format};

fn image(kind: Kind, features: &str) -> (MemoryDevice, Superblock) {
    let device = MemoryDevice::new(64 << 20);
    let mut parameters = Parameters::new(kind);
    parameters.features.edit(features).expect("known features");
    parameters.contents = Contents::Zeros;
    parameters.label = b"a label".to_vec();
    parameters.uuid = *b"0123456789abcdef";
    parameters.time_seconds = 1_700_000_000;
    let made = format(&device, &parameters, &Tree::new()).expect("it fits");
    (device, made.superblock)
}

fn rewrite(device: &MemoryDevice, mut superblock: Superblock) {
    superblock.update_checksum();
    device
        .write(SUPERBLOCK_OFFSET, superblock.as_bytes())
        .expect("memory is written");
}

#[test]
fn a_new_image_is_described() {
    let (device, superblock) = image(Kind::Ext4, "fast_commit");
    let info = Info::of_device(&device).expect("it is an image");
    assert_eq!(info.blocks_free, superblock.free_blocks_count());
    assert_eq!(info.inodes_free, u64::from(superblock.free_inodes_count()));
    let text = info.to_string();
    for line in [
        "type:            ext4",
        "label:           a label",
        "uuid:            30313233-3435-3637-3839-616263646566",
        "size:            64 MiB",
        "inodes:          16384 of 256 bytes, 12 used (0 %), 16372 free",
        "state:           clean",
        "journal:         4 MiB, clean",
        "created:         2023-11-14 22:13:20 UTC",
        "last mounted:    (never, or not known)",
        "last mounted on: (not known)",
    ] {
        assert!(
            text.lines().any(|found| found.starts_with(line)),
            "{line}\n{text}"
        );
    }
    assert!(
        !text.contains("not supported") && !text.contains("read-only"),
        "{text}"
    );
}

#[test]
fn kinds_are_told_by_features() {
    for kind in [Kind::Ext2, Kind::Ext3, Kind::Ext4] {
        let (device, _) = image(kind, "");
        assert_eq!(Info::of_device(&device).expect("it is an image").kind, kind);
    }
    let (device, _) = image(Kind::Ext2, "extent");
    assert_eq!(
        Info::of_device(&device).expect("it is an image").kind,
        Kind::Ext4
    );
    let info = Info::of_device(&image(Kind::Ext2, "").0).expect("it is an image");
    assert_eq!(info.journal, Journal::None);
}

#[test]
fn errors_orphans_and_what_is_not_served_are_told() {
    let (device, mut superblock) = image(Kind::Ext4, "");
    let record = ErrorRecord {
        time_seconds: 1_600_000_000,
        ino: 12,
        block: 34,
        function: "ext4_lookup\u{1b}".to_owned(),
        line: 99,
        code: 1,
    };
    superblock.record_error(&record);
    superblock.set_state(State::ERROR);
    superblock.set_last_orphan(Some(pagefence_ext4_format::InodeNo(13)));
    let mut features = superblock.features();
    features.incompat |= Incompat::COMPRESSION;
    features.ro_compat |= RoCompat::QUOTA;
    superblock.set_features(features);
    rewrite(&device, superblock);
    let info = Info::of_device(&device).expect("it is an image");
    assert_eq!(info.unsupported, ["compression"]);
    let text = info.to_string();
    for line in [
        "not supported:   compression",
        "read-only:       because writing with quota is not supported",
        "state:           not clean, with errors (run e2fsck), with deleted files still to be removed",
        "errors:          1 since the last check",
        "first error:     2020-09-13 12:26:40 UTC, ext4_lookup\\u{1b}, line 99, inode 12, block 34",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn a_journal_to_be_replayed_and_a_damaged_one_are_told() {
    use pagefence_jbd2::{commit_once, recover};
    let (device, mut superblock) = image(Kind::Ext4, "");
    let ino = superblock.journal_inode().expect("it has a journal");
    let location = locate(&device, &superblock, ino).expect("the journal is there");
    let recovery = recover(&device, &location).expect("it is sound");
    let block = vec![7; 1024];
    commit_once(
        &device,
        &location,
        &recovery,
        &[(BlockNo(60_000), &block), (BlockNo(60_001), &block)],
        &[],
    )
    .expect("it is committed");
    let mut features = superblock.features();
    features.incompat |= Incompat::RECOVER;
    superblock.set_features(features);
    rewrite(&device, superblock.clone());
    let text = Info::of_device(&device)
        .expect("it is an image")
        .to_string();
    let due = "needs recovery: 1 transaction from ";
    assert!(
        text.contains(due) && text.contains("changing 2 blocks"),
        "{text}"
    );
    assert!(
        text.contains("state:           not closed properly"),
        "{text}"
    );

    let (first, _) = location.physical(0).expect("it has a first block");
    device
        .write(first.0 * 1024, &[0; 12])
        .expect("memory is written");
    let text = Info::of_device(&device)
        .expect("it is an image")
        .to_string();
    assert!(text.contains("journal:         can't be read: "), "{text}");
}

#[test]
fn what_is_no_image_is_one_sentence() {
    for size in [0, 100, 4096, 1 << 20] {
        let error = Info::of_device(&MemoryDevice::new(size)).expect_err("there is nothing");
        assert!(matches!(error, MountError::NotExt { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));
    }
}
