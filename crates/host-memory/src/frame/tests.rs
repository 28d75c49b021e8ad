//! Frames come back, keep their bytes apart, and are published once.

use pagefence_lock_order::primitives::{Arc, thread};

use crate::{Arena, FRAME_SIZE, FileMemory, Frame, FrameCell, FrameMut};

#[test]
fn an_arena_never_gives_more_than_it_has() {
    let arena = Arena::new(100).expect("memory");
    let first = arena.allocate_batch(70);
    let second = arena.allocate_batch(70);
    assert_eq!((first.len(), second.len()), (70, 30));
    assert!(arena.allocate().is_none());
    assert_eq!(arena.free_frames(), 0);
    drop(first);
    assert_eq!(arena.free_frames(), 70);
    assert!(arena.allocate().is_some());
}

#[test]
fn none_and_too_many_are_refused() {
    assert!(Arena::new(0).is_err());
    assert!(Arena::new(usize::MAX).is_err());
    assert!(Arena::new(1 << 33).is_err());
}

#[test]
fn a_frame_outlives_its_arena() {
    let arena = Arena::new(2).expect("memory");
    let mut frame = arena.allocate().expect("a frame");
    drop(arena);
    frame.fill(7);
    assert_eq!(frame[FRAME_SIZE - 1], 7);
}

#[test]
fn a_batch_of_a_fresh_arena_is_one_run() {
    let arena = Arena::new(1000).expect("memory");
    let mut frames = arena.allocate_batch(300);
    let runs = FrameMut::runs(&mut frames);
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].len(), 300 * FRAME_SIZE);
}

#[test]
fn runs_are_the_frames_in_order() {
    let arena = Arena::new(200).expect("memory");
    let mut all = arena.allocate_batch(200);
    let mut chosen: Vec<FrameMut> = Vec::new();
    for at in [150, 7, 6, 5] {
        chosen.push(all.remove(at));
    }
    // 150 stands alone, 7, 6 and 5 descend.
    for (at, frame) in chosen.iter_mut().enumerate() {
        frame.fill(u8::try_from(at).expect("few"));
    }
    let runs = FrameMut::runs(&mut chosen);
    assert_eq!(runs.len(), 4);
    for (at, run) in runs.iter().enumerate() {
        assert!(run.iter().all(|&byte| usize::from(byte) == at));
    }
    drop(all);
    chosen.sort_by_key(FrameMut::number);
    let runs = FrameMut::runs(&mut chosen);
    assert_eq!(runs.len(), 2);
    assert_eq!(runs[0][0], 3);
    assert_eq!(runs[0][2 * FRAME_SIZE], 1);
}

#[test]
fn published_bytes_are_copied_in_and_out() {
    let arena = Arena::new(1).expect("memory");
    let mut private = arena.allocate().expect("a frame");
    private.fill(1);
    let frame = private.publish();
    frame.copy_in(100, &[2; 50]);
    frame.zero(120, 10);
    let mut out = [9; 60];
    frame.copy_out(95, &mut out);
    let expected: Vec<u8> = [[1; 5].as_slice(), &[2; 20], &[0; 10], &[2; 20], &[1; 5]].concat();
    assert_eq!(out.as_slice(), expected);
    assert!(!frame.is_in_memory());
}

#[test]
#[should_panic(expected = "2 bytes at 4095 of a frame")]
fn a_copy_past_the_frame_panics() {
    let arena = Arena::new(2).expect("memory");
    arena
        .allocate()
        .expect("a frame")
        .publish()
        .copy_in(4095, &[0; 2]);
}

#[test]
fn a_cell_is_filled_once() {
    let arena = Arena::new(2).expect("memory");
    let mut cell = FrameCell::new();
    assert!(cell.get().is_none());
    let frame = arena.allocate().expect("a frame");
    let number = frame.number();
    cell.publish(frame.publish()).expect("empty");
    assert_eq!(cell.get().expect("full").number(), number);
    let second = arena.allocate().expect("a frame");
    assert!(cell.publish(second.publish()).is_err());
    assert_eq!(arena.free_frames(), 1);
    drop(cell.take());
    assert!(cell.get().is_none());
    assert_eq!(arena.free_frames(), 2);
}

