//! What a daemon and its clients say: packets of 64 bytes on a socket that keeps them apart.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pagefence_host_memory::fd_passing;
use rustix::net::Shutdown;

/// Words of a packet: what it is, and what that needs.
const WORDS: usize = 8;
const BYTES: usize = WORDS * size_of::<u64>();

pub(crate) type Words = [u64; WORDS];

/// What is said in one packet.
pub(crate) trait Packet: Sized {
    /// Whether a descriptor may come with it. One that comes with another one is never taken in.
    const HAS_FD: bool = false;

    fn encode(&self) -> Words;

    /// # Errors
    /// It means nothing.
    fn decode(words: &Words) -> Result<Self, Nonsense>;
}

/// What both sides must speak: a client of another version is refused.
const VERSION: u64 = 1;

/// Names what is to be mapped: a secret that only who has the file open was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub [u8; 16]);

/// What stores to a map of another process do, and with what descriptor it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteKind {
    /// Loads, and stores that everybody sees: the memory open for reading and writing.
    Shared,
    /// Loads alone: the memory open for reading.
    ReadOnly,
    /// Loads, and stores that this map alone sees: the memory open for reading.
    Private,
}

/// A client's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// What is to be mapped.
    pub ticket: Ticket,
    /// Its first page.
    pub first: u64,
    /// The page behind its last.
    pub end: u64,
    /// How.
    pub kind: RemoteKind,
}

/// The answer to [`Open`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// With this packet comes the memory.
    Welcome {
        /// Bytes of the file.
        size: u64,
        /// The daemon's clock ([`crate::remote::clock`]).
        now: u64,
    },
    /// Why not, as an error of the operating system.
    Refused {
        /// Its number.
        errno: i32,
    },
}

/// What a client says, with how many packets of the daemon it has done: all those, from the first on,
/// have taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FromClient {
    pub(crate) done: u64,
    pub(crate) what: Asked,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A thread stands at this page; if it `met_hole`, after it stood there before and was told that the page
    /// may be mapped, which had no memory.
    Fault {
        page: u64,
        is_store: bool,
        met_hole: bool,
    },
    /// Nothing: it says what it has done.
    Nothing,
    /// These pages are to be read and mapped for loads; one [`ToClient::Populated`] is the answer, before
    /// which there may be no other.
    Populate { first: u64, end: u64 },
    /// How it will load.
    Advise(Advised),
    /// How many bytes the file has; one [`ToClient::Size`] is the answer.
    Size,
    /// What the daemon's clock says; one [`ToClient::Clock`] is the answer.
    Clock,
}

/// How a program says that it will load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advised {
    /// Nothing is known.
    Normal,
    /// From front to back.
    Sequential,
    /// Here and there.
    Random,
    /// All of it, soon.
    WillNeed,
}

/// What a daemon says. A client does one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FromDaemon {
    /// It is waited for: to be acknowledged at once.
    pub(crate) is_waited_for: bool,
    pub(crate) what: ToClient,
}

/// What a client is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToClient {
    /// The pages may be mapped, for stores if `writable`; said at `now` by the daemon's clock, and void if
    /// that is too long ago.
    Map {
        first: u64,
        end: u64,
        writable: bool,
        now: u64,
    },
    /// What is mapped of the pages is to be read-only.
    Protect { first: u64, end: u64 },
    /// Accesses to the page end with SIGBUS.
    Poison { page: u64 },
    /// Who stopped at the pages tries again.
    Wake { first: u64, end: u64 },
    /// Where the pages are poisoned they are not any more.
    Cure { first: u64, end: u64 },
    /// What is mapped of the pages goes, private copies and poison as well.
    Zap { first: u64, end: u64 },
    /// The file has so many bytes: fewer than it was last said to have, or as was asked.
    Size { bytes: u64, is_answer: bool },
    /// Nothing; what was said before is to be acknowledged.
    Settle,
    /// The [`Asked::Populate`] is done; 0, or an error's number.
    Populated { errno: i32 },
    /// The answer to [`Asked::Clock`], by the clock read after that came.
    Clock { now: u64 },
}

