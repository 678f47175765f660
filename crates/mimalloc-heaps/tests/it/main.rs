//! What the heaps promise, on real threads.

mod family;
