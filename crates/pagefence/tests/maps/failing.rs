//! Devices that fail: what can be an error is one.

use std::io::ErrorKind;
use std::sync::Arc;

use pagefence::device::{Device, Operation};
use pagefence::{Advice, Kind, MapOptions, OpenOptions, Options, Volume};
use pagefence_block_io::fault_device::{Fault, FaultDevice, Times};

use crate::kit::{Image, Watchdog, file, loaded, pattern};

const BYTES: usize = 200_000;

/// A volume with a file, on a device that may be told to fail.
fn volume(writes: bool) -> (Arc<FaultDevice>, Volume) {
    let image = Image::new((Kind::Ext4, 4096));
    let made = image.open();
    drop(file(&made, "/f", &pattern(1, BYTES)));
    made.close().expect("nobody has it");
    let device = Arc::new(FaultDevice::new(image.device(), 1));
    let options = Options::new().write(writes).cache(0).read_ahead(false);
    let opened = Arc::<FaultDevice>::clone(&device) as Arc<dyn Device>;
    let volume = Volume::open_device(opened, options).expect("it opens");
    (device, volume)
}

fn fail(device: &FaultDevice, operation: Operation, times: Times) {
    device.fail(Fault {
        operation,
        call: device.calls(operation),
        times,
        errno: 5,
    });
}

#[test]
fn what_cannot_be_read_is_an_error_of_populate() {
    let _watchdog = Watchdog::new("what_cannot_be_read_is_an_error_of_populate");
    let (device, volume) = volume(false);
    let file = volume.open_file("/f").expect("it opens");
    let options = MapOptions::shared().read_only();
    let map = file.map(.., options).expect("it maps");
    fail(&device, Operation::Read, Times::Forever);
    let error = map.populate(50_000..).expect_err("it can't be read");
    assert!(
        error
            .to_string()
            .starts_with("/f: input/output error: read of ")
    );
    assert!(file.map(.., options.populate(true)).is_err());
    // A hint, of which nobody hears how it went.
    map.advise(Advice::WillNeed);
    device.clear_faults();
    map.populate(..).expect("it can be read");
    fail(&device, Operation::Read, Times::Forever);
    assert!(
        loaded(&map, u64::MAX >> 1) == pattern(1, BYTES),
        "it is in memory"
    );
    drop(map);
    // As a read finds it there.
    assert!(file.read_all().expect("it is in memory") == pattern(1, BYTES));
}

#[test]
fn what_cannot_be_written_is_an_error_of_flush() {
    let _watchdog = Watchdog::new("what_cannot_be_written_is_an_error_of_flush");
    let (device, volume) = volume(true);
    let options = OpenOptions::new().read(true).write(true);
    let file = options.open(&volume, "/f").expect("it opens");
    let maps = [0, 1].map(|_| file.map(.., MapOptions::shared()).expect("it maps"));
    maps[0].write_at(0, b"lost").expect("inside");
    fail(&device, Operation::Write, Times::Once);
    let error = maps[0].flush().expect_err("it can't be written");
    assert!(
        error
            .to_string()
            .starts_with("/f: input/output error: write of ")
    );
    assert_ne!(error.kind(), ErrorKind::InvalidInput);
    maps[0].flush().expect("it was told");
    maps[1].flush().expect_err("so is everybody, once");
    maps[1].flush().expect("it was told");
    maps[1].write_at(0, b"kept").expect("inside");
    maps[0].flush().expect("it can be written");
    drop((maps, file));
    volume.sync().expect_err("so is who syncs it all");
    volume.close().expect("nobody has it");
    let image = Arc::new(device.live());
    let volume = Volume::open_device(image, Options::new()).expect("it opens");
    assert_eq!(volume.read("/f").expect("it reads")[..4], *b"kept");
}
