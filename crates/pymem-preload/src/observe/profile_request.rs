//! Owns what `PYMEM_PROFILE` says: a file, and how the profile is recorded.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use heap_profile::Options;
use memdebug::parse_size;
use thiserror::Error;

/// A profile, where it goes and how it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProfileRequest {
    pub(crate) path: PathBuf,
    /// Bytes for each sampled block; `None` records every block.
    pub(crate) interval: Option<u64>,
    /// The most frames of a stack.
    pub(crate) frames: usize,
    /// Whether the native frames that a Python line has called are among them.
    pub(crate) native: bool,
}

/// A text asks for no profile.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum RequestError {
    #[error("no file is named; give one, and options after it, as in app.html,sample=512K")]
    NoFile,
    #[error(
        "unknown option `{0}`: expected sample=BYTES, frames=NUMBER or native; a file's name has no comma"
    )]
    Unknown(String),
    #[error("sample={0}: expected a number of bytes above 0, such as 524288, 512K or 1M")]
    Interval(String),
    #[error("frames={0}: expected 1 to {most}", most = heap_profile::MAX_FRAMES)]
    Frames(String),
}

impl ProfileRequest {
    /// Whether the two differ in no more than their files.
    pub(crate) fn records_like(&self, other: &Self) -> bool {
        let how = |request: &Self| (request.interval, request.frames, request.native);
        how(self) == how(other)
    }

    /// Reads `FILE[,sample=BYTES][,frames=NUMBER][,native]`.
    ///
    /// # Errors
    ///
    /// [`RequestError`]: the word that is none, and what was expected.
    pub(crate) fn parse(value: &[u8]) -> Result<Self, RequestError> {
        let mut words = value.split(|byte| *byte == b',');
        let file = words.next().filter(|file| !file.is_empty()).ok_or(RequestError::NoFile)?;
        let path = Path::new(OsStr::from_bytes(file)).to_owned();
        let frames = Options::default().frames;
        let mut request = Self { path, interval: None, frames, native: false };
        for word in words {
            let word = String::from_utf8_lossy(word);
            if let Some(bytes) = word.strip_prefix("sample=") {
                let wrong = || RequestError::Interval(bytes.to_owned());
                request.interval = Some(parse_size(bytes).ok_or_else(wrong)? as u64);
            } else if let Some(frames) = word.strip_prefix("frames=") {
                let number = usize::from_str(frames).ok();
                request.frames = number
                    .filter(|number| (1..=heap_profile::MAX_FRAMES).contains(number))
                    .ok_or_else(|| RequestError::Frames(frames.to_owned()))?;
            } else if word == "native" {
                request.native = true;
            } else {
                return Err(RequestError::Unknown(word.into_owned()));
            }
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_options() {
        let read = |text: &str| ProfileRequest::parse(text.as_bytes());
        let path: PathBuf = "a.html".into();
        let plain = ProfileRequest { path, interval: None, frames: 32, native: false };
        assert_eq!(read("a.html"), Ok(plain.clone()));
        let native = ProfileRequest { native: true, ..plain.clone() };
        assert_eq!(read("a.html,native"), Ok(native));
        let sampled = ProfileRequest { interval: Some(512 << 10), frames: 5, ..plain };
        assert_eq!(read("a.html,sample=512K,frames=5"), Ok(sampled.clone()));
        assert_eq!(read("a.html,frames=5,sample=524288"), Ok(sampled));
        assert_eq!(read(""), Err(RequestError::NoFile));
        assert_eq!(read(",sample=1M"), Err(RequestError::NoFile));
        assert_eq!(read("a,fast"), Err(RequestError::Unknown("fast".into())));
        for wrong in ["", "0", "K", "-1", "1T", "99999999999999G", "+1K"] {
            let expected = Err(RequestError::Interval(wrong.into()));
            assert_eq!(read(&format!("a,sample={wrong}")), expected);
        }
        for wrong in ["", "0", "129", "x"] {
            assert_eq!(read(&format!("a,frames={wrong}")), Err(RequestError::Frames(wrong.into())));
        }
    }
}
