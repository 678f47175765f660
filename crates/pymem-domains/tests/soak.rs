//! A load for as long as one likes: 64 threads on every row of the table at once, each block checked by content.
//!
//! ```text
//! PYMEM_SOAK_SECONDS=600 cargo test --release -p pymem-domains --test soak
//! ```
//!
//! Each thread has a table of blocks of every row and domain; an operation makes one, resizes one many times over, frees
//! one, or leaves one with whoever comes next. Sizes go up to 16 MiB. Large blocks are bounded in all, and freed before
//! resident memory is looked at, 20 times a run: in the last quarter its mean may be 5 % more than it was at most in the
//! first half.
//!
//! A block's bytes tell its number: all of them up to 4 KiB, both ends and a word a page beyond. `PYMEM_SOAK_PLANT`, `leak`
//! or `write`, plants a bug that must be seen.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use malloc_api::Malloc;
use pymem_domains::{AllocatorName, Domain, DomainAllocator, Domains, Profile};

const THREADS: usize = 64;
/// Those of a run that was not asked for more.
const FEW_THREADS: usize = 8;
/// Blocks of one thread.
const SLOTS: usize = 64;
/// Times that resident memory is looked at.
const STAGES: u32 = 20;
/// Those before it may grow no more.
const WARM_STAGES: u32 = 10;
/// Those at the end whose mean is compared.
const LAST_STAGES: u32 = 5;
/// Bytes from which a block is large, and how many of those live at a time.
const LARGE: usize = 64 << 10;
const LARGE_TOGETHER: usize = 128 << 20;
const SIZE_MAX: usize = 16 << 20;
/// Bytes up to which every byte is checked, and the ends beyond.
const WHOLE: usize = 4096;
const END: usize = 64;

/// A live block with the number that its bytes are made of.
struct Block {
    start: NonNull<u8>,
    size: usize,
    number: u64,
    allocator: &'static DomainAllocator,
}

// SAFETY: the holder has the block to itself, and the rows are made for calls from any thread.
unsafe impl Send for Block {}

/// The byte at `offset` of block `number`.
fn byte(number: u64, offset: usize) -> u8 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left((offset as u32 & 7) * 8) as u8
}

/// The offsets of a block that are written and checked.
fn offsets(size: usize) -> impl Iterator<Item = usize> {
    let front = if size <= WHOLE { size } else { END };
    let pages = (front..size.saturating_sub(END)).step_by(4096);
    (0..front).chain(pages).chain(size.saturating_sub(END).max(front)..size)
}

struct Load {
    allocators: Vec<DomainAllocator>,
    /// Blocks that wait for whoever comes next.
    left: Vec<Mutex<Option<Block>>>,
    large: AtomicUsize,
    checked: AtomicUsize,
    moved: AtomicUsize,
    numbers: AtomicUsize,
    barrier: Barrier,
    /// Workers go to the barrier.
    stop: AtomicBool,
    /// They end there. Written between the two waits of the barrier alone, as `stop` is set again at any time after them.
    over: AtomicBool,
    plant: Option<String>,
}

impl Load {
    /// Whether a block of `size` bytes may be made beside those that live.
    fn reserve(&self, size: usize) -> bool {
        if size < LARGE {
            return true;
        }
        let before = self.large.fetch_add(size, Relaxed);
        if before + size > LARGE_TOGETHER {
            self.large.fetch_sub(size, Relaxed);
            return false;
        }
        true
    }

    fn unreserve(&self, size: usize) {
        if size >= LARGE {
            self.large.fetch_sub(size, Relaxed);
        }
    }

    fn fill(&self, block: &Block) {
        for offset in offsets(block.size) {
            // SAFETY: `offset < size`.
            let place = unsafe { block.start.add(offset) };
            // SAFETY: a byte of the block.
            unsafe { place.write(byte(block.number, offset)) };
        }
    }

