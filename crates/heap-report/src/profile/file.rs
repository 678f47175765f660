//! Owns `ProfileFile`: a profile as one JSON object, in which each frame and each caller stands once.
//!
//! ```text
//! { "format": "pymem-profile", "version": 1,
//!   "program": ["app.py"], "pid": 17, "mode": "exact" or {"sampled": 524288},
//!   "frames": [[function, file, line], ...],
//!   "nodes":  [[frame, caller], ...],          a caller is the number of an earlier node; none for an outermost frame
//!   "sites":  [[node, domain, class bytes, live bytes, live blocks, peak bytes, peak blocks, all bytes, all blocks], ...],
//!   "lost":   [bytes, blocks],
//!   "kept": 32 }                               what is beyond so many frames of a stack does not tell sites apart
//! ```

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::io::{self, Read, Write};
use std::iter;
use std::sync::Arc;

use heap_profile::{Amount, Location, Snapshot, Stack};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The first member of every file.
pub(super) const FORMAT: &str = "pymem-profile";
/// The version that is written, and the only one that is read.
pub(super) const VERSION: u32 = 1;

/// Stands for the frames of a site that has none.
pub(super) const NO_FRAME: (&str, &str, u32) = ("(no frame)", "", 0);

/// How a profile was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Every block.
    Exact,
    /// One block for this many bytes, on the average.
    Sampled(u64),
}

/// Which of a site's memory is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// What was live when the profile was taken.
    Live,
    /// What was live at the peak.
    Peak,
    /// What was ever allocated.
    Total,
}

impl Which {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Live, Self::Peak, Self::Total];

    /// `live`, `peak` or `total`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Peak => "peak",
            Self::Total => "total",
        }
    }
}

/// A profile as it lies in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileFile {
    format: String,
    version: u32,
    /// The command that was profiled.
    pub program: Vec<String>,
    /// The process that was profiled.
    pub pid: u32,
    /// How it was recorded.
    pub mode: Mode,
    frames: Vec<Frame>,
    nodes: Vec<Node>,
    sites: Vec<SiteRow>,
    lost: (u64, u64),
    /// How many frames of a stack are told; `None` where no stack has more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept: Option<usize>,
    /// Whether the amounts are what a profile has more than an older one.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    grown: bool,
}

/// A function, a file and a line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Frame(String, String, u32);

/// A frame, and the node of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Node(usize, Option<usize>);

/// A site: its node, domain and size class, then bytes and blocks of what is live, was live at the peak, and was ever allocated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SiteRow(Option<usize>, String, u64, u64, u64, u64, u64, u64, u64);

impl SiteRow {
    const fn amounts(&self) -> [u64; 6] {
        let &Self(.., a, b, c, d, e, f) = self;
        [a, b, c, d, e, f]
    }

    /// Puts in the place of each amount what `change` makes of it and of the one that belongs to it, up to the largest number that
    /// there is: a file may say anything.
    fn change(&mut self, by: [u64; 6], change: fn(u64, u64) -> u64) {
        let Self(.., a, b, c, d, e, f) = self;
        let amounts = [a, b, c, d, e, f].into_iter().zip(by);
        amounts.for_each(|(amount, by)| *amount = change(*amount, by));
    }
}

/// One site of a [`ProfileFile`].
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    file: &'a ProfileFile,
    site: &'a SiteRow,
}

/// A file is no profile.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file could be opened, and not read.
    #[error("the file could be opened, and cannot be read; give a file that can be")]
    Io(#[from] io::Error),
    /// The text ends too early, or is no JSON of this shape.
    #[error(
        "this is no profile, or only the beginning of one: give the file that a profiled program has written to its end"
    )]
    Json(#[from] serde_json::Error),
    /// Another format or version.
    #[error(
        "the file says that it is `{format}` version {version}; expected `pymem-profile` version 1: give a profile of this version"
    )]
    Format {
        /// What the file says it is.
        format: String,
        /// Of which version.
        version: u32,
    },
    /// A number refers to nothing.
    #[error("the profile is damaged: it has no {what} {number}, which it names: write it anew")]
    Damaged {
        /// What is referred to.
        what: &'static str,
        /// The number.
        number: usize,
    },
}

