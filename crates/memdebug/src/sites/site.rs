//! Owns where blocks were allocated and freed: taking a backtrace, keeping each distinct one once, showing it.
//!
//! A backtrace is kept as a record in mapped pages that are never given back, so that a [`Site`] is four bytes and stays
//! valid for the life of the process. Sixteen shards by hash, each behind its own lock, which is never held while a
//! backtrace is taken or shown. Leaves native frames to `native.rs`.

use core::fmt::{self, Write};
use core::num::NonZeroU32;
use core::ptr;

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

use pymem_sync::{ForkLock, Lock, Rank};

use crate::options::Options;
use crate::os::mapping::{MappedSlice, Mapping};
use crate::report::frames::{Ascii, CurrentFrames, FrameSink};
use crate::sites::native::{self, Outermost};

/// Where a block was allocated or freed: a backtrace that is kept for the life of the process.
///
/// `Display` gives one frame a line, most recent call first: the host's own frames (of a Python program, say), then
/// native ones. Making the names of native frames may allocate from the C library.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Site(NonZeroU32);

/// Unit of a site's number: records are 8-aligned.
const UNIT_BYTES: usize = 8;
const CHUNK_BYTES: usize = 1 << 20;
const UNITS_PER_CHUNK: usize = CHUNK_BYTES / UNIT_BYTES;
/// Most chunks: 2 GiB of backtraces. After that new ones are not kept.
const MAX_CHUNKS: usize = 2048;
/// Bits of a site's number: the registry has room for so many.
pub(crate) const SITE_BITS: u32 = 28;
const _: () = assert!(MAX_CHUNKS * UNITS_PER_CHUNK == 1 << SITE_BITS);
const SHARDS: usize = 16;
/// Hash chains of a shard.
const CHAINS: usize = 4096;
/// Frames kept of a reported call where no backtraces are on.
const CALLER_FRAMES: u8 = 16;
/// Bytes of host frames kept of one site.
const TEXT_BYTES: usize = 1024;

/// A record, followed by its frames and its text.
#[repr(C)]
struct Record {
    hash: u64,
    next: Option<Site>,
    frames: u8,
    text_bytes: u16,
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

/// A backtrace as it was taken.
struct Taken {
    frames: [usize; Options::MAX_FRAMES as usize],
    frame_count: usize,
    text: [u8; TEXT_BYTES],
    text_bytes: usize,
    /// Host frames still wanted.
    wanted: u8,
}

impl Taken {
    fn frames(&self) -> &[usize] {
        &self.frames[..self.frame_count]
    }

    fn text(&self) -> &[u8] {
        &self.text[..self.text_bytes]
    }

    /// FNV-1a, a word at a time over the frames.
    fn hash(&self) -> u64 {
        let step =
            |hash: u64, value: u64| (hash ^ value).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        let frames = self.frames().iter().fold(0xcbf2_9ce4_8422_2325, |h, &f| step(h, f as u64));
        self.text().iter().fold(frames, |h, &b| step(h, u64::from(b)))
    }
}

impl Write for Taken {
    /// All of the text or none of it.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.text_bytes + text.len();
        let place = self.text.get_mut(self.text_bytes..end).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.text_bytes = end;
        Ok(())
    }
}

impl FrameSink for Taken {
    fn frame(&mut self, file: &str, line: u32, function: Option<&str>) {
        let Some(wanted) = self.wanted.checked_sub(1) else {
            return;
        };
        self.wanted = wanted;
        let before = self.text_bytes;
        let written = write!(self, "  File \"{}\", line {line}", Ascii(file))
            .and_then(|()| function.map_or(Ok(()), |name| write!(self, ", in {}", Ascii(name))));
        if written.and_then(|()| self.write_str("\n")).is_err() {
            self.text_bytes = before;
            self.wanted = 0;
        }
    }

    fn is_full(&self) -> bool {
        self.wanted == 0
    }
}

impl Site {
    /// The calling thread's backtrace from the caller of the hooks on, up to `depth` frames of each sort; `None` if this
    /// thread is already capturing, or if there is no memory to keep the backtrace.
    pub(crate) fn here(
        depth: u8,
        current_frames: Option<CurrentFrames>,
        entry: Outermost,
    ) -> Option<Self> {
        let _alone = native::Alone::enter()?;
        let mut taken = Taken {
            frames: [0; Options::MAX_FRAMES as usize],
            frame_count: 0,
            text: [0; TEXT_BYTES],
            text_bytes: 0,
            wanted: depth,
        };
        if let Some(frames) = current_frames {
            frames(&mut taken);
        }
        taken.frame_count = native::native_frames(&mut taken.frames[..usize::from(depth)], entry);
        Self::intern(&taken)
    }

    /// The native frames of a call that is reported, `depth` of them, or 16 where that is 0: the host may know nothing of the
    /// thread.
    #[cold]
    pub(crate) fn of_caller(depth: u8, entry: Outermost) -> Option<Self> {
        Self::here(if depth == 0 { CALLER_FRAMES } else { depth }, None, entry)
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
            if record.hash == hash && site.frames() == taken.frames() && site.text() == taken.text()
            {
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
        unsafe { core::slice::from_raw_parts(start.cast(), usize::from(self.record().frames)) }
    }

    fn text(self) -> &'static [u8] {
        let frames = usize::from(self.record().frames) * size_of::<usize>();
        let start = self.start().wrapping_add(size_of::<Record>() + frames);
        // SAFETY: as in `record`: the text follows the frames.
        unsafe { core::slice::from_raw_parts(start, usize::from(self.record().text_bytes)) }
    }
}

// The frames that follow a record are aligned.
const _: () = assert!(size_of::<Record>() % align_of::<usize>() == 0);

impl Shard {
    /// Writes a record; `None` if there is no memory.
    fn store(&mut self, taken: &Taken, hash: u64, next: Option<Site>) -> Option<Site> {
        let frames = taken.frames();
        let text = taken.text();
        let bytes = size_of::<Record>() + size_of_val(frames) + text.len();
        let units = bytes.div_ceil(UNIT_BYTES);
        if units > self.units_left {
            self.new_chunk()?;
        }
        let site = Site(NonZeroU32::new(u32::try_from(self.next_unit).ok()?)?);
        self.next_unit += units;
        self.units_left -= units;
        let record =
            Record { hash, next, frames: frames.len() as u8, text_bytes: text.len() as u16 };
        let start = site.start().cast_mut();
        // SAFETY: `units` of fresh, 8-aligned memory of this shard's chunk; nobody knows the site yet.
        unsafe { start.cast::<Record>().write(record) };
        let after = start.wrapping_add(size_of::<Record>());
        // SAFETY: as above; the frames follow.
        unsafe { ptr::copy_nonoverlapping(frames.as_ptr(), after.cast(), frames.len()) };
        let after = after.wrapping_add(size_of_val(frames));
        // SAFETY: as above; the text follows.
        unsafe { ptr::copy_nonoverlapping(text.as_ptr(), after, text.len()) };
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
        // Only whole `str`s were stored.
        f.write_str(core::str::from_utf8(self.text()).unwrap_or_default())?;
        // What showing a name allocates is nobody's site.
        let _alone = native::Alone::enter();
        self.frames().iter().try_for_each(|&frame| native::write(frame, f))
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Site({})", self.0)
    }
}
