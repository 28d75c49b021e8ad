//! Random operations against a naive model: what each block is, and who was promised how many.

use pagefence_lock_order::primitives::Arc;
use proptest::prelude::*;

use super::*;

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Free,
    Busy,
    /// By the file system itself, or whoever was there before.
    Theirs,
    Ours,
    /// Freed by the running transaction.
    Pending,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Reserve(u64, Claim),
    /// Which reservation, where, how many.
    Allocate(usize, u64, u32),
    Use(usize),
    Drop(usize),
    GiveBack(usize, usize),
    Split(usize, u32),
    Unreserve(usize),
    Shrink(usize, u64),
    /// From the n-th of our blocks on.
    Free(usize, u32),
    /// Wherever that is.
    FreeAnything(u64, u32),
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    let place = 0..26_000u64;
    let length = prop_oneof![3 => 1..40u32, 1 => 1..9_000u32];
    prop_oneof![
        4 => (prop_oneof![1..40u64, 1..9_000u64], prop_oneof![Just(Claim::Everybody), Just(Claim::Root), Just(Claim::Map)])
            .prop_map(|(blocks, claim)| Step::Reserve(blocks, claim)),
        8 => (any::<usize>(), place.clone(), length.clone())
            .prop_map(|(from, goal, want)| Step::Allocate(from, goal, want)),
        6 => any::<usize>().prop_map(Step::Use),
        1 => any::<usize>().prop_map(Step::Drop),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(run, to)| Step::GiveBack(run, to)),
        1 => (any::<usize>(), length.clone()).prop_map(|(run, at)| Step::Split(run, at)),
        1 => any::<usize>().prop_map(Step::Unreserve),
        1 => (any::<usize>(), 0..50u64).prop_map(|(from, to)| Step::Shrink(from, to)),
        4 => (any::<usize>(), length.clone()).prop_map(|(at, count)| Step::Free(at, count)),
        1 => (place, length).prop_map(|(at, count)| Step::FreeAnything(at, count)),
        1 => Just(Step::Commit),
    ]
}

struct Model {
    world: World,
    tx: Tx,
    blocks: Vec<Block>,
    reservations: Vec<Reservation>,
    runs: Vec<BusyRun>,
    reserve: u64,
}

impl Model {
    fn new(device: MemoryDevice) -> Self {
        let world = World::new(device);
        let blocks = world
            .in_use()
            .into_iter()
            .map(|in_use| if in_use { Block::Theirs } else { Block::Free })
            .collect();
        let reserve = world.instance.kept_back();
        Self {
            world,
            tx: Tx::default(),
            blocks,
            reservations: Vec::new(),
            runs: Vec::new(),
            reserve,
        }
    }

    fn count(&self, what: Block) -> u64 {
        self.blocks.iter().filter(|block| **block == what).count() as u64
    }

    fn promised(&self) -> u64 {
        self.reservations.iter().map(Reservation::blocks).sum()
    }

    fn places(start: u64, count: u32) -> std::ops::Range<usize> {
        start as usize..start as usize + count as usize
    }

    fn set(&mut self, start: u64, count: u32, before: Block, after: Block) {
        for block in &mut self.blocks[Self::places(start, count)] {
            assert_eq!(std::mem::replace(block, after), before);
        }
    }

