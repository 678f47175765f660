//! Owns where blocks were allocated and freed: as a number of the host's stack, or as a record of native frames; and showing both.
//!
//! A record stays in mapped pages that are never given back, so that a [`Site`] is four bytes and stays valid for the life of the
//! process. Sixteen shards by hash, each behind its own lock, which is never held while a backtrace is taken or shown. Leaves
//! taking native frames to `native.rs`, and the host's stacks to the host.

use core::fmt;
use core::num::NonZeroU32;
use core::ptr;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

use pymem_sync::{ForkLock, Lock, Rank};

use crate::options::Options;
use crate::os::mapping::{MappedSlice, Mapping};
use crate::report::frames::{Ascii, FrameSink, HostStacks};
use crate::sites::native::{self, Outermost};

/// Where a block was allocated or freed: a backtrace that is kept for the life of the process.
///
/// `Display` gives one frame a line, most recent call first: the host's own frames (of a Python program, say), then native ones:
/// of a call whose host shows no frames, of a call that is reported, and wherever they are asked for. Making the names of native frames may allocate from the C library.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Site(NonZeroU32);

/// Unit of a site's number: records are 8-aligned.
const UNIT_BYTES: usize = 8;
const CHUNK_BYTES: usize = 1 << 20;
const UNITS_PER_CHUNK: usize = CHUNK_BYTES / UNIT_BYTES;
/// Most chunks: 256 MiB of native backtraces. After that new ones are not kept.
const MAX_CHUNKS: usize = 256;
/// Bits of a site's number: the registry has room for so many.
pub(crate) const SITE_BITS: u32 = 28;
/// Bits of a record's unit, or of the number of a host's stack. Those above are 0 for a record, else the number of the host's stacks.
const NUMBER_BITS: u32 = 25;
const _: () = assert!(MAX_CHUNKS * UNITS_PER_CHUNK == 1 << NUMBER_BITS);
const _: () = assert!(HostStacks::MAX == (1 << NUMBER_BITS) - 1);
const SHARDS: usize = 16;
/// Hash chains of a shard.
const CHAINS: usize = 4096;
/// Frames kept of a reported call where no backtraces are on.
const CALLER_FRAMES: u8 = 16;

/// A record, followed by its native frames.
#[repr(C)]
struct Record {
    hash: u64,
    next: Option<Site>,
    /// The host's stack.
    host: Option<Site>,
    frames: usize,
}

static CHUNKS: [AtomicPtr<u8>; MAX_CHUNKS] =
    [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CHUNKS];
static CHUNK_COUNT: AtomicUsize = AtomicUsize::new(0);
static SHARD: [Lock<Shard>; SHARDS] =
    [const { Lock::new(Shard { chains: None, next_unit: 0, units_left: 0 }) }; SHARDS];

/// For a fork: nobody waits for another lock while holding one of these.
pub(crate) static FORK_LOCK: ForkLock = ForkLock::new(Rank::Memory, &SHARD);

pub(crate) struct Shard {
    chains: Option<MappedSlice<u32>>,
    next_unit: usize,
    units_left: usize,
}

/// How many shards are locked.
#[cfg(test)]
pub(crate) fn locked() -> usize {
    SHARD.iter().filter(|shard| shard.raw().is_locked()).count()
}

/// Who keeps host stacks, by number from 1 on.
static HOSTS: [OnceLock<&'static HostStacks>; (1 << (SITE_BITS - NUMBER_BITS)) - 1] =
    [const { OnceLock::new() }; (1 << (SITE_BITS - NUMBER_BITS)) - 1];

/// Which frames a site has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Depth {
    /// How many of each sort.
    pub(crate) frames: u8,
    /// Whether native ones are kept where the host has some.
    pub(crate) native: bool,
}

impl Depth {
    /// What these options ask for; `None` where backtraces are off.
    pub(crate) fn of(options: &Options) -> Option<Self> {
        (options.backtrace > 0)
            .then_some(Self { frames: options.backtrace, native: options.native })
    }
}

/// A backtrace with native frames, as it was taken.
struct Taken {
    host: Option<Site>,
    frames: [usize; Options::MAX_FRAMES as usize],
    frame_count: usize,
}

impl Taken {
    fn frames(&self) -> &[usize] {
        &self.frames[..self.frame_count]
    }

