//! Owns what a thread has of an allocator: its magazines, the slot in which it finds them, and its end. Leaves to `depot.rs` which
//! magazines there are, and to `exchange.rs` when blocks move between them and the pools.
//!
//! A block in a magazine is live for the pools and free for everybody else: it is counted as free, and pins its pool. A magazine
//! begins with room for 16 blocks and has room for 8 KiB at most, so that a thread pins little; for 32 KiB where threads meet.
//!
//! A slot is a word of every thread at the same distance from the thread pointer. The words stand in the memory that a program has
//! for variables of its threads from the start (the model "initial exec"), so that a library finds them without a call, which a
//! `thread_local!` of Rust does not promise.

use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use pymem_sync::Rack;

use crate::config::POOL_SHIFT;
use crate::lane::Lane;
use crate::policy::{MAGAZINE_BLOCKS, MAGAZINE_BYTES, MEETING_BLOCKS, MEETING_BYTES};
use crate::size_class::{ROWS, SizeClass};

/// The most blocks in the magazine of a class byte: of a thread that meets others, or of one that does not.
const fn limit(row: usize, meets: bool) -> usize {
    let (most, bytes) = match meets {
        false => (MAGAZINE_BLOCKS, MAGAZINE_BYTES),
        true => (MEETING_BLOCKS, MEETING_BYTES),
    };
    let Some(class) = SizeClass::from_byte(row as u8) else { return 0 };
    let blocks = bytes / class.size();
    if blocks < most { blocks } else { most }
}

/// Blocks in all magazines of a thread that meets others.
const PLACES: usize = {
    let (mut row, mut places) = (0, 0);
    while row < ROWS {
        places += limit(row, true);
        row += 1;
    }
    places
};

/// An allocator whose threads have magazines, as their ends see it.
pub(crate) trait Home: Sync {
    /// Takes the blocks of a thread that ends.
    ///
    /// # Safety
    ///
    /// 1. The calling thread owns `magazines`, which are this allocator's, and does not use them any more.
    #[allow(dead_code, reason = "not every system says when a thread ends")]
    unsafe fn take_from_ended(&self, magazines: &'static Magazines);
}

/// Where an allocator's blocks are, for an address test without the lock: the source's span, and the class byte of each unit
/// of it, which stay where they are.
#[derive(Clone, Copy)]
pub(crate) struct FixedMap {
    pub(crate) base: usize,
    pub(crate) bytes: usize,
    pub(crate) classes: *const u8,
}

/// The magazines of one thread, one for each class byte.
#[repr(C)]
pub(crate) struct Magazines {
    ties: Ties,
    /// Whether they wait for a thread; as the next two, read and written under the allocator's lock.
    pub(crate) is_free: Cell<bool>,
    /// The lane from whose pools they are filled.
    lane: Cell<Lane>,
    /// How often their thread has waited for the lock.
    meetings: Cell<u8>,
    /// Last, as most of the places are never touched.
    pub(crate) rack: Rack<ROWS, PLACES>,
}

/// What the magazines of a thread belong to.
struct Ties {
    map: FixedMap,
    /// `None` for those that take and give nothing.
    home: Option<&'static dyn Home>,
    next: Option<&'static Magazines>,
}

// SAFETY: of a magazine other threads call nothing but what any thread may; the cells are used under the lock, `classes` leads to a
// table of bytes of which each is read by those who have a block there, and the rest is written before it is shared.
unsafe impl Sync for Magazines {}

/// Those of a thread that is not known yet.
pub(crate) static UNKNOWN: Magazines = Magazines::nobodys();
/// Those of a thread that ends, or has no memory for its own.
pub(crate) static NONE: Magazines = Magazines::nobodys();

impl Magazines {
    const fn nobodys() -> Self {
        Self {
            ties: Ties {
                map: FixedMap { base: 0, bytes: 0, classes: core::ptr::null() },
                home: None,
                next: None,
            },
            is_free: Cell::new(false),
            lane: Cell::new(Lane::FIRST),
            meetings: Cell::new(0),
            rack: Rack::new(),
        }
    }

