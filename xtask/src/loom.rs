//! Owns the model runs: builds `pymem-sync` with its loom face and runs every model, or every negative control.
//!
//! A model counts only if it prints that it completed, because a model that stops at a bound succeeds too. A control counts only if
//! its fault was planted and the model failed.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use crate::workspace;

/// The variable that chooses the control of a model's process; `list` prints the controls.
const CONTROL: &str = "PYMEM_LOOM_CONTROL";

/// One model: a test function of a file of `tests/loom`.
#[derive(Clone)]
struct Model {
    file: String,
    name: String,
    executable: PathBuf,
}

/// A model, alone or with the fault that it must reject.
struct Task {
    model: Model,
    control: Option<String>,
}

/// The result of a process.
struct Outcome {
    succeeded: bool,
    text: String,
}

/// Runs every model whose file or name contains `filter`, or each of their negative controls.
pub(crate) fn run(controls: bool, filter: Option<String>) -> Result<()> {
    let start = Instant::now();
    let root = workspace::root();
    let mut models = models(build()?)?;
    for file in files(&root)? {
        ensure!(models.iter().any(|model| model.file == file), "{file} has no model");
    }
    let all = filter.is_none();
    let wanted = filter.unwrap_or_default();
    models.retain(|model| model.file.contains(&wanted) || model.name.contains(&wanted));
    ensure!(!models.is_empty(), "no model's file or name contains `{wanted}`");
    let tasks = if controls { controls_of(&root, models, all)? } else { models_alone(models) };
    let count = tasks.len();
    let faults = run_all(tasks)?;
    let seconds = start.elapsed().as_secs();
    let what = if controls { "controls failed as they must" } else { "models completed" };
    ensure!(
        faults.is_empty(),
        "{} of {count} went wrong:\n  {}",
        faults.len(),
        faults.join("\n  ")
    );
    println!("loom: {count} {what} in {seconds} s");
    Ok(())
}

/// Builds the models and returns their program.
fn build() -> Result<PathBuf> {
    let shell = workspace::shell()?;
    let _target = shell.push_env("CARGO_TARGET_DIR", workspace::target().join("loom"));
    // Our own name: plain `--cfg loom` would reach every dependency.
    let _flags = shell.push_env("RUSTFLAGS", "--cfg pymem_loom");
    let built = cmd!(shell, "cargo test --release -p pymem-sync --test loom --no-run");
    let program = workspace::programs(built)?.pop().context("no program was built")?;
    Ok(program.1)
}

/// The names of the files of models.
fn files(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("crates/pymem-sync/tests/loom");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    let names = names.iter().filter_map(|name| name.strip_suffix(".rs"));
    Ok(names.filter(|name| name.starts_with("loom_")).map(str::to_owned).collect())
}

fn models(executable: PathBuf) -> Result<Vec<Model>> {
    let shell = Shell::new()?;
    let text = cmd!(shell, "{executable} --list --format terse").quiet().ignore_stderr().read()?;
    let tests = text.lines().filter_map(|line| line.strip_suffix(": test")?.split_once("::"));
    let model = |(file, name): (&str, &str)| Model {
        file: file.to_owned(),
        name: name.to_owned(),
        executable: executable.clone(),
    };
    Ok(tests.map(model).collect())
}

fn models_alone(models: Vec<Model>) -> VecDeque<Task> {
    models.into_iter().map(|model| Task { model, control: None }).collect()
}

/// The controls of `models`. If these are `all` models, every site must have a control.
fn controls_of(root: &Path, models: Vec<Model>, all: bool) -> Result<VecDeque<Task>> {
    let mut tasks = VecDeque::new();
    let mut used = BTreeSet::new();
    for model in models {
        let listed = start(&model, Some("list"))?.text;
        let prefix = format!("control {} ", model.name);
        let sites: Vec<String> = listed
            .lines()
            .filter_map(|line| {
                line.find(&prefix).map(|at| line[at + prefix.len()..].trim().to_owned())
            })
            .collect();
        ensure!(!sites.is_empty(), "{} has no negative control", model.name);
        for site in sites {
            used.insert(site.clone());
            tasks.push_back(Task { model: model.clone(), control: Some(site) });
        }
    }
    if all {
        let path = root.join("crates/pymem-sync/src/sync/site.rs");
        let source =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let unused: Vec<&str> = sites(&source).filter(|site| !used.contains(*site)).collect();
        ensure!(unused.is_empty(), "no model has a control for: {}", unused.join(", "));
    }
    Ok(tasks)
}

/// The names in the lines `Variant = "name",` of the list of sites.
fn sites(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|line| {
        line.trim().strip_suffix("\",")?.split_once(" = \"").map(|(_, name)| name)
    })
}

