//! Owns `cargo xtask hosts`: what each kind of interpreter sees of the library, as one table. Every cell is a run.

mod memory;
mod run;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use malloc_trace::LogReader;
use pymem_domains::{AllocatorName, Domain};

use self::memory::{file, memory};
pub(crate) use self::run::Host;
use self::run::Run;
use crate::docs;
use crate::python::{self, Interpreter};

/// The program, which takes the name of a task.
const PROGRAM: &str = "xtask/plants/host.py";
/// The document with the table, between markers of this name.
const DOCUMENT: &str = "docs/testing.md";
const MARKER: &str = "hosts";

/// The columns.
const WANTED: [&str; 11] = [
    "3.9",
    "3.10",
    "3.11",
    "3.11 debug",
    "3.12",
    "3.13",
    "3.13t",
    "3.14",
    "3.14t",
    "3.15",
    "3.15t",
];

/// Run every check on every kind of interpreter, and print what each saw as a table.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// An interpreter; without any, one of each kind.
    #[arg(long, value_name = "PATH")]
    python: Vec<PathBuf>,
    /// How many subinterpreters the row of them makes.
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    subinterpreters: u32,
    /// Only rows whose title contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Put the table into docs/testing.md.
    #[arg(long, conflicts_with_all = ["python", "only"])]
    write: bool,
}

/// A row of the table.
struct Check {
    title: &'static str,
    /// What the program does, and the value of `PYTHONMALLOC`.
    task: &'static str,
    row: &'static str,
    /// One more variable; its value is a new file if it is empty.
    variable: (&'static str, &'static str),
    expect: Expect,
}

/// What a run must do.
enum Expect {
    /// It ends by the interpreter's fatal error, with these texts on stderr, in this order.
    Report(&'static [&'static str]),
    /// It succeeds, with these texts on stderr, in this order.
    Told(&'static [&'static str]),
    /// It succeeds and leaves a file that passes. An interpreter without the GIL refuses with a text, if there is one.
    File(fn(&Path) -> Result<()>, Option<&'static str>),
}

const DEBUG: (&str, &str) = ("PYMEM_DEBUG", "serial");
const SITES: (&str, &str) = ("PYMEM_DEBUG", "quarantine=16M,backtrace=8");

const CHECKS: [Check; 17] = [
    Check {
        title: "overflow",
        task: "overflow",
        row: "debug",
        variable: DEBUG,
        expect: Expect::Report(&["API 'm'", "bad trailing pad byte"]),
    },
    Check {
        title: "underflow",
        task: "underflow",
        row: "debug",
        variable: DEBUG,
        expect: Expect::Report(&["API 'm'", "bad leading pad byte"]),
    },
    Check {
        title: "double free",
        task: "double_free",
        row: "debug",
        variable: ("PYMEM_DEBUG", "strict"),
        expect: Expect::Report(&["memdebug: double free: the block was freed before."]),
    },
    Check {
        title: "use after free, in quarantine",
        task: "write_after_free",
        row: "debug",
        variable: SITES,
        expect: Expect::Report(&["write to a freed block"]),
    },
    Check {
        title: "wrong API",
        task: "wrong_api",
        row: "debug",
        variable: DEBUG,
        expect: Expect::Report(&["bad ID: Allocated using API 'm', verified using API 'o'"]),
    },
    Check {
        title: "free of the inside of a block",
        task: "invalid_free",
        row: "debug",
        variable: DEBUG,
        expect: Expect::Report(&[
            "memdebug: interior pointer: it points 16 bytes into the block of 64 bytes",
            "in give_back\n",
            "in invalid_free\n",
        ]),
    },
    Check {
        title: "no GIL",
        task: "no_gil",
        row: "debug",
        variable: DEBUG,
        expect: Expect::Report(&["_PyMem_DebugMalloc: Python memory allocator called without"]),
    },
    Check {
        title: "no GIL, after a subinterpreter",
        task: "no_gil_after_subinterpreter",
        row: "debug",
        variable: DEBUG,
        expect: Expect::Report(&["_PyMem_DebugMalloc: Python memory allocator called without"]),
    },
    Check {
        title: "`guard=1/1000` without hooks",
        task: "read_after_free",
        row: "default",
        variable: ("PYMEM_DEBUG", "guard=1/1000"),
        expect: Expect::Report(&["API 'm'", "use after free: read at p+3 of a guarded block"]),
    },
    Check {
        title: "leaks, by place",
        task: "leak",
        row: "debug",
        variable: ("PYMEM_DEBUG", "leak_site=in leak"),
        expect: Expect::Told(&["1 blocks with 12345 bytes are still live", "in leak\n"]),
    },
    Check {
        title: "frames of allocation",
        task: "overflow",
        row: "debug",
        variable: SITES,
        expect: Expect::Report(&[
            "Memory block allocated by",
            "line 16, in make\n",
            "line 55, in overflow\n",
            "in <module>\n",
        ]),
    },
    Check {
        title: "frames of free",
        task: "double_free",
        row: "debug",
        variable: SITES,
        expect: Expect::Report(&[
            "Memory block freed by",
            "line 20, in give_back\n",
            "line 68, in double_free\n",
            "in <module>\n",
        ]),
    },
    Check {
        title: "trace",
        task: "work",
        row: "default",
        variable: ("PYMEM_TRACE", ""),
        expect: Expect::File(is_trace, None),
    },
    Check {
        title: "heap map of `pymalloc`",
        task: "work",
        row: "default",
        variable: ("PYMEM_HEAP_MAP", ""),
        expect: Expect::File(
            is_picture,
            Some("pymem-preload: PYMEM_HEAP_MAP: mem and obj are not"),
        ),
    },
    Check {
        title: "heap map of `mimalloc`",
        task: "work",
        row: "mimalloc",
        variable: ("PYMEM_HEAP_MAP", ""),
        expect: Expect::File(
            is_picture,
            Some("pymem-preload: PYMEM_HEAP_MAP: mem and obj are not"),
        ),
    },
    Check {
        title: "statistics of `PYMEM_STATS`",
        task: "work",
        row: "default",
        variable: ("PYMEM_STATS", "1"),
        expect: Expect::Told(&["pymem: ", "raw", "mem", "obj"]),
    },
    Check {
        title: MALLOC_STATS,
        task: "work",
        row: "mimalloc",
        variable: ("PYTHONMALLOCSTATS", "1"),
        expect: Expect::Told(&["Allocated Blocks: "]),
    },
];

