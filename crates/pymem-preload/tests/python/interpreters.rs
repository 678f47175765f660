//! Owns the search for the Python interpreters of this machine, for the tests and for `cargo xtask`.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pymem_domains::{AllocatorName, Build, Profile, Version};

/// An interpreter that the library can be preloaded into: CPython 3.9 or newer that exports `PyMem_SetAllocator`.
#[derive(Clone, Debug)]
pub(crate) struct Interpreter {
    pub(crate) path: PathBuf,
    pub(crate) minor: u32,
    micro: u32,
    pub(crate) free_threaded: bool,
    /// Whether it is a debug build.
    pub(crate) pydebug: bool,
    /// Whether CPython's own `test` package is installed, with the `_testcapi` module.
    pub(crate) has_tests: bool,
}

impl fmt::Display for Interpreter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = if self.free_threaded { "t" } else { "" };
        let debug = if self.pydebug { "d" } else { "" };
        write!(f, "3.{}{threads}{debug} ({})", self.minor, self.path.display())
    }
}

/// One line of facts; an interpreter that cannot tell them is none of ours.
const PROBE: &str = "
import sys, os
import sysconfig, ctypes, importlib.util
assert sys.implementation.name == 'cpython'
ctypes.pythonapi.PyMem_SetAllocator
find = importlib.util.find_spec
print(os.path.realpath(sys.executable), *sys.version_info[:3],
      int(bool(sysconfig.get_config_var('Py_GIL_DISABLED'))), int(hasattr(sys, 'gettotalrefcount')),
      int(bool(find('_testcapi') and find('test') and find('test.test_list'))), sep='\\t')
";

impl Interpreter {
    /// The version and the build.
    pub(crate) const fn kind(&self) -> (u32, bool, bool) {
        (self.minor, self.free_threaded, self.pydebug)
    }

    /// Asks the program at `path` what it is.
    ///
    /// # Errors
    ///
    /// Why it is no interpreter for the library, in one sentence.
    pub(crate) fn probe(path: &Path) -> Result<Self, String> {
        let output = Command::new(path)
            .args(["-c", PROBE])
            .env_remove("PYTHONMALLOC")
            .env_remove("LD_PRELOAD")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("{} does not start: {error}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let fields: Vec<&str> = text.trim_end_matches('\n').split('\t').collect();
        let [real, "3", minor, micro, free_threaded, pydebug, has_tests] = fields[..] else {
            return Err(format!(
                "{} is no CPython 3 that exports PyMem_SetAllocator",
                path.display()
            ));
        };
        match minor.parse() {
            Ok(minor @ 9..) => Ok(Self {
                path: PathBuf::from(real),
                minor,
                micro: micro.parse().unwrap_or(0),
                free_threaded: free_threaded == "1",
                pydebug: pydebug == "1",
                has_tests: has_tests == "1",
            }),
            _ => Err(format!("{} is Python 3.{minor}; 3.9 or newer is needed", path.display())),
        }
    }

    /// Every interpreter on `PATH`, in the folders of the usual version managers, and below `PYMEM_PYTHONS` (folders,
    /// separated by colons, with an installation or a system's root in each of their folders), once each, oldest first.
    pub(crate) fn installed() -> Vec<Self> {
        let mut found = BTreeMap::new();
        for path in candidates() {
            if let Ok(interpreter) = Self::probe(&path) {
                found.entry(interpreter.path.clone()).or_insert(interpreter);
            }
        }
        let mut found: Vec<Self> = found.into_values().collect();
        found.sort_by_key(|interpreter| (interpreter.minor, interpreter.free_threaded));
        found
    }

    /// The table that applies to it.
    pub(crate) fn profile(&self) -> Profile {
        let build = if self.free_threaded { Build::FreeThreaded } else { Build::Gil };
        let version = Version::from_release(self.minor, self.micro);
        Profile::new(version, build, true, true, self.pydebug).expect("the library has mimalloc")
    }

    /// Every name that it takes under the preload.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &'static str> + use<> {
        let profile = self.profile();
        let names = AllocatorName::ALL.into_iter();
        names.filter(move |name| name.row(&profile).is_ok()).map(AllocatorName::as_str)
    }
}

fn candidates() -> Vec<PathBuf> {
    let paths = |name| env::var_os(name).unwrap_or_default();
    let mut programs = Vec::new();
    let on_path = paths("PATH");
    let mut folders: Vec<PathBuf> = env::split_paths(&on_path).collect();
    if let Some(home) = env::home_dir() {
        let pyenv = env::var_os("PYENV_ROOT").map_or_else(|| home.join(".pyenv"), PathBuf::from);
        for versions in [
            pyenv.join("versions"),
            home.join(".asdf/installs/python"),
            home.join(".local/share/uv/python"),
            home.join(".local/share/mise/installs/python"),
        ] {
            folders.extend(entries(&versions).into_iter().map(|version| version.join("bin")));
        }
    }
    for root in env::split_paths(&paths("PYMEM_PYTHONS")).flat_map(|folder| entries(&folder)) {
        folders.extend([root.join("bin"), root.join("usr/bin")]);
    }
    for folder in folders {
        programs.extend(entries(&folder).into_iter().filter(|path| is_python3(path)));
    }
    let mut programs: Vec<PathBuf> =
        programs.into_iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    programs.sort();
    programs.dedup();
    // A version manager's shim decides by the folder it runs in; what it would run is found in the manager's own folder.
    programs.retain(|path| !path.components().any(|part| part.as_os_str() == "shims"));
    programs
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(Result::ok).map(|entry| entry.path()).collect()
}

/// Whether a file's name is `python3`, or `python3.N` with `t` for a build without the GIL and `d` for a debug build.
fn is_python3(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match name.strip_prefix("python3") {
        Some("") => true,
        Some(rest) => rest.strip_prefix('.').is_some_and(|rest| {
            let digits = rest.strip_suffix('d').unwrap_or(rest);
            let digits = digits.strip_suffix('t').unwrap_or(digits);
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        }),
        None => false,
    }
}
