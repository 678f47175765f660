//! The driving half of the benchmarks: prepares traces, starts workers, and shows what they measured.

mod driver;
mod fetched;
mod idle;
mod inputs;
mod instructions;
mod measure;
mod origin;
mod page;
mod plot;
mod programs;
mod report;
mod table;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Parser;
use clap::builder::RangedU64ValueParser;

use driver::Driver;
use measure::Effort;
use programs::Plan;
use report::{Report, RowInfo};

/// Replays allocation traces through our allocators, CPython's own and their peers, in one process and one run.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", version)]
struct Cli {
    /// Trace files or folders of them; otherwise those of PYMEM_TRACES, otherwise those of the repository.
    #[arg(long = "trace", value_name = "FILE", num_args = 1..)]
    traces: Vec<PathBuf>,
    /// Only the traces (with --python: the programs) whose name contains one of these words.
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these allocators, besides the baseline and the cost of replaying.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    rows: Vec<String>,
    /// Fewer rounds: less than three minutes for the traces of the repository.
    #[arg(long)]
    quick: bool,
    /// The interpreter whose allocators are the baseline, best a build with profile-guided optimisation.
    /// With --profile several, which are measured in turn.
    #[arg(
        long = "interpreter",
        value_name = "PATH",
        value_delimiter = ',',
        default_value = "/usr/bin/python3"
    )]
    interpreters: Vec<PathBuf>,
    /// Warm rounds; in each every allocator takes its turn.
    #[arg(long, value_parser = at_least_one())]
    rounds: Option<usize>,
    /// Passes a warm round; the fastest counts.
    #[arg(long, value_parser = at_least_one())]
    passes: Option<usize>,
    /// Fresh processes a row for the cold figures.
    #[arg(long, value_parser = at_least_one())]
    cold: Option<usize>,
    /// All allocators in turn, one pass each: what the first, second and tenth pass cost, as requests to a server would.
    #[arg(long, conflicts_with = "passes")]
    in_turn: bool,
    /// Numbers of threads; 0 for none of these.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4")]
    threads: Vec<u16>,
    /// Instead of traces, run the Python programs of the repository with and without our library.
    #[arg(long, requires = "preload")]
    python: bool,
    /// The programs of these folders instead.
    #[arg(long, value_name = "FOLDER", num_args = 1.., requires = "python")]
    programs: Vec<PathBuf>,
    /// With and without debug hooks, CPython's and ours, instead of rows of the table.
    #[arg(long, requires = "python")]
    hooks: bool,
    /// Under profilers of memory, ours, tracemalloc and memray, instead of rows of the table; with programs of pyperformance.
    #[arg(long, requires = "fetched", conflicts_with = "hooks")]
    profile: bool,
    /// Rounds under tracemalloc and memray, which take several times as long; otherwise as many as of ours.
    #[arg(long, value_parser = at_least_one(), requires = "profile")]
    guest_rounds: Option<usize>,
    /// The folder into which --profile fetches memray and programs.
    #[arg(long, value_name = "FOLDER")]
    fetched: Option<PathBuf>,
    /// Instead of programs, the memory of a process that has just started, and that idles after it has freed 500 MiB.
    #[arg(long, requires = "python")]
    idle: bool,
    /// The library that --python preloads.
    #[arg(long, value_name = "FILE")]
    preload: Option<PathBuf>,
    /// Instead of times, count the instructions of hot paths and compare them with the committed baseline.
    #[arg(long)]
    instructions: bool,
    /// Make the counted instructions the new baseline.
    #[arg(long, requires = "instructions")]
    accept: bool,
    /// Measure nothing: draw tables and plots anew from the JSON files of earlier runs.
    #[arg(long, requires = "output")]
    redraw: bool,
    /// The folder that gets `benchmarks.md` and `benchmarks/` with JSON and plots; nothing is written without it.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// Of nothing there is no median.
fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

impl Cli {
    fn interpreter(&self) -> &Path {
        &self.interpreters[0]
    }