/// The check of what is told where nobody else has a heap.
pub(crate) const MALLOC_STATS: &str = "statistics of `PYTHONMALLOCSTATS`";

/// The table's rows, and what was red.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) rows: Vec<Vec<String>>,
    faults: Vec<String>,
}

impl Rows {
    /// Runs a check on each host.
    fn add(&mut self, hosts: &[Host], title: &str, cell: impl Fn(&Host) -> Result<String>) {
        let mut cells = vec![title.to_owned()];
        for host in hosts {
            cells.push(cell(host).unwrap_or_else(|fault| {
                self.faults.push(format!("{}, {title}: {fault:#}", label(&host.python)));
                String::from("RED")
            }));
        }
        eprintln!("{}", cells.join(", "));
        self.rows.push(cells);
    }

    /// Fails if anything was red.
    pub(crate) fn ensure_green(&self) -> Result<()> {
        let faults = &self.faults;
        ensure!(faults.is_empty(), "{} cells are red:\n{}", faults.len(), faults.join("\n"));
        Ok(())
    }
}

/// Runs the checks of what the library does, but for those of memory, whose titles are wanted.
pub(crate) fn check(
    hosts: &[Host],
    is_wanted: impl Fn(&str) -> bool,
    subinterpreters: u32,
) -> Rows {
    let mut rows = Rows::default();
    let mut add = |title: &str, cell: &dyn Fn(&Host) -> Result<String>| {
        if is_wanted(title) {
            rows.add(hosts, title, cell);
        }
    };
    add("names that serve", &names);
    for check in &CHECKS {
        add(check.title, &|host| check.cell(host));
    }
    let title = format!("`backtrace=8`, {subinterpreters} subinterpreters");
    add(&title, &|host| rounds(host, subinterpreters));
    rows
}

/// Runs the checks on one interpreter of each kind.
pub(crate) fn short() -> Result<()> {
    let args = Args { python: Vec::new(), subinterpreters: 5, only: String::new(), write: false };
    run(&args)
}

/// Runs the checks; fails when a cell is not as it must be.
pub(crate) fn run(args: &Args) -> Result<()> {
    let library = python::library()?;
    let (columns, missing) = columns(args)?;
    if columns.is_empty() {
        println!("skipped: no interpreter is installed that the library can be preloaded into");
        return Ok(());
    }
    let hosts: Vec<Host> = columns.iter().map(|python| Host::new(python, &library)).collect();
    let mut rows = check(&hosts, |title| title.contains(&args.only), args.subinterpreters);
    for (name, most_kib) in [("pymalloc", 300), ("mimalloc", 2048)] {
        let title = format!("private memory beyond the interpreter's own, `{name}`");
        if title.contains(&args.only) {
            rows.add(&hosts, &title, |host| memory(host, name, most_kib));
        }
    }
    let title = "pages of the library's file in memory";
    if title.contains(&args.only) {
        rows.add(&hosts, title, file);
    }
    let mut header = vec![String::new()];
    header.extend(columns.iter().map(label));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut text = docs::markdown(&header, &rows.rows);
    if !missing.is_empty() {
        writeln!(text, "\nNot installed where this was run: {}.", missing.join(", "))?;
    }
    print!("{text}");
    rows.ensure_green()?;
    if args.write {
        docs::renew(DOCUMENT, false, |old| docs::replace(&old, MARKER, &format!("\n{text}\n")))?;
    }
    Ok(())
}

