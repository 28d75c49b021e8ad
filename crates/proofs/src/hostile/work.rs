//! Changes of every kind to a volume that may be damaged.

use std::io::ErrorKind;

use pagefence::{Node, OpenOptions, Result, Volume};

use super::device::{SECTOR, TAG};
use super::walk::Seen;

/// Bytes that are written at once: more than a page.
const BYTES: usize = 6 << 10;

/// What there is in each image, files first.
pub(super) const FILES: [&str; 5] = ["big", "small", "unwritten", "sub/inner/leaf", "tiny"];
/// Directories.
pub(super) const DIRECTORIES: [&str; 4] = ["/", "sub", "deep", "tinydir"];

/// Data that is known again wherever it is written.
fn data(bytes: usize) -> Vec<u8> {
    let mut data = vec![b'd'; bytes];
    for sector in data.chunks_mut(SECTOR) {
        let count = sector.len().min(TAG.len());
        sector[..count].copy_from_slice(&TAG[..count]);
    }
    data
}

/// Changes all that there is; whether anything may be changed. Errors are noted, and stop nothing.
pub(super) fn work(volume: &Volume, seen: &mut Seen) -> bool {
    let first = volume.create_dir("first");
    if first
        .as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::ReadOnlyFilesystem)
    {
        return false;
    }
    seen.note("a directory", first);
    for path in FILES {
        if volume.symlink_metadata(path).is_ok() {
            change_file(volume, path, seen);
        }
    }
    for path in DIRECTORIES {
        if volume.symlink_metadata(path).is_ok() {
            change_directory(volume, path, seen);
        }
    }
    seen.note("sync", volume.sync());
    // What was made durable goes, and something else takes its place.
    for path in ["small", "big", "slow", "fast"] {
        if volume.symlink_metadata(path).is_ok() {
            seen.note("removing", volume.remove_file(path));
        }
    }
    seen.note("removing all", volume.remove_dir_all("sub"));
    let made = volume.create("last").and_then(|file| {
        file.write_all_at(0, &data(20 * BYTES))?;
        file.sync_all()
    });
    seen.note("the last file", made);
    seen.note("sync", volume.sync());
    true
}

fn change_file(volume: &Volume, path: &str, seen: &mut Seen) {
    let open = OpenOptions::new().read(true).write(true);
    let Some(file) = seen.note("opening to write", open.open(volume, path)) else {
        return;
    };
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let aligned = size.next_multiple_of(SECTOR as u64);
    seen.note("writing", file.write_all_at(0, &data(BYTES)));
    seen.note("appending", file.write_all_at(aligned, &data(BYTES)));
    // Unwritten extents and holes are written to where they are.
    seen.note("writing inside", file.write_all_at(8 << 10, &data(SECTOR)));
    seen.note("writing it out", file.sync_data());
    seen.note("allocating", file.allocate(64 << 10, 16 << 10));
    seen.note("punching", file.punch_hole(5 << 10, 6 << 10));
    seen.note("zeroing", file.zero_range(9 << 10, 3 << 10));
    seen.note(
        "an attribute",
        volume.set_xattr(path, "user.short", b"other"),
    );
    let long = vec![b'x'; 700];
    seen.note("an attribute", volume.set_xattr(path, "user.new", &long));
    seen.note("no attribute", volume.remove_xattr(path, "user.long"));
    seen.note("permissions", volume.set_permissions(path, 0o640));
    seen.note("fsync", file.sync_all());
    seen.note("shortening", file.set_len(3000));
    seen.note("lengthening", file.set_len(100_000));
    let direct = OpenOptions::new().write(true).direct(true);
    let written = direct
        .open(volume, path)
        .and_then(|file| file.write_all_at(4096, &data(8192)));
    seen.note("writing past the cache", written);
    seen.note("fsync", file.sync_all());
}

fn change_directory(volume: &Volume, path: &str, seen: &mut Seen) {
    let at = |name: &str| format!("{path}/{name}");
    let made = |result: Result<()>, seen: &mut Seen| seen.note("a new name", result).is_some();
    let file = volume.create(at("new"));
    if let Some(file) = seen.note("creating", file) {
        seen.note("filling it", file.write_all_at(0, &data(BYTES)));
    }
    made(volume.create_dir(at("newdir")), seen);
    made(volume.symlink("x".repeat(100), at("newlink")), seen);
    made(volume.make_node(at("newfifo"), Node::Fifo), seen);
    made(volume.hard_link(at("new"), at("newname")), seen);
    for number in 0..6 {
        let long = format!("{number}{}", "n".repeat(200));
        seen.note("creating", volume.create(at(&long)).map(drop));
    }
    seen.note("renaming", volume.rename(at("new"), at("newdir/moved")));
    seen.note("renaming", volume.rename(at("newname"), at("newer")));
    seen.note("exchanging", volume.exchange(at("newer"), at("newlink")));
    seen.note("removing", volume.remove_file(at("newer")));
    seen.note("removing", volume.remove_dir_all(at("newdir")));
}
