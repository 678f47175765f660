//! Owns `cargo xtask python --trace`: runs the interpreter and converts its log of calls to a trace.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::thread;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use malloc_trace::codec::{Version, Writer};
use malloc_trace::{LogHead, LogReader, Unread};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

const MIB: u64 = 1 << 20;

/// Runs `command`, logs its calls beside `trace`, and converts the log to the trace, however the program ended.
///
/// This process ends as the program did: with its exit status, or by its signal.
pub(crate) fn run(mut command: Command, trace: &Path, limit_mib: u64) -> Result<ExitCode> {
    let mut log = trace.as_os_str().to_owned();
    log.push(".log");
    let log = PathBuf::from(log);
    command.env("PYMEM_TRACE", &log).env("PYMEM_TRACE_LIMIT", (limit_mib * MIB).to_string());
    let status = wait(&mut command)?;
    for (log, trace) in logs(&log, trace)? {
        let summary = convert(&log, &trace)?;
        fs::remove_file(&log)?;
        eprintln!("{summary}");
    }
    if let Some(signal) = status.signal() {
        // If the signal does not end this process, exit with a shell's status for the signal.
        let _ = emulate_default_handler(signal);
        return Ok(ExitCode::from(128 + u8::try_from(signal)?));
    }
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1))?))
}

/// Waits for the program, and forwards the signals that a terminal sends to this process alone.
fn wait(command: &mut Command) -> Result<ExitStatus> {
    // Before the program starts, so that a signal in between does not end this process alone. Children do not inherit handlers.
    let mut signals = Signals::new([SIGINT, SIGQUIT, SIGHUP, SIGTERM, SIGUSR1, SIGUSR2])?;
    let mut child: Child = command
        .spawn()
        .with_context(|| format!("{} does not start", command.get_program().display()))?;
    let process = Pid::from_child(&child);
    let handle = signals.handle();
    let status = thread::scope(|scope| {
        scope.spawn(move || {
            for signal in signals.forever() {
                let signal = match signal {
                    SIGHUP => Signal::HUP,
                    SIGTERM => Signal::TERM,
                    SIGUSR1 => Signal::USR1,
                    SIGUSR2 => Signal::USR2,
                    _ => continue,
                };
                // Ignore errors: the program may have ended.
                let _ = kill_process(process, signal);
            }
        });
        let status = child.wait();
        handle.close();
        status
    });
    status.context("the interpreter's end")
}

/// How many of a program's calls a trace has.
#[derive(Debug)]
struct Summary {
    trace: PathBuf,
    written: u64,
    head: LogHead,
    unread: Unread,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} calls", self.trace.display(), self.written)?;
        if self.head.threads > 1 {
            write!(f, " of {} threads", self.head.threads)?;
        }
        if self.head.dropped > 0 {
            write!(f, "; the last {} were dropped: ", self.head.dropped)?;
            match self.head.system_error {
                Some(number) => {
                    write!(f, "{}", std::io::Error::from_raw_os_error(number))?;
                }
                None => write!(f, "the log was at its limit (--trace-limit)")?,
            }
        }
        if self.unread.unknown_blocks > 0 {
            write!(f, "; {} on blocks of unknown origin left out", self.unread.unknown_blocks)?;
        }
        if self.unread.unseen_frees > 0 {
            write!(f, "; {} frees that were not seen put in", self.unread.unseen_frees)?;
        }
        Ok(())
    }
}

/// The log and those of forked children, `LOG.PID`, with the traces that they become.
fn logs(log: &Path, trace: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let folder = log.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let own = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut logs = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(ending) = name.strip_prefix(own.as_str()) else { continue };
        let digits = ending.strip_prefix('.').unwrap_or_default();
        if ending.is_empty() || digits.parse::<u32>().is_ok() {
            let mut trace = trace.as_os_str().to_owned();
            trace.push(ending);
            logs.push((path, trace.into()));
        }
    }
    logs.sort();
    Ok(logs)
}

/// Converts the log at `log` to a trace at `trace`, with a progress bar on a terminal.
fn convert(log: &Path, trace: &Path) -> Result<Summary> {
    let file = File::open(log)?;
    let bar = ProgressBar::new(file.metadata()?.len()).with_prefix(trace.display().to_string());
    if let Ok(style) =
        ProgressStyle::with_template("{prefix} {wide_bar} {bytes}/{total_bytes}, {eta} left")
    {
        bar.set_style(style);
    }
    let mut events = LogReader::new(BufReader::with_capacity(1 << 16, bar.wrap_read(file)))
        .with_context(|| format!("{} is no log of calls", log.display()))?;
    let head = events.head();
    let version = if head.threads > 1 { Version::V2 } else { Version::V1 };
    let sink = File::create(trace).with_context(|| format!("cannot write {}", trace.display()))?;
    let mut writer = Writer::new(BufWriter::with_capacity(1 << 16, sink), version)?;
    for event in &mut events {
        writer.write(event?)?;
    }
    let written = writer.written();
    writer.finish()?;
    bar.finish_and_clear();
    Ok(Summary { trace: trace.to_owned(), written, head, unread: events.unread() })
}
