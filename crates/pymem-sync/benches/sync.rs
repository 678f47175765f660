//! What the hot paths cost: retire and reclaim with two attached threads, the lock, the stack, the record.
#![allow(missing_docs, reason = "criterion writes the functions")]

use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pymem_sync::qsbr::{Collector, Delayed, Domain, Limits, Participant, Reclaim};
use pymem_sync::{Lock, Published, RemoteStack};

/// A block by address and size, as an allocator retires it; freeing it costs nothing here.
struct Block {
    address: usize,
    bytes: usize,
}

impl Reclaim for Block {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn reclaim(self) {
        black_box(self.address);
    }
}

/// One thread retires and reports quiescent states; another one is attached and only reports.
fn retire_and_reclaim(criterion: &mut Criterion) {
    const BATCH: u64 = 1024;
    let domain = Domain::new();
    let collector = domain.collector();
    let stop = AtomicBool::new(false);
    let mut group = criterion.benchmark_group("qsbr");
    group.throughput(Throughput::Elements(BATCH));
    thread::scope(|scope| {
        scope.spawn(|| {
            let reader = Participant::register(collector).unwrap();
            reader.attach();
            while !stop.load(Ordering::Relaxed) {
                reader.quiescent_state();
                std::hint::spin_loop();
            }
            reader.detach();
        });
        let me = Participant::register(collector).unwrap();
        me.attach();
        let delayed = Delayed::new(&domain, Limits::default()).unwrap();
        group.bench_function("1024 blocks retired and reclaimed, 2 attached", |bencher| {
            bencher.iter(|| {
                for address in 0..BATCH as usize {
                    // SAFETY: (1), (2), (3) nobody can reach the addresses.
                    let _ = black_box(unsafe { delayed.retire(Block { address, bytes: 64 }) });
                    me.quiescent_state();
                }
            });
        });
        me.detach();
        stop.store(true, Ordering::Relaxed);
    });
    group.finish();
}

fn readers(criterion: &mut Criterion) {
    let collector = &Collector::new();
    let me = Participant::register(collector).unwrap();
    let mut group = criterion.benchmark_group("participant");
    group.bench_function("attach and detach", |bencher| {
        bencher.iter(|| {
            me.attach();
            me.detach();
        });
    });
    me.attach();
    group.bench_function("quiescent state, nothing new", |bencher| {
        bencher.iter(|| me.quiescent_state());
    });
    group.bench_function("advance and poll", |bencher| {
        bencher.iter(|| {
            let goal = collector.advance();
            me.quiescent_state();
            black_box(collector.poll(goal))
        });
    });
    me.detach();
    group.finish();
}

fn structures(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("structures");
    let lock = Lock::new(0_u64);
    group.bench_function("lock and unlock", |bencher| bencher.iter(|| *lock.lock() += 1));
    static RECORD: u64 = 7;
    let published = Published::new(&RECORD);
    group.bench_function("load a record", |bencher| bencher.iter(|| *published.load()));
    let stack = RemoteStack::new();
    let mut words = [0_usize; 2];
    group.bench_function("push and drain a block", |bencher| {
        bencher.iter(|| {
            // SAFETY: (1) a block of two words; (2) drained before it is used again.
            unsafe { stack.push(NonNull::from(&mut words).cast()) };
            stack.drain().count()
        });
    });
    group.bench_function("find an empty stack", |bencher| bencher.iter(|| stack.drain().count()));
    group.finish();
}

criterion_group!(benches, retire_and_reclaim, readers, structures);
criterion_main!(benches);