    fn plan<'a>(&'a self, interpreter: &'a Path, library: &'a Path) -> Plan<'a> {
        let rounds = self.rounds.unwrap_or(if self.quick { 1 } else { 5 });
        Plan {
            interpreter,
            library,
            folders: &self.programs,
            only: &self.only,
            rounds,
            guest_rounds: self.guest_rounds.unwrap_or(rounds),
            memray: None,
        }
    }

    fn effort(&self) -> Effort {
        let usual = if self.quick {
            Effort { rounds: 3, passes: 2, cold: 3, threads: 1 }
        } else {
            Effort { rounds: 7, passes: 3, cold: 7, threads: 3 }
        };
        let usual = if self.in_turn { Effort { rounds: 11, passes: 1, ..usual } } else { usual };
        Effort {
            rounds: self.rounds.unwrap_or(usual.rounds),
            passes: self.passes.unwrap_or(usual.passes),
            cold: self.cold.unwrap_or(usual.cold),
            threads: usual.threads,
        }
    }
}

fn main() -> Result<()> {
    // A worker without an interpreter around it.
    if let Some(job) = std::env::var_os(pymem_bench::job::JOB_VARIABLE) {
        return pymem_bench::worker::run(Path::new(&job));
    }
    let cli = Cli::parse();
    if cli.instructions {
        return instructions::run(&Driver::new(cli.interpreter())?, cli.accept);
    }
    if let (true, Some(output)) = (cli.redraw, &cli.output) {
        return page::redraw(output);
    }
    match &cli.preload {
        Some(library) if cli.python => whole_programs(&cli, library),
        _ => replay(&cli),
    }
}

fn whole_programs(cli: &Cli, library: &Path) -> Result<()> {
    if let (true, Some(folder)) = (cli.profile, &cli.fetched) {
        return profilers(cli, library, folder);
    }
    let plan = cli.plan(cli.interpreter(), library);
    if cli.idle {
        print!("{}", table::idle(idle::measure(&plan)?));
        return Ok(());
    }
    let (comparison, file) =
        if cli.hooks { (&programs::HOOKS, page::HOOKS) } else { (&programs::ROWS, page::PROGRAMS) };
    let programs = plan.run(comparison, tempfile::tempdir()?.path())?;
    println!("{}", table::programs(&programs));
    match &cli.output {
        Some(output) => page::publish(output, file, &programs),
        None => Ok(()),
    }
}

fn profilers(cli: &Cli, library: &Path, folder: &Path) -> Result<()> {
    let mut folders = cli.programs.clone();
    if folders.is_empty() {
        folders = vec![programs::FOLDER.into(), fetched::programs(cli.interpreter(), folder)?];
    }
    let mut runs = Vec::new();
    for interpreter in &cli.interpreters {
        let memray = fetched::memray(&programs::minor_version(interpreter)?, folder);
        if memray.is_none() {
            eprintln!("memray cannot be had for {}: left out", interpreter.display());
        }
        let plan = Plan { folders: &folders, memray, ..cli.plan(interpreter, library) };
        let run = plan.run(&programs::PROFILERS, tempfile::tempdir()?.path())?;
        println!("{}", table::programs(&run));
        runs.push(run);
    }
    match &cli.output {
        Some(output) => page::publish(output, page::PROFILERS, &runs),
        None => Ok(()),
    }
}

fn replay(cli: &Cli) -> Result<()> {
    let inputs = inputs::find(&cli.traces, &cli.only)?;
    let driver = Driver::new(cli.interpreter())?;
    let (rows, baseline) = driver.rows(&cli.rows)?;
    let counts: Vec<u16> = cli.threads.iter().copied().filter(|&count| count > 0).collect();
    let mut report = Report {
        origin: origin::here(),
        baseline: format!("CPython {baseline} ({})", cli.interpreter().display()),
        rows: infos(&rows),
        traces: Vec::new(),
        threads: Vec::new(),
    };
    println!("baseline: {}\nmachine: {}", report.baseline, report.origin.machine);
    for input in &inputs {
        report.traces.push(measure::one_thread(&driver, input, &rows, cli.effort())?);
    }
    if let (Some(input), false) = (inputs.first(), counts.is_empty()) {
        report.threads = measure::many_threads(&driver, input, &rows, &counts, cli.effort())?;
    }
    println!("{}", table::all(&report));
    if cli.in_turn {
        println!("{}", table::passes(&report));
    }
    match &cli.output {
        Some(output) => page::publish(output, page::REPLAY, &report),
        None => Ok(()),
    }
}

fn infos(names: &[String]) -> Vec<RowInfo> {
    let rows = names.iter().filter_map(|name| pymem_bench::rows::find(name));
    rows.map(|row| RowInfo { name: row.name.to_owned(), about: row.about.to_owned() }).collect()
}