    /// Empty magazines for a thread of `home`, in `place`.
    ///
    /// # Safety
    ///
    /// 1. At `place` are zero bytes, enough for magazines, that nobody else uses and that stay.
    pub(crate) unsafe fn place(
        place: NonNull<u8>,
        map: FixedMap,
        home: &'static dyn Home,
        next: Option<&'static Self>,
    ) -> &'static Self {
        let place = place.cast::<Self>();
        // Not the rack: most of it is not touched before it is used.
        // SAFETY: 1: the field is in the place.
        let ties = unsafe { place.byte_add(core::mem::offset_of!(Self, ties)) };
        // SAFETY: 1: nobody else uses the place.
        unsafe { ties.cast::<Ties>().write(Ties { map, home: Some(home), next }) };
        // SAFETY: 1: zero bytes are a rack and say that the magazines are not free; the rest is written above.
        let magazines = unsafe { place.as_ref() };
        // SAFETY: 1: nobody else has them.
        unsafe { magazines.begin() };
        magazines
    }

    /// The lane whose pools fill these.
    pub(crate) fn lane(&self) -> Lane {
        self.lane.get()
    }

    /// How often the thread has waited for the lock.
    pub(crate) fn meetings(&self) -> u8 {
        self.meetings.get()
    }

    /// Notes that the thread has waited for the lock once more.
    pub(crate) fn meet(&self) {
        self.meetings.set(self.meetings.get().saturating_add(1));
    }

    /// Puts the magazines, which are empty, into `lane`, with more room.
    ///
    /// # Safety
    ///
    /// 1. The calling thread owns them, under the allocator's lock.
    pub(crate) unsafe fn enter(&self, lane: Lane) {
        self.lane.set(lane);
        // SAFETY: 1: the caller's.
        unsafe { self.rack.lay_out(|row| limit(row, true)) };
    }

    /// Puts the magazines, which are empty, into the first lane, as those of a thread that has met nobody.
    ///
    /// # Safety
    ///
    /// 1. The calling thread owns them, under the allocator's lock.
    pub(crate) unsafe fn begin(&self) {
        self.meetings.set(0);
        self.lane.set(Lane::FIRST);
        // SAFETY: 1: the caller's.
        unsafe { self.rack.lay_out(|row| limit(row, false)) };
    }

    /// Whose these are.
    pub(crate) fn home(&self) -> Option<&'static dyn Home> {
        self.ties.home
    }

    /// Those of another thread of the same allocator, which began before.
    pub(crate) fn next(&self) -> Option<&'static Self> {
        self.ties.next
    }

    /// The class byte of a block at `address`; 0 if the block is not in the span, or its pool's class has none.
    ///
    /// # Safety
    ///
    /// 1. A live block of the allocator begins at `address`.
    #[inline(always)]
    pub(crate) unsafe fn class_byte(&self, address: usize) -> u8 {
        let offset = address.wrapping_sub(self.ties.map.base);
        if offset >= self.ties.map.bytes {
            return 0;
        }
        // SAFETY: the table covers the span (`AddressMap::fix_table`), and nobody writes the byte while the block lives (1).
        unsafe { *self.ties.map.classes.wrapping_add(offset >> POOL_SHIFT) }
    }
}

/// Words of a thread: one that never has magazines, one of allocators that have asked for none yet, and those that are claimed.
const WORDS: usize = 10;
const NEVER: usize = 0;
const UNCLAIMED: usize = 1;

/// The word of every thread for one allocator.
#[derive(Clone, Copy)]
pub(crate) struct Slot(
    /// Invariant 1: the distance of a word from the thread pointer, as `thread::offset` has it.
    usize,
);

impl Slot {
    /// A word of its own for an allocator; that in which magazines never are if there is none left, or no memory for the ends of
    /// threads.
    pub(crate) fn claim() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(UNCLAIMED + 1);
        let index = match thread::prepare() {
            // Relaxed: nothing but the number matters.
            true => NEXT.fetch_add(1, Ordering::Relaxed),
            false => NEVER,
        };
        Self(
            thread::offset()
                .wrapping_add(size_of::<usize>() * if index < WORDS { index } else { NEVER }),
        )
    }

    /// The calling thread's magazines.
    #[inline(always)]
    pub(crate) fn get(self) -> &'static Magazines {
        // SAFETY: 1: invariant 1.
        unsafe { thread::read(self.0) }
    }

    /// Sets the calling thread's magazines; `false` if its end would not be noticed, and then nothing has changed.
    pub(crate) fn set(self, magazines: &'static Magazines) -> bool {
        // SAFETY: 1: invariant 1; it is no word that nobody has claimed, as that is never empty of a thread's own.
        thread::will_end() && unsafe { thread::write(self.0, magazines) }
    }
}

/// The slot of an allocator, which has none at first.
pub(crate) struct SlotOf(AtomicUsize);

