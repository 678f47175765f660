//! Owns the speedscope file: one profile for each of what is live, was live at the peak, and was ever allocated.

use core::fmt;

use serde::Serialize;

use super::file::{ProfileFile, Which};

/// Writes a profile as a file for speedscope, a viewer of flame graphs, by its published schema.
#[derive(Clone, Copy, Debug)]
pub struct Speedscope<'a>(pub &'a ProfileFile);

impl fmt::Display for Speedscope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.0;
        let frame = |(name, file, line)| Frame { name, file, line };
        let whole = Whole {
            schema: "https://www.speedscope.app/file-format-schema.json",
            exporter: "pymem",
            name: file.program.join(" "),
            active_profile_index: 1,
            shared: Shared { frames: file.frames().map(frame).collect() },
            profiles: Which::ALL.map(|which| Profile::of(file, which)),
        };
        f.write_str(&serde_json::to_string(&whole).map_err(|_| fmt::Error)?)
    }
}

/// The file.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Whole<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    exporter: &'static str,
    name: String,
    active_profile_index: usize,
    shared: Shared<'a>,
    profiles: [Profile; 3],
}

/// What all profiles refer to.
#[derive(Serialize)]
struct Shared<'a> {
    frames: Vec<Frame<'a>>,
}

#[derive(Serialize)]
struct Frame<'a> {
    name: &'a str,
    file: &'a str,
    line: u32,
}

/// A stack of frame numbers, outermost first, and a weight for each site that has bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    r#type: &'static str,
    name: &'static str,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}

impl Profile {
    fn of(file: &ProfileFile, which: Which) -> Self {
        let rows = file.rows().filter(|row| row.amount(which).bytes > 0);
        let (samples, weights): (Vec<Vec<usize>>, Vec<u64>) = rows
            .map(|row| {
                let mut stack: Vec<usize> = row.frame_numbers().collect();
                stack.reverse();
                (stack, row.amount(which).bytes)
            })
            .unzip();
        Self {
            r#type: "sampled",
            name: match which {
                Which::Live => "live at the end",
                Which::Peak => "live at the peak",
                Which::Total => "all that was allocated",
            },
            unit: "bytes",
            start_value: 0,
            // A file may say anything.
            end_value: weights.iter().fold(0, |sum, &weight| sum.saturating_add(weight)),
            samples,
            weights,
        }
    }
}
