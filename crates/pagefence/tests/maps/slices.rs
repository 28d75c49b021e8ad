//! Slices of maps: places, which are looked at by copying.

use std::io::{BufRead as _, ErrorKind, Read as _, Seek as _, SeekFrom};

use pagefence::{Kind, MapOptions};

use crate::kit::{Image, file, pattern};

#[test]
fn a_slice_is_looked_at_in_every_way() {
    let volume = Image::new((Kind::Ext4, 4096)).open();
    let bytes = pattern(5, 20_000);
    let file = file(&volume, "/f", &bytes);
    let map = file.map(100.., MapOptions::shared()).expect("it maps");
    let bytes = &bytes[100..];
    let all = map.slice(..).expect("all");
    assert_eq!((all.len(), all.is_empty()), (bytes.len(), false));
    assert!(all == bytes && all == *bytes);
    let part = all.slice(5000..=15_000).expect("inside");
    let part = part.slice(10..).expect("inside");
    assert!(part == bytes[5010..15_001]);
    assert!(part != bytes[5009..15_000], "the same length, other bytes");
    assert!(part != bytes[5010..15_000], "another length");
    assert_eq!(part.get(7).expect("inside"), bytes[5017]);
    let collected: Vec<u8> = part.bytes().collect::<Result<_, _>>().expect("inside");
    assert!(collected == bytes[5010..15_001]);
    let chunks = part.chunks(999);
    assert_eq!(chunks.len(), 11);
    let lengths: Vec<usize> = chunks.clone().map(|chunk| chunk.len()).collect();
    assert_eq!((lengths[0], lengths[10]), (999, 1));
    let joined: Vec<u8> = chunks
        .flat_map(|chunk| chunk.to_vec().expect("inside"))
        .collect();
    assert!(joined == collected);
    assert_eq!(part.chunks(0).next().expect("one").len(), 1);
    let mut target = vec![0; part.len()];
    part.copy_to_slice(&mut target).expect("as long");
    assert!(target == collected);
    let error = part.copy_to_slice(&mut target[1..]).expect_err("shorter");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);

    assert!(all.slice(19_901..).is_err() && all.slice(..19_901).is_err());
    assert!(
        part.slice(..part.len() + 1).is_err(),
        "not even where the map has more"
    );
    assert!(part.get(part.len()).is_err());
    let none = all.slice(19_900..).expect("nothing");
    assert!(none.is_empty() && none == *b"" && none.bytes().next().is_none());
    assert_eq!(none.chunks(5).count(), 0);
}

/// It is a place: what changes there, changes in the slice; where the file ends, looks are errors.
#[test]
fn a_slice_is_a_place() {
    let volume = Image::new((Kind::Ext4, 4096)).open();
    let file = file(&volume, "/f", &[b'a'; 10_000]);
    let map = file.map(.., MapOptions::shared()).expect("it maps");
    let slice = map.slice(4000..9000).expect("inside");
    assert!(slice == [b'a'; 5000]);
    file.write_all_at(4000, b"b").expect("it writes");
    assert_eq!(slice.get(0).expect("inside"), b'b');
    file.set_len(8999).expect("shorter");
    let eof = Some(ErrorKind::UnexpectedEof);
    let kind = |result: pagefence::Result<()>| result.err().map(|error| error.kind());
    assert_eq!(kind(slice.to_vec().map(drop)), eof);
    assert_eq!(kind(slice.get(4999).map(drop)), eof);
    assert!(slice != [b'a'; 5000][..]);
    let mut seen = slice.bytes();
    let good = seen.by_ref().take_while(Result::is_ok).count();
    assert_eq!(good, 4096, "a page's worth at a time");
    assert!(seen.next().is_none(), "an error is the last");
    file.set_len(10_000).expect("longer");
    assert_eq!(slice.get(4999).expect("inside"), 0);
}

#[test]
fn a_reader_reads_and_seeks() {
    let volume = Image::new((Kind::Ext4, 4096)).open();
    let text = "first line\nsecond line\n".repeat(1000);
    let file = file(&volume, "/f", text.as_bytes());
    let map = file.map(.., MapOptions::shared()).expect("it maps");
    let slice = map.slice(11..).expect("inside");
    let text = &text[11..];
    let mut reader = slice.reader();
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    assert_eq!(line, "second line\n");
    let mut rest = String::new();
    reader.read_to_string(&mut rest).expect("the rest");
    assert!(rest == text[12..]);
    assert_eq!(reader.read(&mut [0; 8]).expect("the end"), 0);
    assert!(reader.fill_buf().expect("the end").is_empty());
    assert_eq!(
        reader.seek(SeekFrom::End(-5)).expect("a place"),
        text.len() as u64 - 5
    );
    rest.clear();
    reader.read_to_string(&mut rest).expect("the rest");
    assert_eq!(rest, "line\n");
    reader.seek(SeekFrom::Start(0)).expect("a place");
    assert_eq!(slice.reader().lines().count(), reader.lines().count());
    let mut reader = slice.reader();
    assert!(reader.seek(SeekFrom::Current(-1)).is_err());
    reader.seek(SeekFrom::Current(1 << 40)).expect("far behind");
    assert_eq!(reader.read(&mut [0; 8]).expect("the end"), 0);
    assert!(reader.fill_buf().expect("the end").is_empty());
    file.set_len(5000).expect("shorter");
    let error = slice.reader().read_to_end(&mut Vec::new());
    assert_eq!(
        error.expect_err("past the end").kind(),
        ErrorKind::UnexpectedEof
    );
}
