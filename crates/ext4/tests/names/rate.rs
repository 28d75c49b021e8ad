//! Rates, for who asks: `cargo test --release --test names rate -- --ignored --nocapture`.

use std::time::Instant;

use pagefence_ext4::mkfs::{Contents, Kind, Parameters};
use pagefence_vfs::{FileSystem as _, NewKind};

use crate::kit::{self, Paths, new, root};

fn run(kind: Kind, features: &str, count: u32, window: u32) -> f64 {
    let mut parameters = Parameters::new(kind);
    parameters.block_size = Some(4096);
    parameters.contents = Contents::Zeros;
    parameters.inodes = Some(count + 1000);
    if !features.is_empty() {
        parameters.features.edit(features).unwrap();
    }
    let device = kit::format(&parameters, 6 << 30);
    let fs = kit::open_with(&device, true, 2 << 30);
    let dir = fs.mkdir("d").unwrap().id;
    let regular = new(NewKind::Regular, 0o644);
    let mut rates = Vec::new();
    let mut start = Instant::now();
    for at in 1..=count {
        fs.create(dir, format!("file-{at}").as_bytes(), &regular, &root())
            .unwrap();
        if at % window == 0 {
            rates.push(f64::from(window) / start.elapsed().as_secs_f64());
            start = Instant::now();
        }
    }
    let start = Instant::now();
    for at in 1..=count {
        fs.rm(&format!("d/file-{at}")).unwrap();
    }
    let removed = f64::from(count) / start.elapsed().as_secs_f64();
    let (first, last) = (rates[0], rates[rates.len() - 1]);
    println!("{kind:?} {features}: first {first:.0}/s, last {last:.0}/s, removed {removed:.0}/s");
    // Too large to be judged here.
    fs.shut_down().unwrap();
    last / first
}

#[test]
#[ignore = "takes minutes, and measures"]
fn names_come_as_fast_at_the_end_as_at_the_start() {
    assert!(run(Kind::Ext4, "", 1_000_000, 10_000) > 0.5);
    assert!(run(Kind::Ext2, "^dir_index", 100_000, 2_000) > 0.4);
}
