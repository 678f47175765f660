//! Owns the text form of the options (`PYMEM_DEBUG`): one table of words, from which parser, error texts, help and
//! [`Options::needs_hooks`] follow.
//!
//! To add an option:
//!
//! 1. Give `Options` a field whose zero or `None` is off, and name it in `Options::new`.
//! 2. Add a row to [`WORDS`].
//! 3. Add the row to the table above `Options`; a test compares the two. Add it to the table of the README by its price.
//! 4. If a field of the option can hold a value that no text can have, refuse it in `Options::check`.
//! 5. If the option belongs to guard pages, add it to `for_sampler` and clear it in `for_hooks`.
//! 6. Switch it on where its noun is: `Checked::configure` for what needs an operating system, `DebugHooks::configure` else.
//! 7. If it needs an operating system, refuse it in `no_std.rs`.
//! 8. Add its text to `every_word` and a faulty one to `a_faulty_word_is_named`.

use core::fmt;
use core::num::NonZeroU32;
use core::str::FromStr;

use thiserror::Error;

use malloc_api::Domain;

use crate::options::{LeakFormat, Options, QuarantineBounds, Text};

impl Options {
    /// The first option on that needs the debug hooks: any but `guard`, `backtrace` and `native`.
    #[must_use]
    pub fn needs_hooks(&self) -> Option<&'static str> {
        let is_on = |word: &&OptionWord| word.needs_hooks.is_some_and(|is_on| is_on(self));
        // A word that stands for several options goes before these.
        let strict = WORDS.iter().find(|word| word.name == "strict").filter(is_on);
        strict.or_else(|| WORDS.iter().find(is_on)).map(|word| word.name)
    }

    /// Every word with what it means and takes, one a line: for a program's help.
    #[must_use]
    pub fn help() -> impl fmt::Display {
        Help
    }
}

/// The beginning of a faulty word.
pub type Word = Text<32>;

/// Why a text is no [`Options`].
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ParseOptionsError {
    /// A word that is no option.
    #[error("unknown option `{word}`: expected one of {}", ExpectedWords)]
    UnknownOption {
        /// The word, cut to its first 32 bytes.
        word: Word,
    },
    /// An option's argument that it does not accept.
    #[error("bad value `{value}` of option `{option}`: expected {expected}")]
    BadValue {
        /// The option.
        option: &'static str,
        /// The value, cut to its first 32 bytes; empty if there was none.
        value: Word,
        /// What it accepts.
        expected: &'static str,
    },
}

/// One word of the text form.
struct OptionWord {
    name: &'static str,
    /// Its argument, as a list of words shows it.
    form: &'static str,
    /// What it means.
    means: &'static str,
    /// Its arguments, for the table of the documents.
    arguments: &'static str,
    /// What it accepts, as an error says it.
    expected: &'static str,
    /// Takes a value in; `None` if it is none of the word's.
    set: fn(&mut Options, Option<&str>) -> Option<()>,
    /// Whether it is on; `None` for what needs no hooks.
    needs_hooks: Option<fn(&Options) -> bool>,
}

/// What the words that take no value have in common.
const WITHOUT_VALUE: OptionWord = OptionWord {
    name: "",
    form: "",
    means: "",
    arguments: "none",
    expected: "no value",
    set: |_, _| None,
    needs_hooks: None,
};