/// The interpreters, one of each kind unless some are named, and the kinds that are not installed.
fn columns(args: &Args) -> Result<(Vec<Interpreter>, Vec<&'static str>)> {
    if !args.python.is_empty() {
        let named = args.python.iter().map(|path| Interpreter::probe(path));
        return Ok((named.collect::<Result<_, _>>().map_err(anyhow::Error::msg)?, Vec::new()));
    }
    let installed = Interpreter::installed();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for wanted in WANTED {
        match installed.iter().find(|python| label(python) == wanted) {
            Some(python) => found.push(python.clone()),
            None => missing.push(wanted),
        }
    }
    Ok((found, missing))
}

/// `3.13t` and the like.
fn label(python: &Interpreter) -> String {
    let threads = if python.free_threaded { "t" } else { "" };
    let debug = if python.pydebug { " debug" } else { "" };
    format!("3.{}{threads}{debug}", python.minor)
}

impl Check {
    fn cell(&self, host: &Host) -> Result<String> {
        let (name, value) = self.variable;
        let file = std::env::temp_dir().join(format!("pymem-hosts-{}", std::process::id()));
        let value = if value.is_empty() { &*file.to_string_lossy() } else { value };
        let run =
            Run::new(host, &[PROGRAM, self.task], &[("PYTHONMALLOC", self.row), (name, value)])?;
        match self.expect {
            Expect::Report(texts) => {
                run.ensure(run.is_aborted(), "no fatal error")?;
                run.says(texts)?;
            }
            Expect::Told(texts) => {
                run.ensure(run.succeeds(), "no success")?;
                run.says(texts)?;
            }
            Expect::File(_, Some(refusal)) if host.python.free_threaded => {
                run.ensure(!run.output.status.success(), "no refusal")?;
                run.says(&[refusal])?;
                return Ok(String::from("refused"));
            }
            Expect::File(passes, _) => {
                run.ensure(run.succeeds() && run.stderr.is_empty(), "no success")?;
                let passed = passes(&file);
                fs::remove_file(&file)?;
                run.ensure(passed.is_ok(), &format!("{passed:?}"))?;
            }
        }
        Ok(String::from("yes"))
    }
}

/// The names that serve by their row of the table. Without the GIL mem and obj are the interpreter's own, and other names are refused.
fn names(host: &Host) -> Result<String> {
    let profile = host.python.profile();
    let (mut serve, mut refused) = (0, 0);
    for name in AllocatorName::ALL {
        let row = name.row(&profile);
        let run = Run::new(
            host,
            &[PROGRAM, "json_threads_fork"],
            &[("PYTHONMALLOC", name.as_str()), ("PYMEM_STATS", "1")],
        )?;
        let Ok(row) = row else {
            run.ensure(!run.output.status.success(), "no refusal")?;
            run.says(&["a free-threaded interpreter keeps mem and obj"])?;
            refused += 1;
            continue;
        };
        run.ensure(run.succeeds(), "no success")?;
        let parts = Domain::ALL.map(|domain| {
            let own = host.python.free_threaded && domain != Domain::Raw;
            let debug = if row.debug() { " + debug" } else { "" };
            let serves =
                if own { format!("the interpreter's own{debug}") } else { row.serves(domain) };
            format!("{domain} {serves}")
        });
        run.says(&[&format!("pymem: {} ({})", row.canonical_name(), parts.join(", "))])?;
        serve += 1;
    }
    Ok(if refused == 0 { serve.to_string() } else { format!("{serve}, {refused} refused") })
}

/// Subinterpreters that come and go while stacks are taken.
fn rounds(host: &Host, count: u32) -> Result<String> {
    let variables = [("PYTHONMALLOC", "debug"), ("PYMEM_DEBUG", "backtrace=8")];
    let run = Run::new(host, &[PROGRAM, "rounds", &count.to_string()], &variables)?;
    run.ensure(run.succeeds() && run.stderr.is_empty(), "no success")?;
    Ok(String::from("yes"))
}

/// A log of calls of which each block is known.
fn is_trace(path: &Path) -> Result<()> {
    let mut reader = LogReader::new(std::io::BufReader::new(fs::File::open(path)?))?;
    let mut calls = 0;
    for event in &mut reader {
        event?;
        calls += 1;
    }
    ensure!(calls > 5_000, "{calls} calls");
    ensure!(reader.unread().unknown_blocks < 100, "{:?}", reader.unread());
    Ok(())
}

fn is_picture(path: &Path) -> Result<()> {
    let text = fs::read_to_string(path)?;
    let pools = text.matches("<rect").count();
    ensure!(text.starts_with("<svg") && text.ends_with("</svg>\n"), "no whole picture");
    ensure!(pools > 50, "{pools} rectangles");
    Ok(())
}
