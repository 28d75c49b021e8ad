//! The fields of structures, and the awkward values of each.

/// One field of a structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Its name.
    pub(super) name: String,
    /// Its first byte in the structure.
    pub(super) at: usize,
    /// Its bytes: 1 to 8.
    pub(super) width: usize,
    /// The most significant byte comes first.
    pub(super) is_big_endian: bool,
}

/// Numbers that mean something in an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Landmarks {
    /// A block of metadata.
    pub(super) metadata: u64,
    /// One past the last block.
    pub(super) end: u64,
    /// Bytes of a block.
    pub(super) block_size: u64,
    /// Inodes.
    pub(super) inodes: u64,
}

impl Field {
    /// A little-endian one.
    pub(super) fn new(name: impl Into<String>, at: usize, width: usize) -> Self {
        Self {
            name: name.into(),
            at,
            width,
            is_big_endian: false,
        }
    }

    /// A big-endian one.
    pub(super) fn big(name: impl Into<String>, at: usize, width: usize) -> Self {
        Self {
            is_big_endian: true,
            ..Self::new(name, at, width)
        }
    }

    /// What it is, and its neighbours in the sense of who checks numbers: nothing, one, the largest,
    /// the structure itself (`own`), metadata, one too many; and bytes that names must not have.
    /// Ascending, without what it holds now.
    pub(super) fn values(&self, bytes: &[u8], own: u64, landmarks: &Landmarks) -> Vec<u64> {
        let max = u64::MAX >> (64 - 8 * self.width);
        let current = self.get(bytes);
        let mut values = vec![0, 1, max, max - 1, own, current.wrapping_add(1)];
        match self.width {
            1 => values.extend([b'/', b'.'].map(u64::from)),
            2 => values.extend([landmarks.block_size, current.wrapping_sub(1)]),
            _ => values.extend([landmarks.metadata, landmarks.end, landmarks.inodes + 1]),
        }
        for value in &mut values {
            *value &= max;
        }
        values.sort_unstable();
        values.dedup();
        values.retain(|value| *value != current);
        values
    }

    fn get(&self, bytes: &[u8]) -> u64 {
        let field = &bytes[self.at..self.at + self.width];
        let digit = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        match self.is_big_endian {
            true => field.iter().fold(0, digit),
            false => field.iter().rev().fold(0, digit),
        }
    }

    /// Sets it.
    pub(super) fn set(&self, bytes: &mut [u8], value: u64) {
        let field = &mut bytes[self.at..self.at + self.width];
        let little = value.to_le_bytes();
        field.copy_from_slice(&little[..self.width]);
        if self.is_big_endian {
            field.reverse();
        }
    }
}

/// Fields of a raw structure, by the names that it has for them. Those of more than 8 bytes are taken
/// apart into words.
macro_rules! fields_of {
    ($raw:ty: $($name:ident)*) => {{
        const fn width<T>(_: fn(&$raw) -> &T) -> usize {
            size_of::<T>()
        }
        let mut fields = Vec::new();
        $(
            let at = std::mem::offset_of!($raw, $name);
            let bytes = width(|raw: &$raw| &raw.$name);
            if bytes <= 8 {
                fields.push($crate::hostile::values::Field::new(stringify!($name), at, bytes));
            } else {
                for word in 0..bytes / 4 {
                    let name = format!("{}[{word}]", stringify!($name));
                    fields.push($crate::hostile::values::Field::new(name, at + 4 * word, 4));
                }
            }
        )*
        fields
    }};
}
pub(super) use fields_of;

/// Little-endian fields that follow each other from byte `at` on: names and widths.
pub(super) fn in_a_row(prefix: &str, at: usize, fields: &[(&str, usize)]) -> Vec<Field> {
    let mut at = at;
    let mut row = Vec::new();
    for (name, width) in fields {
        row.push(Field::new(format!("{prefix}{name}"), at, *width));
        at += width;
    }
    row
}

#[test]
fn values_fit_and_differ_from_what_is_there() {
    let landmarks = Landmarks {
        metadata: 40,
        end: 8192,
        block_size: 1024,
        inodes: 512,
    };
    let mut bytes = [0, 7, 0, 0];
    let field = Field::new("a", 1, 2);
    let values = field.values(&bytes, 9, &landmarks);
    assert_eq!(values, [0, 1, 6, 8, 9, 1024, 0xFFFE, 0xFFFF]);
    field.set(&mut bytes, 0x0102);
    assert_eq!(bytes, [0, 2, 1, 0]);
    let field = Field::big("b", 0, 4);
    field.set(&mut bytes, 0x0102_0304);
    assert_eq!((bytes, field.get(&bytes)), ([1, 2, 3, 4], 0x0102_0304));
}
