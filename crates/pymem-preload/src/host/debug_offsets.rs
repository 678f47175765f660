//! Owns `_Py_DebugOffsets`, with which `_PyRuntime` begins since 3.13: where the interpreter keeps its frames, told by the
//! interpreter itself, so that no table of ours has to know a version. Every number is checked before it is used.
//!
//! The block is a list of words: a cookie, the version, whether there is no GIL, then sections, each of which begins with
//! the size of the structure that its offsets lie in. The sections that are read have moved with every version so far;
//! where they begin is the only thing that is known by version, and a newer version than those is read as the newest.

use core::ops::Range;

use pymem_domains::Build;

use crate::host::capi::symbol;

/// `xdebugpy`.
const COOKIE: u64 = u64::from_ne_bytes(*b"xdebugpy");
const VERSION: usize = 1;
const FREE_THREADED: usize = 2;

/// Where sections begin, in words.
struct Places {
    thread: usize,
    frame: usize,
    code: usize,
    object: usize,
}

const V3_13: Places = Places { thread: 19, frame: 28, code: 34, object: 44 };
const V3_14: Places = Places { thread: 22, frame: 31, code: 39, object: 50 };
const V3_15: Places = Places { thread: 22, frame: 39, code: 47, object: 58 };

/// Words that are read: up to the end of the last section.
pub(crate) const WORDS: usize = 60;

/// More bytes than any structure of the interpreter's has.
const MOST_BYTES: u64 = 1 << 20;

/// Where the frames of a thread are: offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DebugOffsets {
    /// In the thread state: the newest frame.
    pub(crate) newest: usize,
    /// In a frame: the code, the frame before, the instruction, and who owns the frame, a byte.
    pub(crate) code: usize,
    pub(crate) previous: usize,
    pub(crate) instruction: usize,
    pub(crate) owner: usize,
    /// In a code object: the names of its file and of itself, and its first instruction.
    pub(crate) file: usize,
    pub(crate) name: usize,
    pub(crate) instructions: usize,
    /// In an object: the type.
    pub(crate) type_of: usize,
}

impl DebugOffsets {
    /// The words at the beginning of the process's `_PyRuntime`; `None` where it is not exported.
    pub(crate) fn words() -> Option<[u64; WORDS]> {
        // SAFETY: 1: a variable, whose address is all that is used.
        let runtime = unsafe { symbol::<*const [u64; WORDS]>(c"_PyRuntime") }?;
        // SAFETY: the interpreter's runtime state is larger, and these words of it are constant.
        Some(unsafe { runtime.read() })
    }

    /// Reads `words` as those of Python 3.`minor` of this build; `None` unless every one makes sense.
    pub(crate) fn read(words: &[u64; WORDS], minor: u32, build: Build) -> Option<Self> {
        let version = words[VERSION];
        let is_free_threaded = u64::from(build == Build::FreeThreaded);
        let is_this_host = words[0] == COOKIE
            && version >> 16 == (3 << 8 | u64::from(minor))
            && words[FREE_THREADED] == is_free_threaded;
        if !is_this_host {
            return None;
        }
        let places = match minor {
            ..=13 => V3_13,
            14 => V3_14,
            _ => V3_15,
        };
        let thread = Section::new(&words[places.thread..])?;
        let frame = Section::new(&words[places.frame..])?;
        let code = Section::new(&words[places.code..])?;
        let object = Section::new(&words[places.object..])?;
        let offsets = Self {
            newest: thread.pointer(4)?,
            previous: frame.pointer(1)?,
            code: frame.pointer(2)?,
            instruction: frame.pointer(3)?,
            owner: frame.field(5, 1)?,
            file: code.pointer(1)?,
            name: code.pointer(2)?,
            instructions: code.pointer(9)?,
            type_of: object.pointer(1)?,
        };
        offsets.is_possible().then_some(offsets)
    }

    /// Whether no two fields of a structure overlap, and a frame's owner stands behind its pointers.
    fn is_possible(&self) -> bool {
        self.previous != self.code
            && self.instruction != self.code
            && self.instruction != self.previous
            && self.owner >= size_of::<usize>() + self.previous.max(self.code)
            && self.file != self.name
            && self.instructions >= size_of::<usize>() + self.file.max(self.name)
    }
}

/// The offsets of one structure: its size, and words that lie in it.
struct Section<'a> {
    words: &'a [u64],
    bytes: Range<u64>,
}

impl<'a> Section<'a> {
    fn new(words: &'a [u64]) -> Option<Self> {
        let size = *words.first()?;
        (1..=MOST_BYTES).contains(&size).then_some(Self { words, bytes: 0..size })
    }

    /// The offset at `index`, if `len` bytes from there lie in the structure.
    fn field(&self, index: usize, len: u64) -> Option<usize> {
        let offset = *self.words.get(index)?;
        (offset < self.bytes.end && offset + len <= self.bytes.end)
            .then(|| usize::try_from(offset).ok())?
    }

    /// The same of a pointer, which is aligned.
    fn pointer(&self, index: usize) -> Option<usize> {
        let offset = self.field(index, size_of::<usize>() as u64)?;
        (offset % size_of::<usize>() == 0).then_some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of CPython 3.14.10.
    fn words() -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[0] = COOKIE;
        words[VERSION] = 0x030e_0af0;
        let mut put = |start: usize, section: &[u64]| {
            words[start..start + section.len()].copy_from_slice(section);
        };
        put(V3_14.thread, &[800, 0, 8, 16, 72, 152, 160, 208, 32]);
        put(V3_14.frame, &[88, 8, 0, 56, 80, 74, 64, 0]);
        put(V3_14.code, &[216, 112, 120, 128, 136, 68, 52, 96, 104, 200, 0]);
        put(V3_14.object, &[16, 8]);
        words
    }

    const OFFSETS: DebugOffsets = DebugOffsets {
        newest: 72,
        code: 0,
        previous: 8,
        instruction: 56,
        owner: 74,
        file: 112,
        name: 120,
        instructions: 200,
        type_of: 8,
    };

    #[test]
    fn they_are_read_where_the_version_has_them() {
        assert_eq!(DebugOffsets::read(&words(), 14, Build::Gil), Some(OFFSETS));
        assert_eq!(DebugOffsets::read(&words(), 15, Build::Gil), None, "another version");
        assert_eq!(DebugOffsets::read(&words(), 14, Build::FreeThreaded), None, "another build");
    }

    #[test]
    fn a_wrong_word_is_refused() {
        let used = [
            (V3_14.thread, 4),
            (V3_14.frame, 1),
            (V3_14.frame, 2),
            (V3_14.frame, 3),
            (V3_14.frame, 5),
        ];
        let in_code = [1, 2, 9].map(|index| (V3_14.code, index));
        for (start, index) in used.into_iter().chain(in_code).chain([(V3_14.object, 1)]) {
            for wrong in [u64::MAX, 1 << 63, 1 << 19, words()[start]] {
                let mut words = words();
                words[start + index] = wrong;
                let read = DebugOffsets::read(&words, 14, Build::Gil);
                assert_eq!(read, None, "word {start} + {index} is {wrong}");
            }
        }
        for index in [0, VERSION, FREE_THREADED, V3_14.thread, V3_14.frame, V3_14.code] {
            for wrong in [u64::MAX, 0x0f0f_0f0f_0f0f] {
                let mut words = words();
                words[index] = wrong;
                assert_eq!(DebugOffsets::read(&words, 14, Build::Gil), None, "word {index}");
            }
        }
    }
}
