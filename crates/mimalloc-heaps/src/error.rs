//! Owns [`HeapError`]: why heaps could not be had.

/// Why a thread or an interpreter could not get its heaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeapError {
    /// Another mimalloc is linked than the one whose internals this crate uses.
    #[error(
        "the linked mimalloc calls itself {found}, but these heaps rely on internals of {expected}; link the mimalloc that libmimalloc-sys 0.1.49 bundles"
    )]
    Version {
        /// What the linked library says, as 10000 * major + 100 * minor + patch.
        found: i32,
        /// The version that this crate was written for.
        expected: i32,
    },
    /// There was no memory for the heaps or their records.
    #[error("no memory for a thread's heaps; free memory and attach again")]
    OutOfMemory,
    /// The calling thread has heaps of this interpreter already.
    #[error(
        "this thread is attached to the interpreter already; use its first `ThreadHeaps`, or drop them before attaching again"
    )]
    AlreadyAttached,
    /// The system refused the fork handlers.
    #[error(
        "pthread_atfork failed with error {errno}; without it a child could inherit a locked heap list: free memory and try again"
    )]
    ForkHandlers {
        /// The error number that `pthread_atfork` returned.
        errno: i32,
    },
}