#[test]
fn released_frames_read_as_zeros_and_owned_ones_stay() {
    let arena = Arena::new(130).expect("memory");
    let mut frames = arena.allocate_batch(130);
    for frame in &mut frames {
        frame.fill(3);
    }
    let kept = frames.remove(64);
    drop(frames);
    assert_eq!(arena.release_free(), 129);
    assert_eq!(arena.free_frames(), 129);
    assert!(kept.iter().all(|&byte| byte == 3));
    for frame in arena.allocate_batch(129) {
        assert!(frame.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn copies_race_without_tearing_bytes_from_elsewhere() {
    let arena = Arena::new(1).expect("memory");
    let mut private = arena.allocate().expect("a frame");
    private.fill(0x11);
    let frame = Arc::new(private.publish());
    let writer = {
        let frame = Arc::clone(&frame);
        thread::spawn("writer", move || {
            for round in 0..2000 {
                frame.copy_in(0, &[if round % 2 == 0 { 0x22 } else { 0x11 }; FRAME_SIZE]);
            }
        })
        .expect("a thread")
    };
    let mut out = [0; FRAME_SIZE];
    while !writer.is_finished() {
        frame.copy_out(0, &mut out);
        assert!(out.iter().all(|byte| [0x11, 0x22].contains(byte)));
    }
    writer.join().expect("the writer");
}

#[test]
fn a_frame_in_a_files_memory_is_its_page() {
    let arena = Arena::new(1).expect("memory");
    let memory = FileMemory::new().expect("memory");
    let mut private = arena.allocate().expect("a frame");
    private.fill(1);
    let frame = private.publish_in(&memory, 5);
    assert!(frame.is_in_memory());
    assert_eq!((frame.number(), arena.free_frames()), (0, 0));
    frame.copy_in(100, &[2; 50]);
    frame.zero(120, 10);
    let mut out = [9; 60];
    frame.copy_out(95, &mut out);
    let expected: Vec<u8> = [[1; 5].as_slice(), &[2; 20], &[0; 10], &[2; 20], &[1; 5]].concat();
    assert_eq!(out.as_slice(), expected);
    memory.read(5, 95, &mut out);
    assert_eq!(out.as_slice(), expected);
    assert_eq!(memory.allocated_pages(), 1);
    drop(frame);
    assert_eq!((memory.allocated_pages(), arena.free_frames()), (1, 1));
}

#[test]
fn the_arenas_memory_of_a_moved_frame_is_given_back() {
    let arena = Arena::new(100).expect("memory");
    let memory = FileMemory::new().expect("memory");
    let mut frames = arena.allocate_batch(100);
    for frame in &mut frames {
        let byte = u8::try_from(frame.number()).expect("few");
        frame.fill(byte);
    }
    // 40 stays; 50 comes first and 60 is missing: four runs.
    let kept = frames.remove(40);
    let alone = frames.remove(59);
    let fifty = frames.remove(49);
    assert_eq!(
        (kept.number(), alone.number(), fifty.number()),
        (40, 60, 50)
    );
    frames.insert(0, fifty);
    let numbers: Vec<u32> = frames.iter().map(FrameMut::number).collect();
    let published = FrameMut::publish_run_in(frames, &memory, 1 << 33);
    assert_eq!(
        published.iter().map(Frame::number).collect::<Vec<_>>(),
        numbers
    );
    assert_eq!(memory.allocated_pages(), 98);
    let mut byte = [0];
    for (frame, number) in published.iter().zip(&numbers) {
        frame.copy_out(FRAME_SIZE - 1, &mut byte);
        assert_eq!(u32::from(byte[0]), *number);
    }
    assert!(kept.iter().all(|&byte| byte == 40));
    assert!(alone.iter().all(|&byte| byte == 60));
    assert_eq!(arena.free_frames(), 0);
    drop(published);
    assert_eq!(arena.free_frames(), 98);
    for frame in arena.allocate_batch(98) {
        assert!(
            frame.iter().all(|&byte| byte == 0),
            "frame {}",
            frame.number()
        );
    }
}

#[test]
fn nothing_moves_when_no_frames_do() {
    let memory = FileMemory::new().expect("memory");
    assert!(FrameMut::publish_run_in(Vec::new(), &memory, 0).is_empty());
    assert_eq!(memory.allocated_pages(), 0);
}

#[test]
fn a_punched_page_of_a_frame_reads_as_zeros() {
    let arena = Arena::new(1).expect("memory");
    let memory = FileMemory::new().expect("memory");
    let mut private = arena.allocate().expect("a frame");
    private.fill(1);
    let frame = private.publish_in(&memory, 0);
    memory.punch(0..1);
    let mut out = [9; FRAME_SIZE];
    frame.copy_out(0, &mut out);
    assert!(out.iter().all(|&byte| byte == 0));
    assert_eq!(memory.allocated_pages(), 0);
}

#[test]
#[should_panic(expected = "2 bytes at 4095 of a frame")]
fn a_copy_does_not_reach_the_next_page_of_a_file() {
    let arena = Arena::new(1).expect("memory");
    let memory = FileMemory::new().expect("memory");
    let frame = arena.allocate().expect("a frame").publish_in(&memory, 0);
    frame.copy_out(4095, &mut [0; 2]);
}
