//! Owns `NativeStack`: the calling thread's own stack, for Rust programs.

use backtrace::{resolve, trace};

use crate::source::{Frame, Location, StackSource};

/// The calling thread's stack, unwound by the `backtrace` crate.
///
/// A frame is one return address; its name comes from the program's debug information, else from its symbols. Unwinding
/// takes some microseconds, which suits a sampled profile.
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeStack;

impl StackSource for NativeStack {
    fn capture(&self, frames: &mut [Frame]) -> usize {
        let mut count = 0;
        trace(|frame| {
            if let Some(place) = frames.get_mut(count) {
                // One before the return address lies in the call.
                let at = frame.ip().addr().saturating_sub(1);
                *place = Frame { code: frame.symbol_address().addr(), at };
                count += 1;
            }
            count < frames.len()
        });
        count
    }

    fn locate(&self, frame: Frame) -> Location {
        let mut location = Location::default();
        resolve(std::ptr::without_provenance_mut(frame.at), |symbol| {
            // The first symbol is the innermost of the inlined functions.
            if location.function.is_empty() && location.line == 0 {
                location.function =
                    symbol.name().map(|name| format!("{name:#}")).unwrap_or_default();
                location.file =
                    symbol.filename().map(|file| file.display().to_string()).unwrap_or_default();
                location.line = symbol.lineno().unwrap_or(0);
            }
        });
        location
    }
}
