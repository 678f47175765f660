//! Owns the run-time options and why they cannot be switched on.
//! Leaves their text form to `words.rs`, and what each does to the file of that noun.

use core::fmt;
use core::num::NonZeroU32;

use malloc_api::Domain;
use thiserror::Error;

use crate::block::Extra;

/// How much freed memory the quarantine holds before the oldest block goes back to the allocator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuarantineBounds {
    /// Most bytes held, headers included. A block above half of it is checked and given back at once.
    pub bytes: usize,
    /// Most blocks held.
    pub blocks: usize,
}

impl QuarantineBounds {
    /// Most blocks that can be asked for.
    pub(crate) const MOST_BLOCKS: usize = 1 << 32;

    /// 4 MiB or 4,096 blocks, whichever is reached first.
    pub const DEFAULT: Self = Self::of_bytes(4 << 20);

    /// `bytes`, and one block for each KiB of them, but at least 64.
    #[must_use]
    pub const fn of_bytes(bytes: usize) -> Self {
        let blocks = bytes >> 10;
        Self { bytes, blocks: if blocks < 64 { 64 } else { blocks } }
    }
}

/// A text of at most `N` bytes, kept without allocating.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// The text; `None` if it is too long.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        (text.len() <= N).then(|| Self::cut(text))
    }

    /// As many whole characters of the text as there is room for.
    #[must_use]
    pub fn cut(text: &str) -> Self {
        let mut len = text.len().min(N);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        let mut bytes = [0; N];
        bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        Self { bytes, len }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Whole characters only were put in, so the text is never cut to nothing here.
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

/// Adds all of a text or none of it.
impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// How a leak report is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LeakFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// What is done about blocks still live at exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LeakReport {
    /// How the report is written.
    pub format: LeakFormat,
    /// Exit status of the process if any block leaked; `None` leaves it alone.
    pub exit_code: Option<u8>,
    /// The domain whose leaks are reported; `None` for all.
    pub domain: Option<Domain>,
    /// Leaks are reported of sites with a frame that has this in it; empty for all. `*` stands for any text.
    pub site: Text<255>,
    /// The path of the file that lists leaks to leave out; empty for none. It is read when the report is asked for, and has a
    /// rule a line: `leak:`, or `raw:`, `mem:` or `obj:` for one domain, and a pattern as that of `site`. A block of which no
    /// site is known has a single, empty frame. Empty lines and those that begin with `#` are no rules.
    pub ignore: Text<255>,
}

