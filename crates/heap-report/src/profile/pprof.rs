//! Owns the pprof file: a gzip of one protobuf message, by the published `profile.proto`.
//!
//! The message has varints, texts and nested messages alone; those few rules of the format are written here, which needs no compiler of
//! schemas.

use std::collections::HashMap;
use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::file::{Mode, ProfileFile, Row, Which};

/// Writes a profile as a pprof file, with the bytes and blocks of what is live, was live at the peak, and was ever allocated; domain and
/// size class are labels.
///
/// # Errors
///
/// Those of `to`.
pub(super) fn write(file: &ProfileFile, to: impl Write) -> io::Result<()> {
    let mut gzip = GzEncoder::new(to, Compression::default());
    gzip.write_all(&message(file))?;
    gzip.finish().map(drop)
}

/// Numbers of fields in `profile.proto`.
mod field {
    /// In `Profile`.
    pub(super) const SAMPLE_TYPE: u64 = 1;
    pub(super) const SAMPLE: u64 = 2;
    pub(super) const LOCATION: u64 = 4;
    pub(super) const FUNCTION: u64 = 5;
    pub(super) const STRING_TABLE: u64 = 6;
    pub(super) const PERIOD_TYPE: u64 = 11;
    pub(super) const PERIOD: u64 = 12;
    pub(super) const DEFAULT_SAMPLE_TYPE: u64 = 14;
    /// In `Sample`.
    pub(super) const LOCATION_ID: u64 = 1;
    pub(super) const VALUE: u64 = 2;
    pub(super) const LABEL: u64 = 3;
    /// In `Location`, `Line` and `Function`.
    pub(super) const ID: u64 = 1;
    pub(super) const LINE: u64 = 4;
    pub(super) const FUNCTION_ID: u64 = 1;
    pub(super) const LINE_NUMBER: u64 = 2;
    pub(super) const NAME: u64 = 2;
    pub(super) const FILENAME: u64 = 4;
    /// In `ValueType`, and in `Label` with a text or a number.
    pub(super) const TYPE: u64 = 1;
    pub(super) const UNIT: u64 = 2;
    pub(super) const KEY: u64 = 1;
    pub(super) const TEXT: u64 = 2;
    pub(super) const NUMBER: u64 = 3;
    pub(super) const NUMBER_UNIT: u64 = 4;
}

/// One message as it is written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A number; zeros are left out, as the format has them.
    fn number(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.varint(field << 3);
            self.varint(value);
        }
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn nested(&mut self, field: u64, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn packed(&mut self, field: u64, values: impl IntoIterator<Item = u64>) {
        self.nested(field, |list| values.into_iter().for_each(|value| list.varint(value)));
    }
}

/// Every text once, by the number of its place; the first is empty.
struct Texts<'a> {
    numbers: HashMap<&'a str, u64>,
    all: Vec<&'a str>,
}

impl<'a> Texts<'a> {
    fn new() -> Self {
        Self { numbers: HashMap::from([("", 0)]), all: vec![""] }
    }

    fn number(&mut self, text: &'a str) -> u64 {
        let next = self.all.len() as u64;
        let number = *self.numbers.entry(text).or_insert(next);
        if number == next {
            self.all.push(text);
        }
        number
    }
}

fn message(file: &ProfileFile) -> Vec<u8> {
    let mut texts = Texts::new();
    let mut profile = Message::default();
    let bytes = texts.number("bytes");
    let names = [
        ("live_space", "live_blocks"),
        ("peak_space", "peak_blocks"),
        ("alloc_space", "alloc_blocks"),
    ];
    for (space, blocks) in names {
        for (name, unit) in [(space, "bytes"), (blocks, "count")] {
            let (name, unit) = (texts.number(name), texts.number(unit));
            profile.nested(field::SAMPLE_TYPE, |of| {
                of.number(field::TYPE, name);
                of.number(field::UNIT, unit);
            });
        }
    }
    let keys = (texts.number("domain"), texts.number("size_class"), bytes);
    for row in file.rows() {
        let domain = texts.number(row.domain());
        profile.nested(field::SAMPLE, |sample| write_sample(sample, row, domain, keys));
    }
    let mut functions: HashMap<(&str, &str), u64> = HashMap::new();
    for (index, (name, path, line)) in file.frames().enumerate() {
        let next = functions.len() as u64 + 1;
        let function = *functions.entry((name, path)).or_insert(next);
        if function == next {
            let (name, path) = (texts.number(name), texts.number(path));
            profile.nested(field::FUNCTION, |of| {
                of.number(field::ID, function);
                of.number(field::NAME, name);
                of.number(field::FILENAME, path);
            });
        }
        profile.nested(field::LOCATION, |location| {
            location.number(field::ID, index as u64 + 1);
            location.nested(field::LINE, |of| {
                of.number(field::FUNCTION_ID, function);
                of.number(field::LINE_NUMBER, u64::from(line));
            });
        });
    }
    let (space, peak) = (texts.number("space"), texts.number("peak_space"));
    profile.nested(field::PERIOD_TYPE, |of| {
        of.number(field::TYPE, space);
        of.number(field::UNIT, bytes);
    });
    profile.number(
        field::PERIOD,
        match file.mode {
            Mode::Exact => 1,
            Mode::Sampled(interval) => interval,
        },
    );
    profile.number(field::DEFAULT_SAMPLE_TYPE, peak);
    texts.all.iter().for_each(|text| profile.bytes(field::STRING_TABLE, text.as_bytes()));
    profile.0
}

fn write_sample(sample: &mut Message, row: Row<'_>, domain: u64, keys: (u64, u64, u64)) {
    let (domain_key, class_key, bytes) = keys;
    sample.packed(field::LOCATION_ID, row.frame_numbers().map(|frame| frame as u64 + 1));
    let amounts = Which::ALL.map(|which| row.amount(which));
    sample.packed(field::VALUE, amounts.into_iter().flat_map(|sum| [sum.bytes, sum.blocks]));
    sample.nested(field::LABEL, |label| {
        label.number(field::KEY, domain_key);
        label.number(field::TEXT, domain);
    });
    sample.nested(field::LABEL, |label| {
        label.number(field::KEY, class_key);
        label.number(field::NUMBER, row.class_bytes());
        label.number(field::NUMBER_UNIT, bytes);
    });
}
