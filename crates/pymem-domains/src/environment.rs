//! Owns reading the process's environment without a heap: what must work inside the first allocation.

use core::ffi::CStr;

use crate::preconfig::Preconfig;

/// The variables that choose an allocator, as they stood at one moment.
#[derive(Debug)]
pub(crate) struct Environment {
    pythonmalloc: Variable,
    pythondevmode: Variable,
}

impl Environment {
    pub(crate) fn new() -> Self {
        Self {
            pythonmalloc: Variable::read(c"PYTHONMALLOC"),
            pythondevmode: Variable::read(c"PYTHONDEVMODE"),
        }
    }

    /// `preconfig` with these variables where it names none.
    pub(crate) fn complete<'a>(&'a self, preconfig: Preconfig<'a>) -> Preconfig<'a> {
        Preconfig {
            pythonmalloc: preconfig.pythonmalloc.or(self.pythonmalloc.value()),
            pythondevmode: preconfig.pythondevmode.or(self.pythondevmode.value()),
            ..preconfig
        }
    }
}

/// How much of a value is kept: more than the longest name, so that a cut value is never taken for one.
const KEPT_BYTES: usize = 64;

/// The beginning of a variable's value: enough to tell every name, and every value that is none.
#[derive(Debug)]
struct Variable {
    bytes: [u8; KEPT_BYTES],
    len: Option<usize>,
}

impl Variable {
    fn read(name: &CStr) -> Self {
        let mut kept = Self { bytes: [0; KEPT_BYTES], len: None };
        // SAFETY: the name is a C string. Nobody changes the environment meanwhile: whoever does must know that no
        // other thread reads it, as `std::env::set_var` demands.
        let value = unsafe { libc::getenv(name.as_ptr()) };
        if value.is_null() {
            return kept;
        }
        // SAFETY: `getenv` returned a C string, which stays unchanged as said above.
        let value = unsafe { CStr::from_ptr(value) }.to_bytes();
        let len = value.len().min(KEPT_BYTES);
        kept.bytes[..len].copy_from_slice(&value[..len]);
        kept.len = Some(len);
        kept
    }

    fn value(&self) -> Option<&[u8]> {
        self.len.map(|len| &self.bytes[..len])
    }
}
