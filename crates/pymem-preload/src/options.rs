//! Owns what the environment asks for: which configuration (`PYTHONMALLOC`), and the library's own variables.
//! Leaves hiding a variable to `environment.rs`, and carrying requests out to the file of each noun.
//!
//! | variable | asks for |
//! | --- | --- |
//! | `PYTHONMALLOC` | a configuration, by CPython's names |
//! | `PYMEM_DEBUG` | checks beyond CPython's hooks, in the `debug` configurations |
//! | `PYMEM_STATS` | non-empty: a report on stderr at exit of what was served |
//!
//! `PYMEM_STATS` is taken out of the environment: it speaks of one process, not of its children.

use memdebug::{Options as DebugOptions, ParseOptionsError};
use pymem_domains::{AllocatorName, Preconfig, Profile};

use crate::command_line::CommandLine;
use crate::environment;

/// What is to be done about a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Serve this one.
    Serve(AllocatorName),
    /// Install nothing: the host is going to put its own table over ours, or to end with an error of its own.
    StepAside,
}

impl Choice {
    /// What the environment and the command line lead to, by the interpreter's own precedence.
    ///
    /// In dev mode the host installs its table over any other after this choice, so ours would be lost, and blocks of the
    /// one would be freed by the other. An unknown name is the host's to report, in its own words.
    pub(crate) fn new(pythonmalloc: Option<&[u8]>, dev_mode: bool, profile: &Profile) -> Self {
        if dev_mode {
            return Self::StepAside;
        }
        let config = Preconfig { pythonmalloc, ..Preconfig::default() };
        match config.choose(profile) {
            Ok(name) => Self::Serve(name.unwrap_or(AllocatorName::Default)),
            Err(_) => Self::StepAside,
        }
    }

    /// The choice for the process as it starts.
    ///
    /// # Safety
    ///
    /// 1. No other thread changes the environment.
    pub(crate) unsafe fn of_process(line: CommandLine, profile: &Profile) -> Self {
        let variable = |name| {
            // SAFETY: by duty 1.
            let value = unsafe { environment::value(name) };
            value.filter(|value| !value.is_empty() && !line.ignores_environment)
        };
        let dev_mode = line.dev_mode || variable(c"PYTHONDEVMODE").is_some();
        Self::new(variable(c"PYTHONMALLOC"), dev_mode, profile)
    }
}

/// The options of `PYMEM_DEBUG`; without it CPython's hooks.
///
/// # Errors
///
/// A word that is no option.
///
/// # Safety
///
/// 1. No other thread changes the environment.
pub(crate) unsafe fn debug_options() -> Result<DebugOptions, ParseOptionsError> {
    // SAFETY: by duty 1.
    let value = unsafe { environment::value(c"PYMEM_DEBUG") };
    String::from_utf8_lossy(value.unwrap_or_default()).parse()
}

/// Whether a report at exit is asked for. The first call takes the request out of the environment.
///
/// # Safety
///
/// 1. No other thread uses the environment.
pub(crate) unsafe fn take_stats_request() -> bool {
    // SAFETY: by duty 1.
    let asked =
        unsafe { environment::value(c"PYMEM_STATS") }.is_some_and(|value| !value.is_empty());
    // SAFETY: by duty 1.
    unsafe { environment::remove(c"PYMEM_STATS") };
    asked
}

#[cfg(test)]
mod tests {
    use pymem_domains::{AllocatorName as N, Build, Profile, Version};

    use super::Choice::{self, Serve, StepAside};

    #[test]
    fn choices() {
        let gil = Profile::new(Version::V3_13, Build::Gil, true, true, false).unwrap();
        let choose = |value: &'static str| Choice::new(Some(value.as_bytes()), false, &gil);
        assert_eq!(Choice::new(None, false, &gil), Serve(N::Default));
        assert_eq!(choose(""), Serve(N::Default));
        assert_eq!(choose("malloc_debug"), Serve(N::MallocDebug));
        assert_eq!(choose("Malloc"), StepAside);
        assert_eq!(Choice::new(None, true, &gil), StepAside);
        let threaded =
            Profile::new(Version::V3_13, Build::FreeThreaded, true, true, false).unwrap();
        assert_eq!(Choice::new(Some(b"pymalloc"), false, &threaded), StepAside);
    }
}