    fn step(&mut self, step: Step) {
        let allocator = Arc::clone(&self.world.allocator);
        match step {
            Step::Reserve(blocks, claim) => {
                let floor = match claim {
                    Claim::Everybody => self.reserve,
                    Claim::Root => self.world.instance.kept_for_trees(),
                    Claim::Map => 0,
                };
                let left = self.count(Block::Free) - self.promised();
                let got = allocator.reserve(blocks, claim);
                assert_eq!(got.is_ok(), left >= blocks + floor, "{left} left");
                self.reservations.extend(got);
            }
            Step::Allocate(from, goal, want) if !self.reservations.is_empty() => {
                let from = from % self.reservations.len();
                let before = self.reservations[from].blocks();
                let got = allocator.allocate(
                    &self.world.instance,
                    BlockNo(goal),
                    want,
                    &mut self.reservations[from],
                );
                if before == 0 {
                    assert!(is_no_space(&got));
                    return;
                }
                let run = got.expect("it was promised");
                let (start, len) = (run.start().0, run.len());
                assert!((1..=want).contains(&len));
                assert_eq!(self.reservations[from].blocks(), before - u64::from(len));
                let superblock = self.world.superblock();
                let group_of = |block| superblock.group_of_block(BlockNo(block)).expect("one").0;
                assert_eq!(group_of(start), group_of(start + u64::from(len) - 1));
                self.check_place(goal, u64::from(want).min(before) as u32, start, len);
                self.set(start, len, Block::Free, Block::Busy);
                self.runs.push(run);
            }
            Step::Use(run) if !self.runs.is_empty() => {
                let run = self.runs.swap_remove(run % self.runs.len());
                let (start, len) = allocator.use_run(&mut self.tx, OWNER, run);
                self.set(start.0, len, Block::Busy, Block::Ours);
            }
            Step::Drop(run) if !self.runs.is_empty() => {
                let run = self.runs.swap_remove(run % self.runs.len());
                self.set(run.start().0, run.len(), Block::Busy, Block::Free);
                drop(run);
            }
            Step::GiveBack(run, to) if !self.runs.is_empty() && !self.reservations.is_empty() => {
                let run = self.runs.swap_remove(run % self.runs.len());
                let to = to % self.reservations.len();
                self.set(run.start().0, run.len(), Block::Busy, Block::Free);
                run.give_back(&mut self.reservations[to]);
            }
            Step::Split(run, at) if !self.runs.is_empty() => {
                let run = run % self.runs.len();
                let (start, len) = (self.runs[run].start(), self.runs[run].len());
                let rest = self.runs[run].split_off(at);
                assert_eq!(rest.is_some(), at < len);
                if let Some(rest) = rest {
                    assert_eq!(
                        (rest.start().0, rest.len()),
                        (start.0 + u64::from(at), len - at)
                    );
                    assert_eq!(self.runs[run].len(), at);
                    self.runs.push(rest);
                }
            }
            Step::Unreserve(from) if !self.reservations.is_empty() => {
                let from = from % self.reservations.len();
                let mut reservation = self.reservations.swap_remove(from);
                if let Some(half) = reservation.take(reservation.blocks() / 2) {
                    let mut joined = allocator.empty_reservation();
                    joined.join(half);
                    self.reservations.push(joined);
                }
            }
            Step::Shrink(from, to) if !self.reservations.is_empty() => {
                let from = from % self.reservations.len();
                let before = self.reservations[from].blocks();
                self.reservations[from].shrink_to(to);
                assert_eq!(self.reservations[from].blocks(), before.min(to));
            }
            Step::Free(at, count) => {
                let ours: Vec<usize> = (0..self.blocks.len())
                    .filter(|place| self.blocks[*place] == Block::Ours)
                    .collect();
                let Some(start) = ours.get(at % ours.len().max(1)) else {
                    return;
                };
                let count = self.blocks[*start..]
                    .iter()
                    .take(count as usize)
                    .take_while(|block| **block == Block::Ours)
                    .count() as u32;
                let start = *start as u64;
                self.world.free(&mut self.tx, start, count).expect("ours");
                self.set(start, count, Block::Ours, Block::Pending);
            }
            Step::FreeAnything(at, count) => {
                let places = Self::places(at, count);
                let all_ours = self
                    .blocks
                    .get(places)
                    .is_some_and(|blocks| blocks.iter().all(|block| *block == Block::Ours));
                // What is theirs and no metadata could be freed: it is not tried.
                let theirs = self.blocks.iter().skip(at as usize).take(count as usize);
                if !all_ours && theirs.clone().any(|block| *block == Block::Theirs) {
                    return;
                }
                let freed = self.world.free(&mut self.tx, at, count);
                if all_ours {
                    freed.expect("ours");
                    self.set(at, count, Block::Ours, Block::Pending);
                } else {
                    assert!(is_corrupt(&freed));
                }
            }
            Step::Commit => self.commit(),
            _ => {}
        }
    }

    /// Near is near: at the goal if that is free, else what was wanted in its group if the group
    /// has it, else what was wanted elsewhere if that is to be had anywhere.
    fn check_place(&self, goal: u64, want: u32, start: u64, len: u32) {
        let superblock = self.world.superblock();
        let Ok((group, _)) = superblock.group_of_block(BlockNo(goal)) else {
            return;
        };
        if self.blocks[goal as usize] == Block::Free {
            assert_eq!(start, goal, "the goal is free");
            return;
        }
        let longest_of = |group: GroupNo| {
            let first = superblock.first_block_of_group(group).0;
            let places = Self::places(first, superblock.blocks_in_group(group));
            self.blocks[places]
                .split(|block| *block != Block::Free)
                .map(<[Block]>::len)
                .max()
                .unwrap_or(0) as u32
        };
        let longest = superblock.groups().map(longest_of).max().unwrap_or(0);
        assert_eq!(len, want.min(longest), "as long as can be");
        if longest_of(group) >= want {
            let found = superblock
                .group_of_block(BlockNo(start))
                .expect("a group")
                .0;
            assert_eq!(found, group, "the goal's group has such a run");
        }
    }

