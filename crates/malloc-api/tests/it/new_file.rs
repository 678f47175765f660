//! A report's file replaces regular files alone, follows no link, and is seen whole or not at all.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use malloc_api::NewFile;

/// A folder of a test's own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pymem-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a new folder");
        Self(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("a folder");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<_> = entries.map(|e| name(e).into_string().expect("text")).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut new = NewFile::beside(path)?;
    new.file().write_all(text.as_bytes())?;
    new.publish()
}

#[test]
fn a_file_takes_the_place_of_another_and_leaves_its_links() {
    let folder = Folder::new("replace");
    let (path, link) = (folder.0.join("report"), folder.0.join("same file"));
    write(&path, "old").expect("a new file");
    fs::hard_link(&path, &link).expect("a second name");
    let mut new = NewFile::beside(&path).expect("a file beside");
    new.file().write_all(b"new").expect("room");
    assert_eq!(fs::read(&path).expect("the old file"), b"old", "not published yet");
    new.publish().expect("a regular file to replace");
    assert_eq!(fs::read(&path).expect("the new file"), b"new");
    assert_eq!(fs::read(&link).expect("the old file"), b"old");
    assert_eq!(folder.names(), ["report", "same file"]);
}

#[test]
fn a_file_that_is_not_published_goes() {
    let folder = Folder::new("drop");
    drop(NewFile::beside(&folder.0.join("report")).expect("a file beside"));
    assert_eq!(folder.names(), [""; 0]);
}

/// What is no regular file is refused, whether it is there before or comes in between.
#[test]
fn links_folders_and_devices_stay_as_they_are() {
    let folder = Folder::new("refuse");
    let (target, path) = (folder.0.join("target"), folder.0.join("report"));
    fs::write(&target, "precious").expect("a file");
    let new = NewFile::beside(&path).expect("a file beside");
    symlink(&target, &path).expect("a link");
    new.publish().expect_err("a link by now");
    let refused = |path: &Path| {
        let error = write(path, "new").expect_err("no regular file");
        assert!(error.to_string().contains("no regular file"), "{error}");
    };
    refused(&path);
    assert_eq!(fs::read(&target).expect("the target"), b"precious");
    refused(&folder.0);
    let device = fs::metadata("/dev/null").expect("a device").ino();
    refused(Path::new("/dev/null"));
    assert_eq!(fs::metadata("/dev/null").expect("a device").ino(), device);
    assert_eq!(folder.names(), ["report", "target"]);
}

/// Whoever may write to the folder cannot prepare the file under its first name.
#[test]
fn names_differ() {
    let folder = Folder::new("names");
    let path = folder.0.join("report");
    let files = [0; 20].map(|_| NewFile::beside(&path).expect("a file beside"));
    assert_eq!(folder.names().len(), files.len());
}
