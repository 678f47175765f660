//! Owns which leaks are reported: those of one domain, of one site, and none that a file lists.
//! Leaves grouping the live blocks to `leaks.rs`.

use core::fmt::{self, Write as _};

use std::fs::File;
use std::io::{self, Read as _};

use malloc_api::Domain;

use crate::checks::leaks::LiveGroup;
use crate::options::{ConfigureError, LeakReport};
use crate::os::mapping::MappedSlice;
use crate::sites::site::Site;
use crate::words;

/// Which leaks a report has.
#[derive(Debug)]
pub(crate) struct Filter {
    report: LeakReport,
    /// The text of the file of rules.
    rules: Option<Rules>,
}

/// The text of a file, in pages of its own: what is allocated here would be a leak itself.
#[derive(Debug)]
struct Rules {
    bytes: MappedSlice<u8>,
    len: usize,
}

/// One rule of the file.
struct Rule<'a> {
    domain: Option<Domain>,
    pattern: &'a str,
}

impl<'a> Rule<'a> {
    /// The rule of a line that is neither empty nor a comment.
    fn parse(line: &'a str) -> Option<Self> {
        let (scope, pattern) = line.split_once(':')?;
        let domain = match scope {
            "leak" => None,
            name => Some(words::domain(name)?),
        };
        (!pattern.is_empty()).then_some(Self { domain, pattern })
    }
}

impl Filter {
    /// The filter that `report` asks for, its file read.
    pub(crate) fn new(report: LeakReport) -> Result<Self, ConfigureError> {
        let path = report.ignore.as_str();
        let rules = if path.is_empty() { None } else { Some(Rules::read(path).map_err(no_rules)?) };
        let filter = Self { report, rules };
        let faulty = filter.lines().find(|(_, line)| Rule::parse(line).is_none());
        match faulty.map(|(line, _)| line) {
            Some(line) => Err(ConfigureError::BadRule { line }),
            None => Ok(filter),
        }
    }

    pub(crate) fn report(&self) -> &LeakReport {
        &self.report
    }

    /// Whether the report has these blocks.
    pub(crate) fn keeps(&self, group: &LiveGroup) -> bool {
        let wanted = self.report.site.as_str();
        self.report.domain.is_none_or(|domain| domain == group.domain)
            && (wanted.is_empty() || has_frame(group.site, wanted))
            && !self.rules().any(|rule| {
                rule.domain.is_none_or(|domain| domain == group.domain)
                    && has_frame(group.site, rule.pattern)
            })
    }

    /// The lines that are neither empty nor comments, with their numbers. What is no text has one line, the first.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let text = core::str::from_utf8(
            self.rules.as_ref().map_or(&[], |rules| &rules.bytes[..rules.len]),
        );
        let lines = text.unwrap_or("no text").lines().map(str::trim).zip(1..);
        let lines = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        lines.map(|(line, number)| (number, line))
    }

    fn rules(&self) -> impl Iterator<Item = Rule<'_>> {
        self.lines().filter_map(|(_, line)| Rule::parse(line))
    }
}

impl Rules {
    /// Reads a file to its end, of less than 16 MiB: pipes, and what the system makes up while it is read, state no size.
    fn read(path: &str) -> io::Result<Self> {
        const FIRST_BYTES: usize = 16 << 10;
        const MOST_BYTES: usize = 16 << 20;
        let room = |bytes| MappedSlice::<u8>::new(bytes).ok_or(io::ErrorKind::OutOfMemory);
        let mut file = File::open(path)?;
        let mut text = Self { bytes: room(FIRST_BYTES)?, len: 0 };
        loop {
            match file.read(&mut text.bytes[text.len..]) {
                Ok(0) => return Ok(text),
                Ok(count) => text.len += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if text.len == MOST_BYTES {
                return Err(io::Error::from_raw_os_error(libc::EFBIG));
            }
            if text.len == text.bytes.len() {
                let mut bytes = room(2 * text.len)?;
                bytes[..text.len].copy_from_slice(&text.bytes);
                text.bytes = bytes;
            }
        }
    }
}

fn no_rules(error: io::Error) -> ConfigureError {
    ConfigureError::NoRules { errno: error.raw_os_error().unwrap_or_default() }
}

/// Whether a frame of `site` has `pattern` in it.
fn has_frame(site: Option<Site>, pattern: &str) -> bool {
    let mut search = Search { pattern, line: [0; LINE_BYTES], len: 0, found: false };
    if let Some(site) = site {
        // A `Search` takes everything.
        let _ = write!(search, "{site}");
    }
    search.end_line();
    search.found
}

/// Bytes of a frame's line that are looked at.
const LINE_BYTES: usize = 1024;

/// Looks for a pattern in each line that is written.
struct Search<'a> {
    pattern: &'a str,
    line: [u8; LINE_BYTES],
    len: usize,
    found: bool,
}

impl Search<'_> {
    fn end_line(&mut self) {
        self.found |= has(&self.line[..self.len], self.pattern);
        self.len = 0;
    }
}

impl fmt::Write for Search<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if byte == b'\n' {
                self.end_line();
            } else if let Some(place) = self.line.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// Whether `line` has the parts of `pattern` between its `*` in it, one after the other.
fn has(line: &[u8], pattern: &str) -> bool {
    let mut rest = line;
    pattern.split('*').map(str::as_bytes).all(|part| {
        let at = (0..=rest.len()).find(|&at| rest[at..].starts_with(part));
        rest = at.map_or(rest, |at| &rest[at + part.len()..]);
        at.is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_pattern_come_one_after_the_other() {
        let line = b"  File \"/a/b.py\", line 3, in load";
        for pattern in ["b.py", "*", "/a/*in load", "File*line 3*load", "load*", "*load"] {
            assert!(has(line, pattern), "{pattern}");
        }
        for pattern in ["c.py", "in load*b.py", "load*load", "line 3, in load "] {
            assert!(!has(line, pattern), "{pattern}");
        }
        assert!(has(b"", "*") && !has(b"", "a"));
    }
}
