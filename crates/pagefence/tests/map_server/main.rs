//! Who gets a map of a volume's file in another process: who shows a ticket for it.

use std::sync::Arc;

use pagefence::device::MemoryDevice;
use pagefence::{Kind, MapServer, Mkfs, OpenOptions, Options, Volume};
use pagefence_lock_order::primitives::thread::yield_now;
use pagefence_page_mmap::Faults;
use pagefence_page_mmap::remote::{Guard, GuardError, Open, RemoteKind, Ticket, Wire};
use pagefence_vfs::InodeId;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

const PAGE: usize = 4096;

fn volume() -> Volume {
    let device = Arc::new(MemoryDevice::new(8 << 20));
    Mkfs::new(Kind::Ext4)
        .inodes(32)
        .format_device(&*device)
        .expect("it is made");
    Volume::open_device(device, Options::new().write(true)).expect("it opens")
}

/// Makes a file that holds `byte` once; gives its number.
fn file(volume: &Volume, path: &str, byte: u8) -> InodeId {
    let options = OpenOptions::new().write(true).create_new(true);
    let file = options.open(volume, path).expect("it is made");
    file.write_all_at(0, &[byte]).expect("it is written");
    InodeId(volume.metadata(path).expect("it is there").ino())
}

/// Shows `ticket`.
fn map(ticket: &[u8; 64], kind: RemoteKind) -> Result<Guard, GuardError> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let socket = socket.expect("a socket");
    let name = &ticket[17..17 + usize::from(ticket[16])];
    let address = SocketAddrUnix::new_abstract_name(name).expect("a name");
    connect(&socket, &address).expect("somebody is there");
    let open = Open {
        ticket: Ticket(ticket[..16].try_into().expect("sixteen bytes")),
        first: 0,
        end: 1,
        kind,
    };
    Guard::open(Wire::from(socket), &open, PAGE, Faults::OfPrograms)
}

fn refused(mapped: Result<Guard, GuardError>) -> Option<Errno> {
    match mapped {
        Err(GuardError::Refused(errno)) => Some(errno),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    }
}

fn ticket(server: &MapServer, id: InodeId, writes: bool) -> [u8; 64] {
    server.ticket(id, true, writes).expect("a ticket")
}

#[test]
fn a_ticket_is_good_for_one_map_with_its_rights() {
    let volume = volume();
    let id = file(&volume, "/f", 5);
    let server = volume.serve_maps().expect("it serves");
    assert!(!server.is_stored_to(id));
    let reading = ticket(&server, id, false);
    assert!(!server.is_stored_to(id), "by nobody");
    assert_eq!(
        refused(map(&reading, RemoteKind::Shared)),
        Some(Errno::ACCESS)
    );
    assert_eq!(
        refused(map(&reading, RemoteKind::ReadOnly)),
        Some(Errno::STALE),
        "used"
    );
    let writing = ticket(&server, id, true);
    assert!(server.is_stored_to(id), "before it is shown");
    let guard = map(&writing, RemoteKind::Shared).expect("a map");
    let mut byte = [0];
    guard.view().load(0, &mut byte);
    assert_eq!(byte, [5]);
    assert_eq!(
        refused(map(&writing, RemoteKind::Shared)),
        Some(Errno::STALE),
        "used"
    );
    drop(guard);
    while server.is_stored_to(id) {
        yield_now();
    }
}

#[test]
fn a_ticket_is_for_no_other_file_of_the_same_number() {
    let volume = volume();
    let id = file(&volume, "/mine", 1);
    let server = volume.serve_maps().expect("it serves");
    let old = ticket(&server, id, true);
    // All other numbers are taken.
    let taken = (0..).map(|nr| {
        let options = OpenOptions::new().write(true).create_new(true);
        options.open(&volume, format!("/taken-{nr}"))
    });
    let count = taken.take_while(Result::is_ok).count();
    assert!(count > 0);
    volume.remove_file("/mine").expect("it is removed");
    volume.sync().expect("durable");
    let other = file(&volume, "/yours", 2);
    assert_eq!(other, id, "the number is used again");
    assert_eq!(refused(map(&old, RemoteKind::ReadOnly)), Some(Errno::STALE));
    let new = ticket(&server, other, false);
    assert!(map(&new, RemoteKind::ReadOnly).is_ok());
}

#[test]
fn no_map_is_left_when_it_is_closed() {
    let volume = volume();
    let id = file(&volume, "/f", 5);
    let server = volume.serve_maps().expect("it serves");
    let guard = map(&ticket(&server, id, true), RemoteKind::Shared).expect("a map");
    let unused = ticket(&server, id, true);
    guard.view().store(1, &[7]);
    server.close();
    assert!(!server.is_stored_to(id));
    assert!(server.ticket(id, true, true).is_none());
    while !guard.is_over() {
        yield_now();
    }
    assert_eq!(volume.read("/f").expect("it is read"), [5]);
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let name = &unused[17..17 + usize::from(unused[16])];
    let address = SocketAddrUnix::new_abstract_name(name).expect("a name");
    let connected = connect(socket.expect("a socket"), &address);
    assert_eq!(connected, Err(Errno::CONNREFUSED));
}