/// One end of a connection.
#[derive(Debug)]
pub struct Wire(OwnedFd);

/// What was found on a wire.
#[derive(Debug)]
pub(crate) enum Found<P> {
    /// A packet, and a descriptor that came with it.
    Packet(P, Option<OwnedFd>),
    /// Nothing now.
    Nothing,
    /// The other end is closed.
    Over,
}

/// A packet that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a packet that means nothing")]
pub(crate) struct Nonsense;

impl From<Nonsense> for io::Error {
    fn from(nonsense: Nonsense) -> Self {
        Self::new(io::ErrorKind::InvalidData, nonsense)
    }
}

impl From<OwnedFd> for Wire {
    /// A connected socket that keeps packets apart (SOCK_SEQPACKET).
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Wire {
    /// Sends `packet`, and `fd` with it; waits for room if `waits`.
    ///
    /// # Errors
    /// `WouldBlock` without room, `BrokenPipe` if the other end is closed.
    pub(crate) fn send(
        &self,
        packet: &impl Packet,
        fd: Option<BorrowedFd<'_>>,
        waits: bool,
    ) -> io::Result<()> {
        let mut bytes = [0; BYTES];
        for (slot, word) in bytes.chunks_exact_mut(8).zip(packet.encode()) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        if waits {
            fd_passing::send(&self.0, &bytes, fd)
        } else {
            let had_room = fd_passing::try_send(&self.0, &bytes, fd)?;
            had_room
                .then_some(())
                .ok_or(io::ErrorKind::WouldBlock.into())
        }
    }

    /// The next packet; waits for it if `waits`.
    ///
    /// # Errors
    /// The operating system's; `InvalidData` for one that means nothing.
    pub(crate) fn receive<P: Packet>(&self, waits: bool) -> io::Result<Found<P>> {
        let mut bytes = [0; BYTES];
        let received = match (P::HAS_FD, waits) {
            (false, _) => {
                let count = fd_passing::receive_bytes(&self.0, &mut bytes, waits);
                count.map(|count| count.map(|count| (count, None)))
            }
            (true, true) => fd_passing::receive(&self.0, &mut bytes).map(Some),
            (true, false) => fd_passing::try_receive(&self.0, &mut bytes),
        };
        match received {
            Ok(None) => Ok(Found::Nothing),
            Ok(Some((0, _))) => Ok(Found::Over),
            Ok(Some((BYTES, fd))) => {
                let mut words = [0; WORDS];
                for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
                    *word = u64::from_ne_bytes(chunk.try_into().expect("eight bytes"));
                }
                Ok(Found::Packet(P::decode(&words)?, fd))
            }
            Ok(Some(_)) => Err(Nonsense.into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Found::Over),
            Err(error) => Err(error),
        }
    }

    /// Closes both directions: whoever waits for the other end finds that it is over.
    pub fn shut_down(&self) {
        // It may be so already.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }
}

/// The first word of a client's first packet: no other program says this by chance.
const GREETING: u64 = u64::from_be_bytes(*b"pagefen\x01");

impl Packet for Open {
    fn encode(&self) -> Words {
        let (high, low) = self.ticket.0.split_at(8);
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        let kind = match self.kind {
            RemoteKind::Shared => 1,
            RemoteKind::ReadOnly => 2,
            RemoteKind::Private => 3,
        };
        let (high, low) = (word(high), word(low));
        [GREETING, VERSION, high, low, self.first, self.end, kind, 0]
    }

