//! Single damages, each of which e2fsck reports: the check reports them as well. And any value in
//! any field, with which it ends.

use std::ops::ControlFlow;

use pagefence_block_io::fault_device::random::Random;
use pagefence_ext4::check::check_device;
use pagefence_ext4_format::{GroupNo, InodeNo};

use crate::check::{complaints, findings};
use crate::common::edit::Kind;
use crate::common::limits::{Watchdog, check_memory};
use crate::common::{Image, Recipe};
use crate::damage_fields::{CLUSTERS, OLD_FIELDS, RECORDS, SUPERBLOCKS, clusters};
use crate::damage_list::{
    GROUPS, I_BLOCK, INODES, NAMES, OLD, UNSEEN, edit_big, edit_xattrs, ext4,
};
use crate::damage_quotas::{QUOTAS, UNSEEN_QUOTAS, quotas};
use crate::exploits::{inode_of, put32};

#[test]
fn what_e2fsck_reports_is_found() {
    let watchdog = Watchdog::new();
    let new = ext4();
    let old = Recipe::rich("-t ext2 -b 1024").make();
    let (clusters, quotas) = (clusters(), quotas());
    for image in [&new, &old, &clusters, &quotas] {
        assert_eq!(findings(image).0, [""; 0]);
        assert_eq!(complaints(image), (0, vec![]));
    }
    let damages = [
        (&new, GROUPS),
        (&new, INODES),
        (&new, NAMES),
        (&new, RECORDS),
        (&new, SUPERBLOCKS),
        (&old, OLD),
        (&old, OLD_FIELDS),
        (&clusters, CLUSTERS),
        (&quotas, QUOTAS),
    ];
    let mut missed = Vec::new();
    let mut count = 0;
    println!(
        "{:<50} {:>6} {:>9}  first finding",
        "damage", "e2fsck", "findings"
    );
    for (base, list) in damages {
        for (name, damage) in list {
            watchdog.case((*name).to_owned());
            let image = base.fork();
            damage(&image);
            let (status, said) = complaints(&image);
            let (lines, summary) = findings(&image);
            let first = lines.first().map_or("", |line| line.as_str());
            println!("{name:<50} {status:>6} {:>9}  {first}", lines.len());
            if said.is_empty() && status == 0 {
                missed.push(format!("{name}: e2fsck says nothing"));
            }
            if lines.is_empty() {
                missed.push(format!("{name}: not found; e2fsck: {said:?}"));
            }
            assert!(
                summary.is_complete || lines.len() == 1,
                "{name}: {summary:?}"
            );
            count += 1;
        }
    }
    let of_quotas = UNSEEN_QUOTAS.iter().map(|damage| (&quotas, damage));
    for (base, (name, damage)) in UNSEEN.iter().map(|damage| (&new, damage)).chain(of_quotas) {
        let image = base.fork();
        damage(&image);
        assert_eq!(complaints(&image), (0, vec![]), "{name}");
        let (lines, _) = findings(&image);
        let first = lines.first().map_or("", |line| line.as_str());
        println!("{name:<50} {:>6} {:>9}  {first}", "-", lines.len());
        assert_eq!(lines.len(), 1, "{name}: {lines:?}");
    }
    check_memory();
    println!("{count} damages, {} of them missed", missed.len());
    assert!(count >= 25 && missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn owners_of_one_block_are_named() {
    let image = ext4();
    let (small, big) = (inode_of(&image, "small"), inode_of(&image, "big"));
    let shared = image.block_of(big, 0);
    let (table, _) = image.place_of_inode(InodeNo::ROOT);
    for (block, other) in [
        (
            shared,
            format!("inode {} and by inode {}", big.min(small), big.max(small)),
        ),
        (
            table,
            format!("inode {small} and by the file system's metadata"),
        ),
    ] {
        let image = image.fork();
        image.edit_inode(small, |record| {
            put32(record, I_BLOCK + 20, u32::try_from(block.0).expect("small"));
        });
        let due = format!("block {block}: owned by {other}");
        let (lines, _) = findings(&image);
        assert!(lines.contains(&due), "{due}: {lines:?}");
    }
}

/// Any value in any field: those cases that chance picks, of a seed that can be given.
struct Trials {
    watchdog: Watchdog,
    image: Image,
    random: Random,
    /// One case in so many is tried.
    one_in: u64,
    tried: u64,
    found: u64,
}

impl Trials {
    fn new(image: Image) -> Self {
        let given = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let seed = given("PAGEFENCE_SEED").unwrap_or_else(|| {
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
            now.expect("a clock").as_nanos() as u64
        });
        let one_in = given("PAGEFENCE_CHECK_ONE_IN").unwrap_or(4).max(1);
        println!("PAGEFENCE_SEED={seed} PAGEFENCE_CHECK_ONE_IN={one_in}");
        Self {
            watchdog: Watchdog::new(),
            image,
            random: Random::new(seed),
            one_in,
            tried: 0,
            found: 0,
        }
    }

    fn case(&mut self, name: String, damage: impl FnOnce(&Image)) {
        if !self.random.one_in(self.one_in) {
            return;
        }
        self.watchdog.case(name);
        let image = self.image.fork();
        damage(&image);
        let end = check_device(image.device(), &mut |_| ControlFlow::Continue(()));
        self.tried += 1;
        // Of a superblock that is none, nothing can be said.
        self.found += u64::from(end.is_ok_and(|summary| summary.findings > 0));
    }
}

/// Whatever stands in a field, the check ends, with nothing but findings.
#[test]
fn any_value_in_any_field_ends() {
    let image = ext4();
    let (small, big, deep) = (
        inode_of(&image, "small"),
        inode_of(&image, "big"),
        inode_of(&image, "deep"),
    );
    let mut trials = Trials::new(image);
    for value in [0, u32::MAX, small.0] {
        for at in (0..0x180).step_by(8) {
            trials.case(format!("superblock {at}: {value}"), |image| {
                image.edit_superblock(|bytes| put32(bytes, at, value));
            });
        }
        for at in (0..64).step_by(4) {
            trials.case(format!("group {at}: {value}"), |image| {
                image.edit_group(GroupNo(0), |bytes| put32(bytes, at, value));
            });
        }
        for number in [InodeNo::ROOT, InodeNo::RESIZE, big] {
            for at in (0..160).step_by(4) {
                trials.case(format!("inode {number} {at}: {value}"), |image| {
                    image.edit_inode(number, |bytes| put32(bytes, at, value));
                });
            }
        }
        for at in (0..64).step_by(4) {
            trials.case(format!("index {at}: {value}"), |image| {
                let block = image.block_of(deep, 0);
                image.edit_block(deep, block, Kind::Index, |bytes| put32(bytes, at, value));
            });
            trials.case(format!("extents {at}: {value}"), |image| {
                edit_big(image, |bytes| put32(bytes, at, value));
            });
            trials.case(format!("attributes {at}: {value}"), |image| {
                edit_xattrs(image, |bytes| put32(bytes, at, value));
            });
        }
    }
    // Sizes that nothing stands behind.
    for size in [u64::MAX >> 1, 1 << 44, 1 << 32] {
        for number in [InodeNo::ROOT, big, deep] {
            trials.case(format!("inode {number} of {size} bytes"), |image| {
                image.edit_inode(number, |bytes| {
                    let low = u32::try_from(size & 0xFFFF_FFFF).expect("32 bits");
                    put32(bytes, 4, low);
                    put32(bytes, 108, u32::try_from(size >> 32).expect("32 bits"));
                });
            });
        }
    }
    check_memory();
    let (tried, found) = (trials.tried, trials.found);
    println!("{tried} values, {found} of them found");
    // Of all 705 cases 310 are: the others stand where anything may, or where it did before.
    assert!(tried > 0 && found * 4 > tried, "{found} of {tried}");
}