/// Runs the tasks on every processor and returns what went wrong.
fn run_all(tasks: VecDeque<Task>) -> Result<Vec<String>> {
    let queue = Mutex::new(tasks);
    let faults = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        loop {
            let Some(task) = queue.lock().ok().and_then(|mut queue| queue.pop_front()) else {
                return Ok(());
            };
            let begin = Instant::now();
            let outcome = start(&task.model, task.control.as_deref())?;
            let seconds = begin.elapsed().as_secs_f32();
            match judge(&task, &outcome) {
                Ok(line) => println!("{:<30} {seconds:6.1} s  {line}", task.model.file),
                Err(fault) => {
                    println!("{}", outcome.text);
                    if let Ok(mut faults) = faults.lock() {
                        faults.push(format!("{}: {fault}", task.model.file));
                    }
                }
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a worker panicked"),
        })
    })?;
    faults.into_inner().context("a worker panicked")
}

/// Runs one model in a process of its own.
fn start(model: &Model, control: Option<&str>) -> Result<Outcome> {
    let mut command = Command::new(&model.executable);
    let test = format!("{}::{}", model.file, model.name);
    command.args(["--exact", &test, "--nocapture", "--test-threads=1"]);
    command.env_remove(CONTROL).env("RUST_BACKTRACE", "0");
    if let Some(control) = control {
        command.env(CONTROL, OsString::from(control));
    }
    let output =
        command.output().with_context(|| format!("cannot run {}", model.executable.display()))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok(Outcome { succeeded: output.status.success(), text })
}

/// The line to print, or what is wrong.
fn judge(task: &Task, outcome: &Outcome) -> Result<String, String> {
    let name = &task.model.name;
    let line = |start: &str| {
        let found =
            outcome.text.lines().find_map(|line| line.find(start).map(|at| line[at..].to_owned()));
        found.map(|line| line.trim().to_owned())
    };
    let completed = line(&format!("Completed {name}: "));
    let Some(site) = &task.control else {
        return match completed {
            Some(line) if outcome.succeeded => Ok(line),
            Some(_) => Err(format!("{name} failed after it completed")),
            None => Err(format!("{name} did not complete")),
        };
    };
    if line(&format!("planted {site} in {name}")).is_none() {
        return Err(format!("{name}: the fault {site} was not planted"));
    }
    if outcome.succeeded || completed.is_some() {
        return Err(format!("{name} passes with the fault {site}: it does not show its property"));
    }
    if outcome.text.contains("exceeded maximum number of branches") {
        return Err(format!("{name} with the fault {site} ran out of branches before it failed"));
    }
    let reason = outcome.text.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
    Ok(format!("{name} rejects {site}: {}", reason.unwrap_or("the process died")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(control: Option<&str>) -> Task {
        let model = Model { file: "loom_x".into(), name: "x".into(), executable: PathBuf::new() };
        Task { model, control: control.map(str::to_owned) }
    }

    fn outcome(succeeded: bool, text: &str) -> Outcome {
        Outcome { succeeded, text: text.into() }
    }

    #[test]
    fn a_model_counts_only_if_it_printed_that_it_completed() {
        let done = "test x ... Completed x: 5 executions, exhaustive\nok\n";
        assert_eq!(
            judge(&task(None), &outcome(true, done)).unwrap(),
            "Completed x: 5 executions, exhaustive"
        );
        assert!(judge(&task(None), &outcome(false, done)).is_err());
        assert!(judge(&task(None), &outcome(true, "ok")).unwrap_err().contains("did not complete"));
    }

    #[test]
    fn a_control_counts_only_if_it_was_planted_and_failed() {
        let control = task(Some("fence"));
        let planted = "planted fence in x\nthread 'x' panicked at y:\nrace\n";
        assert_eq!(judge(&control, &outcome(false, planted)).unwrap(), "x rejects fence: race");
        assert!(judge(&control, &outcome(false, "panicked")).unwrap_err().contains("not planted"));
        let passed = "planted fence in x\nCompleted x: 5 executions, exhaustive\n";
        assert!(judge(&control, &outcome(true, passed)).unwrap_err().contains("passes"));
        let cut = format!("{planted}Model exceeded maximum number of branches.");
        assert!(judge(&control, &outcome(false, &cut)).unwrap_err().contains("ran out"));
    }

    #[test]
    fn the_site_list_is_read() {
        let source = "    /// Says a = \"b\", c.\n    LockAcquire = \"lock-acquire\",\n    }\n";
        assert_eq!(sites(source).collect::<Vec<_>>(), ["lock-acquire"]);
    }
}
