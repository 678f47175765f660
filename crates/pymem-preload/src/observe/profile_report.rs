//! Owns the way from a profile's file to a report of it. Leaves what a report looks like to `heap-report`.

use std::fs::File;
use std::io::ErrorKind::BrokenPipe;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use heap_report::profile::{FormatError, ProfileFile, ReadError, ReportFormat};
use malloc_api::NewFile;
use thiserror::Error;

/// No report is made.
#[derive(Debug, Error)]
pub(crate) enum ReportError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("{path}: {1}; give the file that a profiled program has written", path = .0.display())]
    Open(PathBuf, io::Error),
    #[error("{path}: {1}", path = .0.display())]
    Read(PathBuf, ReadError),
    #[error("{path}: {1}; name a file in a folder that can be written", path = .0.display())]
    Write(PathBuf, io::Error),
}

impl ReportError {
    /// Writes the line to stderr.
    pub(crate) fn say(&self) {
        // Ignore write errors: there is nowhere to report them.
        let _ = writeln!(io::stderr(), "pymem: {self}");
    }
}

/// Draws the profile at `path` in `format`, or the one that the name of `out` tells, into `out`, or to the standard output; with `before`,
/// what it has more than that one.
///
/// # Errors
///
/// [`ReportError`].
pub(crate) fn report(
    path: &Path,
    format: Option<&[u8]>,
    out: Option<&Path>,
    before: Option<&Path>,
) -> Result<(), ReportError> {
    let format = match (format, out) {
        (Some(format), _) => ReportFormat::from_str(&String::from_utf8_lossy(format))?,
        (None, Some(out)) => ReportFormat::of_path(out),
        (None, None) => ReportFormat::Table,
    };
    let mut file = read(path)?;
    if let Some(before) = before {
        file = file.since(&read(before)?);
    }
    write(&file, format, out).map_err(|error| {
        ReportError::Write(out.unwrap_or(Path::new("standard output")).to_owned(), error)
    })
}

fn read(path: &Path) -> Result<ProfileFile, ReportError> {
    let file = File::open(path).map_err(|error| ReportError::Open(path.to_owned(), error))?;
    ProfileFile::read(file).map_err(|error| ReportError::Read(path.to_owned(), error))
}

fn write(file: &ProfileFile, format: ReportFormat, out: Option<&Path>) -> io::Result<()> {
    let Some(out) = out else {
        let mut to = io::stdout().lock();
        let written = format.write(file, &mut to).and_then(|()| to.flush());
        // Whoever reads the output has seen enough, as `head` does.
        return written.or_else(|e| if e.kind() == BrokenPipe { Ok(()) } else { Err(e) });
    };
    let mut new = NewFile::beside(out)?;
    let mut to = BufWriter::new(new.file());
    format.write(file, &mut to)?;
    to.flush()?;
    drop(to);
    new.publish()
}
