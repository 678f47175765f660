//! Owns what the interpreter's own command line says about memory: `-E` and `-I` (the environment does not count) and
//! `-X dev`. The constructor runs before the interpreter reads it, and must come to the same answer.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::env::current_exe;

use crate::host::capi::{base_of, symbol};

/// Options of the interpreter that change how it chooses allocators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// `-E` or `-I`: `PYTHON*` variables are ignored.
    pub(crate) ignores_environment: bool,
    /// `-X dev`.
    pub(crate) dev_mode: bool,
}

/// Options that take a value, in the same word or in the next one.
const WITH_VALUE: &[u8] = b"cmWX";
/// Long options that take a value.
const LONG_WITH_VALUE: &[u8] = b"--check-hash-based-pycs";

impl CommandLine {
    /// Reads the arguments of a program that is an interpreter; of any other program nothing is known, since it hands the
    /// interpreter what it wants.
    ///
    /// # Safety
    ///
    /// 1. `argv` holds `argc` texts that end with a NUL and live for ever.
    pub(crate) unsafe fn of_process(argc: c_int, argv: *const *const c_char) -> Self {
        if argv.is_null() || !(has_main() || current_exe().is_ok_and(|exe| is_interpreter(&exe))) {
            return Self::default();
        }
        let count = usize::try_from(argc).unwrap_or(0);
        let words = (1..count).map_while(|index| {
            // SAFETY: an index below `argc` (duty 1).
            let word = unsafe { argv.add(index) };
            // SAFETY: in range, as above.
            let word = unsafe { word.read() };
            // SAFETY: a text that ends with a NUL, where it is not null (duty 1).
            (!word.is_null()).then(|| unsafe { CStr::from_ptr(word) }.to_bytes())
        });
        Self::parse(words)
    }

    /// Reads the words after the program's name, as the interpreter does: short options may share a word, and the first
    /// word that is no option, `-c` or `-m` ends them.
    fn parse<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut line = Self::default();
        while let Some(word) = words.next() {
            if word.starts_with(b"--") {
                if word == b"--" {
                    break;
                }
                if word == LONG_WITH_VALUE {
                    words.next();
                }
                continue;
            }
            let Some(letters @ [_, ..]) = word.strip_prefix(b"-") else { break };
            for (index, letter) in letters.iter().enumerate() {
                match letter {
                    b'E' | b'I' => line.ignores_environment = true,
                    b'c' | b'm' => return line,
                    letter if WITH_VALUE.contains(letter) => {
                        let rest = &letters[index + 1..];
                        let value = if rest.is_empty() { words.next() } else { Some(rest) };
                        let option =
                            value.and_then(|value| value.split(|byte| *byte == b'=').next());
                        line.dev_mode |= *letter == b'X' && option == Some(b"dev");
                        break;
                    }
                    _ => {}
                }
            }
        }
        line
    }
}

/// Whether the program itself has the interpreter's `main`, whatever name a copy of it has.
fn has_main() -> bool {
    // SAFETY: 1: a function, whose address is all that is used.
    let main = unsafe { symbol::<*const c_void>(c"Py_BytesMain") };
    // SAFETY: takes any number; that of the program's headers gives an address in the program.
    let headers = unsafe { libc::getauxval(libc::AT_PHDR) } as usize;
    let program = base_of(core::ptr::with_exposed_provenance(headers));
    main.is_some_and(|main| program.is_some() && base_of(main) == program)
}

/// Whether a program's file name is one that interpreters have: `python`, `python3.13t`.
fn is_interpreter(exe: &std::path::Path) -> bool {
    exe.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"python"))
}

#[cfg(test)]
mod tests {
    use super::CommandLine;

    fn parse(line: &str) -> (bool, bool) {
        let line = CommandLine::parse(line.split_ascii_whitespace().map(str::as_bytes));
        (line.ignores_environment, line.dev_mode)
    }

    #[test]
    fn options_before_the_program_count() {
        assert_eq!(parse(""), (false, false));
        assert_eq!(parse("-E script.py"), (true, false));
        assert_eq!(parse("-sIB -X dev -c pass"), (true, true));
        assert_eq!(parse("-Xdev"), (false, true));
        assert_eq!(parse("-X dev=1"), (false, true));
        assert_eq!(parse("-X developer"), (false, false));
        assert_eq!(parse("-BXdev -E"), (true, true));
        assert_eq!(parse("--check-hash-based-pycs always -E"), (true, false));
    }

    #[test]
    fn values_and_the_programs_own_words_do_not() {
        assert_eq!(parse("script.py -E -X dev"), (false, false));
        assert_eq!(parse("-c pass -E"), (false, false));
        assert_eq!(parse("-mtest -E"), (false, false));
        assert_eq!(parse("-W -E -X tracemalloc"), (false, false));
        assert_eq!(parse("-X -E"), (false, false));
        assert_eq!(parse("- -E"), (false, false));
        assert_eq!(parse("-- -E"), (false, false));
    }
}