/// Every word, in the order in which they are listed.
const WORDS: [OptionWord; 14] = [
    OptionWord {
        name: "serial",
        means: "number each allocation, and keep the number in the block",
        set: |options, value| flag(&mut options.serial, value),
        needs_hooks: Some(|options| options.serial),
        ..WITHOUT_VALUE
    },
    OptionWord {
        name: "full_erase",
        means: "fill every byte that leaves a block with DEADBYTE, also when `realloc` shrinks or moves it",
        set: |options, value| flag(&mut options.full_erase, value),
        needs_hooks: Some(|options| options.full_erase),
        ..WITHOUT_VALUE
    },
    OptionWord {
        name: "registry",
        means: "keep live blocks out of line: foreign, interior and doubly freed pointers are certain",
        set: |options, value| flag(&mut options.registry, value),
        needs_hooks: Some(|options| options.registry),
        ..WITHOUT_VALUE
    },
    OptionWord {
        name: "strict",
        means: "`registry` and `quarantine`",
        set: |options, value| {
            options.quarantine.get_or_insert(QuarantineBounds::DEFAULT);
            flag(&mut options.registry, value)
        },
        needs_hooks: Some(|options| options.registry && options.quarantine.is_some()),
        ..WITHOUT_VALUE
    },
    OptionWord {
        name: "quarantine",
        form: "=BYTES[:BLOCKS]",
        means: "hold freed blocks and verify that nobody writes to them",
        arguments: "`=16M`, `=16M:4096` (bytes; K, M, G; then blocks)",
        expected: "BYTES or BYTES:BLOCKS, as 16M or 16M:4096",
        set: |options, value| {
            match value {
                // Bounds that an earlier word gave stay.
                None => *options.quarantine.get_or_insert(QuarantineBounds::DEFAULT),
                Some(value) => *options.quarantine.insert(bounds(value)?),
            };
            Some(())
        },
        needs_hooks: Some(|options| options.quarantine.is_some()),
    },
    OptionWord {
        name: "backtrace",
        form: "=FRAMES",
        means: "keep where each block was allocated, and freed with `quarantine`",
        arguments: "`=8` frames, 1 to 32",
        expected: "a number of frames from 1 to 32",
        set: |options, value| {
            let frames = number(value.unwrap_or("8"))?.try_into().ok()?;
            options.backtrace =
                Some(frames).filter(|frames| (1..=Options::MAX_FRAMES).contains(frames))?;
            Some(())
        },
        needs_hooks: None,
    },
    OptionWord {
        name: "native",
        means: "keep native frames beside those of the host, which otherwise stand alone; implies `backtrace` where it is off",
        set: |options, value| {
            if options.backtrace == 0 {
                options.backtrace = Options::SOME_FRAMES;
            }
            flag(&mut options.native, value)
        },
        ..WITHOUT_VALUE
    },
    OptionWord {
        name: "guard",
        form: "=1/N[:SLOTS]",
        means: "put one block in N between guard pages",
        arguments: "`=1/1000`, `=1/1000:4096` (then slots)",
        expected: "1/N with N from 1 to 4294967295, or 1/N:SLOTS",
        set: |options, value| {
            let (rate, slots) = one_in(value.unwrap_or("1/1000"))?;
            (options.guard, options.guard_slots) = (Some(rate), slots);
            Some(())
        },
        needs_hooks: None,
    },
    OptionWord {
        name: "leaks",
        form: "[=text|json]",
        means: "report live blocks at exit; implies `registry`",
        arguments: "`=text`, `=json`",
        expected: "text or json",
        set: |options, value| {
            let format = match value {
                None | Some("text") => LeakFormat::Text,
                Some("json") => LeakFormat::Json,
                Some(_) => return None,
            };
            options.leaks.get_or_insert_default().format = format;
            Some(())
        },
        needs_hooks: Some(|options| options.leaks.is_some()),
    },
    OptionWord {
        name: "leak_exit",
        form: "=STATUS",
        means: "exit status if any block leaked; implies `leaks`",
        arguments: "`=23`, 1 to 255",
        expected: "an exit status from 1 to 255",
        set: |options, value| {
            let status = number(value?)?.try_into().ok().filter(|&status: &u8| status > 0)?;
            options.leaks.get_or_insert_default().exit_code = Some(status);
            Some(())
        },
        needs_hooks: Some(|options| options.leaks.is_some()),
    },
    OptionWord {
        name: "leak_domain",
        form: "=DOMAIN",
        means: "report the leaks of one domain alone; implies `leaks`",
        arguments: "`=raw`, `=mem`, `=obj`",
        expected: "raw, mem or obj",
        set: |options, value| {
            let domain = domain(value?)?;
            options.leaks.get_or_insert_default().domain = Some(domain);
            Some(())
        },
        needs_hooks: Some(|options| options.leaks.is_some()),
    },
    OptionWord {
        name: "leak_site",
        form: "=PATTERN",
        means: "report alone the leaks of sites with a frame that has this in it; implies `leaks`, and `backtrace` where it is off",
        arguments: "`=my_module.py`, `=/my_package/*in load`; `*` is any text",
        expected: "a text of 1 to 255 bytes without a comma",
        set: |options, value| {
            options.leaks.get_or_insert_default().site = text(value?)?;
            if options.backtrace == 0 {
                options.backtrace = Options::SOME_FRAMES;
            }
            Some(())
        },
        needs_hooks: Some(|options| options.leaks.is_some()),
    },
    OptionWord {
        name: "leak_ignore",
        form: "=FILE",
        means: "leave out the leaks that this file lists; implies `leaks`",
        arguments: "`=leaks.txt`, with lines as `leak:*in load_config`, `raw:*`, `# comment`",
        expected: "a path of 1 to 255 bytes without a comma",
        set: |options, value| {
            options.leaks.get_or_insert_default().ignore = text(value?)?;
            Some(())
        },
        needs_hooks: Some(|options| options.leaks.is_some()),
    },
    OptionWord {
        name: "continue",
        means: "go on after the report of a faulty call, which has no effect",
        set: |options, value| flag(&mut options.go_on, value),
        ..WITHOUT_VALUE
    },
];

