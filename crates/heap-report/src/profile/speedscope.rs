//! Owns the speedscope file: one profile for each of what is live, was live at the peak, and was ever allocated.

use core::fmt;

use serde_json::{Value, json};

use super::file::{ProfileFile, Which};

/// Writes a profile as a file for speedscope, a viewer of flame graphs, by its published schema.
#[derive(Clone, Copy, Debug)]
pub struct Speedscope<'a>(pub &'a ProfileFile);

impl fmt::Display for Speedscope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.0;
        let frame =
            |(function, file, line)| json!({ "name": function, "file": file, "line": line });
        let frames: Vec<Value> = file.frames().map(frame).collect();
        let profiles: Vec<Value> = Which::ALL.map(|which| profile(file, which)).into();
        let whole = json!({
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "exporter": "pymem",
            "name": file.program.join(" "),
            "activeProfileIndex": 1,
            "shared": { "frames": frames },
            "profiles": profiles,
        });
        whole.fmt(f)
    }
}

fn profile(file: &ProfileFile, which: Which) -> Value {
    let rows = file.rows().filter(|row| row.amount(which).bytes > 0);
    let (samples, weights): (Vec<Vec<usize>>, Vec<u64>) = rows
        .map(|row| {
            let mut stack: Vec<usize> = row.frame_numbers().collect();
            stack.reverse();
            (stack, row.amount(which).bytes)
        })
        .unzip();
    let name = match which {
        Which::Live => "live at the end",
        Which::Peak => "live at the peak",
        Which::Total => "all that was allocated",
    };
    json!({
        "type": "sampled",
        "name": name,
        "unit": "bytes",
        "startValue": 0,
        "endValue": weights.iter().sum::<u64>(),
        "samples": samples,
        "weights": weights,
    })
}
