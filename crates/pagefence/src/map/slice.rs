//! Bytes of a map that stay where they are.

use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::ops::{Range, RangeBounds};

use pagefence_page_mmap::RawBytes;

use super::problem::Problem;
use super::{Map, Use};
use crate::error::Result;

/// Bytes that iterators and readers copy at a time.
const STEP: usize = 4096;

/// Bytes of a [`Map`], where they are.
///
/// It is a place, not a value: others may change the bytes between two looks at them, and the file may
/// end before them, which is an error of each look. What is looked at is copied.
///
/// ```
/// # let image = pagefence::doc_image();
/// use pagefence::{MapOptions, Options, Volume};
/// let volume = Volume::open(&image, Options::new())?;
/// let map = volume.open_file("/etc/hostname")?.map(.., MapOptions::private())?;
/// let name = map.slice(..4)?;
/// assert!(name == *b"page");
/// map.write_at(0, b"c")?;
/// assert_eq!(name.to_vec()?, b"cage");
/// let letters: Vec<u8> = name.bytes().collect::<Result<_, _>>()?;
/// assert_eq!(letters, b"cage");
/// # Ok::<(), pagefence::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct MapSlice<'a> {
    map: &'a Map,
    at: usize,
    len: usize,
}

/// Iterator over the bytes of a slice of a map, from [`MapSlice::bytes`].
#[derive(Clone, Debug)]
pub struct Bytes<'a> {
    rest: MapSlice<'a>,
    copied: Vec<u8>,
    at: usize,
}

/// Iterator over pieces of a slice of a map, from [`MapSlice::chunks`].
#[derive(Clone, Debug)]
pub struct Chunks<'a> {
    rest: MapSlice<'a>,
    size: usize,
}

/// Reads a slice of a map from front to back, from [`MapSlice::reader`].
#[derive(Clone, Debug)]
pub struct MapReader<'a> {
    slice: MapSlice<'a>,
    position: u64,
    /// What was copied, and where in the slice it is from.
    copied: Vec<u8>,
    copied_at: u64,
}

impl<'a> MapSlice<'a> {
    pub(super) fn new(map: &'a Map, range: Range<usize>) -> Self {
        Self {
            map,
            at: range.start,
            len: range.end - range.start,
        }
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if `range` is not inside it.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<MapSlice<'a>> {
        let range = self.map.range_of(range, self.len)?;
        Ok(self.part(range.start, range.end - range.start))
    }

    /// `len` bytes from `at` on, which are inside it.
    fn part(&self, at: usize, len: usize) -> Self {
        Self {
            map: self.map,
            at: self.at + at,
            len,
        }
    }

    /// The byte at `at`.
    ///
    /// # Errors
    /// As [`Map::read_at`].
    pub fn get(&self, at: usize) -> Result<u8> {
        let mut byte = [0];
        self.slice(at..at.saturating_add(1))?
            .copy_to_slice(&mut byte)?;
        Ok(byte[0])
    }

    /// Copies all of it to `buffer`, which is as long.
    ///
    /// # Errors
    /// As [`Map::read_at`]; [`io::ErrorKind::InvalidInput`] if the buffer is of another length.
    pub fn copy_to_slice(&self, buffer: &mut [u8]) -> Result<()> {
        if buffer.len() != self.len {
            let (have, given) = (self.len, buffer.len());
            return Err(self.map.fail(Problem::Length { have, given }));
        }
        self.map.read_at(self.at, buffer)
    }

