//! Owns one thread's run of its steps.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use malloc_api::Malloc;

use crate::channel::{Batch, Block, Channel};
use crate::program::{Load, Step, Touch};

/// One end of the channels to and from another thread.
struct Peer<'a> {
    to: &'a Channel,
    from: &'a Channel,
    outgoing: Batch,
    incoming: Batch,
    /// How many of `incoming` are freed already.
    taken: usize,
    /// Frees that were due while nothing had come.
    owed: usize,
}

/// A thread's blocks and channels.
pub(crate) struct Worker<'a, A> {
    malloc: A,
    batch: usize,
    in_turns: bool,
    touch: Touch,
    own: Vec<Option<Block>>,
    peers: Vec<Peer<'a>>,
    /// Blocks allocated and blocks freed since the last `clear`.
    calls: usize,
}

/// Steps between two looks at whether another thread is through.
const STRIDE: usize = 512;

impl<'a, A: Malloc> Worker<'a, A> {
    /// `channels[from][to]` connect the threads.
    pub(crate) fn new(malloc: A, load: &Load, me: usize, channels: &'a [Vec<Channel>]) -> Self {
        let peer = |other: usize| Peer {
            to: &channels[me][other],
            from: &channels[other][me],
            outgoing: Batch::default(),
            incoming: Batch::default(),
            taken: 0,
            owed: 0,
        };
        Self {
            malloc,
            batch: load.batch,
            in_turns: load.in_turns,
            touch: load.touch,
            own: vec![None; load.slots],
            peers: (0..channels.len()).map(peer).collect(),
            calls: 0,
        }
    }

    /// Runs until these steps, or those of another thread, are done, which `is_over` says; returns the number of blocks
    /// allocated and freed.
    pub(crate) fn run(&mut self, steps: &[Step], is_over: &AtomicBool) -> usize {
        for steps in steps.chunks(STRIDE) {
            // Relaxed: a hint when to stop; no data goes with it.
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            steps.iter().for_each(|step| self.step(*step));
        }
        is_over.store(true, Ordering::Relaxed);
        self.calls
    }

    #[inline(always)]
    fn step(&mut self, step: Step) {
        match step {
            Step::Malloc { slot, size } => self.own[slot as usize] = Some(self.make(size)),
            Step::Free { slot } => {
                if let Some(block) = self.own[slot as usize].take() {
                    self.release(block);
                }
            }
            Step::Send { to, size } => self.send(to, size),
            Step::Receive { from } => self.receive(from),
        }
    }

    fn make(&mut self, size: u32) -> Block {
        self.calls += 1;
        let block = self.malloc.malloc(size as usize).expect("memory");
        let bytes = match self.touch {
            Touch::Word => 0,
            Touch::Start(bytes) => bytes.min(size as usize),
            Touch::All => size as usize,
        };
        // SAFETY: a fresh block of `size` bytes.
        unsafe { block.write_bytes(1, bytes) };
        // SAFETY: a fresh block of at least one word.
        unsafe { block.cast::<u64>().write(u64::from(size)) };
        Block { start: block, size }
    }

    /// Reads what the load reads of a live block, and frees it.
    fn release(&mut self, block: Block) {
        if self.touch == Touch::All {
            // SAFETY: a live block of this size, all written.
            let bytes =
                unsafe { std::slice::from_raw_parts(block.start.as_ptr(), block.size as usize) };
            black_box(bytes.iter().map(|byte| usize::from(*byte)).sum::<usize>());
        }
        // SAFETY: (1) a live block, (2) which the callers forget.
        unsafe { self.malloc.free(Some(block.start)) };
        self.calls += 1;
    }

    fn send(&mut self, to: u16, size: u32) {
        let block = self.make(size);
        let peer = &mut self.peers[usize::from(to)];
        peer.outgoing.0.push(block);
        if peer.outgoing.0.len() >= self.batch {
            peer.to.send(&mut peer.outgoing);
            // What the other thread is too slow for.
            self.calls += peer.outgoing.0.len();
            free_all(&self.malloc, &mut peer.outgoing);
            if self.in_turns {
                thread::yield_now();
            }
        }
    }

    fn receive(&mut self, from: u16) {
        let peer = &mut self.peers[usize::from(from)];
        peer.owed += 1;
        if peer.taken == peer.incoming.0.len() && peer.owed % self.batch == 0 {
            peer.incoming.0.clear();
            peer.taken = 0;
            peer.from.receive(&mut peer.incoming);
        }
        let due = peer.owed.min(peer.incoming.0.len() - peer.taken);
        peer.owed -= due;
        for _ in 0..due {
            let peer = &mut self.peers[usize::from(from)];
            let block = peer.incoming.0[peer.taken];
            peer.taken += 1;
            self.release(block);
        }
    }

    /// Frees everything that this thread has or will get; the others no longer send.
    pub(crate) fn clear(&mut self) {
        for block in self.own.iter_mut().filter_map(Option::take) {
            // SAFETY: (1) a live block, (2) gone from the table.
            unsafe { self.malloc.free(Some(block.start)) };
        }
        for peer in &mut self.peers {
            free_all(&self.malloc, &mut peer.outgoing);
            peer.incoming.0.drain(..peer.taken);
            peer.taken = 0;
            free_all(&self.malloc, &mut peer.incoming);
            peer.from.receive(&mut peer.incoming);
            while !peer.incoming.0.is_empty() {
                free_all(&self.malloc, &mut peer.incoming);
                peer.from.receive(&mut peer.incoming);
            }
            peer.owed = 0;
        }
        self.calls = 0;
    }
}

fn free_all(malloc: &impl Malloc, batch: &mut Batch) {
    for block in batch.0.drain(..) {
        // SAFETY: (1) a live block, (2) gone from the batch.
        unsafe { malloc.free(Some(block.start)) };
    }
}