/// Switches on what takes no value.
fn flag(place: &mut bool, value: Option<&str>) -> Option<()> {
    *place = true;
    value.is_none().then_some(())
}

/// All words with their arguments, as an error lists them.
struct ExpectedWords;

impl fmt::Display for ExpectedWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in WORDS.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}{}", word.name, word.form)?;
        }
        Ok(())
    }
}

struct Help;

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        WORDS.iter().try_for_each(|word| {
            writeln!(f, "{}{}\n    {}; {}", word.name, word.form, word.means, word.arguments)
        })
    }
}

impl FromStr for Options {
    type Err = ParseOptionsError;

    fn from_str(text: &str) -> Result<Self, ParseOptionsError> {
        let mut options = Self::new();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            };
            let Some(known) = WORDS.iter().find(|known| known.name == name) else {
                return Err(ParseOptionsError::UnknownOption { word: Word::cut(name) });
            };
            if (known.set)(&mut options, value).is_none() {
                return Err(ParseOptionsError::BadValue {
                    option: known.name,
                    value: Word::cut(value.unwrap_or_default()),
                    expected: known.expected,
                });
            }
        }
        Ok(options)
    }
}

/// The domain of this name.
pub(crate) fn domain(name: &str) -> Option<Domain> {
    Domain::ALL.into_iter().find(|domain| domain.name() == name)
}

/// A text that is neither empty nor too long.
fn text<const N: usize>(value: &str) -> Option<Text<N>> {
    Text::new(value).filter(|text| !text.as_str().is_empty())
}

/// `BYTES` or `BYTES:BLOCKS`; neither may be 0.
fn bounds(text: &str) -> Option<QuarantineBounds> {
    let (bytes, blocks) = match text.split_once(':') {
        Some((bytes, blocks)) => (bytes, Some(blocks)),
        None => (text, None),
    };
    let mut bounds = QuarantineBounds::of_bytes(parse_size(bytes)?);
    if let Some(blocks) = blocks {
        bounds.blocks = parse_size(blocks)?;
    }
    Some(bounds)
}

/// A number above 0, as options and variables take it: `524288`, `512K`, `512k`.
///
/// K, M and G, small or not, stand for powers of 1024. `None` for 0, a sign, any other text, and a number above `usize::MAX`.
///
/// # Examples
///
/// ```
/// assert_eq!(memdebug::parse_size("512K"), Some(512 << 10));
/// assert_eq!(memdebug::parse_size("+1"), None);
/// ```
#[must_use]
pub fn parse_size(text: &str) -> Option<usize> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if digits.starts_with('+') {
        return None;
    }
    let number = digits.parse::<usize>().ok()?;
    (number > 0).then(|| number.checked_mul(1 << shift)).flatten()
}

/// `1/N` or `1/N:SLOTS`.
fn one_in(text: &str) -> Option<(NonZeroU32, Option<NonZeroU32>)> {
    let (rate, slots) = match text.strip_prefix("1/")?.split_once(':') {
        Some((rate, slots)) => (rate, Some(slots)),
        None => (&text[2..], None),
    };
    let slots = match slots {
        Some(slots) => Some(number(slots)?.try_into().ok()?),
        None => None,
    };
    Some((number(rate)?.try_into().ok()?, slots))
}