impl ProfileFile {
    /// The file of `snapshot`.
    #[must_use]
    pub fn new(snapshot: &Snapshot, program: Vec<String>, pid: u32, mode: Mode) -> Self {
        let mut tree = Tree::default();
        let sites = snapshot.sites.iter().map(|site| {
            let (live, peak, total) = (site.live, site.peak, site.total);
            SiteRow(
                tree.node(&site.stack),
                site.origin.to_string(),
                site.class_bytes,
                live.bytes,
                live.blocks,
                peak.bytes,
                peak.blocks,
                total.bytes,
                total.blocks,
            )
        });
        let sites = sites.collect();
        let lost = (snapshot.lost.bytes, snapshot.lost.blocks);
        let Tree { frames, nodes, .. } = tree;
        let frame = |location: Arc<Location>| {
            let Location { function, file, line } = &*location;
            Frame(function.to_string(), file.to_string(), *line)
        };
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            program,
            pid,
            mode,
            frames: in_order(frames).into_iter().map(frame).collect(),
            nodes: in_order(nodes),
            sites,
            lost,
            kept: None,
            grown: false,
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: it cannot be read, is none, of another version, or damaged.
    pub fn read(mut from: impl Read) -> Result<Self, ReadError> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let mut text = Vec::new();
        from.read_to_end(&mut text)?;
        let Head { format, version } = serde_json::from_slice(&text)?;
        if format != FORMAT || version != VERSION {
            return Err(ReadError::Format { format, version });
        }
        let mut file: Self = serde_json::from_slice(&text)?;
        file.check()?;
        if let Some(kept) = file.kept.take() {
            file.cut(kept);
        }
        Ok(file)
    }

    /// Every number refers to something, and a caller comes before what it calls, so that no stack is endless.
    fn check(&self) -> Result<(), ReadError> {
        let within = |what, number: usize, len: usize| {
            if number < len { Ok(()) } else { Err(ReadError::Damaged { what, number }) }
        };
        for (index, Node(frame, caller)) in self.nodes.iter().enumerate() {
            within("frame", *frame, self.frames.len())?;
            caller.map_or(Ok(()), |caller| within("caller", caller, index))?;
        }
        self.sites.iter().try_for_each(|site| {
            site.0.map_or(Ok(()), |node| within("node", node, self.nodes.len()))
        })
    }

    /// Leaves the `kept` innermost frames of each stack, makes one of sites that do not differ in those, and puts those with the
    /// most live bytes first.
    fn cut(&mut self, kept: usize) {
        let mut nodes: HashMap<Node, usize> = HashMap::new();
        let mut sites: HashMap<_, SiteRow> = HashMap::new();
        for row in self.rows() {
            let stack: Vec<usize> = row.frame_numbers().take(kept).collect();
            let outward = stack.into_iter().rev();
            let node = outward
                .fold(None, |caller, frame| Some(number_of(&mut nodes, Node(frame, caller))));
            match sites.entry((node, row.domain(), row.class_bytes())) {
                Entry::Occupied(mut site) => {
                    site.get_mut().change(row.site.amounts(), u64::saturating_add);
                }
                Entry::Vacant(vacant) => {
                    vacant.insert(row.site.clone()).0 = node;
                }
            }
        }
        let mut sites: Vec<_> = sites.into_values().collect();
        let first = |SiteRow(node, domain, class, live, ..): &SiteRow| {
            (Reverse(*live), *node, domain.clone(), *class)
        };
        sites.sort_by_cached_key(first);
        (self.nodes, self.sites) = (in_order(nodes), sites);
    }

    /// Writes the file.
    ///
    /// # Errors
    ///
    /// Those of `to`.
    pub fn write(&self, to: impl Write) -> io::Result<()> {
        serde_json::to_writer(to, self).map_err(Into::into)
    }

    /// By how much each stack holds more than in the profile `before`, by domain and size class; a stack that holds less
    /// holds nothing.
    #[must_use]
    pub fn since(mut self, before: &Self) -> Self {
        let mut older: HashMap<_, [u64; 6]> = HashMap::new();
        for row in before.rows() {
            let amounts = older.entry(row.key()).or_default();
            amounts
                .iter_mut()
                .zip(row.site.amounts())
                .for_each(|(sum, amount)| *sum = sum.saturating_add(amount));
        }
        let grown = self.rows().map(|row| {
            let mut site = row.site.clone();
            // Once: a second row of the same key is all growth.
            if let Some(older) = older.remove(&row.key()) {
                site.change(older, u64::saturating_sub);
            }
            site
        });
        self.sites = grown.collect();
        self.sites.sort_by_key(|site| Reverse(site.3));
        self.grown = true;
        self
    }

