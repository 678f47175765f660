//! Owns `Environment`: a virtual environment of Python, and what is installed in it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;
use xshell::{Shell, cmd};

use crate::workspace;

/// A virtual environment below the target folder.
pub(super) struct Environment(PathBuf);

impl Environment {
    /// Makes an empty environment of `python`, or takes the one of that name that is there.
    pub(super) fn new(shell: &Shell, python: &Path, name: &str) -> Result<Self> {
        let folder = workspace::target().join("wheel").join(name);
        let environment = Self(folder.clone());
        if !environment.program("pip").exists() {
            cmd!(shell, "{python} -m venv --clear {folder}").quiet().run()?;
        }
        Ok(environment)
    }

    /// Makes an environment with nothing in it, not even pip.
    pub(super) fn empty(shell: &Shell, python: &Path, name: &str) -> Result<Self> {
        let folder = workspace::target().join("wheel").join(name);
        cmd!(shell, "{python} -m venv --clear --without-pip {folder}").quiet().run()?;
        Ok(Self(folder))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.0
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.0.join("bin").join(name)
    }

    /// The search path with the environment's programs first.
    pub(super) fn path(&self) -> Result<OsString> {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = [self.0.join("bin")].into_iter().chain(env::split_paths(&path));
        Ok(env::join_paths(folders)?)
    }

    /// Installs what a file of the folder `python` lists.
    pub(super) fn install_from(&self, shell: &Shell, requirements: &str) -> Result<()> {
        let pip = self.program("pip");
        let file = workspace::root().join("python").join(requirements);
        Ok(cmd!(shell, "{pip} install --quiet --disable-pip-version-check -r {file}").run()?)
    }
}