    /// FNV-1a, a word at a time.
    fn hash(&self) -> u64 {
        let step =
            |hash: u64, value: u64| (hash ^ value).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        let host = step(0xcbf2_9ce4_8422_2325, Site::to_bits(self.host).into());
        self.frames().iter().fold(host, |h, &f| step(h, f as u64))
    }
}

impl Site {
    /// The calling thread's backtrace from the caller of the hooks on; `None` if this thread is already capturing, or if there is
    /// no memory to keep the backtrace.
    #[inline]
    pub(crate) fn here(
        depth: Depth,
        stacks: Option<&'static HostStacks>,
        entry: Outermost,
    ) -> Option<Self> {
        let host = match stacks {
            Some(stacks) => Self::of_host(stacks, (stacks.current)()?),
            None => None,
        };
        if host.is_some() && !depth.native { host } else { Self::native(host, depth.frames, entry) }
    }

    /// A stack of the host; `None` for none, and where hosts or numbers have run out.
    #[inline]
    fn of_host(stacks: &'static HostStacks, number: u32) -> Option<Self> {
        if number == 0 || number > HostStacks::MAX {
            return None;
        }
        let is_it = |place: &OnceLock<_>| ptr::eq(*place.get_or_init(|| stacks), stacks);
        let host = HOSTS.iter().position(is_it)? as u32 + 1;
        Self::from_bits(host << NUMBER_BITS | number)
    }

    /// The native frames that are added to those of the host, `depth` of them.
    #[inline(never)]
    fn native(host: Option<Self>, depth: u8, entry: Outermost) -> Option<Self> {
        let _alone = native::Alone::enter()?;
        let frames = [0; Options::MAX_FRAMES as usize];
        let mut taken = Taken { host: host.map(Self::alike), frames, frame_count: 0 };
        taken.frame_count = native::native_frames(&mut taken.frames[..usize::from(depth)], entry);
        Self::intern(&taken)
    }

    /// The backtrace of a call that is reported: native frames, and those of `stacks`, as many as `depth` says, or 16. Whoever
    /// reports a thread that may not call leaves the stacks out.
    #[cold]
    pub(crate) fn of_caller(
        depth: Option<Depth>,
        stacks: Option<&'static HostStacks>,
        entry: Outermost,
    ) -> Option<Self> {
        let frames = depth.map_or(CALLER_FRAMES, |depth| depth.frames);
        let here = Self::here(Depth { frames, native: true }, stacks, entry);
        here.or_else(|| Self::native(None, frames, entry))
    }

    /// The backtrace of native frames that were taken already, as many as a site can have.
    #[cold]
    pub(crate) fn of_frames(from: &[native::Frame]) -> Option<Self> {
        let mut frames = [0; Options::MAX_FRAMES as usize];
        let places = frames.iter_mut().zip(from);
        let frame_count = places.map(|(place, frame)| *place = frame.at).count();
        Self::intern(&Taken { host: None, frames, frame_count })
    }

    /// One site for all whose frames are shown alike.
    pub(crate) fn alike(self) -> Self {
        let Some((stacks, number)) = self.host() else { return self };
        Self::of_host(stacks, (stacks.alike)(number)).unwrap_or(self)
    }

    /// Who keeps this stack, and its number there; `None` for a record.
    fn host(self) -> Option<(&'static HostStacks, u32)> {
        let host = (self.0.get() >> NUMBER_BITS).checked_sub(1)?;
        Some((HOSTS.get(host as usize)?.get()?, self.0.get() & HostStacks::MAX))
    }

    fn intern(taken: &Taken) -> Option<Self> {
        let hash = taken.hash();
        let mut shard = SHARD[hash as usize % SHARDS].lock();
        let chain = (hash >> 32) as usize % CHAINS;
        if shard.chains.is_none() {
            shard.chains = Some(MappedSlice::new(CHAINS)?);
        }
        let first = Self::from_bits(shard.chains.as_deref()?[chain]);
        let mut next = first;
        while let Some(site) = next {
            let record = site.record();
            let is_same = (record.hash, record.host) == (hash, taken.host);
            if is_same && site.frames() == taken.frames() {
                return Some(site);
            }
            next = record.next;
        }
        let site = shard.store(taken, hash, first)?;
        shard.chains.as_deref_mut()?[chain] = Self::to_bits(Some(site));
        Some(site)
    }

