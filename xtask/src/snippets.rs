//! Owns `cargo xtask snippets`: runs every command of the documents and compares what it prints with what they show.
//!
//! A block of `sh` is run. The block of `text` right after it is its output: `...` stands for any lines, and numbers, addresses and
//! widths may differ. A block after "file `NAME`" is the content of that file, for the commands below it.
//! Blocks of `rust` are documentation tests of the crates.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};

use crate::python::{BUILT, SHIPPED};
use crate::{wheel, workspace};

/// The documents with commands.
const DOCUMENTS: &[&str] = &["README.md", "docs/guide.md", "crates/pymem-preload/README.md"];

/// Commands that run this check, and would run it again.
const OURSELVES: &str = "cargo xtask ci";

/// The names of the Python package, whose commands run where pip has installed it.
const OF_THE_PACKAGE: &[&str] = &["pymem-domains", "pymem_domains", "--pymem"];

/// A line of output that stands for any number of lines.
const ANY_LINES: &str = "...";

/// Variables that change what the commands do.
const FOREIGN: &[&str] = &["PYTHON", "PYMEM_", "LD_PRELOAD"];

/// A fenced block of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    /// The line of its first line of text, from 1.
    line: usize,
    /// The byte of the document at which its text begins.
    start: usize,
    language: String,
    text: String,
    /// The file that the line before names.
    file: Option<String>,
    /// Whether nothing but empty lines stands between the block before and this one.
    follows: bool,
}

/// Runs the commands whose document or text contains `filter`. With `write`, replaces the outputs in the documents.
///
/// # Errors
///
/// Every output that differs, and every failed command that has no output in the document.
pub(crate) fn run(filter: &str, write: bool) -> Result<()> {
    let mut faults = Vec::new();
    let (mut commands, mut outputs) = (0, 0);
    for name in DOCUMENTS {
        let path = workspace::root().join(name);
        let document = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
        let folder = Scratch::new()?;
        let blocks = blocks(&document);
        let mut new = Vec::new();
        for (at, block) in blocks.iter().enumerate() {
            if let Some(file) = &block.file {
                fs::write(folder.0.join(file), &block.text)?;
            }
            let is_asked_for = name.contains(filter) || block.text.contains(filter);
            if block.language != "sh" || block.text.starts_with(OURSELVES) || !is_asked_for {
                continue;
            }
            println!("{name}:{}: {}", block.line, block.text.lines().next().unwrap_or_default());
            commands += 1;
            let (status, printed) = folder.shell(&block.text)?;
            let expected =
                blocks.get(at + 1).filter(|next| next.follows && next.language == "text");
            let place = format!("{name}:{}", expected.map_or(block.line, |expected| expected.line));
            match expected {
                Some(expected) => {
                    outputs += 1;
                    let shown = match write {
                        true => excerpt(&expected.text, &printed),
                        false => expected.text.clone(),
                    };
                    if let Err(line) = compare(&shown, &printed) {
                        faults.push(format!("{place}: {line}\nwhat was printed:\n{printed}"));
                    }
                    new.push((expected, shown));
                }
                None if !status.success() => {
                    faults.push(format!("{place}: {status}\nwhat was printed:\n{printed}"));
                }
                None => {}
            }
        }
        if write {
            let mut document = document.clone();
            for (block, text) in new.into_iter().rev() {
                document.replace_range(block.start..block.start + block.text.len(), &text);
            }
            fs::write(&path, document).with_context(|| format!("cannot write {name}"))?;
        }
    }
    ensure!(
        faults.is_empty(),
        "documents show what is not so; mend them, or write anew by `cargo xtask snippets --write`:\n{}",
        faults.join("\n\n")
    );
    println!("snippets: {commands} commands run, {outputs} outputs compared");
    Ok(())
}