    fn check(&self, block: &Block, size: usize) {
        for offset in offsets(block.size).filter(|offset| *offset < size) {
            // SAFETY: `offset` is below the block's size.
            let place = unsafe { block.start.add(offset) };
            // SAFETY: a byte of the block, which was written.
            let found = unsafe { place.read() };
            assert_eq!(found, byte(block.number, offset), "byte {offset} of {}", block.size);
        }
        self.checked.fetch_add(1, Relaxed);
    }

    fn free(&self, block: Block) {
        self.check(&block, usize::MAX);
        self.unreserve(block.size);
        if self.plant.as_deref() == Some("leak") && block.number % 50 == 0 {
            return;
        }
        if self.plant.as_deref() == Some("write") && block.number % 100_000 == 77 && block.size > 0
        {
            // The last byte of a block that somebody has from now on.
            // SAFETY: the planted bug.
            unsafe { block.allocator.free(Some(block.start)) };
            thread::sleep(Duration::from_millis(1));
            // SAFETY: the planted bug.
            unsafe { block.start.write_bytes(0x77, block.size.min(64)) };
            return;
        }
        // SAFETY: live, and not used again.
        unsafe { block.allocator.free(Some(block.start)) };
    }
}

struct Worker {
    load: &'static Load,
    rng: Rng,
    slots: Vec<Option<Block>>,
}

impl Worker {
    fn size(&mut self) -> usize {
        match self.rng.u32(0..10_000) {
            0..2 => self.rng.usize(0..=SIZE_MAX),
            2..20 => self.rng.usize(0..1 << 20),
            20..800 => self.rng.usize(0..16 << 10),
            _ => self.rng.usize(0..=600),
        }
    }

    fn make(&mut self) -> Option<Block> {
        let size = self.size();
        let allocator = &self.load.allocators[self.rng.usize(0..self.load.allocators.len())];
        if !self.load.reserve(size) {
            return None;
        }
        let zeroed = self.rng.u8(0..4) == 0;
        let start = if zeroed { allocator.calloc(size, 1) } else { allocator.malloc(size) };
        let start = start.unwrap_or_else(|| panic!("no memory for {size} bytes"));
        if zeroed {
            let is_zero = |offset: usize| {
                // SAFETY: the block has `size` bytes, and `calloc` wrote them.
                unsafe { start.as_ptr().wrapping_add(offset).read() == 0 }
            };
            assert!(offsets(size).all(is_zero), "calloc of {size} bytes is not zero");
        }
        assert_eq!(start.addr().get() % 16, 0, "{start:?} is not aligned");
        let number = self.load.numbers.fetch_add(1, Relaxed) as u64;
        let block = Block { start, size, number, allocator };
        self.load.fill(&block);
        Some(block)
    }

    fn resize(&mut self, mut block: Block, times: usize) -> Block {
        for _ in 0..times {
            let new = self.size();
            if !self.load.reserve(new) {
                continue;
            }
            self.load.check(&block, usize::MAX);
            // SAFETY: live, and replaced by the answer.
            let start = unsafe { block.allocator.realloc(Some(block.start), new) };
            let start = start.unwrap_or_else(|| panic!("no memory for {new} bytes"));
            self.load.moved.fetch_add(usize::from(start != block.start), Relaxed);
            self.load.unreserve(block.size);
            let old = Block { start, ..block };
            self.load.check(&old, new);
            block = Block { start, size: new, ..old };
            self.load.fill(&block);
        }
        block
    }

    fn step(&mut self) {
        let slot = self.rng.usize(0..SLOTS);
        let Some(block) = self.slots[slot].take() else {
            self.slots[slot] = self.make();
            return;
        };
        match self.rng.u8(0..20) {
            0 => self.slots[slot] = Some(self.resize(block, 20)),
            1..5 => self.slots[slot] = Some(self.resize(block, 1)),
            5..9 => {
                let place = self.rng.usize(0..self.load.left.len());
                let other = self.load.left[place].lock().expect("no panic").replace(block);
                if let Some(other) = other {
                    self.load.free(other);
                }
            }
            _ => self.load.free(block),
        }
    }

