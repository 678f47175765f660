//! Owns a run of an interpreter with the library, and what is asked of its output.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use crate::python::Interpreter;
use crate::workspace;

/// An interpreter with the library.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) python: Interpreter,
    /// What has the library loaded: a variable and its value.
    pub(crate) preload: (&'static str, OsString),
}

impl Host {
    pub(super) fn new(python: &Interpreter, library: &Path) -> Self {
        Self { python: python.clone(), preload: ("LD_PRELOAD", library.into()) }
    }
}

/// A run of the program, and how to repeat it.
pub(super) struct Run {
    pub(super) output: Output,
    pub(super) stderr: String,
    command: String,
}

impl Run {
    pub(super) fn new(host: &Host, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let Host { python, preload: (name, value) } = host;
        let mut command = Command::new(&python.path);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("PYTHON") || name.starts_with("PYMEM") {
                command.env_remove(&*name);
            }
        }
        command.env_remove("LD_LIBRARY_PATH").env(name, value);
        command
            .envs(variables.iter().copied())
            .args(["-S", "-W", "ignore"])
            .args(arguments)
            .current_dir(workspace::root());
        let output = command.output().with_context(|| format!("{python} does not start"))?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Self { output, stderr, command: format!("{command:?}") })
    }

    /// Fails with the command that repeats the run, unless it is as it must be.
    pub(super) fn ensure(&self, is_right: bool, what: &str) -> Result<()> {
        let Self { output, stderr, command } = self;
        ensure!(is_right, "{what}; {}: {command}\n{stderr}", output.status);
        Ok(())
    }

    pub(super) fn succeeds(&self) -> bool {
        self.output.status.success() && self.output.stdout == b"done\n"
    }

    pub(super) fn is_aborted(&self) -> bool {
        use std::os::unix::process::ExitStatusExt as _;
        self.output.status.signal() == Some(signal_hook::consts::SIGABRT)
    }

    pub(super) fn says(&self, texts: &[&str]) -> Result<()> {
        let mut rest = self.stderr.as_str();
        for text in texts {
            let found = rest.split_once(text);
            self.ensure(found.is_some(), &format!("{text:?} is not where it must be"))?;
            rest = found.map_or("", |(_, rest)| rest);
        }
        Ok(())
    }
}