    fn decode(words: &Words) -> Result<Self, Nonsense> {
        let &[GREETING, VERSION, high, low, first, end, kind, 0] = words else {
            return Err(Nonsense);
        };
        let mut ticket = [0; 16];
        ticket[..8].copy_from_slice(&high.to_ne_bytes());
        ticket[8..].copy_from_slice(&low.to_ne_bytes());
        let kind = match kind {
            1 => RemoteKind::Shared,
            2 => RemoteKind::ReadOnly,
            3 => RemoteKind::Private,
            _ => return Err(Nonsense),
        };
        Ok(Self {
            ticket: Ticket(ticket),
            first,
            end,
            kind,
        })
    }
}

impl Packet for Opened {
    const HAS_FD: bool = true;

    fn encode(&self) -> Words {
        match *self {
            Self::Welcome { size, now } => [1, VERSION, size, now, 0, 0, 0, 0],
            Self::Refused { errno } => [2, VERSION, number(errno), 0, 0, 0, 0, 0],
        }
    }

    fn decode(words: &Words) -> Result<Self, Nonsense> {
        match *words {
            [1, VERSION, size, now, 0, 0, 0, 0] => Ok(Self::Welcome { size, now }),
            [2, VERSION, errno, 0, 0, 0, 0, 0] => Ok(Self::Refused {
                errno: errno_of(errno)?,
            }),
            _ => Err(Nonsense),
        }
    }
}

impl Packet for FromClient {
    fn encode(&self) -> Words {
        let (what, a, b) = match self.what {
            Asked::Nothing => (1, 0, 0),
            Asked::Fault {
                page,
                is_store,
                met_hole,
            } => (2, page, u64::from(is_store) | u64::from(met_hole) << 1),
            Asked::Populate { first, end } => (3, first, end),
            Asked::Advise(advised) => {
                let advised = match advised {
                    Advised::Normal => 1,
                    Advised::Sequential => 2,
                    Advised::Random => 3,
                    Advised::WillNeed => 4,
                };
                (4, advised, 0)
            }
            Asked::Clock => (5, 0, 0),
            Asked::Size => (6, 0, 0),
        };
        [what, self.done, a, b, 0, 0, 0, 0]
    }

    fn decode(words: &Words) -> Result<Self, Nonsense> {
        let &[what, done, a, b, 0, 0, 0, 0] = words else {
            return Err(Nonsense);
        };
        let what = match (what, a, b) {
            (1, 0, 0) => Asked::Nothing,
            (2, page, 0..4) => Asked::Fault {
                page,
                is_store: b & 1 != 0,
                met_hole: b & 2 != 0,
            },
            (3, first, end) if first < end => Asked::Populate { first, end },
            (4, 1, 0) => Asked::Advise(Advised::Normal),
            (4, 2, 0) => Asked::Advise(Advised::Sequential),
            (4, 3, 0) => Asked::Advise(Advised::Random),
            (4, 4, 0) => Asked::Advise(Advised::WillNeed),
            (5, 0, 0) => Asked::Clock,
            (6, 0, 0) => Asked::Size,
            _ => return Err(Nonsense),
        };
        Ok(Self { done, what })
    }
}

impl Packet for FromDaemon {
    fn encode(&self) -> Words {
        let (what, a, b, c, d) = match self.what {
            ToClient::Map {
                first,
                end,
                writable,
                now,
            } => (1, first, end, u64::from(writable), now),
            ToClient::Protect { first, end } => (2, first, end, 0, 0),
            ToClient::Poison { page } => (3, page, 0, 0, 0),
            ToClient::Wake { first, end } => (4, first, end, 0, 0),
            ToClient::Zap { first, end } => (5, first, end, 0, 0),
            ToClient::Size { bytes, is_answer } => (6, bytes, 0, u64::from(is_answer), 0),
            ToClient::Settle => (7, 0, 0, 0, 0),
            ToClient::Populated { errno } => (8, number(errno), 0, 0, 0),
            ToClient::Cure { first, end } => (9, first, end, 0, 0),
            ToClient::Clock { now } => (10, now, 0, 0, 0),
        };
        [what, u64::from(self.is_waited_for), a, b, c, d, 0, 0]
    }

