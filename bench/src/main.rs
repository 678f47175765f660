//! The driving half of the benchmarks: prepares traces, starts workers, and shows what they measured.

mod driver;
mod fetched;
mod idle;
mod inputs;
mod instructions;
mod measure;
mod neighbour;
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
use neighbour::Neighbour;
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
    /// With --python several, which are measured one after the other.
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
    #[arg(long, conflicts_with_all = ["passes", "cold"])]
    in_turn: bool,
    /// Beside a process that takes and gives back single pages all the time, and without huge pages.
    #[arg(long, requires = "in_turn")]
    starved: bool,
    /// Numbers of threads; 0 for none of these.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4")]
    threads: Vec<u16>,
    /// Instead of traces, run the Python programs of the repository and of pyperformance with and without our library.
    #[arg(long, requires = "preload")]
    python: bool,
    /// The programs of these folders instead.
    #[arg(long, value_name = "FOLDER", num_args = 1.., requires = "python")]
    programs: Vec<PathBuf>,
    /// With and without debug hooks, CPython's and ours, instead of rows of the table.
    #[arg(long, requires = "python")]
    hooks: bool,
    /// Under profilers of memory, ours, tracemalloc and memray, instead of rows of the table.
    #[arg(long, requires = "fetched", conflicts_with = "hooks")]
    profile: bool,
    /// Rounds under tracemalloc and memray, which take several times as long; otherwise as many as of ours.
    #[arg(long, value_parser = at_least_one(), requires = "profile")]
    guest_rounds: Option<usize>,
    /// The folder into which --python fetches memray and programs of pyperformance.
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
            Effort { rounds: 3, passes: 2, processes: 1, cold: 3, threads: 1 }
        } else {
            Effort { rounds: 7, passes: 3, processes: 1, cold: 7, threads: 3 }
        };
        let usual = if self.in_turn {
            Effort {
                rounds: 11,
                passes: 1,
                processes: if self.quick { 1 } else { 3 },
                cold: 0,
                threads: 0,
            }
        } else {
            usual
        };
        Effort {
            rounds: self.rounds.unwrap_or(usual.rounds),
            passes: self.passes.unwrap_or(usual.passes),
            cold: self.cold.unwrap_or(usual.cold),
            ..usual
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
    if cli.idle {
        let plans = cli.interpreters.iter().map(|interpreter| cli.plan(interpreter, library));
        let runs = plans.map(|plan| idle::measure(&plan)).collect::<Result<Vec<_>>>()?;
        runs.iter().for_each(|run| print!("{}", table::idle(run)));
        return publish(cli, page::IDLE, &runs);
    }
    let (comparison, file) = match (cli.hooks, cli.profile) {
        (true, _) => (&programs::HOOKS, page::HOOKS),
        (_, true) => (&programs::PROFILERS, page::PROFILERS),
        _ => (&programs::ROWS, page::PROGRAMS),
    };
    let folders = folders(cli)?;
    let mut runs = Vec::new();
    for interpreter in &cli.interpreters {
        let memray = match &cli.fetched {
            Some(folder) if cli.profile => {
                fetched::memray(&programs::minor_version(interpreter)?, folder)
            }
            _ => None,
        };
        if cli.profile && memray.is_none() {
            eprintln!("memray cannot be had for {}: left out", interpreter.display());
        }
        let plan = Plan { folders: &folders, memray, ..cli.plan(interpreter, library) };
        let run = plan.run(comparison, tempfile::tempdir()?.path())?;
        println!("{}\n{}", run.interpreter, table::programs(&run));
        runs.push(run);
    }
    publish(cli, file, &runs)
}

/// The folders whose programs run: those that were named, otherwise the repository's, and pyperformance's where they can be had.
fn folders(cli: &Cli) -> Result<Vec<PathBuf>> {
    if !cli.programs.is_empty() {
        return Ok(cli.programs.clone());
    }
    let mut folders = vec![programs::FOLDER.into()];
    if let (Some(folder), false) = (&cli.fetched, cli.quick) {
        let wanted = if cli.profile { fetched::MANY_SITES } else { &[] };
        folders.push(fetched::programs(folder, wanted)?);
    }
    Ok(folders)
}

fn publish(cli: &Cli, file: &str, value: &impl serde::Serialize) -> Result<()> {
    cli.output.as_ref().map_or(Ok(()), |output| page::publish(output, file, value))
}

fn replay(cli: &Cli) -> Result<()> {
    let inputs = inputs::find(&cli.traces, &cli.only)?;
    let _neighbour = cli.starved.then(Neighbour::start).transpose()?;
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
    if cli.in_turn {
        println!("{}", table::passes(&report));
        return publish(cli, if cli.starved { page::STARVED } else { page::PASSES }, &report);
    }
    if let (Some(input), false) = (inputs.first(), counts.is_empty()) {
        report.threads = measure::many_threads(&driver, input, &rows, &counts, cli.effort())?;
    }
    println!("{}", table::all(&report));
    publish(cli, page::REPLAY, &report)
}

fn infos(names: &[String]) -> Vec<RowInfo> {
    let rows = names.iter().filter_map(|name| pymem_bench::rows::find(name));
    rows.map(|row| RowInfo { name: row.name.to_owned(), about: row.about.to_owned() }).collect()
}
