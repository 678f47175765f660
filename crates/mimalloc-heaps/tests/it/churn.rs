//! Churn: threads come, allocate, free and go, 16 at a time; a third of the blocks is freed by others; every block is checked.

use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use malloc_api::testing::resident_bytes;
use mimalloc_heaps::{HeapKind, InterpreterHeaps, ThreadHeaps};

const LANES: usize = 16;
const BLOCKS: usize = 160;

struct Filled(NonNull<u8>, usize, u8);
// SAFETY: mimalloc takes back blocks on any thread, and a block is in one place at a time.
unsafe impl Send for Filled {}

impl Filled {
    fn new(heaps: &ThreadHeaps, number: usize, random: &mut fastrand::Rng) -> Self {
        let bytes = random.usize(1..if number % 64 == 0 { 20_000 } else { 400 });
        let block = heaps.malloc(HeapKind::ALL[number % 2], bytes).expect("memory");
        // SAFETY: a live block of `bytes` bytes.
        unsafe { block.as_ptr().write_bytes(number as u8, bytes) };
        Self(block, bytes, number as u8)
    }

    fn check_and_free(self, heaps: &ThreadHeaps) {
        // SAFETY: a live block of that size.
        let content = unsafe { std::slice::from_raw_parts(self.0.as_ptr(), self.1) };
        assert!(content.iter().all(|&byte| byte == self.2), "a block lost its content");
        // SAFETY: (1) live and (2) not used afterwards.
        unsafe { heaps.free(Some(self.0)) };
    }
}

/// What a churn has done.
#[derive(Debug, Default)]
pub(crate) struct Churn {
    /// Threads that have come and gone.
    pub(crate) lives: AtomicUsize,
    /// Blocks allocated and blocks freed.
    pub(crate) operations: AtomicUsize,
    /// Of those, blocks freed by a thread that had not allocated them.
    pub(crate) freed_by_others: AtomicUsize,
    inboxes: [Mutex<Vec<Filled>>; LANES],
}

impl std::fmt::Debug for Filled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.1)
    }
}

impl Churn {
    /// One thread's life: frees what others have sent, allocates, sends a third away and frees the rest.
    fn live(&self, interpreter: &InterpreterHeaps, lane: usize, seed: usize) {
        let heaps = interpreter.attach().expect("heaps");
        let mut random = fastrand::Rng::with_seed(seed as u64);
        let inbox = std::mem::take(&mut *self.inboxes[lane].lock().expect("whole"));
        self.freed_by_others.fetch_add(inbox.len(), Ordering::Relaxed);
        self.operations.fetch_add(BLOCKS * 5 / 3 + inbox.len(), Ordering::Relaxed);
        inbox.into_iter().for_each(|block| block.check_and_free(&heaps));
        let mut blocks: Vec<_> =
            (0..BLOCKS).map(|number| Filled::new(&heaps, number, &mut random)).collect();
        random.shuffle(&mut blocks);
        let sent = blocks.split_off(BLOCKS * 2 / 3);
        blocks.into_iter().for_each(|block| block.check_and_free(&heaps));
        self.inboxes[(lane + 1) % LANES].lock().expect("whole").extend(sent);
        self.lives.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs for `time`, every lane at least once, and returns the mean resident bytes of its second and of its last quarter.
    pub(crate) fn run(&self, interpreter: &InterpreterHeaps, time: Duration) -> [usize; 2] {
        let start = Instant::now();
        thread::scope(|scope| {
            for lane in 0..LANES {
                scope.spawn(move || {
                    let goes_on = |life: &usize| *life < LANES || start.elapsed() < time;
                    for life in (lane..).step_by(LANES).take_while(goes_on) {
                        let life = || self.live(interpreter, lane, life);
                        thread::scope(|scope| scope.spawn(life).join()).expect("a life");
                    }
                });
            }
            [1, 3].map(|quarter| {
                thread::sleep((time * quarter / 4).saturating_sub(start.elapsed()));
                let samples = 100_u32;
                let sum: usize = (0..samples)
                    .map(|_| {
                        thread::sleep(time / 4 / samples);
                        resident_bytes()
                    })
                    .sum();
                sum / samples as usize
            })
        })
    }
}

#[test]
fn half_a_second_of_churn_keeps_every_block() {
    let interpreter = InterpreterHeaps::new().expect("heaps");
    let churn = Churn::default();
    churn.run(&interpreter, Duration::from_millis(500));
    assert!(churn.lives.into_inner() >= LANES, "a lane has not lived");
    let left: usize = churn.inboxes.iter().map(|inbox| inbox.lock().expect("whole").len()).sum();
    let live: usize =
        HeapKind::ALL.map(|kind| crate::visit::blocks_of(&interpreter, kind)).iter().sum();
    assert_eq!(live, left, "blocks that nobody has sent are live, or the other way round");
}
