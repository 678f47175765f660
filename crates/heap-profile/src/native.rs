//! Owns `NativeStack`: the calling thread's own stack, for Rust programs.

use backtrace::{resolve, trace};

use crate::frame::Frame;
use crate::source::{Location, StackSource};
use crate::walk::Walk;

/// The calling thread's stack, unwound by the `backtrace` crate.
///
/// A frame is one return address; its name comes from the program's debug information, else from its symbols. Unwinding
/// takes some microseconds, which suits a sampled profile.
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeStack;

impl StackSource for NativeStack {
    fn capture(&self, walk: &mut Walk<'_>) {
        trace(|frame| {
            // One before the return address lies in the call.
            let at = frame.ip().addr().saturating_sub(1);
            let frame_words = Frame { code: frame.symbol_address().addr(), at };
            walk.visit(frame.sp().addr(), frame_words).is_continue()
        });
    }

    fn locate(&self, frame: Frame) -> Location {
        let mut location = Location::default();
        resolve(std::ptr::without_provenance_mut(frame.at), |symbol| {
            // The first symbol is the innermost of the inlined functions.
            if location.function.is_empty() && location.line == 0 {
                let name = symbol.name().map(|name| format!("{name:#}"));
                location.function = name.unwrap_or_default().into();
                let file = symbol.filename().map(|file| file.display().to_string());
                location.file = file.unwrap_or_default().into();
                location.line = symbol.lineno().unwrap_or(0);
            }
        });
        location
    }
}