    fn commit(&mut self) {
        let committed = self.world.commit(&mut self.tx);
        let mut freed = 0;
        for (start, count) in committed.freed {
            for place in start..start + count {
                assert_eq!(self.blocks[place as usize], Block::Pending);
                self.blocks[place as usize] = Block::Free;
                freed += 1;
            }
        }
        assert_eq!(self.count(Block::Pending), 0, "{freed} were freed");
        assert!(!self.world.allocator.has_pending_frees());
        let in_use: Vec<bool> = self
            .blocks
            .iter()
            .map(|block| matches!(block, Block::Ours | Block::Theirs))
            .collect();
        assert_eq!(self.world.in_use(), in_use, "the bitmaps on the device");
    }

    fn check_counts(&self) {
        let counts = self.world.allocator.counts();
        let free = self.count(Block::Free);
        let pending = self.count(Block::Pending);
        assert_eq!(counts.blocks, free + self.count(Block::Busy) + pending);
        assert_eq!(counts.blocks_unreserved, free - self.promised() + pending);
        let tid = (pending > 0).then_some(self.tx.tid);
        assert_eq!(self.world.allocator.pending_tid(), tid);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_block_is_what_the_model_says(
        checksums in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let kind = if checksums { Kind::Ext4 } else { Kind::Ext2 };
        let mut model = Model::new(image(25, 1024, kind, "^resize_inode"));
        for (number, step) in steps.into_iter().enumerate() {
            model.step(step);
            if number % 8 == 0 {
                model.check_counts();
            }
        }
        model.runs.clear();
        model.reservations.clear();
        for block in &mut model.blocks {
            if *block == Block::Busy {
                *block = Block::Free;
            }
        }
        model.check_counts();
        model.commit();
        model.check_counts();
        let superblock = model.world.reopened().superblock().clone();
        prop_assert_eq!(superblock.free_blocks_count(), model.count(Block::Free));
    }
}

/// Fills the file system by one block at a time: every promise is kept to the last block.
#[test]
fn the_last_block_is_found() {
    let mut model = Model::new(image(9, 1024, Kind::Ext4, "^resize_inode"));
    let (free, reserve) = (model.count(Block::Free), model.reserve);
    assert!(reserve > 0);
    let allocator = Arc::clone(&model.world.allocator);
    assert!(is_no_space(
        &allocator.reserve(free - reserve + 1, Claim::Everybody)
    ));
    let mut promised = allocator
        .reserve(free - reserve, Claim::Everybody)
        .expect("all that is everybody's");
    assert!(is_no_space(&allocator.reserve(1, Claim::Everybody)));
    let for_maps = model.world.instance.kept_for_trees();
    assert!(for_maps > 0);
    let roots = allocator.reserve(reserve - for_maps, Claim::Root);
    promised.join(roots.expect("root's own"));
    assert!(is_no_space(&allocator.reserve(1, Claim::Root)));
    promised.join(
        allocator
            .reserve(for_maps, Claim::Map)
            .expect("for maps only"),
    );
    assert!(is_no_space(&allocator.reserve(1, Claim::Map)));
    for left in (0..free).rev() {
        // Every other one far away.
        let goal = BlockNo(left * 7919 % 9000);
        let run = allocator
            .allocate(&model.world.instance, goal, 1, &mut promised)
            .expect("promised");
        assert_eq!(promised.blocks(), left);
        let (start, _) = allocator.use_run(&mut model.tx, OWNER, run);
        model.set(start.0, 1, Block::Free, Block::Ours);
    }
    assert_eq!(allocator.counts().blocks, 0);
    model.commit();
    assert_eq!(model.world.reopened().superblock().free_blocks_count(), 0);

    // What is freed is there for nobody before the commit, and for all after it.
    model.step(Step::Free(3, 1));
    assert!(is_no_space(&allocator.reserve(1, Claim::Map)));
    assert_eq!(allocator.pending_tid(), Some(model.tx.tid));
    model.commit();
    assert!(
        is_no_space(&allocator.reserve(1, Claim::Everybody)),
        "root's reserve is full first"
    );
    let mut one = allocator.reserve(1, Claim::Map).expect("free again");
    let run = allocator
        .allocate(&model.world.instance, BlockNo(1), 5, &mut one)
        .expect("promised");
    assert_eq!(run.len(), 1);
    assert_eq!(model.blocks[run.start().0 as usize], Block::Free);
}
