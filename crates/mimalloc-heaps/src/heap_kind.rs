//! Owns [`HeapKind`]: which of a thread's four heaps a block lives in.

use core::fmt;

/// Which of a thread's four heaps a block lives in; the tag that CPython's free-threaded build keeps in each page.
///
/// | kind | holds |
/// | --- | --- |
/// | `Mem` | buffers: what no collector visits |
/// | `Object` | objects that the cycle collector does not track |
/// | `Gc` | tracked objects |
/// | `GcPre` | tracked objects with two words (managed dict, weak references) before the object |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(u8)]
pub enum HeapKind {
    /// Tag 0: buffers.
    Mem = 0,
    /// Tag 1: objects without the collector.
    Object = 1,
    /// Tag 2: objects that the collector visits.
    Gc = 2,
    /// Tag 3: objects that the collector visits, with a header before them.
    GcPre = 3,
}

impl HeapKind {
    /// How many kinds there are.
    pub const COUNT: usize = 4;
    /// Every kind, in the order of the tags.
    pub const ALL: [Self; Self::COUNT] = [Self::Mem, Self::Object, Self::Gc, Self::GcPre];

    /// The tag, from 0 to 3.
    #[inline]
    #[must_use]
    pub const fn tag(self) -> usize {
        self as usize
    }

    /// The kind with this tag; `None` above 3.
    #[must_use]
    pub const fn from_tag(tag: usize) -> Option<Self> {
        match tag {
            0 => Some(Self::Mem),
            1 => Some(Self::Object),
            2 => Some(Self::Gc),
            3 => Some(Self::GcPre),
            _ => None,
        }
    }

    /// The name that reports use: `mem`, `object`, `gc`, `gc_pre`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mem => "mem",
            Self::Object => "object",
            Self::Gc => "gc",
            Self::GcPre => "gc_pre",
        }
    }
}

impl fmt::Display for HeapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
