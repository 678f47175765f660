//! Owns one thread's run of its steps.

use std::ptr::NonNull;
use std::thread;

use malloc_api::Malloc;

use crate::channel::{Batch, Channel};
use crate::program::{Load, Step};

/// One end of the channels to and from another thread.
struct Peer<'a> {
    to: &'a Channel,
    from: &'a Channel,
    outgoing: Batch,
    incoming: Batch,
    /// Frees that were due while nothing had come.
    owed: usize,
}

/// A thread's blocks and channels.
pub(crate) struct Worker<'a, A> {
    malloc: A,
    batch: usize,
    in_turns: bool,
    own: Vec<Option<NonNull<u8>>>,
    peers: Vec<Peer<'a>>,
}

impl<'a, A: Malloc> Worker<'a, A> {
    /// `channels[from][to]` connect the threads.
    pub(crate) fn new(malloc: A, load: &Load, me: usize, channels: &'a [Vec<Channel>]) -> Self {
        let peer = |other: usize| Peer {
            to: &channels[me][other],
            from: &channels[other][me],
            outgoing: Batch::default(),
            incoming: Batch::default(),
            owed: 0,
        };
        Self {
            malloc,
            batch: load.batch,
            in_turns: load.in_turns,
            own: vec![None; load.slots],
            peers: (0..channels.len()).map(peer).collect(),
        }
    }

    pub(crate) fn run(&mut self, steps: &[Step]) {
        for step in steps {
            match *step {
                Step::Malloc { slot, size } => self.own[slot as usize] = Some(self.make(size)),
                // SAFETY: (1) a live block, (2) gone from the table.
                Step::Free { slot } => unsafe { self.malloc.free(self.own[slot as usize].take()) },
                Step::Send { to, size } => self.send(to, size),
                Step::Receive { from } => self.receive(from),
            }
        }
    }

    fn make(&self, size: u32) -> NonNull<u8> {
        let block = self.malloc.malloc(size as usize).expect("memory");
        // SAFETY: a fresh block of at least one word.
        unsafe { block.cast::<u64>().write(u64::from(size)) };
        block
    }

    fn send(&mut self, to: u16, size: u32) {
        let block = self.make(size);
        let peer = &mut self.peers[usize::from(to)];
        peer.outgoing.0.push(block);
        if peer.outgoing.0.len() >= self.batch {
            peer.to.send(&mut peer.outgoing);
            // What the other thread is too slow for.
            free_all(&self.malloc, &mut peer.outgoing);
            if self.in_turns {
                thread::yield_now();
            }
        }
    }

    fn receive(&mut self, from: u16) {
        let peer = &mut self.peers[usize::from(from)];
        peer.owed += 1;
        if peer.incoming.0.is_empty() && peer.owed % self.batch == 0 {
            peer.from.receive(&mut peer.incoming);
        }
        while peer.owed > 0
            && let Some(block) = peer.incoming.0.pop()
        {
            // SAFETY: (1) a live block, (2) gone from the batch.
            unsafe { self.malloc.free(Some(block)) };
            peer.owed -= 1;
        }
    }

    /// Frees everything that this thread has or will get; the others no longer send.
    pub(crate) fn clear(&mut self) {
        for block in self.own.iter_mut().filter_map(Option::take) {
            // SAFETY: (1) a live block, (2) gone from the table.
            unsafe { self.malloc.free(Some(block)) };
        }
        for peer in &mut self.peers {
            free_all(&self.malloc, &mut peer.outgoing);
            free_all(&self.malloc, &mut peer.incoming);
            peer.from.receive(&mut peer.incoming);
            while !peer.incoming.0.is_empty() {
                free_all(&self.malloc, &mut peer.incoming);
                peer.from.receive(&mut peer.incoming);
            }
            peer.owed = 0;
        }
    }
}

fn free_all(malloc: &impl Malloc, batch: &mut Batch) {
    for block in batch.0.drain(..) {
        // SAFETY: (1) a live block, (2) gone from the batch.
        unsafe { malloc.free(Some(block)) };
    }
}