    fn run(mut self) {
        loop {
            while !self.load.stop.load(Relaxed) {
                for _ in 0..100 {
                    self.step();
                }
            }
            for slot in 0..SLOTS {
                if let Some(large) = self.slots[slot].take_if(|block| block.size >= LARGE) {
                    self.load.free(large);
                }
            }
            // The main thread looks at resident memory between the two, and says whether that was the last time.
            self.load.barrier.wait();
            self.load.barrier.wait();
            if self.load.over.load(Relaxed) {
                break;
            }
        }
        for block in std::mem::take(&mut self.slots).into_iter().flatten() {
            self.load.free(block);
        }
    }
}

/// Resident memory of this process, in KiB.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("/proc is mounted");
    let pages = pages.split(' ').nth(1).and_then(|text| text.parse::<usize>().ok());
    pages.expect("a number of pages") * 4
}

fn main() {
    // Another thread's barrier would wait for ever.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("soak: {info}");
        std::process::exit(1)
    }));
    let variable = |name| std::env::var(name).ok();
    let seconds = variable("PYMEM_SOAK_SECONDS").and_then(|text| text.parse().ok());
    let threads = if seconds.is_some() { THREADS } else { FEW_THREADS };
    let stage = Duration::from_secs_f64(seconds.unwrap_or(1.0) / f64::from(STAGES));
    let only = variable("PYMEM_SOAK_ROW");
    let names = AllocatorName::ALL.into_iter();
    let rows: Vec<Domains> = names
        .filter(|name| only.as_deref().is_none_or(|only| only == name.as_str()))
        .map(|name| Domains::new(Profile::NEWEST, Some(name)).expect("a row of the profile"))
        .collect();
    let allocators: Vec<DomainAllocator> =
        rows.iter().flat_map(|row| Domain::ALL.map(|domain| row.get(domain))).collect();
    let load: &'static Load = Box::leak(Box::new(Load {
        allocators,
        left: std::iter::repeat_with(|| Mutex::new(None)).take(256).collect(),
        large: AtomicUsize::new(0),
        checked: AtomicUsize::new(0),
        moved: AtomicUsize::new(0),
        numbers: AtomicUsize::new(0),
        barrier: Barrier::new(threads + 1),
        stop: AtomicBool::new(false),
        over: AtomicBool::new(false),
        plant: variable("PYMEM_SOAK_PLANT"),
    }));
    let begin = Instant::now();
    let workers: Vec<_> = (0..threads as u64)
        .map(|seed| {
            let slots = std::iter::repeat_with(|| None).take(SLOTS).collect();
            let worker = Worker { load, rng: Rng::with_seed(seed), slots };
            thread::spawn(|| worker.run())
        })
        .collect();
    let (mut warm, mut last) = (0, 0);
    for number in 1..=STAGES {
        thread::sleep(stage);
        load.stop.store(true, Relaxed);
        load.barrier.wait();
        for place in &load.left {
            let large = place.lock().expect("no panic").take_if(|block| block.size >= LARGE);
            large.into_iter().for_each(|block| load.free(block));
        }
        let now = resident();
        if number <= WARM_STAGES {
            warm = now.max(warm);
        }
        if number > STAGES - LAST_STAGES {
            last += now / LAST_STAGES as usize;
        }
        load.stop.store(false, Relaxed);
        load.over.store(number == STAGES, Relaxed);
        load.barrier.wait();
    }
    for worker in workers {
        worker.join().expect("a panic ends the process");
    }
    let checked = load.checked.load(Relaxed);
    let moved = load.moved.load(Relaxed);
    let growth = last as f64 / warm as f64 - 1.0;
    println!(
        "soak: {checked} blocks checked ({moved} moved) in {:.0} s by {threads} threads on {} rows; resident {warm} KiB warm, \
         {last} KiB at the end ({:+.1} %)",
        begin.elapsed().as_secs_f64(),
        rows.len(),
        100.0 * growth
    );
    assert!(checked > 1_000);
    assert!(growth <= 0.05 || seconds.is_none(), "resident memory grew by {:.1} %", 100.0 * growth);
}
