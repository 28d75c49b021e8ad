//! Races, by the suite that every file system here runs.

use pagefence_fs_model::races::{FileRace, race_over_a_file, race_over_names};
use pagefence_vfs::FileSystem as _;

use crate::support::{Image, KINDS};

#[test]
fn no_reader_sees_stale_or_foreign_bytes() {
    for (seed, kind) in (0..).zip(&KINDS) {
        let image = Image::new(kind.options, "32M");
        let fs = image.open();
        let race = FileRace {
            seed,
            changes: 60,
            has_unwritten: kind.has_extents,
        };
        race_over_a_file(&fs, &race).unwrap_or_else(|error| panic!("{}: {error}", kind.name));
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}

#[test]
fn names_race_and_nothing_is_lost() {
    for (seed, kind) in (0..).zip(&KINDS[..4]) {
        let image = Image::new(kind.options, "32M");
        let fs = image.open();
        race_over_names(&fs, seed, 150).unwrap_or_else(|error| panic!("{}: {error}", kind.name));
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}