/// The folder in which a document's commands run: below the root, so that cargo finds the workspace, and with its folders.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let folder = workspace::root().join("target/snippets");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        for name in ["bench", "crates", "docs"] {
            symlink(workspace::root().join(name), folder.join(name))?;
        }
        Ok(Self(folder))
    }

    /// Runs `commands` up to the first that fails; returns what they print on both streams.
    fn shell(&self, commands: &str) -> Result<(ExitStatus, String)> {
        let (mut reader, writer) = std::io::pipe()?;
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", &format!("ulimit -c 0\n{commands}")]);
        shell.current_dir(&self.0).stdin(Stdio::null());
        if OF_THE_PACKAGE.iter().any(|name| commands.contains(name)) {
            wheel::let_install(&mut shell)?;
        }
        shell.stdout(writer.try_clone()?).stderr(writer);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if FOREIGN.iter().any(|start| name.starts_with(start)) {
                shell.env_remove(&*name);
            }
        }
        shell.envs(SHIPPED.get().map(|library| (BUILT, library)));
        let mut child = shell.spawn().context("sh does not start")?;
        // The command's copies of the writing end would keep the pipe open.
        drop(shell);
        let mut printed = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut printed)?;
        Ok((child.wait()?, String::from_utf8_lossy(&printed).into_owned()))
    }
}

/// The fenced blocks of a document.
fn blocks(document: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open: Option<Block> = None;
    let mut before = "";
    let mut since_last = usize::MAX;
    let mut start = 0;
    for (at, line) in document.split_inclusive('\n').enumerate() {
        start += line.len();
        let line = line.trim_end_matches('\n');
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(Block {
                    line: at + 2,
                    start,
                    language: language.split([',', ' ']).next().unwrap_or_default().to_owned(),
                    text: String::new(),
                    file: named_file(before),
                    follows: since_last == 0,
                });
            }
            (Some(_), Some(_)) => {
                blocks.extend(open.take());
                (since_last, before) = (0, "");
            }
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) if line.trim().is_empty() => {}
            (None, None) => (since_last, before) = (1, line),
        }
    }
    blocks
}

/// `NAME` of "… file `NAME` …".
fn named_file(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("file `")?;
    Some(rest.split_once('`')?.0.to_owned())
}

/// `printed`, cut as `shown` is: whole, or as many lines as stand before a closing [`ANY_LINES`]. Any other excerpt is returned
/// unchanged.
fn excerpt(shown: &str, printed: &str) -> String {
    let lines: Vec<&str> = shown.lines().collect();
    match lines.iter().position(|line| *line == ANY_LINES) {
        None => printed.to_owned(),
        Some(count) if count + 1 == lines.len() => {
            let first = printed.lines().take(count).chain([ANY_LINES]);
            first.map(|line| format!("{line}\n")).collect()
        }
        Some(_) => shown.to_owned(),
    }
}

/// Compares what a document shows with what was printed, line by line.
///
/// # Errors
///
/// The first line of the document that was not printed.
fn compare(shown: &str, printed: &str) -> Result<(), String> {
    let printed: Vec<String> = printed.lines().map(shape).collect();
    let mut rest = &printed[..];
    let mut may_skip = false;
    for line in shown.lines() {
        if line == ANY_LINES {
            may_skip = true;
            continue;
        }
        let wanted = shape(line);
        let found = match may_skip {
            true => rest.iter().position(|line| *line == wanted),
            false => rest.first().filter(|line| **line == wanted).map(|_| 0),
        };
        let Some(found) = found else {
            return Err(format!("`{line}` is not what is printed there"));
        };
        rest = &rest[found + 1..];
        may_skip = false;
    }
    match rest.first() {
        Some(line) if !may_skip => Err(format!("more is printed than is shown, from `{line}` on")),
        _ => Ok(()),
    }
}

