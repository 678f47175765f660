//! Owns `ReportFormat`: the forms in which a profile is handed on.

use std::io::{self, Write};
use std::path::Path;
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
        let name = path.as_os_str().as_encoded_bytes();
        // The longest ending first.
        let told = Self::NAMES.iter().rev().find(|(_, end, _)| name.ends_with(end.as_bytes()));
        told.map_or(Self::Json, |&(.., format)| format)
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