    /// Whether this is what one profile has more than another.
    #[must_use]
    pub const fn is_growth(&self) -> bool {
        self.grown
    }

    /// Every site.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.sites.iter().map(|site| Row { file: self, site })
    }

    /// What was allocated without being recorded.
    #[must_use]
    pub const fn lost(&self) -> Amount {
        Amount { bytes: self.lost.0, blocks: self.lost.1 }
    }

    /// The nodes of the stacks, callers first: each the number of its frame, and its caller's place among the nodes.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (usize, Option<usize>)> {
        self.nodes.iter().map(|&Node(frame, caller)| (frame, caller))
    }

    /// The frames, each once: function, file and line.
    pub(super) fn frames(&self) -> impl Iterator<Item = (&str, &str, u32)> {
        self.frames.iter().map(|Frame(function, file, line)| (&**function, &**file, *line))
    }
}

impl<'a> Row<'a> {
    /// The node of the stack's innermost frame.
    pub(super) const fn node(self) -> Option<usize> {
        self.site.0
    }

    /// The numbers of the stack's frames, innermost first.
    pub(super) fn frame_numbers(self) -> impl Iterator<Item = usize> + 'a {
        let node = move |number: usize| self.file.nodes.get(number);
        iter::successors(self.site.0.and_then(node), move |Node(_, caller)| {
            (*caller).and_then(node)
        })
        .map(|Node(frame, _)| *frame)
    }

    /// The stack, innermost first: function, file and line of each frame.
    pub fn stack(self) -> impl Iterator<Item = (&'a str, &'a str, u32)> {
        self.frame_numbers().filter_map(move |number| {
            let Frame(function, file, line) = self.file.frames.get(number)?;
            Some((&**function, &**file, *line))
        })
    }

    /// What tells the site from all others, in any profile.
    fn key(self) -> (Vec<(&'a str, &'a str, u32)>, &'a str, u64) {
        (self.stack().collect(), self.domain(), self.class_bytes())
    }

    /// `raw`, `mem` or `obj`.
    #[must_use]
    pub fn domain(self) -> &'a str {
        &self.site.1
    }

    /// The largest size of the blocks' class in bytes.
    #[must_use]
    pub const fn class_bytes(self) -> u64 {
        self.site.2
    }

    /// The site's memory.
    #[must_use]
    pub fn amount(self, which: Which) -> Amount {
        let &SiteRow(.., live, live_blocks, peak, peak_blocks, total, total_blocks) = self.site;
        match which {
            Which::Live => Amount { bytes: live, blocks: live_blocks },
            Which::Peak => Amount { bytes: peak, blocks: peak_blocks },
            Which::Total => Amount { bytes: total, blocks: total_blocks },
        }
    }
}

/// Frames and nodes by what they are, numbered as they came.
#[derive(Default)]
struct Tree {
    frames: HashMap<Arc<Location>, usize>,
    nodes: HashMap<Node, usize>,
    /// The frame of each location by its address, and the node of each stack: most are met again and again.
    known_frames: HashMap<*const Location, usize>,
    known_stacks: HashMap<*const Arc<Location>, Option<usize>>,
}

impl Tree {
    /// The node of a stack of a snapshot, innermost frame first.
    fn node(&mut self, stack: &Stack) -> Option<usize> {
        if let Some(node) = self.known_stacks.get(&stack.as_ptr()) {
            return *node;
        }
        let node = stack.iter().rev().fold(None, |caller, location| {
            let frame = self
                .known_frames
                .entry(Arc::as_ptr(location))
                .or_insert_with(|| number_of(&mut self.frames, location.clone()));
            Some(number_of(&mut self.nodes, Node(*frame, caller)))
        });
        self.known_stacks.insert(stack.as_ptr(), node);
        node
    }
}

/// The number of `key`, the next one if it is new.
fn number_of<T: Eq + Hash>(numbered: &mut HashMap<T, usize>, key: T) -> usize {
    let next = numbered.len();
    *numbered.entry(key).or_insert(next)
}

/// The keys of a table in the order of their numbers.
fn in_order<T>(numbered: HashMap<T, usize>) -> Vec<T> {
    let mut pairs: Vec<(T, usize)> = numbered.into_iter().collect();
    pairs.sort_by_key(|&(_, number)| number);
    pairs.into_iter().map(|(key, _)| key).collect()
}
