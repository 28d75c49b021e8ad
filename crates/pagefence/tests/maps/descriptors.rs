//! Many files that are mapped one after the other, in a process that may have few descriptors.

use std::fs;

use pagefence::{File, Kind, Map, MapOptions, OpenOptions};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::full::in_child;
use crate::kit::{Image, file, pattern};

/// What the child may have.
const DESCRIPTORS: u64 = 64;
const FILES: u64 = 1000;
const LEN: usize = 5000;

fn limit_descriptors() {
    let limit = Rlimit {
        current: Some(DESCRIPTORS),
        ..getrlimit(Resource::Nofile)
    };
    setrlimit(Resource::Nofile, limit).expect("a limit");
}

fn map(file: &File) -> Map {
    file.map(.., MapOptions::shared()).expect("it maps")
}

/// What was file `number` at first, and after the store through its map.
fn contents(number: u64, is_stored: bool) -> Vec<u8> {
    let mut bytes = pattern(number, LEN);
    if is_stored {
        bytes[4090..4100].fill(7);
    }
    bytes
}

#[test]
fn files_that_were_mapped_cost_no_descriptor() {
    in_child(
        "descriptors::files_that_were_mapped_cost_no_descriptor",
        || {
            let image = Image::new((Kind::Ext4, 4096));
            let volume = image.open();
            let path = |number| format!("/f{number}");
            for number in 0..FILES {
                drop(file(&volume, path(number), &contents(number, false)));
            }
            limit_descriptors();
            let options = OpenOptions::new().read(true).write(true);
            for round in [false, true] {
                for number in 0..FILES {
                    let file = options.open(&volume, path(number)).expect("it opens");
                    let map = map(&file);
                    assert!(map.slice(..).expect("inside") == contents(number, round)[..]);
                    map.write_at(4090, &[7; 10]).expect("inside");
                }
            }
            for number in 0..FILES {
                let bytes = volume.read(path(number)).expect("it reads");
                assert!(bytes == contents(number, true), "{number}");
            }
            volume.close().expect("nobody has it");
            image.check();
            let volume = image.open();
            for number in 0..FILES {
                let bytes = volume.read(path(number)).expect("it reads");
                assert!(bytes == contents(number, true), "{number}");
            }
        },
    );
}

/// The memories of files that nobody maps are given back where there is no descriptor left.
#[test]
fn idle_memories_make_room_for_a_map() {
    in_child("descriptors::idle_memories_make_room_for_a_map", || {
        limit_descriptors();
        let image = Image::new((Kind::Ext4, 4096));
        let volume = image.open();
        let files: Vec<File> = (0..10)
            .map(|number| file(&volume, format!("/f{number}"), &pattern(number, LEN)))
            .collect();
        let kept = map(&files[0]);
        for file in &files[1..9] {
            drop(map(file));
        }
        let mut taken = Vec::new();
        while let Ok(null) = fs::File::open("/dev/null") {
            taken.push(null);
        }
        assert!(taken.len() > 10, "there was room");
        let last = map(&files[9]);
        assert!(last.slice(..).expect("inside") == pattern(9, LEN)[..]);
        assert!(kept.slice(..).expect("inside") == pattern(0, LEN)[..]);
        drop((kept, last));
        for (number, file) in (0..).zip(&files) {
            assert!(file.read_all().expect("it reads") == pattern(number, LEN));
        }
    });
}
