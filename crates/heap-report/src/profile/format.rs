//! Owns `ReportFormat`: the forms in which a profile is handed on.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use super::collapsed::Collapsed;
use super::file::{ProfileFile, Which};
use super::html::Html;
use super::lines::Lines;
use super::pprof;
use super::speedscope::Speedscope;
use super::table::Table;

/// A form in which a profile is handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReportFormat {
    /// The profile's own file, from which all others can be made.
    Json,
    /// Totals, and the lines of the program that hold the most at the peak, for a terminal.
    Table,
    /// One line for each stack, of what was live at the peak.
    Collapsed,
    /// A file for speedscope.
    Speedscope,
    /// A page for a browser, which needs nothing else.
    Html,
    /// What each line holds, for the program that asks about itself.
    Lines,
    /// A gzip of pprof's message, for `go tool pprof` and services that take its files.
    Pprof,
}

/// A text is the name of no [`ReportFormat`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no format; take one of {names}", names = ReportFormat::NAMES.map(|(name, ..)| name).join(", "))]
pub struct FormatError(String);

impl ReportFormat {
    /// Each format by its name, with how the name of a file in that format ends.
    const NAMES: [(&'static str, &'static str, Self); 7] = [
        ("json", ".json", Self::Json),
        ("table", ".txt", Self::Table),
        ("collapsed", ".collapsed", Self::Collapsed),
        ("speedscope", ".speedscope.json", Self::Speedscope),
        ("html", ".html", Self::Html),
        ("lines", ".lines.json", Self::Lines),
        ("pprof", ".pb.gz", Self::Pprof),
    ];

    /// The format that the name of a file tells; the profile's own where it tells none.
    #[must_use]
    pub fn of_path(path: &Path) -> Self {
        Self::told_by(path).map_or(Self::Json, |&(.., format)| format)
    }

    /// `path` with `word` before the ending that tells the format, so that both tell the same; before the last dot where none does.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::path::Path;
    ///
    /// use heap_report::profile::ReportFormat;
    ///
    /// let path = ReportFormat::before_ending(Path::new("logs/app.pb.gz"), "7");
    /// assert_eq!(path, Path::new("logs/app.7.pb.gz"));
    /// ```
    #[must_use]
    pub fn before_ending(path: &Path, word: &str) -> PathBuf {
        let name = path.file_name().unwrap_or_default();
        let extension = path.extension().map_or(0, |extension| extension.len() + 1);
        let ending = Self::told_by(path).map_or(extension, |(_, end, _)| end.len());
        let (stem, ending) = name.as_bytes().split_at(name.len() - ending);
        let name = [stem, b".", word.as_bytes(), ending].concat();
        path.with_file_name(OsStr::from_bytes(&name))
    }

    fn told_by(path: &Path) -> Option<&'static (&'static str, &'static str, Self)> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        // The longest ending first.
        Self::NAMES.iter().rev().find(|(_, end, _)| name.ends_with(end.as_bytes()))
    }

    /// Writes `file` in this format.
    ///
    /// # Errors
    ///
    /// Those of `to`.
    pub fn write(self, file: &ProfileFile, mut to: impl Write) -> io::Result<()> {
        /// Lines of a table, of each kind.
        const LINES: usize = 20;
        match self {
            Self::Json => file.write(to),
            Self::Table => write!(to, "{}", Table { file, lines: LINES }),
            Self::Collapsed => write!(to, "{}", Collapsed(file, Which::Peak)),
            Self::Speedscope => write!(to, "{}", Speedscope(file)),
            Self::Html => write!(to, "{}", Html(file)),
            Self::Lines => write!(to, "{}", Lines(file, Which::Live)),
            Self::Pprof => pprof::write(file, to),
        }
    }
}

impl FromStr for ReportFormat {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let named = Self::NAMES.iter().find(|(name, ..)| *name == text);
        named.map(|&(.., format)| format).ok_or_else(|| FormatError(text.to_owned()))
    }
}
