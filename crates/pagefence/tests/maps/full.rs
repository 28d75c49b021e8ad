//! A store that finds no space ends the process that stores, and nothing else is lost.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output};

use pagefence::{Kind, MapOptions, Mkfs, Options, Volume};

use crate::kit::{FORMATS, file, pattern};
use pagefence_proofs::e2fsck;

/// Says to the test that is the child which image it has.
const IMAGE: &str = "PAGEFENCE_MAP_TEST_IMAGE";
const SIGBUS: i32 = 7;
/// With what a child ends that came to its end; no test harness does.
const DONE: i32 = 77;
const KEPT: usize = 100_000;

/// How a process ended that ran one test of this program, by itself.
#[derive(Debug)]
pub(crate) struct Child(Output);

impl Child {
    /// Runs the test `name` with `image`.
    pub(crate) fn run(name: &str, image: &Path) -> Self {
        let output = Command::new("timeout")
            .arg("120")
            .arg(std::env::current_exe().expect("this program"))
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(IMAGE, image)
            .output();
        Self(output.expect("it runs"))
    }

    /// Whether a signal ended it. timeout(1) ends as its child did, or says so in its status.
    pub(crate) fn is_ended_by(&self, signal: i32) -> bool {
        let status = self.0.status;
        status.signal() == Some(signal) || status.code() == Some(128 + signal)
    }

    /// All that it has said.
    pub(crate) fn said(&self) -> String {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        text(&self.0.stdout) + &text(&self.0.stderr)
    }
}

/// Runs the test `name` of this program, by itself, with `image`, and fails unless SIGBUS ends it.
pub(crate) fn ends_by_sigbus(name: &str, image: &Path) {
    let child = Child::run(name, image);
    let (status, said) = (child.0.status, child.said());
    assert!(child.is_ended_by(SIGBUS), "{name}: {status}\n{said}");
}

/// Runs `body` in a process of its own, which runs the test `name` alone, the caller.
pub(crate) fn in_child(name: &str, body: impl FnOnce()) {
    if image_of_child().is_some() {
        body();
        std::process::exit(DONE);
    }
    let child = Child::run(name, Path::new("none"));
    let (status, said) = (child.0.status, child.said());
    assert_eq!(status.code(), Some(DONE), "{name}: {status}\n{said}");
}

/// A file of the host that nobody has open, and that goes in the end.
pub(crate) fn host_file(bytes: u64) -> tempfile::TempPath {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(bytes).expect("its size");
    file.into_temp_path()
}

/// The image that this process is to work on, if it is such a child.
pub(crate) fn image_of_child() -> Option<std::path::PathBuf> {
    std::env::var_os(IMAGE).map(Into::into)
}

/// The child: stores to holes until there is no space for them.
#[test]
fn child_that_fills_the_volume() {
    let Some(image) = image_of_child() else {
        return;
    };
    let volume = Volume::open(image, Options::new().write(true).cache(0)).expect("it opens");
    let kept = file(&volume, "/kept", &vec![0; KEPT]);
    let map = kept.map(.., MapOptions::shared()).expect("it maps");
    map.write_at(0, &pattern(1, KEPT)).expect("inside");
    map.flush().expect("durable");
    let holes = file(&volume, "/holes", b"");
    holes.set_len(64 << 20).expect("its size");
    let more = holes.map(.., MapOptions::shared()).expect("it maps");
    for page in 0..more.len() / 4096 {
        more.write_at(page * 4096, &(page as u64).to_ne_bytes())
            .expect("inside");
        if page == 100 {
            more.flush().expect("durable");
        }
    }
    unreachable!("there is no space for so much");
}

#[test]
fn a_store_without_space_is_a_sigbus_and_nothing_else_is_lost() {
    for (kind, block_size) in FORMATS {
        let image = host_file(8 << 20);
        Mkfs::new(kind)
            .block_size(block_size)
            .overwrite(true)
            .format(&image)
            .expect("it is made");
        ends_by_sigbus("full::child_that_fills_the_volume", &image);

        let volume = Volume::open(&image, Options::new().write(true)).expect("it opens");
        let kept = volume.read("/kept").expect("it reads");
        assert!(kept == pattern(1, KEPT), "{kind:?}, {block_size}");
        let holes = volume.open_file("/holes").expect("it opens");
        let mut number = [0; 8];
        for page in 0..=100u64 {
            holes.read_at(page * 4096, &mut number).expect("it reads");
            assert_eq!(u64::from_ne_bytes(number), page, "{kind:?}, {block_size}");
        }
        drop(holes);
        volume.remove_file("/holes").expect("it goes");
        volume.close().expect("nobody has it");
        if e2fsck::is_there() {
            e2fsck::check_file(&image).expect("a sound file system");
        }
    }
}

/// What has its space already is stored to on a volume that is full.
#[test]
fn space_that_was_allocated_is_stored_to() {
    let image = crate::kit::Image::made(Mkfs::new(Kind::Ext4).block_size(1024), 8);
    let volume = image.open();
    let ready = file(&volume, "/ready", b"");
    ready.allocate(0, 1 << 20).expect("space");
    let map = ready.map(.., MapOptions::shared()).expect("it maps");
    let filler = file(&volume, "/filler", b"");
    let full = filler.write_all_at(0, &vec![1; 16 << 20]);
    assert_eq!(
        full.expect_err("no space").kind(),
        std::io::ErrorKind::StorageFull
    );
    map.write_at(0, &pattern(2, 1 << 20)).expect("inside");
    map.flush().expect("durable");
    drop((map, ready, filler));
    volume.close().expect("nobody has it");
    image.check();
    assert!(image.open().read("/ready").expect("it reads") == pattern(2, 1 << 20));
}