    fn decode(words: &Words) -> Result<Self, Nonsense> {
        let &[what, waited @ (0 | 1), a, b, c, d, 0, 0] = words else {
            return Err(Nonsense);
        };
        let (first, end) = (a, b);
        let what = match (what, c) {
            (1, 0 | 1) if first < end => ToClient::Map {
                first,
                end,
                writable: c == 1,
                now: d,
            },
            (2, 0) if first < end => ToClient::Protect { first, end },
            (3, 0) => ToClient::Poison { page: a },
            (4, 0) if first < end => ToClient::Wake { first, end },
            (5, 0) if first < end => ToClient::Zap { first, end },
            (6, 0 | 1) => ToClient::Size {
                bytes: a,
                is_answer: c == 1,
            },
            (7, 0) => ToClient::Settle,
            (8, 0) => ToClient::Populated {
                errno: errno_of(a)?,
            },
            (9, 0) if first < end => ToClient::Cure { first, end },
            (10, 0) => ToClient::Clock { now: a },
            _ => return Err(Nonsense),
        };
        Ok(Self {
            is_waited_for: waited == 1,
            what,
        })
    }
}

fn number(errno: i32) -> u64 {
    u64::from(errno.unsigned_abs())
}

fn errno_of(number: u64) -> Result<i32, Nonsense> {
    i32::try_from(number).map_err(|_| Nonsense)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survives<P: Packet + PartialEq + std::fmt::Debug>(packet: P) {
        assert_eq!(P::decode(&packet.encode()), Ok(packet));
    }

    #[test]
    fn what_is_said_is_understood() {
        for kind in [
            RemoteKind::Shared,
            RemoteKind::ReadOnly,
            RemoteKind::Private,
        ] {
            let ticket = Ticket([7; 16]);
            survives(Open {
                ticket,
                first: 3,
                end: 9,
                kind,
            });
        }
        survives(Opened::Welcome { size: 5, now: 6 });
        survives(Opened::Refused { errno: 13 });
        let (first, end) = (2, 40);
        for what in [
            Asked::Nothing,
            Asked::Fault {
                page: 9,
                is_store: true,
                met_hole: false,
            },
            Asked::Fault {
                page: 9,
                is_store: false,
                met_hole: true,
            },
            Asked::Populate { first, end },
            Asked::Advise(Advised::Random),
            Asked::Clock,
            Asked::Size,
        ] {
            survives(FromClient { done: 77, what });
        }
        for what in [
            ToClient::Map {
                first,
                end,
                writable: true,
                now: 8,
            },
            ToClient::Protect { first, end },
            ToClient::Cure { first, end },
            ToClient::Poison { page: 4 },
            ToClient::Wake { first, end },
            ToClient::Zap { first, end },
            ToClient::Size {
                bytes: 4097,
                is_answer: true,
            },
            ToClient::Settle,
            ToClient::Populated { errno: 5 },
            ToClient::Clock { now: 6 },
        ] {
            let is_waited_for = first == 2;
            survives(FromDaemon {
                is_waited_for,
                what,
            });
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(FromClient::decode(&[2, 0, 1, 4, 0, 0, 0, 0]), Err(Nonsense));
        assert_eq!(FromClient::decode(&[9, 0, 0, 0, 0, 0, 0, 0]), Err(Nonsense));
        assert_eq!(FromClient::decode(&[3, 0, 5, 5, 0, 0, 0, 0]), Err(Nonsense));
        assert_eq!(FromDaemon::decode(&[1, 0, 9, 3, 0, 0, 0, 0]), Err(Nonsense));
        assert_eq!(FromDaemon::decode(&[1, 2, 3, 9, 0, 0, 0, 0]), Err(Nonsense));
        assert_eq!(Open::decode(&[0; WORDS]), Err(Nonsense));
    }
}
