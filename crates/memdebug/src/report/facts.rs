//! Owns the snapshot of a suspicious block: header, guard, serial number and the ends of its data.
//! Leaves how to read memory that may be gone to `probe.rs`, and what the bytes mean to `hooks.rs` and `dump.rs`.

use crate::block::{HEADER_BYTES, SERIAL_BYTES, TAIL_BYTES, max_request};
use crate::os::probe;
use crate::pattern::{DEADBYTE, FORBIDDENBYTE};

/// Bytes shown from each end of the data.
pub(crate) const SHOWN_BYTES: usize = 8;

/// `N` bytes of memory, if they could be read.
pub(crate) type Peek<const N: usize> = Option<[u8; N]>;

/// How much of the hooks' layout a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All of it, or so it should be.
    Full,
    /// Filled dead; size and domain are known from elsewhere.
    #[cfg_attr(not(feature = "std"), expect(dead_code, reason = "made by the quarantine alone"))]
    Freed,
    /// Between guard pages, without header and guard bytes.
    #[cfg_attr(not(feature = "std"), expect(dead_code, reason = "made by guard pages alone"))]
    Guarded,
}

/// What stood at and around a pointer when a violation was met. A copy: nothing in it is read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockFacts {
    /// The caller's pointer.
    pub(crate) address: usize,
    pub(crate) shape: Shape,
    /// Size, id and pads.
    pub(crate) header: Peek<HEADER_BYTES>,
    /// The guard after the data; `None` too if the size is none that a block can have.
    pub(crate) tail: Peek<TAIL_BYTES>,
    /// Whether serial numbers are on, and the number if it could be read.
    pub(crate) serial: Option<Peek<SERIAL_BYTES>>,
    /// The first bytes of the data; only the first `min(size, 8)` count.
    pub(crate) first: Peek<SHOWN_BYTES>,
    /// The bytes after those, up to 8, or the last 8.
    pub(crate) last: Peek<SHOWN_BYTES>,
}

impl BlockFacts {
    /// Reads the block at `address`, trusting nothing: neither the pointer nor the size in front of it.
    pub(crate) fn read(address: usize, serial: bool) -> Self {
        let header = probe::peek::<HEADER_BYTES>(address.wrapping_sub(HEADER_BYTES));
        let mut facts = Self {
            address,
            shape: Shape::Full,
            header,
            tail: None,
            serial: serial.then_some(None),
            first: None,
            last: None,
        };
        let Some(size) = facts.plausible_size() else {
            return facts;
        };
        let tail = address.wrapping_add(size);
        facts.tail = probe::peek(tail);
        if serial {
            facts.serial = Some(probe::peek(tail.wrapping_add(TAIL_BYTES)));
        }
        facts.read_data(size);
        facts
    }

    fn read_data(&mut self, size: usize) {
        self.first = peek_up_to(self.address, size.min(SHOWN_BYTES));
        let rest = size.saturating_sub(SHOWN_BYTES).min(SHOWN_BYTES);
        self.last = peek_up_to(self.address.wrapping_add(size - rest), rest);
    }

    /// The facts of a block whose size and domain are known, with the ends of its data as they are now.
    #[cfg(feature = "std")]
    fn known(address: usize, size: usize, domain: malloc_api::Domain, shape: Shape) -> Self {
        let mut header = [FORBIDDENBYTE; HEADER_BYTES];
        header[..8].copy_from_slice(&(size as u64).to_be_bytes());
        header[8] = domain.letter();
        let mut facts = Self {
            address,
            shape,
            header: Some(header),
            tail: None,
            serial: None,
            first: None,
            last: None,
        };
        facts.read_data(size);
        facts
    }

    /// A block that a quarantine holds.
    #[cfg(feature = "std")]
    pub(crate) fn of_freed(address: usize, size: usize, domain: malloc_api::Domain) -> Self {
        Self::known(address, size, domain, Shape::Freed)
    }

    /// A block between guard pages.
    #[cfg(feature = "std")]
    pub(crate) fn guarded(address: usize, size: usize, domain: malloc_api::Domain) -> Self {
        Self::known(address, size, domain, Shape::Guarded)
    }

    /// The size that the header states.
    pub(crate) fn size(&self) -> Option<u64> {
        let header = self.header?;
        Some(u64::from_be_bytes(*header.first_chunk()?))
    }

    /// The stated size, if a block can have it.
    pub(crate) fn plausible_size(&self) -> Option<usize> {
        let size = usize::try_from(self.size()?).ok()?;
        let limit = max_request(self.serial.is_some());
        (size <= limit && self.address.checked_add(size).is_some()).then_some(size)
    }

    /// The id byte.
    pub(crate) fn id(&self) -> Option<u8> {
        self.header.map(|h| h[8])
    }

    /// The seven pads before the data.
    pub(crate) fn pads(&self) -> Option<&[u8]> {
        self.header.as_ref().map(|h| &h[9..])
    }

    /// Whether all seven pads before the data are intact.
    pub(crate) fn pads_intact(&self) -> bool {
        self.pads().is_some_and(|pads| pads.iter().all(|&b| b == FORBIDDENBYTE))
    }

    /// Whether id and pads are DEADBYTE: what a free leaves behind.
    pub(crate) fn header_is_dead(&self) -> bool {
        self.header.is_some_and(|h| h[8..].iter().all(|&b| b == DEADBYTE))
    }
}

/// Reads `len` bytes, which is at most 8, into the front of an array.
fn peek_up_to(address: usize, len: usize) -> Peek<SHOWN_BYTES> {
    let mut bytes = [0; SHOWN_BYTES];
    probe::read(address, &mut bytes[..len]).then_some(bytes)
}