/// Checks beyond CPython's hooks, each at its price (`docs/design/debug-blocks.md` has the figures).
///
/// The default is none: plain hooks. The text form is a comma-separated list of the words below; the empty text is the
/// default.
///
/// | word | means | argument |
/// | --- | --- | --- |
/// | `serial` | number each allocation, and keep the number in the block | none |
/// | `full_erase` | fill every byte that leaves a block with DEADBYTE, also when `realloc` shrinks or moves it | none |
/// | `registry` | keep live blocks out of line: foreign, interior and doubly freed pointers are certain | none |
/// | `strict` | `registry` and `quarantine` | none |
/// | `quarantine` | hold freed blocks and verify that nobody writes to them | `=16M`, `=16M:4096` (bytes; K, M, G; then blocks) |
/// | `backtrace` | keep where each block was allocated, and freed with `quarantine` | `=8` frames, 1 to 32 |
/// | `native` | keep native frames beside those of the host, which otherwise stand alone; implies `backtrace` where it is off | none |
/// | `guard` | put one block in N between guard pages | `=1/1000`, `=1/1000:4096` (then slots) |
/// | `leaks` | report live blocks at exit; implies `registry` | `=text`, `=json` |
/// | `leak_exit` | exit status if any block leaked; implies `leaks` | `=23`, 1 to 255 |
/// | `leak_domain` | report the leaks of one domain alone; implies `leaks` | `=raw`, `=mem`, `=obj` |
/// | `leak_site` | report alone the leaks of sites with a frame that has this in it; implies `leaks`, and `backtrace` where it is off | `=my_module.py`, `=/my_package/*in load`; `*` is any text |
/// | `leak_ignore` | leave out the leaks that this file lists; implies `leaks` | `=leaks.txt`, with lines as `leak:*in load_config`, `raw:*`, `# comment` |
/// | `continue` | go on after the report of a faulty call, which has no effect | none |
///
/// # Examples
///
/// ```
/// use memdebug::{Options, QuarantineBounds};
///
/// let options: Options = "quarantine=16M,serial".parse()?;
/// assert!(options.serial);
/// assert_eq!(options.quarantine, Some(QuarantineBounds { bytes: 16 << 20, blocks: 16384 }));
///
/// let error = "serial,gard=1/10".parse::<Options>().unwrap_err();
/// assert!(error.to_string().starts_with("unknown option `gard`: expected one of serial, full_erase,"));
/// # Ok::<(), memdebug::ParseOptionsError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// Number each allocation. Costs 8 bytes a block.
    pub serial: bool,
    /// Fill every byte that leaves a block with DEADBYTE.
    pub full_erase: bool,
    /// Keep live blocks out of line. Needs the `std` feature, as all below.
    pub registry: bool,
    /// Hold freed blocks. The bounds are each hooks' own.
    pub quarantine: Option<QuarantineBounds>,
    /// Frames kept of each allocation and free, 0 to [`Options::MAX_FRAMES`]; 0 keeps none.
    pub backtrace: u8,
    /// Keep native frames too where the host has frames of its own. Unwinding takes far longer than all else that the hooks do.
    pub native: bool,
    /// Put one block in this many between guard pages.
    pub guard: Option<NonZeroU32>,
    /// Slots for guarded blocks; `None` leaves the number to the rate. The first sampler of a process decides.
    pub guard_slots: Option<NonZeroU32>,
    /// Report live blocks at exit.
    pub leaks: Option<LeakReport>,
    /// Go on after a report, with a call that had no effect. Whoever makes the [`Host`](crate::Host) serves this, by
    /// [`handler::report`](crate::handler::report) as its handler.
    pub go_on: bool,
}

impl Options {
    /// Most frames that are kept of a backtrace.
    pub const MAX_FRAMES: u8 = 32;
    /// Frames that are kept where no number is asked for.
    pub(crate) const SOME_FRAMES: u8 = 8;

    /// No option: plain hooks.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            serial: false,
            full_erase: false,
            registry: false,
            quarantine: None,
            backtrace: 0,
            native: false,
            guard: None,
            guard_slots: None,
            leaks: None,
            go_on: false,
        }
    }

    /// Registry and quarantine with its default bounds.
    #[must_use]
    pub const fn strict() -> Self {
        Self { registry: true, quarantine: Some(QuarantineBounds::DEFAULT), ..Self::new() }
    }

    /// Refuses values that were set by field and that no text can have.
    pub(crate) fn check(&self) -> Result<(), ConfigureError> {
        let out_of_range = |option, expected| Err(ConfigureError::OutOfRange { option, expected });
        if self.backtrace > Self::MAX_FRAMES {
            return out_of_range("backtrace", "at most 32 frames");
        }
        let is_room = |bounds: QuarantineBounds| {
            (1..=isize::MAX as usize).contains(&bounds.bytes)
                && (1..=QuarantineBounds::MOST_BLOCKS).contains(&bounds.blocks)
        };
        if !self.quarantine.is_none_or(is_room) {
            return out_of_range("quarantine", "bytes and blocks above 0");
        }
        Ok(())
    }

    /// Slots for guarded blocks where one block in `rate` is.
    #[cfg(feature = "std")]
    pub(crate) fn slots(&self, rate: NonZeroU32) -> usize {
        let by_rate = ((1 << 20) / rate.get()).clamp(4096, 1 << 17);
        self.guard_slots.map_or(by_rate, NonZeroU32::get) as usize
    }

    /// The part that a [`GuardSampler`](crate::GuardSampler) serves: `guard`, and `backtrace` and `native` for its blocks.
    #[must_use]
    pub const fn for_sampler(&self) -> Self {
        Self {
            guard: self.guard,
            guard_slots: self.guard_slots,
            backtrace: self.backtrace,
            native: self.native,
            ..Self::new()
        }
    }

    /// The part that [`DebugHooks`](crate::DebugHooks) serve: all but `guard`.
    #[must_use]
    pub const fn for_hooks(&self) -> Self {
        Self { guard: None, guard_slots: None, ..*self }
    }

    /// Whether live blocks are kept out of line: asked for, or needed by another option.
    #[must_use]
    pub const fn needs_registry(&self) -> bool {
        self.registry || self.leaks.is_some()
    }

    /// What a block has after its guard: its site where there is no registry to have it.
    pub(crate) const fn extra(&self) -> Extra {
        Extra { serial: self.serial, site: self.backtrace > 0 && !self.needs_registry() }
    }
}

