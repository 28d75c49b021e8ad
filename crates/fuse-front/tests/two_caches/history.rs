//! What was done to one file, what was seen in it, and whether the two agree.
//!
//! Every sector has one owner, so its stores are one sequence. All times are of one clock. An
//! operation took effect somewhere between its begin and its end, so only what ended before
//! something else began is taken to be before it.

#[cfg(test)]
mod tests;

use crate::stamp::{SECTOR, Stamp, UNIT, UNITS};

/// How a store was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// write(2).
    Write,
    /// Through a shared mapping.
    Map,
}

/// One sector, stored. Its sequence number is the time at which it began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Store {
    pub(crate) sector: u64,
    pub(crate) by: By,
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// False: it failed, and may have stored some of it or nothing.
    pub(crate) done: bool,
}

/// Equal stamps in a row within one sector, read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Bytes, from and to.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Sequence number, or 0 for a hole.
    pub(crate) value: u64,
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

/// Bytes taken away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clear {
    /// Bytes; `to` is `u64::MAX` for a truncate.
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// For a truncate, begin and end of the one that made the file as long as before. Whatever a
    /// mapping stored past the end meanwhile is not part of the file.
    pub(crate) regrown: Option<(u64, u64)>,
}

/// Everything about one file.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) stores: Vec<Store>,
    pub(crate) seen: Vec<Seen>,
    /// By one thread each: punches, truncates. In order of time.
    pub(crate) clears: [Vec<Clear>; 2],
    /// Nothing but truncates changes the size: no write(2) ever extends the file.
    pub(crate) only_maps: bool,
    /// Stamps of another place or file that were read.
    pub(crate) misplaced: u64,
    /// Stamps' offsets at which, when all was quiet and flushed, the kernel's cache held something
    /// else than the server: with the sequence number in the cache.
    pub(crate) diverged: Vec<(u64, u64)>,
}

/// Counts of one file, or of many added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Stores that succeeded, by write(2) and through maps.
    pub(crate) stores: [u64; 2],
    pub(crate) punches: u64,
    pub(crate) truncates: u64,
    /// Runs of equal stamps that were read.
    pub(crate) seen: u64,
    /// Of those stores, how many began while a punch or truncate of their bytes ran.
    pub(crate) beside: [u64; 2],
    /// Of these, how many were gone afterwards for no other reason. POSIX allows it.
    pub(crate) dropped: [u64; 2],
    /// Of these, how many were made after the zeros of that very punch had been read: those no
    /// order of the two explains.
    pub(crate) dropped_after_zeros: [u64; 2],
    /// Broken: stamps at a wrong offset, as read.
    pub(crate) misplaced: u64,
    /// Broken: a store was read after a later one of the same place had ended or been read.
    pub(crate) stale: u64,
    /// Broken: zeros that no punch or truncate explains.
    pub(crate) lost: u64,
    /// Broken: bytes read after a punch or truncate that began after their store had ended.
    pub(crate) kept: u64,
    /// What a map stored past the end of the file appeared when the file grew. POSIX leaves that
    /// open.
    pub(crate) past_end: u64,
    /// Of what was stored that way, stamps that never reached the server: they are gone once the
    /// kernel drops the page.
    pub(crate) past_end_cached: u64,
    /// Broken: other stamps that the kernel's cache and the server do not agree on when all is
    /// quiet and flushed.
    pub(crate) diverged: u64,
    /// Broken: a value that nobody stored.
    pub(crate) unknown: u64,
}

impl Verdict {
    /// Adds another file's counts.
    pub(crate) fn add(&mut self, other: &Self) {
        for index in 0..2 {
            self.stores[index] += other.stores[index];
            self.beside[index] += other.beside[index];
            self.dropped[index] += other.dropped[index];
            self.dropped_after_zeros[index] += other.dropped_after_zeros[index];
        }
        self.punches += other.punches;
        self.truncates += other.truncates;
        self.seen += other.seen;
        self.misplaced += other.misplaced;
        self.stale += other.stale;
        self.lost += other.lost;
        self.kept += other.kept;
        self.past_end += other.past_end;
        self.past_end_cached += other.past_end_cached;
        self.diverged += other.diverged;
        self.unknown += other.unknown;
    }
}

/// What was seen of one stamp's place up to a moment.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    /// The newest store that was read by then, and when a reading of it last began.
    newest: u64,
    newest_read: u64,
    /// The newest reading of zeros that ended by then: begin and end.
    zeros: Option<(u64, u64)>,
    /// The newest store whose end has been judged.
    judged: u64,
}

impl History {
    /// Takes in what was read at `offset` (whole sectors) of `file` between `begin` and `end`.
    pub(crate) fn note(&mut self, file: u16, offset: u64, bytes: &[u8], begin: u64, end: u64) {
        for (at, stamp) in crate::stamp::read(file, offset, bytes) {
            let value = match stamp {
                Stamp::Zero => 0,
                Stamp::Store(sequence) => sequence,
                Stamp::Torn => continue,
                Stamp::Misplaced => {
                    self.misplaced += 1;
                    continue;
                }
            };
            if let Some(last) = self.seen.last_mut()
                && (last.begin, last.value, last.to) == (begin, value, at)
                && at % SECTOR != 0
            {
                last.to += UNIT;
                continue;
            }
            self.seen.push(Seen {
                from: at,
                to: at + UNIT,
                value,
                begin,
                end,
            });
        }
    }