/// `line` without what differs from run to run: digits of numbers and addresses, units of times, widths, and spreads, which are
/// printed only if there is one.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    let mut rest = line.trim_end();
    while let Some(first) = rest.chars().next() {
        let hexadecimal = rest.strip_prefix("0x");
        let number = |c: char| c.is_ascii_digit() || c == '.' || c == ',';
        if let Some(spread) = rest.strip_prefix(" ±") {
            rest = spread.trim_start_matches(number);
        } else if let Some(after) = hexadecimal {
            rest = after.trim_start_matches(|c: char| c.is_ascii_hexdigit());
            shape.push_str("0x");
        } else if first.is_ascii_digit() {
            // A full stop or comma after the number is not part of it.
            let length = rest.find(|c| !number(c)).unwrap_or(rest.len());
            let length = rest[..length].trim_end_matches(['.', ',']).len();
            rest = &rest[length..];
            let unit = ["ns", "µs", "ms"].iter().find_map(|unit| rest.strip_prefix(unit));
            shape.push('0');
            if let Some(after) = unit {
                shape.push_str("µs");
                rest = after;
            }
        } else {
            // Spaces and the rules of a table fill a column, whose width depends on its numbers.
            let repeats = first == ' ' || "─━═".contains(first);
            let length = if repeats {
                rest.len() - rest.trim_start_matches(first).len()
            } else {
                first.len_utf8()
            };
            shape.push(first);
            rest = &rest[length..];
        }
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_knows_its_file_and_whether_it_follows() {
        let document = "A file `a.c`:\n\n```c\nint x;\n```\n\n```sh\ncc a.c\n```\n\n```text\nok\n```\n\nSo:\n```text\nx\n```\n";
        let blocks = blocks(document);
        let facts: Vec<(&str, Option<&str>, bool, usize)> = blocks
            .iter()
            .map(|block| {
                (block.language.as_str(), block.file.as_deref(), block.follows, block.line)
            })
            .collect();
        let expected = [
            ("c", Some("a.c"), false, 4),
            ("sh", None, true, 8),
            ("text", None, true, 12),
            ("text", None, false, 17),
        ];
        assert_eq!(facts, expected);
        assert_eq!(blocks[0].text, "int x;\n");
        assert!(blocks.iter().all(|block| document[block.start..].starts_with(&block.text)));
    }

    #[test]
    fn numbers_addresses_and_widths_do_not_count() {
        assert_eq!(shape("raw    778  4,372.5 at 0x7f19f4218f90."), "raw 0 0 at 0x.");
        assert_eq!(shape("1.502µs"), shape("17ms"));
        assert_eq!(shape("null  0.25 ±0.01  0.19"), shape("null  0.16   0.15 ±0.02"));
        assert_eq!(shape("═══ 1"), shape("══════ 2"));
        assert_ne!(shape("raw 778"), shape("mem 778"));
    }

    #[test]
    fn a_changed_line_is_found() {
        let printed = "one 1\ntwo 2\nthree 3\n";
        assert_eq!(compare("one 5\ntwo 6\nthree 7\n", printed), Ok(()));
        assert_eq!(compare("one 1\n...\n", printed), Ok(()));
        assert_eq!(compare("...\nthree 3\n", printed), Ok(()));
        let fault = compare("one 1\ntow 2\nthree 3\n", printed).unwrap_err();
        assert_eq!(fault, "`tow 2` is not what is printed there");
        assert!(compare("one 1\n", printed).unwrap_err().starts_with("more is printed"));
        assert!(compare("...\none 1\nfour 4\n", printed).is_err());
        assert!(compare("one 1\ntwo 2\nthree 3\nfour 4\n", printed).is_err());
    }

    #[test]
    fn an_excerpt_stays_one() {
        assert_eq!(excerpt("a\n...\n", "b\nc\n"), "b\n...\n");
        assert_eq!(excerpt("a\n", "b\nc\n"), "b\nc\n");
        assert_eq!(excerpt("...\na\n", "b\nc\n"), "...\na\n");
    }

    /// Every Markdown file of the tree.
    fn documents() -> Vec<String> {
        let shell = workspace::shell().unwrap();
        let files = xshell::cmd!(shell, "git ls-files *.md").quiet().read().unwrap();
        files.lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_document_with_commands_is_run() {
        for name in documents() {
            let document = fs::read_to_string(workspace::root().join(&name)).unwrap();
            let has_commands = blocks(&document).iter().any(|block| block.language == "sh");
            assert_eq!(has_commands, DOCUMENTS.contains(&&*name), "{name}");
        }
    }

    #[test]
    fn every_output_of_the_guide_has_its_command() {
        let document = fs::read_to_string(workspace::root().join("docs/guide.md")).unwrap();
        let blocks = blocks(&document);
        for pair in blocks.windows(2).filter(|pair| pair[1].language == "text") {
            assert!(pair[1].follows && pair[0].language == "sh", "line {}", pair[1].line);
        }
    }
}
