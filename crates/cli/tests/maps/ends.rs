//! What ends before its time: mounts, servers, programs that are stopped.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use pagefence::{Map, MapOptions, Options, Volume};
use pagefence_lock_order::primitives::atomic::Ordering;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::Signal;

use crate::common::can_mount;
use crate::kit::{self, Child, PAGE, Served, Watchdog, child_place};
use crate::{SIGBUS, bytes, pointers};

#[test]
fn a_mount_whose_files_are_mapped_is_in_use_and_ends_with_its_maps() {
    if !can_mount() {
        return;
    }
    let _watchdog =
        Watchdog::new("a_mount_whose_files_are_mapped_is_in_use_and_ends_with_its_maps");
    let mut served = Served::new("rw");
    served.file("f", &[3; 4 * PAGE]);
    let mounted = Volume::connect(served.mountpoint()).expect("it serves maps");
    let map = mounted.map("f", .., MapOptions::shared()).expect("it maps");
    drop(mounted);
    map.write_at(0, b"stored").expect("inside");
    map.flush().expect("durable");
    assert!(served.fail_to_unmount().contains("is in use"));
    assert_eq!(bytes(&map, 0, 6), b"stored");
    // The connection to the kernel is cut, and the server ends.
    served.abort();
    let begin = Instant::now();
    while map.read_at(0, &mut [0; 6]).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_is_over(&map);
    drop(map);
    served.unmount();
    let volume = Volume::open(served.image(), Options::new()).expect("an image");
    assert_eq!(volume.read("/f").expect("it is there")[..6], *b"stored");
    drop(volume);
    served.check();
}

/// Everything about a map whose server has gone is an error.
fn assert_is_over(map: &Map) {
    let is_over = |result: pagefence::Result<()>| {
        let error = result.expect_err("nobody serves it");
        assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
        assert!(
            error.to_string().contains("nobody serves this any more"),
            "{error}"
        );
    };
    is_over(map.read_at(0, &mut [0]));
    is_over(map.read_at(map.len() - 1, &mut [0]));
    is_over(map.write_at(0, b"x"));
    is_over(map.load::<u8>(0, Ordering::Relaxed).map(drop));
    is_over(map.fetch_add(0, 1_u8, Ordering::Relaxed).map(drop));
    is_over(map.flush());
    is_over(map.populate(..));
    map.advise(pagefence::Advice::WillNeed);
    let slice = map.slice(..).expect("inside the map");
    assert!(slice.to_vec().is_err());
}

#[test]
fn maps_of_a_server_that_is_killed_end() {
    if !can_mount() {
        return;
    }
    let _watchdog = Watchdog::new("maps_of_a_server_that_is_killed_end");
    let mut served = Served::new("rw");
    served.file("f", &[3; 64 * PAGE]);
    let mounted = Volume::connect(served.mountpoint()).expect("it serves maps");
    let map = mounted.map("f", .., MapOptions::shared()).expect("it maps");
    map.write_at(0, b"stored").expect("inside");
    let children = [
        "ends::child_that_loads_for_ever",
        "ends::child_that_stores_for_ever",
    ]
    .map(|name| Child::start(name, &served, 0));
    for (child, sign) in children.iter().zip(["loads", "stores"]) {
        child.wait_for(sign);
    }
    served.kill();
    for child in children {
        let end = child.end();
        assert_eq!(end.signal, Some(SIGBUS), "{}", end.said);
    }
    let begin = Instant::now();
    while map.read_at(0, &mut [0; 6]).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_is_over(&map);
    let error = mounted.map("f", .., MapOptions::shared());
    let error = error.expect_err("nobody serves it");
    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
    let error = Volume::connect(served.mountpoint()).expect_err("nobody serves it");
    assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
    drop((map, mounted));
    served.unmount();
}

#[test]
fn child_that_loads_for_ever() {
    let Some(mountpoint) = child_place() else {
        return;
    };
    let mounted = Volume::connect(&mountpoint).expect("it serves maps");
    let options = MapOptions::shared().read_only();
    let map = mounted.map("f", .., options).expect("it maps");
    for round in 0_u64.. {
        for page in 0..64 {
            let byte = pointers::load(&map, page * PAGE + 9);
            assert!(byte != 0, "zeros in page {page}");
        }
        if round == 2 {
            kit::tell(&mountpoint, "loads");
        }
    }
}

#[test]
fn child_that_stores_for_ever() {
    let Some(mountpoint) = child_place() else {
        return;
    };
    let mounted = Volume::connect(&mountpoint).expect("it serves maps");
    let map = mounted.map("f", .., MapOptions::shared()).expect("it maps");
    for round in 0_u64.. {
        for page in 1..64 {
            pointers::store(&map, page * PAGE + 9, 1 | round as u8);
        }
        if round == 2 {
            kit::tell(&mountpoint, "stores");
        }
    }
}

#[test]
fn a_stopped_program_holds_up_nobody() {
    if !can_mount() {
        return;
    }
    let _watchdog = Watchdog::new("a_stopped_program_holds_up_nobody");
    let mut served = Served::new("rw");
    let path = served.file("f", &[3; 64 * PAGE]);
    let child = Child::start("ends::child_that_stores_for_ever", &served, 0);
    child.wait_for("stores");
    let file = File::options().read(true).write(true).open(&path);
    let file = file.expect("it opens");
    child.stop();
    let begin = Instant::now();
    let mut page = [1; PAGE];
    let look = |page: &mut [u8], at: usize| {
        file.read_exact_at(page, (at * PAGE) as u64)
            .expect("it is read");
    };
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, mode, 10 * PAGE as u64, PAGE as u64).expect("a hole");
    look(&mut page, 10);
    assert!(page == [0; PAGE]);
    file.write_all_at(&[5; PAGE], 11 * PAGE as u64)
        .expect("it is written");
    file.sync_all().expect("it is durable");
    look(&mut page, 11);
    assert!(page == [5; PAGE]);
    look(&mut page, 12);
    assert!(page[9] & 1 == 1 && page[10] == 3);
    file.set_len(50 * PAGE as u64).expect("it is cut");
    file.set_len(64 * PAGE as u64).expect("it grows");
    look(&mut page, 50);
    assert!(page == [0; PAGE]);
    let held_up = begin.elapsed();
    assert!(held_up < Duration::from_secs(30), "{held_up:?}");
    // It goes on with what is there now.
    child.signal(Signal::CONT);
    let begin = Instant::now();
    for at in [10, 11, 50] {
        let was = if at == 11 { 5 } else { 0 };
        look(&mut page, at);
        while page[9] & 1 == 0 || page[9] == was {
            assert!(begin.elapsed() < Duration::from_secs(30), "page {at} stays");
            std::thread::sleep(Duration::from_millis(1));
            look(&mut page, at);
        }
        page[9] = was;
        assert!(page == [was; PAGE], "page {at}");
    }
    child.signal(Signal::KILL);
    assert_eq!(child.end().signal, Some(9));
    drop(file);
    served.unmount();
    served.check();
}
