//! Owns what the library says when it does not do what it was asked: one line on stderr, which tells what was wrong, what
//! was expected, and what to do.

use core::fmt;
use std::io;
use std::path::PathBuf;

use memdebug::{ConfigureError, ParseOptionsError};

use crate::service::InstallError;

/// A request that is not met.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// `PYMEM_DEBUG` is no list of options.
    Debug(ParseOptionsError),
    /// `PYMEM_DEBUG` asks for guard pages and more, in a configuration without debug hooks.
    DebugRow(ConfigureError),
    /// The value of `PYMEM_TRACE_LIMIT` is no number.
    TraceLimit(String),
    /// The configuration cannot be installed.
    Install(InstallError),
    /// The value of `PYTHONMALLOC` is a name that a free-threaded interpreter cannot have.
    FreeThreaded(String),
    /// The heap map cannot be written. The program goes on.
    NoHeapMap(PathBuf, io::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debug(error) => write!(f, "PYMEM_DEBUG: {error}"),
            Self::DebugRow(error) => write!(f, "PYMEM_DEBUG: {error}"),
            Self::TraceLimit(value) => write!(
                f,
                "PYMEM_TRACE_LIMIT: `{value}` is no number of bytes; give digits alone, such as 1048576"
            ),
            Self::Install(error) => error.fmt(f),
            Self::FreeThreaded(value) => write!(
                f,
                "PYTHONMALLOC={value}: a free-threaded interpreter keeps mem and obj on its own heaps, which its collector \
                 walks; use default, debug, mimalloc or mimalloc_debug"
            ),
            Self::NoHeapMap(path, error) => write!(
                f,
                "PYMEM_HEAP_MAP: {} cannot be written: {error}; name a file in a folder that can be",
                path.display()
            ),
        }
    }
}