    /// A site as 32 bits, 0 for none.
    #[inline]
    pub(crate) fn to_bits(site: Option<Self>) -> u32 {
        site.map_or(0, |site| site.0.get())
    }

    /// The inverse of [`to_bits`](Self::to_bits).
    #[inline]
    pub(crate) fn from_bits(bits: u32) -> Option<Self> {
        NonZeroU32::new(bits).map(Self)
    }

    fn start(self) -> *const u8 {
        let unit = self.0.get() as usize;
        // Relaxed: whoever has a site got it from the thread that stored it, through a lock at least.
        let chunk = CHUNKS[unit / UNITS_PER_CHUNK].load(Relaxed);
        chunk.wrapping_add(unit % UNITS_PER_CHUNK * UNIT_BYTES)
    }

    fn record(self) -> &'static Record {
        // SAFETY: `Shard::store` wrote a record here before it made the site; records never change or go.
        unsafe { &*self.start().cast() }
    }

    fn frames(self) -> &'static [usize] {
        let start = self.start().wrapping_add(size_of::<Record>());
        // SAFETY: as in `record`: the frames follow it, and it is 8-aligned and a multiple of 8 bytes.
        unsafe { core::slice::from_raw_parts(start.cast(), self.record().frames) }
    }
}

// The frames that follow a record are aligned.
const _: () = assert!(size_of::<Record>() % align_of::<usize>() == 0);

impl Shard {
    /// Writes a record; `None` if there is no memory.
    fn store(&mut self, taken: &Taken, hash: u64, next: Option<Site>) -> Option<Site> {
        let frames = taken.frames();
        let bytes = size_of::<Record>() + size_of_val(frames);
        let units = bytes.div_ceil(UNIT_BYTES);
        if units > self.units_left {
            self.new_chunk()?;
        }
        let site = Site(NonZeroU32::new(u32::try_from(self.next_unit).ok()?)?);
        self.next_unit += units;
        self.units_left -= units;
        let record = Record { hash, next, host: taken.host, frames: frames.len() };
        let start = site.start().cast_mut();
        // SAFETY: `units` of fresh, 8-aligned memory of this shard's chunk; nobody knows the site yet.
        unsafe { start.cast::<Record>().write(record) };
        let after = start.wrapping_add(size_of::<Record>());
        // SAFETY: as above; the frames follow.
        unsafe { ptr::copy_nonoverlapping(frames.as_ptr(), after.cast(), frames.len()) };
        Some(site)
    }

    fn new_chunk(&mut self) -> Option<()> {
        let pages = Mapping::zeroed(CHUNK_BYTES)?;
        let index = CHUNK_COUNT.fetch_add(1, Relaxed);
        if index >= MAX_CHUNKS {
            CHUNK_COUNT.store(MAX_CHUNKS, Relaxed);
            return None;
        }
        CHUNKS[index].store(pages.start().as_ptr(), Relaxed);
        core::mem::forget(pages);
        // Unit 0 of chunk 0 would be the number of no site.
        let skipped = usize::from(index == 0);
        self.next_unit = index * UNITS_PER_CHUNK + skipped;
        self.units_left = UNITS_PER_CHUNK - skipped;
        Some(())
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((stacks, number)) = self.host() {
            let mut lines = Lines { out: f, result: Ok(()) };
            (stacks.show)(number, &mut lines);
            return lines.result;
        }
        if let Some(host) = self.record().host {
            host.fmt(f)?;
        }
        // What showing a name allocates is nobody's site.
        let _alone = native::Alone::enter();
        self.frames().iter().try_for_each(|&frame| native::write(frame, f))
    }
}

/// Writes each frame as a line.
struct Lines<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    result: fmt::Result,
}

impl FrameSink for Lines<'_, '_> {
    fn frame(&mut self, file: &str, line: u32, function: Option<&str>) {
        let Self { out, result } = self;
        *result = result
            .and_then(|()| write!(out, "  File \"{}\", line {line}", Ascii(file)))
            .and_then(|()| function.map_or(Ok(()), |name| write!(out, ", in {}", Ascii(name))))
            .and_then(|()| out.write_str("\n"));
    }

    fn is_full(&self) -> bool {
        self.result.is_err()
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Site({})", self.0)
    }
}
