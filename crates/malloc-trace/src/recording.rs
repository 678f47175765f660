//! Owns [`Recording`]: the reading of a file of which only its first bytes tell whether it is a trace or a call log. Leaves the
//! bytes to `codec.rs` and `log_reader.rs`.

use std::io::Read;

use crate::codec::{self, TraceError, read_up_to};
use crate::log_reader::{LogError, LogHead, LogReader, MAGIC, Unread};
use crate::op::Op;

/// Why a file cannot be replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// The file begins as a trace, or as nothing that is known.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The file begins as a call log.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// The calls of a recorded program, in their order, and what a call log tells of them.
///
/// # Examples
///
/// ```
/// use malloc_trace::{Recording, Trace, encode, generate};
///
/// let ops = generate::random(1, 1000, 512);
/// let mut file = Vec::new();
/// encode(&mut file, &Trace::new(ops.clone()))?;
/// assert_eq!(Recording::read(&file[..])?.ops, ops);
/// # Ok::<(), malloc_trace::RecordingError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recording {
    /// The calls of all threads.
    pub ops: Vec<Op>,
    /// What the head of the call log says, and which of its records are no calls; `None` for a trace.
    pub log: Option<(LogHead, Unread)>,
}

impl Recording {
    /// Reads a trace of either version, or a call log, to the end.
    ///
    /// The reader reads records in small pieces: give it a `BufReader`, or a decompressor. Memory is bounded by the operations that
    /// are really there.
    ///
    /// # Errors
    ///
    /// [`RecordingError`], which says what was expected.
    pub fn read(mut source: impl Read) -> Result<Self, RecordingError> {
        let mut magic = [0; MAGIC.len()];
        let found = read_up_to(&mut source, &mut magic).map_err(TraceError::Io)?;
        let whole = magic[..found].chain(source);
        if magic != MAGIC {
            return Ok(Self { ops: codec::decode(whole)?.ops, log: None });
        }
        let mut events = LogReader::new(whole)?;
        let head = events.head();
        let ops = events.by_ref().map(|event| Ok(event?.op)).collect::<Result<_, LogError>>()?;
        Ok(Self { ops, log: Some((head, events.unread())) })
    }
}
