//! Owns programs that are fitted to a trace: `Histogram` says what the trace asked for, `fitted` asks for the same.

use std::collections::BTreeMap;

use fastrand::Rng;
use malloc_api::Domain;

use crate::op::{Op, OpKind, Trace};

/// How often a trace asked for what, and how many blocks it kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How often each size in bytes was asked for, by domain and kind; frees ask for nothing.
    requests: BTreeMap<(Domain, usize, OpKind), u64>,
    peak_blocks: usize,
}

impl Histogram {
    /// What `trace` asked for.
    #[must_use]
    pub fn of(trace: &Trace) -> Self {
        let mut histogram = Self::default();
        let mut is_live = vec![false; trace.slots as usize];
        let mut live = 0;
        for &op in &trace.ops {
            let slot = &mut is_live[op.slot() as usize];
            live -= usize::from(*slot);
            *slot = op.kind() != OpKind::Free;
            live += usize::from(*slot);
            histogram.peak_blocks = histogram.peak_blocks.max(live);
            if op.kind() != OpKind::Free {
                *histogram.requests.entry((op.domain(), op.size(), op.kind())).or_default() += 1;
            }
        }
        histogram
    }

    /// The sizes in bytes that were asked for, ascending, with how often; domains and kinds together.
    #[must_use]
    pub fn sizes(&self) -> Vec<(usize, u64)> {
        let mut sizes: BTreeMap<usize, u64> = BTreeMap::new();
        for (&(_, size, _), count) in &self.requests {
            *sizes.entry(size).or_default() += count;
        }
        sizes.into_iter().collect()
    }

    /// The most blocks that were live at one time.
    #[must_use]
    pub const fn peak_blocks(&self) -> usize {
        self.peak_blocks
    }
}

/// A request with the number of requests up to and with it, for drawing one in proportion.
type Cumulative = (u64, OpKind, Domain, usize);

/// A random program of `n_ops` operations with the sizes, domains and kinds of the trace in its proportions.
///
/// The program grows to the trace's peak of live blocks, or to a third of `n_ops` if that is less, and then frees as often as
/// it allocates: half the time one of the newest 64 blocks, else any block. The order of sizes and the lifetimes of blocks
/// are not those of the trace. An empty histogram or 0 operations give an empty program.
///
/// # Examples
///
/// ```
/// use malloc_trace::generate::{self, Histogram};
/// use malloc_trace::{Domain, Op, Trace};
///
/// let trace = Trace::new(vec![Op::malloc(0, Domain::Obj, 56), Op::free(0, Domain::Obj), Op::malloc(0, Domain::Obj, 56)]);
/// let ops = generate::fitted(1, 100, &Histogram::of(&trace));
/// assert_eq!(ops.len(), 100);
/// assert_eq!(Histogram::of(&Trace::new(ops)).sizes()[0].0, 56);
/// ```
#[must_use]
pub fn fitted(seed: u64, n_ops: usize, histogram: &Histogram) -> Vec<Op> {
    let mut rng = Rng::with_seed(seed);
    let (fresh, resized) = cumulative(histogram);
    let (Some(&(fresh_total, ..)), resized_total) =
        (fresh.last(), resized.last().map_or(0, |last| last.0))
    else {
        return Vec::new();
    };
    let plateau = histogram.peak_blocks.min(n_ops / 3).max(1);
    let mut live: Vec<(u32, Domain)> = Vec::new();
    let mut empty: Vec<u32> = (0..plateau as u32).rev().collect();
    let mut ops = Vec::with_capacity(n_ops);
    while ops.len() < n_ops {
        let resizes = rng.u64(0..fresh_total + resized_total) >= fresh_total;
        if resizes && !live.is_empty() {
            let (_, _, _, size) = draw(&mut rng, &resized);
            let (slot, domain) = live[rng.usize(0..live.len())];
            ops.push(Op::realloc(slot, domain, size));
        } else if let Some(slot) = empty.pop() {
            let (_, kind, domain, size) = draw(&mut rng, &fresh);
            live.push((slot, domain));
            ops.push(Op::new(kind, slot, domain, size));
        } else {
            let newest = live.len().saturating_sub(64);
            let from = if rng.bool() { newest } else { 0 };
            let (slot, domain) = live.swap_remove(rng.usize(from..live.len()));
            empty.push(slot);
            ops.push(Op::free(slot, domain));
        }
    }
    ops
}

/// Requests for new blocks, and requests of `realloc`, each in ascending order of the running total. A trace that only
/// reallocates has its `realloc`s in both.
fn cumulative(histogram: &Histogram) -> (Vec<Cumulative>, Vec<Cumulative>) {
    let (mut fresh, mut resized) = (Vec::<Cumulative>::new(), Vec::new());
    for (&(domain, size, kind), &count) in &histogram.requests {
        let table = if kind == OpKind::Realloc { &mut resized } else { &mut fresh };
        let before = table.last().map_or(0, |last| last.0);
        table.push((before + count, kind, domain, size));
    }
    if fresh.is_empty() {
        fresh.clone_from(&resized);
    }
    (fresh, resized)
}

/// Draws an entry of a table that is not empty.
fn draw(rng: &mut Rng, table: &[Cumulative]) -> Cumulative {
    let total = table[table.len() - 1].0;
    let drawn = rng.u64(0..total);
    table[table.partition_point(|entry| entry.0 <= drawn)]
}
