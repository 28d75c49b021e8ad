//! Maps of many levels: trees of more than one leaf, blocks that hang from three indirect ones.

use pagefence_vfs::FileSystem as _;

use super::{COLLAPSE, INSERT, Model, runs_of};
use crate::support::{Image, KINDS, Random, create, find, read_all, set_size, write_all};

/// Every other block is a hole, so that each is an extent of its own.
#[test]
fn trees_of_many_leaves_move_as_a_whole() {
    for kind in KINDS.iter().filter(|kind| kind.has_extents) {
        let image = Image::new(kind.options, "24M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let block = fs.stat_fs().unwrap().block_size as usize;
        let mut model = Model::new(block);
        for at in (0..3000).step_by(2) {
            let data = vec![1 + (at % 251) as u8; block];
            write_all(&fs, &file, (at * block) as u64, &data);
            model.write(at * block, &data);
        }
        let mut random = Random::new(7);
        for round in 0..40 {
            let first = random.below(2600) as usize;
            let len = 1 + random.below([2, 30, 300][round % 3]) as usize;
            let (from, to) = (first * block, (first + len) * block);
            let mode = if round % 2 == 0 { INSERT } else { COLLAPSE };
            if mode == INSERT {
                model.insert(from, to);
            } else {
                model.collapse(from, to);
            }
            fs.allocate(&file, from as u64, (to - from) as u64, mode)
                .unwrap_or_else(|error| panic!("{} {round}: {error:?}", kind.name));
        }
        let check = |fs: &pagefence_ext4::FileSystem| {
            let id = find(fs, "file");
            assert!(read_all(fs, id) == model.bytes, "{}", kind.name);
            let file = fs.open(id, false).unwrap();
            assert_eq!(runs_of(fs, &file), model.runs(), "{}", kind.name);
        };
        check(&fs);
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
        let fs = image.open();
        check(&fs);
        set_size(&fs, find(&fs, "file"), 0).unwrap();
        assert_eq!(fs.attr(id).unwrap().blocks_512, 0);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}

/// Pieces in every part of a block map, on both sides of where it gets another level.
#[test]
fn pieces_in_each_part_of_a_block_map_move() {
    for kind in KINDS.iter().filter(|kind| !kind.has_extents) {
        let image = Image::new(kind.options, "24M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let block = u64::from(fs.stat_fs().unwrap().block_size);
        let per_block = block / 4;
        let single = 12 + per_block;
        let double = single + per_block * per_block;
        let borders = [12, single, single + per_block, double, double + per_block];
        let mut pieces: Vec<(u64, u8)> = Vec::new();
        for (byte, border) in (1..).zip(borders.iter().chain(&[double + 3 * per_block * per_block]))
        {
            for (part, at) in [border - 3, border - 1, *border, border + 5]
                .into_iter()
                .enumerate()
            {
                let byte = byte * 10 + part as u8;
                write_all(&fs, &file, at * block, &vec![byte; block as usize]);
                pieces.push((at, byte));
            }
        }
        let check = |fs: &pagefence_ext4::FileSystem, pieces: &[(u64, u8)], what: &str| {
            let file = fs.open(find(fs, "file"), false).unwrap();
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for (at, byte) in pieces {
                let mut bytes = vec![0; block as usize];
                fs.read(&file, at * block, &mut bytes).unwrap();
                assert!(bytes == vec![*byte; block as usize], "{what}: {at}");
                match runs.last_mut() {
                    Some(last) if last.1 == at * block => last.1 += block,
                    _ => runs.push((at * block, (at + 1) * block)),
                }
            }
            assert_eq!(runs_of(fs, &file), runs, "{what}");
        };
        let moves = [
            (INSERT, 0, 1),
            (INSERT, 11, per_block),
            (COLLAPSE, 2, 7),
            (INSERT, 5, per_block * per_block + 3),
            (COLLAPSE, 1, per_block * per_block),
            (INSERT, double, 2 * per_block + 1),
            (COLLAPSE, 0, 1),
        ];
        for (mode, first, len) in moves {
            let what = format!("{} {mode:?} {first} {len}", kind.name);
            if mode == INSERT {
                pieces.iter_mut().for_each(|(at, _)| {
                    if *at >= first {
                        *at += len;
                    }
                });
            } else {
                pieces.retain(|(at, _)| *at < first || *at >= first + len);
                pieces.iter_mut().for_each(|(at, _)| {
                    if *at >= first {
                        *at -= len;
                    }
                });
            }
            fs.allocate(&file, first * block, len * block, mode)
                .unwrap_or_else(|error| panic!("{what}: {error:?}"));
            check(&fs, &pieces, &what);
        }
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
        let fs = image.open();
        check(&fs, &pieces, kind.name);
        set_size(&fs, find(&fs, "file"), 0).unwrap();
        assert_eq!(fs.attr(id).unwrap().blocks_512, 0, "{}", kind.name);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
    }
}

/// A hole put into the middle of an extent makes two of it: leaves that are full split, and so do
/// those above them. What is taken out again joins what it had parted.
#[test]
fn extents_are_cut_where_leaves_are_full() {
    const PIECES: usize = 1100;
    for kind in KINDS.iter().filter(|kind| kind.has_extents) {
        let image = Image::new(kind.options, "24M");
        let fs = image.open();
        let id = create(&fs, "file");
        let file = fs.open(id, true).unwrap();
        let block = fs.stat_fs().unwrap().block_size as usize;
        let mut model = Model::new(block);
        for piece in 0..PIECES {
            let data: Vec<u8> = (0..2 * block)
                .map(|at| (piece + at / block) as u8 | 1)
                .collect();
            write_all(&fs, &file, (3 * piece * block) as u64, &data);
            model.write(3 * piece * block, &data);
        }
        fs.sync().unwrap();
        let pieces = || fs.extents(id, 0, u64::MAX, 10_000).unwrap().len();
        assert!(pieces() >= PIECES, "{}", kind.name);
        let mut random = Random::new(3);
        for cuts in 1..=100 {
            // Behind the first block of some extent.
            let runs = model.runs();
            let run = runs[random.below(runs.len() as u64) as usize];
            let from = run.0 as usize + block;
            if (run.1 as usize) < from + block {
                continue;
            }
            let length = (1 + random.below(5) as usize) * block;
            let shift = |mode| fs.allocate(&file, from as u64, length as u64, mode);
            let before = pieces();
            shift(INSERT).unwrap_or_else(|error| panic!("{} {cuts}: {error:?}", kind.name));
            assert!(pieces() <= before + 1, "{} {cuts}", kind.name);
            if cuts % 4 == 0 {
                shift(COLLAPSE).unwrap();
            } else {
                model.insert(from, from + length);
            }
        }
        assert!(read_all(&fs, id) == model.bytes, "{}", kind.name);
        assert_eq!(runs_of(&fs, &file), model.runs(), "{}", kind.name);
        drop(file);
        fs.shut_down().unwrap();
        drop(fs);
        image.assert_clean(kind.name);
        let fs = image.open();
        assert!(read_all(&fs, id) == model.bytes, "{}", kind.name);
        set_size(&fs, id, 0).unwrap();
        assert_eq!(fs.attr(id).unwrap().blocks_512, 0, "{}", kind.name);
    }
}
