//! Owns the comparison of a crate's error texts with a list that a person has reviewed.

use core::error::Error;
use core::fmt::{self, Write as _};
use core::iter;

/// Compares what is printed of each error, its causes included, with `list`: a line with the error's name, and one with
/// four spaces and the text.
///
/// # Panics
///
/// With the first error whose text differs, or with the lines of `list` that are left over.
pub fn assert_reviewed(list: &str, errors: &[(&str, &dyn Error)]) {
    let mut rest = Expected(list);
    for (name, error) in errors {
        let is_same = write!(rest, "{name}\n    {}\n", Chain(*error)).is_ok();
        assert!(is_same, "review this text: {name}\n    {}", Chain(*error));
    }
    assert!(rest.0.is_empty(), "no test prints these:\n{}", rest.0);
}

/// The part of a text that is still to be written.
struct Expected<'a>(&'a str);

impl fmt::Write for Expected<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(text).ok_or(fmt::Error)?;
        Ok(())
    }
}

/// An error with its causes, as tools print it.
struct Chain<'a>(&'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        iter::successors(self.0.source(), |cause: &&(dyn Error + 'static)| (*cause).source())
            .try_for_each(|cause| write!(f, ": {cause}"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, assert_reviewed, fmt};

    #[derive(Debug)]
    struct Refused(Option<&'static Refused>);

    impl fmt::Display for Refused {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("refused")
        }
    }

    impl Error for Refused {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.0.map(|cause| -> &dyn Error { cause })
        }
    }

    static CAUSE: Refused = Refused(None);
    static WHOLE: Refused = Refused(Some(&CAUSE));

    #[test]
    fn causes_are_compared_too() {
        assert_reviewed("Refused\n    refused: refused\n", &[("Refused", &WHOLE)]);
    }

    #[test]
    #[should_panic(expected = "review this text")]
    fn another_text_is_reported() {
        assert_reviewed("Refused\n    accepted\n", &[("Refused", &CAUSE)]);
    }

    #[test]
    #[should_panic(expected = "no test prints these")]
    fn a_text_that_nobody_prints_is_reported() {
        assert_reviewed("Refused\n    refused\nOther\n", &[("Refused", &CAUSE)]);
    }
}