impl SlotOf {
    pub(crate) const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Makes [`get`](Self::get) ready; `false` where there are no slots.
    pub(crate) fn start(&self) -> bool {
        let offset = thread::offset();
        if offset == 0 {
            return false;
        }
        let unclaimed = offset.wrapping_add(size_of::<usize>() * UNCLAIMED);
        // A slot that was claimed meanwhile stays.
        let _ = self.0.compare_exchange(0, unclaimed, Ordering::Relaxed, Ordering::Relaxed);
        true
    }

    /// Whether a slot was claimed, under the allocator's lock.
    pub(crate) fn is_claimed(&self) -> bool {
        let offset = self.0.load(Ordering::Relaxed);
        offset != 0 && offset != thread::offset().wrapping_add(size_of::<usize>() * UNCLAIMED)
    }

    /// Sets the slot, once.
    pub(crate) fn set(&self, slot: Slot) {
        self.0.store(slot.0, Ordering::Relaxed);
    }

    /// The slot.
    ///
    /// # Safety
    ///
    /// 1. [`start`](Self::start) has said yes before.
    #[inline(always)]
    pub(crate) unsafe fn get(&self) -> Slot {
        // Relaxed: the slot is the same for all threads. Who sees the one before takes the slow path. By 1 it is not 0.
        Slot(self.0.load(Ordering::Relaxed))
    }

    /// The calling thread's magazines; `None` if there are none.
    pub(crate) fn own(&self) -> Option<&'static Magazines> {
        let offset = self.0.load(Ordering::Relaxed);
        (offset != 0).then(|| Slot(offset).get()).filter(|own| own.home().is_some())
    }
}

