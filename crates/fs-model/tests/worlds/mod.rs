//! The worlds in which the write protocol is walked, each with the races that it is for.

use pagefence_fs_model::write_protocol::{Op, Scenario};

/// A punch without an edge.
pub(crate) const fn punch(first: u8, last: u8) -> Op {
    Op::Punch {
        first,
        last,
        edge: None,
    }
}

fn world(name: &'static str, file_of: &[u8], mapped: &[Option<u8>]) -> Scenario {
    assert_eq!(file_of.len(), mapped.len());
    Scenario {
        name,
        file_of: file_of.to_vec(),
        mapped: mapped.to_vec(),
        trees: vec![None; 2],
        blocks: 4,
        journal: 4,
        threads: Vec::new(),
        timer: false,
        reserved_credits: false,
        mutant: None,
    }
}

/// A full device: a punch frees what a reader fills from and what another file needs.
pub(crate) fn reuse() -> Scenario {
    Scenario {
        blocks: 2,
        timer: true,
        threads: vec![
            vec![punch(0, 0)],
            vec![Op::Read(0), Op::Reclaim(0), Op::Read(0)],
            vec![Op::Write(2), Op::Fsync(1)],
        ],
        ..world("reuse", &[0, 0, 1], &[Some(0), Some(1), None])
    }
}

/// Room for one handle in the log; writeback, fsync and a fence all want one.
pub(crate) fn full_journal() -> Scenario {
    Scenario {
        journal: 2,
        threads: vec![
            vec![Op::Write(0), Op::Fsync(0)],
            vec![Op::Store(1), Op::Writeback(0)],
            vec![punch(0, 1)],
        ],
        ..world("full journal", &[0, 0], &[None, None])
    }
}

/// The last block: for the split of a punch, or for a write.
pub(crate) fn split() -> Scenario {
    Scenario {
        threads: vec![
            vec![punch(1, 1)],
            vec![Op::Write(3), Op::Fsync(1)],
            vec![Op::Store(1), Op::Writeback(0)],
        ],
        ..world("split", &[0, 0, 0, 1], &[Some(0), Some(1), Some(2), None])
    }
}

/// Writes to two files, interleaved, so that one of them is in pieces on a device with no room.
pub(crate) fn pieces() -> Scenario {
    Scenario {
        blocks: 3,
        threads: vec![
            vec![Op::Write(0), Op::Writeback(0), Op::Fsync(0)],
            vec![Op::Store(1), Op::Writeback(0)],
            vec![Op::Write(2), Op::Writeback(1)],
        ],
        ..world("pieces", &[0, 0, 1], &[None, None, None])
    }
}

/// A tree block that is not needed any more, while a page still counts on it.
pub(crate) fn shrink() -> Scenario {
    Scenario {
        trees: vec![Some(3), None],
        threads: vec![
            vec![Op::Write(2), Op::Writeback(0)],
            vec![punch(0, 0)],
            vec![Op::Read(0), Op::Fsync(0)],
        ],
        timer: true,
        ..world("shrink", &[0, 0, 0], &[Some(0), Some(2), None])
    }
}

/// A tree block in the log is freed, and its block holds another file's data.
pub(crate) fn revoke() -> Scenario {
    Scenario {
        trees: vec![Some(0), None],
        journal: 6,
        threads: vec![
            vec![Op::Write(2), Op::Fsync(0), punch(0, 1)],
            vec![Op::Write(3), Op::Fsync(1), Op::Read(3)],
        ],
        timer: true,
        ..world("revoke", &[0, 0, 0, 1], &[Some(1), Some(3), None, None])
    }
}

/// New tree blocks in a log with room for one handle: every transaction is checkpointed.
pub(crate) fn checkpoint() -> Scenario {
    Scenario {
        blocks: 6,
        journal: 2,
        threads: vec![
            vec![Op::Write(1), Op::Fsync(0)],
            vec![Op::Write(3), Op::Fsync(1), punch(2, 2)],
            vec![Op::Store(0), Op::Writeback(0)],
        ],
        ..world("checkpoint", &[0, 0, 1, 1], &[Some(0), None, Some(1), None])
    }
}

/// One page written, stored to and written back twice at once; another one in place.
pub(crate) fn one_page() -> Scenario {
    Scenario {
        threads: vec![
            vec![Op::Write(0), Op::Fsync(0)],
            vec![Op::Store(0), Op::Writeback(0)],
            vec![Op::Store(1), Op::Fsync(0)],
        ],
        timer: true,
        ..world("one page", &[0, 0], &[None, Some(1)])
    }
}

/// A page is written, reclaimed and read again.
pub(crate) fn reclaim() -> Scenario {
    Scenario {
        threads: vec![
            vec![Op::Write(0), Op::Writeback(0)],
            vec![Op::Store(0), Op::Fsync(0)],
            vec![Op::Reclaim(0), Op::Read(0), Op::Reclaim(0), Op::Read(0)],
        ],
        timer: true,
        ..world("reclaim", &[0], &[None])
    }
}

/// A punch or truncate that ends inside a written page, against stores to that page.
pub(crate) fn edge() -> Scenario {
    Scenario {
        threads: vec![
            vec![
                Op::Punch {
                    first: 1,
                    last: 1,
                    edge: Some(0),
                },
                Op::Fsync(0),
            ],
            vec![Op::Store(0), Op::Writeback(0)],
            vec![Op::Read(0), Op::Read(1)],
        ],
        timer: true,
        ..world("edge", &[0, 0], &[Some(0), Some(1)])
    }
}

/// A page is overwritten in place and punched while it is written back.
pub(crate) fn fence() -> Scenario {
    Scenario {
        threads: vec![
            vec![Op::Write(0), Op::Writeback(0)],
            vec![punch(0, 1), Op::Fsync(0)],
            vec![Op::Store(1), Op::Read(1), Op::Writeback(0)],
        ],
        timer: true,
        ..world("fence", &[0, 0], &[Some(0), None])
    }
}
