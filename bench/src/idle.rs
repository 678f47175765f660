//! Owns the memory of a Python process that has just started, and that idles after it has freed what it had.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::origin;
use crate::programs::{Plan, ROWS, version};
use crate::report::{Origin, median};

/// What the process prints, in KiB, is one line a moment: private dirty memory, pages of files, and the resident set.
const PROGRAM: &str = r"
import time
def sample():
    with open('/proc/self/smaps_rollup') as file:
        fields = dict(line.split()[:2] for line in file.readlines()[1:])
    kib = lambda name: int(fields[name + ':'])
    print(kib('Private_Dirty'), kib('Rss') - kib('Anonymous'), kib('Rss'))
def build(mib):
    return [bytes(30 + i % 60) for i in range(mib * 9_400)]
sample()
blocks = build(500)
del blocks
sample()
time.sleep(1)
sample()
time.sleep(9)
sample()
for _ in range(60):
    build(120)
time.sleep(10)
sample()
";

/// Figures of a process: a title, the line, and the figure in the line.
pub(crate) const FIGURES: [(&str, usize, usize); 7] = [
    ("start: private dirty", 0, 0),
    ("start: of files", 0, 1),
    ("start: RSS", 0, 2),
    ("RSS after 500 MiB", 1, 2),
    ("1 s later", 2, 2),
    ("10 s later", 3, 2),
    ("10 s after 60 times 120 MiB", 4, 2),
];

/// What a run found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Idle {
    /// Where and when.
    pub(crate) origin: Origin,
    /// The interpreter.
    pub(crate) interpreter: String,
    /// Each setup's name, and its median figures in MiB, in the order of [`FIGURES`].
    pub(crate) setups: Vec<(String, Vec<f64>)>,
}

/// Runs the process in every setup, in turn.
pub(crate) fn measure(plan: &Plan<'_>) -> Result<Idle> {
    let mut samples = vec![vec![Vec::new(); FIGURES.len()]; ROWS.setups.len()];
    for _ in 0..plan.rounds {
        for (setup, samples) in ROWS.setups.iter().zip(&mut samples) {
            let output = plan.command(setup).args(["-c", PROGRAM]).output()?;
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{} failed: {errors}", setup.name());
            let lines = lines(&String::from_utf8_lossy(&output.stdout))
                .with_context(|| format!("{} printed something else", setup.name()))?;
            for ((_, line, figure), samples) in FIGURES.iter().zip(samples) {
                let kib = lines.get(*line).and_then(|line| line.get(*figure));
                samples.push(kib.context("a figure is missing")? / 1024.0);
            }
        }
    }
    let medians = samples.iter().map(|samples| samples.iter().map(|each| median(each)).collect());
    let setups = ROWS.setups.iter().map(|setup| setup.name().to_owned()).zip(medians).collect();
    Ok(Idle { origin: origin::here(), interpreter: version(plan.interpreter)?, setups })
}

fn lines(text: &str) -> Result<Vec<Vec<f64>>> {
    let line = |line: &str| line.split_whitespace().map(str::parse::<f64>).collect();
    Ok(text.lines().map(line).collect::<Result<_, _>>()?)
}