    /// Adds what another thread did to the same file and saw in it.
    pub(crate) fn merge(&mut self, other: Self) {
        self.stores.extend(other.stores);
        self.seen.extend(other.seen);
        for (mine, others) in self.clears.iter_mut().zip(other.clears) {
            assert!(mine.is_empty() || others.is_empty(), "one thread each");
            mine.extend(others);
        }
        self.misplaced += other.misplaced;
        self.diverged.extend(other.diverged);
    }

    /// Compares what was seen with what was done. `complain` gets a sentence for what is broken.
    pub(crate) fn judge(mut self, complain: &mut dyn FnMut(String)) -> Verdict {
        let mut verdict = Verdict {
            punches: self.clears[0].len() as u64,
            truncates: self.clears[1].len() as u64,
            seen: self.seen.len() as u64,
            misplaced: self.misplaced,
            ..Verdict::default()
        };
        self.stores
            .sort_unstable_by_key(|store| (store.sector, store.begin));
        self.seen
            .sort_unstable_by_key(|seen| (seen.from / SECTOR, seen.begin));
        for store in &self.stores {
            let by = store.by as usize;
            verdict.stores[by] += u64::from(store.done);
            let from = store.sector * SECTOR;
            let beside = self
                .clears_of(from, store.begin, store.begin)
                .next()
                .is_some();
            verdict.beside[by] += u64::from(store.done && beside);
        }
        for seen in self
            .seen
            .chunk_by(|a, b| a.from / SECTOR == b.from / SECTOR)
        {
            let sector = seen[0].from / SECTOR;
            let from = self.stores.partition_point(|store| store.sector < sector);
            let to = self.stores.partition_point(|store| store.sector <= sector);
            self.judge_sector(&self.stores[from..to], seen, &mut verdict, complain);
        }
        for &(at, value) in &self.diverged {
            if self.may_be_past_end(at, value) {
                verdict.past_end_cached += 1;
            } else {
                verdict.diverged += 1;
                complain(format!("only in the kernel's cache: {value} at {at}"));
            }
        }
        verdict
    }

    /// Whether the store of `value` went through a map while the file may have ended before `at`.
    fn may_be_past_end(&self, at: u64, value: u64) -> bool {
        let place = (at / SECTOR, value);
        let found = self
            .stores
            .binary_search_by_key(&place, |store| (store.sector, store.begin));
        found.is_ok_and(|index| {
            let store = self.stores[index];
            let ends = |clear: &Clear| clear.regrown.map_or(u64::MAX, |(_, end)| end);
            store.by == By::Map
                && self.clears[1].iter().any(|clear| {
                    clear.from <= at && clear.begin <= store.end && store.begin <= ends(clear)
                })
        })
    }

    fn judge_sector(
        &self,
        stores: &[Store],
        seen: &[Seen],
        verdict: &mut Verdict,
        complain: &mut dyn FnMut(String),
    ) {
        let mut places = [Place::default(); UNITS];
        let mut by_end: Vec<&Seen> = seen.iter().collect();
        by_end.sort_unstable_by_key(|seen| seen.end);
        let mut ended = by_end.into_iter().peekable();
        for now in seen {
            while let Some(before) = ended.next_if(|before| before.end < now.begin) {
                for place in &mut places[units(before)] {
                    place.take_in(before);
                }
            }
            if now.value == 0 {
                self.judge_zeros(stores, now, &mut places, verdict, complain);
            } else {
                self.judge_stored(stores, now, &places, verdict, complain);
            }
        }
    }

    fn judge_stored(
        &self,
        stores: &[Store],
        now: &Seen,
        places: &[Place; UNITS],
        verdict: &mut Verdict,
        complain: &mut dyn FnMut(String),
    ) {
        let Ok(index) = stores.binary_search_by_key(&now.value, |store| store.begin) else {
            verdict.unknown += 1;
            return complain(format!("nobody stored {now:?}"));
        };
        let store = stores[index];
        let newer_done = stores[index + 1..]
            .iter()
            .take_while(|newer| newer.begin < now.begin)
            .any(|newer| newer.done && newer.end < now.begin);
        if newer_done
            || places[units(now)]
                .iter()
                .any(|place| place.newest > now.value)
        {
            verdict.stale += 1;
            complain(format!("older than what was there: {now:?} of {store:?}"));
        }
        let kept = self
            .clears_of(now.from, store.end + 1, now.begin)
            .find(|clear| clear.begin > store.end && clear.end < now.begin);
        if let Some(clear) = kept {
            verdict.kept += 1;
            complain(format!("outlived {clear:?}: {now:?} of {store:?}"));
        }
        let was_gone = places[units(now)]
            .iter()
            .any(|place| place.zeros.is_some_and(|(begin, _)| begin > store.end));
        if kept.is_none() && was_gone {
            verdict.kept += 1;
            complain(format!("came back after zeros: {now:?} of {store:?}"));
        }
        let appeared = self.only_maps
            && self.clears[1].iter().any(|clear| {
                clear.from <= now.from
                    && clear.regrown.is_some_and(|(begin, end)| {
                        clear.end < store.begin && store.end < begin && end < now.begin
                    })
            });
        verdict.past_end += u64::from(appeared);
    }