/// Why [`DebugHooks::with_options`](crate::DebugHooks::with_options) or a
/// [`GuardSampler`](crate::GuardSampler) could not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ConfigureError {
    /// Options beyond serial numbers and erasing can be set once for a `DebugHooks`.
    #[error(
        "the options of these hooks are already set: they can be set once, so set all of them together"
    )]
    AlreadySet,
    /// The system has no memory for what an option needs.
    #[error("no memory for `{option}`: ask for less, or raise the limit of address space")]
    NoMemory {
        /// The option's word.
        option: &'static str,
    },
    /// Hooks with guard pages have more than 64 different hosts.
    #[error(
        "too many hosts of hooks with `guard`: at most 64 in a process, so let hooks share them"
    )]
    TooManyHosts,
    /// The fault handler that guard pages need cannot be installed.
    #[error(
        "the fault handler that `guard` needs cannot be installed: system error {errno}; do without `guard`"
    )]
    FaultHandler {
        /// The system's error number.
        errno: i32,
    },
    /// A [`GuardSampler`](crate::GuardSampler) was asked for more than guard pages.
    #[error(
        "`{option}` needs the debug hooks, and there are none: choose a row that has them, as `debug`, or ask for \
         guard=1/N and backtrace=FRAMES alone"
    )]
    NeedsHooks {
        /// The option's word.
        option: &'static str,
    },
    /// Hooks were asked for guard pages, which are a layer around them.
    #[error("`guard` is no option of the debug hooks: put a GuardSampler around them")]
    NeedsSampler,
    /// More than 509 hooks of the process keep a registry.
    #[error(
        "too many hooks with `registry`: at most 509 in a process, so drop some or let threads share them"
    )]
    TooManyHooks,
    /// A value that was set by field is none that the option's word accepts.
    #[error("`{option}` is out of range: expected {expected}")]
    OutOfRange {
        /// The option's word.
        option: &'static str,
        /// What it accepts.
        expected: &'static str,
    },
    /// The file of leaks to leave out cannot be read.
    #[error("the file of `leak_ignore` cannot be read: system error {errno}")]
    NoRules {
        /// The system's error number.
        errno: i32,
    },
    /// A line of the file of leaks to leave out is no rule.
    #[error(
        "line {line} of the file of `leak_ignore` is no rule: expected leak:PATTERN, raw:PATTERN, mem:PATTERN or \
         obj:PATTERN"
    )]
    BadRule {
        /// The line, counted from 1.
        line: usize,
    },
    /// The option needs the `std` feature.
    #[error("`{option}` needs an operating system: build memdebug with its `std` feature")]
    Unsupported {
        /// The option's word.
        option: &'static str,
    },
}
