//! Owns `run`: a whole program of operations through an allocator, checked by the shadow model.
//! This is the one interpreter that tests, fuzzers and trace checks share.

use std::fmt;

use malloc_api::Malloc;

use crate::op::{DOMAINS, Op};
use crate::shadow::{Fault, ShadowModel, Summary};

/// An allocator did something wrong: at which operation, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelError {
    /// Index of the operation, from 0; the number of operations if it was seen when the remaining blocks were freed.
    pub index: usize,
    /// The operation; `None` if it was seen when the remaining blocks were freed.
    pub op: Option<Op>,
    /// What was wrong.
    pub fault: Fault,
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.op {
            Some(op) => write!(f, "operation {} ({op}): {}", self.index, self.fault),
            None => write!(f, "after {} operations: {}", self.index, self.fault),
        }
    }
}

/// Without a source: the text has the fault.
impl std::error::Error for ModelError {}

/// Runs `ops` through one allocator that serves all domains, with the shadow model, and frees what is left.
///
/// `None` answers are counted, not errors: a caller that expects none asserts [`Summary::failed`] to be 0. The live
/// counts of the summary are those before the remaining blocks were freed.
///
/// # Errors
///
/// The first [`ModelError`]; the live blocks are then leaked.
///
/// # Examples
///
/// ```
/// use malloc_trace::{Op, run};
///
/// let ops = [Op::malloc(0, 0, 100), Op::realloc(0, 0, 1000), Op::calloc(1, 0, 8), Op::free(0, 0)];
/// let summary = run(&ops, &malloc_api::LibcMalloc)?;
/// assert_eq!((summary.failed, summary.live_blocks, summary.peak_bytes), (0, 1, 1008));
/// # Ok::<(), malloc_trace::ModelError>(())
/// ```
pub fn run<A: Malloc + ?Sized>(ops: &[Op], allocator: &A) -> Result<Summary, ModelError> {
    run_domains(ops, [allocator; DOMAINS])
}

/// Runs `ops` through one allocator a domain (raw, mem, obj), as [`run`] does.
///
/// Different types go in as `&dyn Malloc`.
///
/// # Errors
///
/// The first [`ModelError`]; the live blocks are then leaked.
pub fn run_domains<A: Malloc + ?Sized>(
    ops: &[Op],
    allocators: [&A; DOMAINS],
) -> Result<Summary, ModelError> {
    let mut model = ShadowModel::new(allocators);
    for (index, &op) in ops.iter().enumerate() {
        model.step(op).map_err(|fault| ModelError { index, op: Some(op), fault })?;
    }
    let summary = model.summary();
    let at_end = |fault| ModelError { index: ops.len(), op: None, fault };
    model.free_all().map_err(at_end)?;
    Ok(summary)
}