    fn judge_zeros(
        &self,
        stores: &[Store],
        now: &Seen,
        places: &mut [Place; UNITS],
        verdict: &mut Verdict,
        complain: &mut dyn FnMut(String),
    ) {
        let mut lost = None;
        let mut last = None;
        for (index, place) in places[units(now)].iter_mut().enumerate() {
            let at = now.from + index as u64 * UNIT;
            // What should be there: the last store that had ended, or a newer one that was seen.
            let begun = stores.partition_point(|store| store.begin < now.begin);
            let Some(position) = stores[..begun].iter().rposition(|store| {
                store.begin <= place.newest || (store.done && store.end < now.begin)
            }) else {
                continue;
            };
            let store = stores[position];
            if place.judged >= store.begin {
                continue;
            }
            // The first of several alike speaks for them: what clears it clears what follows it
            // in the sector.
            let was = *place;
            place.judged = store.begin;
            if last.replace(was) == Some(was) {
                continue;
            }
            let mut since = store.begin;
            if place.newest == store.begin {
                since = since.max(place.newest_read);
            }
            let causes = self.causes(store.by, at, since, now.end);
            if causes.is_empty() {
                lost = Some(store);
                continue;
            }
            // Made before the punch or truncate, or past the end of the file.
            if causes
                .iter()
                .any(|cause| cause.begin >= store.begin || cause.end < store.begin)
            {
                continue;
            }
            let by = store.by as usize;
            verdict.dropped[by] += 1;
            verdict.dropped_after_zeros[by] +=
                u64::from(self.is_after_zeros(&stores[..=position], at, &causes, &was));
        }
        if let Some(store) = lost {
            verdict.lost += 1;
            complain(format!("gone: {store:?}, as {now:?} shows"));
        }
    }

    /// Whether the last of `stores`, which `causes` made an end of, was made after the zeros of
    /// that very cause had been read.
    fn is_after_zeros(&self, stores: &[Store], at: u64, causes: &[Clear], place: &Place) -> bool {
        let ([cause], Some((begin, end)), [.., previous, store]) = (causes, place.zeros, stores)
        else {
            return false;
        };
        if !previous.done || end >= store.begin || begin <= previous.end {
            return false;
        }
        let earlier = self.causes(previous.by, at, previous.begin, end);
        matches!(earlier.as_slice(), [earlier]
            if (earlier.begin, earlier.from) == (cause.begin, cause.from))
    }

    /// What can have made zeros of the stamp at `at` of something that was there at `since`, as
    /// seen at `until`.
    fn causes(&self, by: By, at: u64, since: u64, until: u64) -> Vec<Clear> {
        let mut causes: Vec<Clear> = self.clears_of(at, since, until).collect();
        if by == By::Map {
            // Between a truncate and the next that lengthens the file the mapping's bytes past
            // the end are nobody's. Truncates come one after the other, so at most one such span
            // is open at `since`.
            let open = self.clears[1].partition_point(|clear| clear.begin < since);
            if let Some(clear) = open.checked_sub(1).map(|last| self.clears[1][last])
                && clear.from <= at
                && clear.end < since
                && clear.regrown.is_none_or(|(_, end)| end >= since)
            {
                causes.push(clear);
            }
        }
        causes
    }

    /// Punches and truncates of the stamp at `at` that had not ended before `since` and began
    /// before `until` ended.
    fn clears_of(&self, at: u64, since: u64, until: u64) -> impl Iterator<Item = Clear> + '_ {
        self.clears.iter().flat_map(move |clears| {
            let first = clears.partition_point(|clear| clear.end < since);
            clears[first..]
                .iter()
                .take_while(move |clear| clear.begin <= until)
                .filter(move |clear| (clear.from..clear.to).contains(&at))
                .copied()
        })
    }
}

impl Place {
    fn take_in(&mut self, seen: &Seen) {
        if seen.value == 0 {
            self.zeros = Some((seen.begin, seen.end));
        } else if seen.value > self.newest {
            self.newest = seen.value;
            self.newest_read = seen.begin;
        } else if seen.value == self.newest {
            self.newest_read = self.newest_read.max(seen.begin);
        }
    }
}

/// The stamps of its sector that a run covers.
fn units(seen: &Seen) -> std::ops::Range<usize> {
    let base = seen.from / SECTOR * SECTOR;
    ((seen.from - base) / UNIT) as usize..((seen.to - base) / UNIT) as usize
}