/// Threads as the C library and the processor's ABI for ELF have them.
#[cfg(all(
    feature = "std",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod thread {
    use core::ffi::c_void;
    use core::ptr;
    use core::sync::atomic::{AtomicU64, Ordering};

    use super::{Magazines, NONE, UNKNOWN};
    use super::{NEVER, WORDS};

    core::arch::global_asm!(
        ".pushsection .tdata.pymalloc_core_0_1_slots, \"awT\", @progbits",
        ".balign 8",
        ".globl pymalloc_core_0_1_slots",
        ".hidden pymalloc_core_0_1_slots",
        ".type pymalloc_core_0_1_slots, @object",
        ".size pymalloc_core_0_1_slots, 8 * {words}",
        "pymalloc_core_0_1_slots:",
        ".quad {none}",
        ".rept {words} - 1",
        ".quad {unknown}",
        ".endr",
        ".popsection",
        words = const WORDS,
        none = sym NONE,
        unknown = sym UNKNOWN,
    );

    /// The key whose destructor is [`end`], plus one; 0 before it is made.
    static KEY: AtomicU64 = AtomicU64::new(0);

    /// Distance of the first word from the thread pointer; not 0.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn offset() -> usize {
        let offset;
        // SAFETY: reads a word that the linker has made.
        unsafe {
            core::arch::asm!(
                "mov {}, qword ptr [rip + pymalloc_core_0_1_slots@GOTTPOFF]",
                out(reg) offset,
                options(nostack, pure, readonly, preserves_flags),
            );
        }
        offset
    }

    /// Distance of the first word from the thread pointer; not 0.
    #[cfg(target_arch = "aarch64")]
    pub(super) fn offset() -> usize {
        let offset;
        // SAFETY: reads a word that the linker has made.
        unsafe {
            core::arch::asm!(
                "adrp {0}, :gottprel:pymalloc_core_0_1_slots",
                "ldr {0}, [{0}, :gottprel_lo12:pymalloc_core_0_1_slots]",
                out(reg) offset,
                options(nostack, pure, readonly, preserves_flags),
            );
        }
        offset
    }

    /// The word at `offset` from the thread pointer.
    ///
    /// # Safety
    ///
    /// 1. It is the distance of one of the words.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) unsafe fn read(offset: usize) -> &'static Magazines {
        let word: *const Magazines;
        // SAFETY: 1: reads a word of this thread.
        unsafe {
            core::arch::asm!(
                "mov {}, fs:[{}]",
                out(reg) word,
                in(reg) offset,
                options(nostack, pure, readonly, preserves_flags),
            );
        }
        // SAFETY: the words begin as references, and `write` puts others there.
        unsafe { &*word }
    }

    /// The word at `offset` from the thread pointer.
    ///
    /// # Safety
    ///
    /// 1. It is the distance of one of the words.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    pub(super) unsafe fn read(offset: usize) -> &'static Magazines {
        let word: *const Magazines;
        // SAFETY: 1: reads a word of this thread.
        unsafe {
            core::arch::asm!(
                "mrs {0}, tpidr_el0",
                "ldr {0}, [{0}, {1}]",
                out(reg) word,
                in(reg) offset,
                options(nostack, pure, readonly, preserves_flags),
            );
        }
        // SAFETY: the words begin as references, and `write` puts others there.
        unsafe { &*word }
    }

    /// Sets the word at `offset` from the thread pointer; answers `true`.
    ///
    /// # Safety
    ///
    /// 1. It is the distance of one of the words.
    #[cfg(target_arch = "x86_64")]
    pub(super) unsafe fn write(offset: usize, magazines: &'static Magazines) -> bool {
        // SAFETY: 1: writes a word of this thread.
        unsafe {
            core::arch::asm!(
                "mov fs:[{}], {}",
                in(reg) offset,
                in(reg) ptr::from_ref(magazines),
                options(nostack, preserves_flags),
            );
        }
        true
    }

    /// Sets the word at `offset` from the thread pointer; answers `true`.
    ///
    /// # Safety
    ///
    /// 1. It is the distance of one of the words.
    #[cfg(target_arch = "aarch64")]
    pub(super) unsafe fn write(offset: usize, magazines: &'static Magazines) -> bool {
        // SAFETY: 1: writes a word of this thread.
        unsafe {
            core::arch::asm!(
                "mrs {0}, tpidr_el0",
                "str {2}, [{0}, {1}]",
                out(reg) _,
                in(reg) offset,
                in(reg) ptr::from_ref(magazines),
                options(nostack, preserves_flags),
            );
        }
        true
    }

    fn key() -> Option<libc::pthread_key_t> {
        KEY.load(Ordering::Relaxed).checked_sub(1)?.try_into().ok()
    }

    /// Sees to it that ends of threads can be noticed; `false` if there is no memory.
    pub(super) fn prepare() -> bool {
        let mut key = 0;
        if self::key().is_some() {
            return true;
        }
        // SAFETY: a valid place, and a function that takes any value and does not unwind.
        if unsafe { libc::pthread_key_create(&raw mut key, Some(end)) } == 0 {
            let made = u64::from(key) + 1;
            let set = KEY.compare_exchange(0, made, Ordering::Relaxed, Ordering::Relaxed);
            if set.is_err() {
                // SAFETY: made above, and no thread has a value.
                unsafe { libc::pthread_key_delete(key) };
            }
        }
        self::key().is_some()
    }

    /// Sees to it that this thread's end is noticed; `false` if there is no memory.
    pub(super) fn will_end() -> bool {
        // Any value but null has the destructor run.
        // SAFETY: a key that is never deleted; the value is not read.
        key().is_some_and(
            |key| unsafe { libc::pthread_setspecific(key, (&raw const KEY).cast()) } == 0,
        )
    }

    /// Takes the magazines of a thread that ends from it. Destructors that come later do without.
    unsafe extern "C" fn end(_value: *mut c_void) {
        for index in NEVER..WORDS {
            let offset = offset().wrapping_add(size_of::<usize>() * index);
            // SAFETY: 1: one of the words.
            let magazines = unsafe { read(offset) };
            if let Some(home) = magazines.home() {
                // SAFETY: 1: one of the words.
                unsafe { write(offset, &NONE) };
                // SAFETY: 1: they were this thread's, and its word does not lead to them any more.
                unsafe { home.take_from_ended(magazines) };
            }
        }
    }

    /// The number of this process.
    pub(crate) fn process() -> i32 {
        // SAFETY: no preconditions.
        unsafe { libc::getpid() }
    }
}

/// Nothing is known of threads.
#[cfg(not(all(
    feature = "std",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
mod thread {
    use super::{Magazines, NONE};

    pub(super) fn offset() -> usize {
        0
    }

    /// # Safety
    ///
    /// None; as for the words of other systems.
    pub(super) unsafe fn read(_offset: usize) -> &'static Magazines {
        &NONE
    }

    /// # Safety
    ///
    /// None; as for the words of other systems.
    pub(super) unsafe fn write(_offset: usize, _magazines: &'static Magazines) -> bool {
        false
    }

    pub(super) fn prepare() -> bool {
        false
    }

    pub(super) fn will_end() -> bool {
        false
    }

    pub(crate) fn process() -> i32 {
        0
    }
}

pub(crate) use thread::process;