/// A decimal number: digits alone, without a sign.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::LeakReport;

    fn parse(text: &str) -> Result<Options, String> {
        text.parse().map_err(|e: ParseOptionsError| e.to_string())
    }

    #[test]
    fn every_word() {
        assert_eq!(parse(""), Ok(Options::new()));
        assert_eq!(parse("strict"), Ok(Options::strict()));
        let all = parse("quarantine=16M,backtrace=9,guard=1/1000,leaks,serial,full_erase,native")
            .unwrap();
        assert_eq!(
            all,
            Options {
                serial: true,
                full_erase: true,
                registry: false,
                quarantine: Some(QuarantineBounds { bytes: 16 << 20, blocks: 16 << 10 }),
                backtrace: 9,
                native: true,
                guard: NonZeroU32::new(1000),
                guard_slots: None,
                leaks: Some(LeakReport::default()),
                go_on: false,
            }
        );
        assert!(all.needs_registry());
        assert_eq!(
            parse("leaks=json,leak_exit=23").unwrap().leaks,
            Some(LeakReport {
                format: LeakFormat::Json,
                exit_code: Some(23),
                ..LeakReport::default()
            })
        );
        let bounds = |t: &str| parse(t).unwrap().quarantine.unwrap();
        assert_eq!(bounds("quarantine=64k:9"), QuarantineBounds { bytes: 65536, blocks: 9 });
        assert_eq!(bounds("quarantine=64k:9,strict"), QuarantineBounds { bytes: 65536, blocks: 9 });
        assert_eq!(bounds("quarantine=1000"), QuarantineBounds { bytes: 1000, blocks: 64 });
        assert_eq!(bounds("quarantine"), QuarantineBounds::DEFAULT);
        assert_eq!(
            bounds("quarantine=64k:9,quarantine"),
            QuarantineBounds { bytes: 65536, blocks: 9 }
        );
        let leaks = |t: &str| parse(t).unwrap().leaks.unwrap();
        assert_eq!(leaks("leak_domain=obj").domain, Some(Domain::Obj));
        assert_eq!(leaks("leak_site=a.py").site.as_str(), "a.py");
        assert_eq!(leaks("leak_ignore=/tmp/x").ignore.as_str(), "/tmp/x");
        let frames = |t: &str| parse(t).unwrap().backtrace;
        assert_eq!((frames("leak_site=a,backtrace=2"), frames("leak_site=a")), (2, 8));
        assert_eq!((frames("backtrace=2,leak_site=a"), frames("leak_ignore=a")), (2, 0));
        assert_eq!((frames("native"), parse("native=1").is_ok()), (8, false));
        let guard = parse("guard=1/50:9000").unwrap();
        assert_eq!((guard.guard, guard.guard_slots), (NonZeroU32::new(50), NonZeroU32::new(9000)));
    }

    /// The table above `Options` has the rows of `WORDS`, and the README names every word.
    #[test]
    fn documents_have_every_word() {
        let rows =
            include_str!("options.rs").lines().filter_map(|line| line.strip_prefix("/// | `"));
        let rows: Vec<_> = rows.map(|row| format!("| `{row}")).collect();
        let expected =
            WORDS.map(|word| format!("| `{}` | {} | {} |", word.name, word.means, word.arguments));
        assert_eq!(rows, expected);
        for word in WORDS {
            assert!(
                include_str!("../README.md").contains(&format!("`{}", word.name)),
                "{}",
                word.name
            );
            assert!(Options::help().to_string().contains(word.means));
        }
    }

    #[test]
    fn a_faulty_word_is_named() {
        for (text, expected) in [
            ("serial,bogus", "unknown option `bogus`: expected one of serial,"),
            ("Serial", "unknown option `Serial`: "),
            ("serial=1", "bad value `1` of option `serial`: expected no value"),
            ("quarantine=0", "bad value `0` of option `quarantine`: expected BYTES or"),
            ("quarantine=-1", "bad value `-1` of option `quarantine`"),
            ("quarantine=99999999999999G", "bad value `99999999999999G` of option"),
            ("quarantine=1M:", "bad value `1M:` of option"),
            ("backtrace=0", "bad value `0` of option `backtrace`: expected a number of frames"),
            ("backtrace=33", "bad value `33`"),
            ("guard=1000", "bad value `1000` of option `guard`: expected 1/N"),
            ("guard=1/0", "bad value `1/0`"),
            ("guard=1/+5", "bad value `1/+5`"),
            ("guard=1/5:0", "bad value `1/5:0`"),
            ("quarantine=+16M", "bad value `+16M`"),
            ("backtrace=+8", "bad value `+8`"),
            ("leaks=xml", "bad value `xml` of option `leaks`: expected text or json"),
            ("leak_exit", "bad value `` of option `leak_exit`: expected an exit status"),
            ("leak_exit=256", "bad value `256`"),
            (
                "leak_domain=all",
                "bad value `all` of option `leak_domain`: expected raw, mem or obj",
            ),
            ("leak_site=", "bad value `` of option `leak_site`: expected a text of 1 to"),
            ("leak_ignore", "bad value `` of option `leak_ignore`: expected a path of 1 to"),
            (
                &format!("leak_ignore={}", "x".repeat(256)),
                "bad value `xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx`",
            ),
            ("ééééééééééééééééééééé", "unknown option `éééééééééééééééé`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
