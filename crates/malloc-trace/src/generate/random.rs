//! Owns the programs that tests use: `random` for whole programs from a seed, `op_from_bits` for programs that a
//! property test or a fuzzer chooses and shrinks bit by bit.

use fastrand::Rng;
use malloc_api::Domain;

use crate::op::{Op, OpKind};

/// Sizes on both sides of what allocators cut at: words, pymalloc's limit, pages, pools, mimalloc's limits.
const EDGES: [usize; 9] = [0, 16, 64, 512, 1024, 4096, 16_384, 32_768, 131_072];

/// One operation in this many ignores the state of its slot.
const ODD_ONE_IN: u32 = 50;

/// A random program of `n_ops` operations with sizes of 0 to `max_size` bytes, in all three domains.
///
/// Sizes crowd where programs and allocators have theirs: small ones, both sides of usual limits, and the same size
/// many times in a row. Phases of growth and shrinkage follow each other, so that an allocator's arenas fill and
/// empty. Most operations fit the state of their slot; one in 50 is a `malloc` into a full
/// slot or `free(None)`. Blocks may be live at the end. 0 operations give an empty program;
/// `max_size` saturates at [`Op::MAX_SIZE`].
///
/// # Examples
///
/// ```
/// use malloc_trace::{generate, run};
///
/// let ops = generate::random(1, 1000, 4096);
/// assert_eq!(run(&ops, &malloc_api::LibcMalloc)?.ops, 1000);
/// # Ok::<(), malloc_trace::ModelError>(())
/// ```
#[must_use]
pub fn random(seed: u64, n_ops: usize, max_size: usize) -> Vec<Op> {
    let mut rng = Rng::with_seed(seed);
    let max_size = max_size.min(Op::MAX_SIZE);
    let slots = (n_ops / 4).clamp(8, 1 << 16) as u32;
    let mut empty: Vec<u32> = (0..slots).rev().collect();
    let mut live: Vec<u32> = Vec::new();
    let mut phase = Phase::new(&mut rng, max_size);
    let mut ops = Vec::with_capacity(n_ops);
    while ops.len() < n_ops {
        if phase.length == 0 {
            phase = Phase::new(&mut rng, max_size);
        }
        phase.length -= 1;
        let domain = Domain::ALL[usize::from(rng.u8(0..3))];
        let size = phase.size(&mut rng, max_size);
        if rng.u32(0..ODD_ONE_IN) == 0 {
            let odd = if rng.bool() {
                rng.choice(&live).map(|&slot| Op::malloc(slot, domain, size))
            } else {
                rng.choice(&empty).map(|&slot| Op::free(slot, domain))
            };
            if let Some(odd) = odd {
                ops.push(odd);
                continue;
            }
        }
        let grows = rng.u8(0..100) < phase.growth;
        if rng.u8(0..100) < 15 && !live.is_empty() {
            ops.push(Op::realloc(live[rng.usize(0..live.len())], domain, size));
        } else if (grows && !empty.is_empty()) || live.is_empty() {
            // The loop ends here at the latest: one of the two lists always holds a slot.
            let Some(slot) = empty.pop() else { continue };
            live.push(slot);
            ops.push(match rng.u8(0..10) {
                0..=6 => Op::malloc(slot, domain, size),
                7..=8 => Op::calloc(slot, domain, size),
                _ => Op::realloc(slot, domain, size),
            });
        } else {
            // The newest block, the oldest, or any: stacks, queues and heaps.
            let at = match rng.u8(0..4) {
                0 => live.len() - 1,
                1 => 0,
                _ => rng.usize(0..live.len()),
            };
            let slot = live.swap_remove(at);
            empty.push(slot);
            ops.push(Op::free(slot, domain));
        }
    }
    ops
}

/// A stretch of a program with one tendency.
struct Phase {
    /// Operations left in it.
    length: usize,
    /// Per cent of allocations among the operations that are not reallocations.
    growth: u8,
    /// The size that half its requests have, in bytes.
    favourite: usize,
}

impl Phase {
    fn new(rng: &mut Rng, max_size: usize) -> Self {
        Self {
            length: rng.usize(1..400),
            growth: [10, 30, 50, 70, 90][rng.usize(0..5)],
            favourite: any_size(rng, max_size),
        }
    }

    fn size(&self, rng: &mut Rng, max_size: usize) -> usize {
        if rng.bool() { self.favourite } else { any_size(rng, max_size) }
    }
}

fn any_size(rng: &mut Rng, max_size: usize) -> usize {
    let size = match rng.u8(0..16) {
        0 => 0,
        1..=8 => rng.usize(0..=512),
        9..=11 => {
            let edge = EDGES[rng.usize(0..EDGES.len())];
            (edge + rng.usize(0..3)).saturating_sub(1)
        }
        // As many sizes between 2^k and 2^(k+1) for each k.
        _ => rng.usize(0..=max_size) >> rng.u32(0..=max_size.checked_ilog2().unwrap_or(0)),
    };
    if size <= max_size { size } else { rng.usize(0..=max_size) }
}

/// The operation that the 64 bits choose, on one of `slots` slots, with a size of 0 to `max_size` bytes.
///
/// Every value gives an operation, and smaller values give simpler ones (slot 0, raw, small sizes), so property
/// tests shrink well: `proptest::collection::vec(any::<u64>(), ..)` mapped through it is a strategy for programs.
/// 0 slots count as 1; `max_size` saturates at [`Op::MAX_SIZE`].
///
/// # Examples
///
/// ```
/// use malloc_trace::{Domain, Op, generate::op_from_bits};
///
/// assert_eq!(op_from_bits(0, 16, 1000), Op::malloc(0, Domain::Raw, 0));
/// ```
#[must_use]
pub fn op_from_bits(bits: u64, slots: u32, max_size: usize) -> Op {
    // bits 0-1 kind, 2-3 domain, 4-7 how far the size is scaled down, 8-31 slot, 32-63 size.
    let kind = match bits & 3 {
        0 => OpKind::Malloc,
        1 => OpKind::Free,
        2 => OpKind::Realloc,
        _ => OpKind::Calloc,
    };
    let domain = Domain::ALL[(bits >> 2 & 3) as usize % 3];
    let slot = (bits >> 8 & 0xff_ffff) as u32 % slots.max(1);
    let scale = bits >> 4 & 15;
    let max_size = (max_size.min(Op::MAX_SIZE) >> scale) as u64;
    let size = if kind == OpKind::Free { 0 } else { (bits >> 32) % (max_size + 1) };
    Op::new(kind, slot, domain, size as usize)
}

/// The program that a fuzzer's bytes choose: [`op_from_bits`] of each 8 bytes; a shorter rest is ignored.
#[must_use]
pub fn ops_from_bytes(bytes: &[u8], slots: u32, max_size: usize) -> Vec<Op> {
    let words = bytes.chunks_exact(8).map(|chunk| {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.map(|bits| op_from_bits(bits, slots, max_size)).collect()
}
