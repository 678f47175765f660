//! Owns `NewFile`: a report's file, which gets its name once the file is whole and replaces nothing but a regular file.

extern crate std;

use std::borrow::ToOwned;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

/// A new file under a random name, beside its final name.
///
/// No symbolic link is followed and no existing file is opened. [`publish`](NewFile::publish) gives the file its final name,
/// so that whoever opens that name finds the old file or the whole new one. Dropping an unpublished file removes it.
///
/// # Examples
///
/// ```
/// use std::io::Write;
///
/// use malloc_api::NewFile;
///
/// let path = std::env::temp_dir().join(format!("report-{}.txt", std::process::id()));
/// let mut file = NewFile::beside(&path)?;
/// file.file().write_all(b"whole")?;
/// assert!(!path.exists());
/// file.publish()?;
/// assert_eq!(std::fs::read(&path)?, b"whole");
/// # std::fs::remove_file(path)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct NewFile {
    file: File,
    /// Where the file is; `None` once it has its name.
    beside: Option<PathBuf>,
    path: PathBuf,
}

impl NewFile {
    /// Makes an empty file, open for reading and writing, in the folder of `path`.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if `path` is there and no regular file: a symbolic link, a folder, a
    /// device. What the system says about the folder.
    pub fn beside(path: &Path) -> io::Result<Self> {
        refuse_irregular(path)?;
        let mut name = path.as_os_str().to_owned();
        // Seeded by the system: nobody can guess the name, and no other process picks the same.
        let random = RandomState::new().hash_one(std::process::id());
        name.push(std::format!(".{random:016x}"));
        let beside = PathBuf::from(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&beside)?;
        Ok(Self { file, beside: Some(beside), path: path.to_owned() })
    }

    /// The file.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its name, in place of the regular file that has it now.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the name is that of something else by now; what the system says
    /// about the renaming. The file is removed then.
    pub fn publish(mut self) -> io::Result<()> {
        refuse_irregular(&self.path)?;
        if let Some(beside) = &self.beside {
            fs::rename(beside, &self.path)?;
        }
        self.beside = None;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            // Ignore errors: there is nowhere to report a file that stays.
            let _ = fs::remove_file(beside);
        }
    }
}

fn refuse_irregular(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the name is taken by something that is no regular file; name a new file, or one to replace",
        )),
        _ => Ok(()),
    }
}
