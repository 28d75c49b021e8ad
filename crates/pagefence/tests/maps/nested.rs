//! An image that lies in a map of a file of another volume.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use pagefence::device::{Capabilities, Device, DeviceError, Operation};
use pagefence::{Kind, Map, MapOptions, Mkfs, Options, Volume};
use pagefence_lock_order::primitives::thread;

use crate::kit::{Image, Watchdog, file, loaded, pattern};

/// A device whose reads and writes fault in a map.
#[derive(Debug)]
struct Mapped(Map);

impl Mapped {
    fn failed(
        operation: Operation,
        offset: u64,
        length: usize,
    ) -> impl Fn(pagefence::Error) -> DeviceError {
        move |error| DeviceError {
            operation,
            offset,
            length: length as u64,
            source: error.into(),
        }
    }
}

impl Device for Mapped {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: false,
            alignment: 1,
            discard: false,
            write_zeroes: false,
            queue_depth: 1,
        }
    }

    fn read_vectored(
        &self,
        offset: u64,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), DeviceError> {
        let mut at = offset as usize;
        for buffer in buffers {
            let read = self.0.read_at(at, buffer);
            read.map_err(Self::failed(Operation::Read, offset, buffer.len()))?;
            at += buffer.len();
        }
        Ok(())
    }

    fn write_vectored(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let mut at = offset as usize;
        for buffer in buffers {
            let written = self.0.write_at(at, buffer);
            written.map_err(Self::failed(Operation::Write, offset, buffer.len()))?;
            at += buffer.len();
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.0.flush().map_err(Self::failed(Operation::Flush, 0, 0))
    }

    fn discard(&self, _: u64, _: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let zeros = vec![0; length as usize];
        self.write_vectored(offset, &[IoSlice::new(&zeros)])
    }
}

/// Faults of the inner volume wait for faults of the outer one: of each as many as there are threads to serve
/// them, and more.
#[test]
fn an_image_lies_in_a_map_of_another() {
    const INNER: u64 = 24 << 20;
    const FILES: u64 = 12;
    const BYTES: usize = 1 << 20;
    let _watchdog = Watchdog::new("an_image_lies_in_a_map_of_another");
    let outer = Image::made(Mkfs::new(Kind::Ext4).block_size(4096), 64);
    let outer_volume = outer.open();
    let image = file(&outer_volume, "/inner.img", b"");
    image.set_len(INNER).expect("its size");
    let map = || image.map(..INNER, MapOptions::shared()).expect("it maps");
    Mkfs::new(Kind::Ext4)
        .block_size(1024)
        .format_device(&Mapped(map()))
        .expect("it is made");

    let open = |options: Options| {
        let device: Arc<dyn Device> = Arc::new(Mapped(map()));
        Volume::open_device(device, options.cache(0)).expect("it opens")
    };
    let volume = open(Options::new().write(true));
    for number in 0..FILES {
        let name = format!("/{number}");
        drop(file(&volume, &name, &pattern(number, BYTES)));
    }
    volume.close().expect("nobody has it");

    let volume = open(Options::new().write(true));
    let threads: Vec<_> = (0..FILES)
        .map(|number| {
            let volume = volume.clone();
            thread::spawn("mapper", move || {
                let file = file(&volume, format!("/{number}"), b"");
                let map = file.map(.., MapOptions::shared()).expect("it maps");
                assert!(loaded(&map, BYTES as u64) == pattern(number, BYTES));
                map.write_at(0, &pattern(number + 100, BYTES))
                    .expect("inside");
                map.flush().expect("durable");
            })
            .expect("a thread")
        })
        .collect();
    for thread in threads {
        thread.join().expect("all is as it was stored");
    }
    volume.close().expect("nobody has it");
    drop(image);
    outer_volume.close().expect("nobody has it");
    outer.check();

    let outer_volume = outer.open_with(Options::new());
    let inner = outer_volume.read("/inner.img").expect("it reads");
    let inner = Image::of_bytes(&inner);
    inner.check();
    let volume = inner.open_with(Options::new());
    for number in 0..FILES {
        let bytes = volume.read(format!("/{number}")).expect("it reads");
        assert!(bytes == pattern(number + 100, BYTES), "file {number}");
    }
}