    /// A copy of it.
    ///
    /// # Errors
    /// As [`Map::read_at`].
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        // Before as much memory is asked for.
        self.map.place(self.at, self.len, Use::Load)?;
        let mut bytes = vec![0; self.len];
        self.copy_to_slice(&mut bytes)?;
        Ok(bytes)
    }

    /// Its bytes one by one, copied a page's worth at a time. The first error is the last item.
    #[must_use]
    pub fn bytes(&self) -> Bytes<'a> {
        Bytes {
            rest: *self,
            copied: Vec::new(),
            at: 0,
        }
    }

    /// Pieces of `size` bytes, the last one perhaps shorter; of 1 byte if `size` is 0.
    #[must_use]
    pub fn chunks(&self, size: usize) -> Chunks<'a> {
        Chunks {
            rest: *self,
            size: size.max(1),
        }
    }

    /// A reader, that begins at its front.
    #[must_use]
    pub fn reader(&self) -> MapReader<'a> {
        MapReader {
            slice: *self,
            position: 0,
            copied: Vec::new(),
            copied_at: 0,
        }
    }

    /// The bytes by their address, and, for who can answer for it, as a `&[u8]`
    /// ([`RawBytes::as_bytes`]).
    #[must_use]
    pub fn raw(&self) -> RawBytes<'a> {
        let map: &'a Map = self.map;
        map.view().raw(map.in_view + self.at, self.len)
    }
}

/// Whether the bytes are these, as far as they can be looked at: a slice of which a part is past the end of
/// the file is like nothing.
impl PartialEq<[u8]> for MapSlice<'_> {
    fn eq(&self, other: &[u8]) -> bool {
        self.len == other.len()
            && self
                .chunks(STEP)
                .zip(other.chunks(STEP))
                .all(|(ours, theirs)| ours.to_vec().is_ok_and(|ours| ours == theirs))
    }
}

impl<const N: usize> PartialEq<[u8; N]> for MapSlice<'_> {
    fn eq(&self, other: &[u8; N]) -> bool {
        *self == other[..]
    }
}

impl PartialEq<&[u8]> for MapSlice<'_> {
    fn eq(&self, other: &&[u8]) -> bool {
        *self == **other
    }
}

impl Iterator for Bytes<'_> {
    type Item = Result<u8>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.copied.len() {
            if self.rest.is_empty() {
                return None;
            }
            let count = STEP.min(self.rest.len);
            match self.rest.part(0, count).to_vec() {
                Ok(copied) => self.copied = copied,
                Err(error) => {
                    self.copied.clear();
                    self.at = 0;
                    self.rest = self.rest.part(0, 0);
                    return Some(Err(error));
                }
            }
            self.at = 0;
            self.rest = self.rest.part(count, self.rest.len - count);
        }
        let byte = *self.copied.get(self.at)?;
        self.at += 1;
        Some(Ok(byte))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.copied.len() - self.at;
        (0, left.checked_add(self.rest.len))
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = MapSlice<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let count = self.size.min(self.rest.len);
        let chunk = self.rest.part(0, count);
        self.rest = self.rest.part(count, self.rest.len - count);
        Some(chunk)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = self.rest.len.div_ceil(self.size);
        (count, Some(count))
    }
}

impl ExactSizeIterator for Chunks<'_> {}

impl MapReader<'_> {
    /// Bytes from the position on.
    fn left(&self) -> usize {
        let position = usize::try_from(self.position).unwrap_or(usize::MAX);
        self.slice.len.saturating_sub(position)
    }
}

impl Read for MapReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.left());
        if count > 0 {
            let at = self.slice.len - self.left();
            let part = self.slice.part(at, count);
            part.copy_to_slice(&mut buffer[..count])?;
            self.position += count as u64;
        }
        Ok(count)
    }
}

impl BufRead for MapReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let copied = self.copied_at..self.copied_at + self.copied.len() as u64;
        if !copied.contains(&self.position) {
            let count = STEP.min(self.left());
            let at = self.slice.len - self.left();
            self.copied = self.slice.part(at, count).to_vec()?;
            self.copied_at = self.position;
        }
        let from = (self.position - self.copied_at) as usize;
        Ok(self.copied.get(from..).unwrap_or(&[]))
    }

    fn consume(&mut self, count: usize) {
        self.position += count as u64;
    }
}

impl Seek for MapReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => (self.slice.len as u64).checked_add_signed(by),
        };
        // Who goes back looks again.
        self.copied.clear();
        self.position = target.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "seek to a position before byte 0",
            )
        })?;
        Ok(self.position)
    }
}
